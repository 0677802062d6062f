package daemon_test

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// drilled is a host whose calls are answered, and a way to make one.
func drilled(t *testing.T) (h *proxytest.Host, call func() bool) {
	h = proxytest.New(t)
	h.Upstream.Handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	h.Start()
	c := h.Client()
	return h, func() bool {
		resp, err := c.Get("http://localhost/api/x")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
}

// vouch starts vouch on the host.
func vouch(t *testing.T, h *proxytest.Host, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(daemontest.Program(t, "vouch"), args...)
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
	cmd.Stderr = t.Output()
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestADrillTellsWhatEachAgentDoesWithoutItsCredential(t *testing.T) {
	t.Parallel()
	h, call := drilled(t)
	if !call() {
		t.Fatal("it is not called before the drill")
	}
	ends := vouch(t, h, "exec", "--proxy", "api", "--", "sleep", "600")
	eventually(t, "there are two leases", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		return err == nil && len(leases) == 2
	})
	over := make(chan struct{})
	t.Cleanup(func() { <-over; <-over })
	enough := make(chan struct{})
	every := func(pause time.Duration, do func()) {
		defer func() { over <- struct{}{} }()
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-enough:
				return
			case <-tick.C:
				do()
			}
		}
	}
	defer close(enough)
	go every(2*time.Second, func() { call() })
	go every(20*time.Millisecond, func() { h.Vouch("exec", "--proxy", "api", "--", "true") })

	out, stderr, code := h.Vouch("drill", "revoke", "--credential", "api", "--for", "8s", "--recovery", "20s", "--yes", "--output", "json")
	if code != 1 {
		t.Errorf("exits %d: %s", code, stderr)
	}
	var report struct {
		view.Drill
		Verdicts []struct {
			view.DrillHolder
			Did, Back string
			OK        bool
		}
	}
	must(t, json.Unmarshal([]byte(out), &report))
	if report.Ended.IsZero() || report.Leases < 2 || len(report.Verdicts) < 3 {
		t.Fatalf("it tells %s", out)
	}
	seen := make(map[string]int)
	for _, v := range report.Verdicts {
		switch {
		case v.PID == ends.Process.Pid:
			seen["ends"]++
			if !strings.Contains(v.Did, "its process ended") || !v.OK {
				t.Errorf("of who ends: %+v", v)
			}
		case v.PID == os.Getpid():
			seen["calls"]++
			if v.Calls == 0 || v.Asks != 0 || v.Recovered.IsZero() || !v.OK {
				t.Errorf("of who goes on with a handle: %+v", v)
			}
		case !v.Held:
			seen["loops"]++
			if !strings.Contains(v.Did, "tight loop") || v.Recovered.IsZero() || v.OK {
				t.Errorf("of who tries again without a pause: %+v", v)
			}
		}
	}
	if seen["ends"] != 1 || seen["calls"] != 1 || seen["loops"] != 1 {
		t.Errorf("it tells of %v: %s", seen, out)
	}
	told := ""
	for _, r := range daemontest.RecordsYet(h.Host, string(audit.EventAdmin), audit.Success) {
		told += r.Reason + "\n"
	}
	for _, want := range []string{"withhold credential api for a drill of 8s", "the drill is over: credential api is granted again"} {
		if !strings.Contains(told, want) {
			t.Errorf("the log has not %q: %s", want, told)
		}
	}
}

func TestADrillEndsByItselfWhateverBecomesOfWhoBeganIt(t *testing.T) {
	t.Parallel()
	h, call := drilled(t)
	if _, stderr, code := h.Vouch("drill", "revoke", "--credential", "api", "--yes"); code != 1 || !strings.Contains(stderr, "nobody holds a lease of this credential") {
		t.Errorf("without a lease it exits %d: %s", code, stderr)
	}
	if !call() {
		t.Fatal("it is not called before the drill")
	}
	if _, stderr, code := h.Vouch("drill", "revoke", "--credential", "api"); code != 2 || !strings.Contains(stderr, "--yes") {
		t.Errorf("without a terminal it exits %d: %s", code, stderr)
	}
	begin := vouch(t, h, "drill", "revoke", "--credential", "api", "--for", "3s", "--yes")
	eventually(t, "it is withheld", func() bool { return !call() })
	must(t, begin.Process.Kill())
	eventually(t, "it is given back", call)

	begin = vouch(t, h, "drill", "revoke", "--credential", "api", "--for", "1h", "--recovery", "1s", "--yes")
	eventually(t, "it is withheld again", func() bool { return !call() })
	must(t, begin.Process.Signal(syscall.SIGINT))
	eventually(t, "it is given back at once", call)

	_, err := h.Admin().BeginDrill(t.Context(), view.DrillRequest{Credential: "api", For: time.Hour})
	must(t, err)
	if _, err := h.Admin().BeginDrill(t.Context(), view.DrillRequest{Credential: "api", For: time.Hour}); err == nil || !strings.Contains(err.Error(), "is going on") {
		t.Errorf("a second one: %v", err)
	}
	if call() {
		t.Error("it is called during the drill")
	}
	h.Stop()
	h.Host.Start()
	eventually(t, "it is given back by a start", call)
}
