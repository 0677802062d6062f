package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
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
func drilled(t *testing.T, start func(*proxytest.Host)) (h *proxytest.Host, call func() bool) {
	h = proxytest.New(t)
	start(h)
	c := h.Client()
	return h, func() bool { ok, _ := drillCall(c); return ok }
}

func inProcess(h *proxytest.Host) { h.Start() }

func asProgram(h *proxytest.Host) {
	h.StartProcess()
	h.Seal()
}

func drillCall(c *http.Client) (ok bool, said string) {
	resp, err := c.Get("http://localhost/api/x")
	if err != nil {
		return false, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // it is to be shown
	return resp.StatusCode == http.StatusOK, string(body)
}

// The agents of a drill are processes of the test program: drillAgent says which, and
// drillSocket where calls are made.
const (
	drillAgent  = "TEST_DRILL_AGENT"
	drillSocket = "TEST_DRILL_SOCKET"
)

// beAgent makes calls until it is killed, or for one that ends until it is refused.
func beAgent(kind string) {
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", os.Getenv(drillSocket))
	}}}
	pause := map[string]time.Duration{"ends": 100 * time.Millisecond, "goes on": 1500 * time.Millisecond}[kind]
	for range time.Tick(pause) {
		ok, said := drillCall(c)
		if kind == "ends" && !ok {
			fmt.Fprintln(os.Stderr, said)
			os.Exit(3)
		}
	}
}

// run starts a command of an agent or an administrator, which is ended with the test.
func run(t *testing.T, h *proxytest.Host, name string, args ...string) (cmd *exec.Cmd, said *daemontest.Lines) {
	t.Helper()
	cmd, said = exec.Command(name, args...), daemontest.NewLines()
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"), drillSocket+"="+h.Path("proxy.sock"))
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if name == os.Args[0] {
		cmd.Env = append(cmd.Env, drillAgent+"="+args[0])
		cmd.Args = cmd.Args[:1]
	}
	must(t, cmd.Start())
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	return cmd, said
}

func vouch(t *testing.T, h *proxytest.Host, args ...string) (cmd *exec.Cmd, said *daemontest.Lines) {
	t.Helper()
	return run(t, h, daemontest.Program(t, "vouch"), args...)
}

// everything is what the log has, in its order.
func everything(t *testing.T, h *proxytest.Host) (all []audit.Leaf) {
	t.Helper()
	for line := range strings.Lines(h.OK("log", "show", "--output", "json")) {
		leaf, err := audit.DecodeLeaf([]byte(strings.TrimSpace(line)))
		must(t, err)
		all = append(all, leaf)
	}
	return all
}

// recordOf is the place of the first record of an event that says so, with any outcome if that
// is empty; -1: there is none.
func recordOf(all []audit.Leaf, event audit.Event, outcome audit.Outcome, says string) int {
	for i, r := range all {
		if r.Event == event && (outcome == "" || r.Outcome == outcome) && strings.Contains(r.Reason, says) {
			return i
		}
	}
	return -1
}

func TestADrillTellsWhatEachAgentDoesWithoutItsCredential(t *testing.T) {
	t.Parallel()
	h, _ := drilled(t, inProcess)
	ends, said := run(t, h, os.Args[0], "ends")
	goesOn, _ := run(t, h, os.Args[0], "goes on")
	eventually(t, "there are two leases", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		return err == nil && len(leases) == 2
	})
	run(t, h, "sh", "-c", `while :; do "$0" exec --proxy api -- true 2>/dev/null; done`, daemontest.Program(t, "vouch")) // loops

	out, stderr, code := h.Vouch("drill", "revoke", "--credential", "api", "--for", "8s", "--recovery", "20s", "--yes", "--output", "json")
	if code != 1 {
		t.Errorf("exits %d: %s", code, stderr)
	}
	var report struct {
		view.Drill
		Verdicts []struct {
			view.DrillHolder
			Verdict string
			OK      bool
		}
	}
	must(t, json.Unmarshal([]byte(out), &report))
	if report.Ended.IsZero() || report.Leases < 2 || report.Interrupted || report.Unconfirmed != "" {
		t.Errorf("it tells %s", out)
	}
	seen := make(map[string]int)
	for _, v := range report.Verdicts {
		switch {
		case v.PID == ends.Process.Pid:
			seen["ends"]++
			if v.Verdict != "ended" || v.Calls != 1 || !v.OK {
				t.Errorf("of who ends: %+v", v)
			}
		case v.PID == goesOn.Process.Pid:
			seen["goes on"]++
			if v.Verdict != "pauses" || v.Calls < 2 || v.Asks != 0 || v.Recovered.IsZero() || !v.OK {
				t.Errorf("of who goes on with what it has: %+v", v)
			}
		case !v.Held:
			seen["loops"]++
			if v.Verdict != "loops" || v.Asks == 0 || v.Recovered.IsZero() || v.OK {
				t.Errorf("of who tries again without a pause: %+v", v)
			}
		}
	}
	if seen["ends"] != 1 || seen["goes on"] != 1 || seen["loops"] != 1 {
		t.Errorf("it tells of %v: %s", seen, out)
	}
	ends.Wait()
	if text := said.String(); !strings.Contains(text, "lease was revoked by an administrator") || strings.Contains(text, "drill") {
		t.Errorf("an agent was told: %s", text)
	}

	all := everything(t, h)
	pull := recordOf(all, audit.EventAdmin, audit.Success, "withhold credential api for a drill of 8s, until 20")
	over := recordOf(all, audit.EventAdmin, audit.Success, "the drill is over: credential api is granted again")
	gone := recordOf(all, audit.EventLeaseEnd, "", "revoked by an administrator, for a drill")
	call := recordOf(all, audit.EventCall, audit.Denied, "revoked for a drill: api: withheld until")
	ask := recordOf(all, audit.EventLeaseIntent, audit.Denied, "revoked for a drill: api: withheld until")
	if pull < 0 || gone < pull || call < pull || ask < pull || over < max(gone, call, ask) {
		t.Fatalf("the log has the pull at %d, the ends from %d, refused calls from %d and asks from %d, and the end at %d", pull, gone, call, ask, over)
	}
	for i, r := range all[pull:over] {
		if (r.Event == audit.EventLeaseGrant || r.Event == audit.EventCall) && r.Outcome == audit.Success && r.Time.After(all[gone].Time) {
			t.Errorf("record %d is of something granted during the drill: %+v", pull+i, r)
		}
	}
	if w := all[over].Workload; w == nil || w.PID != all[pull].Workload.PID {
		t.Errorf("the end is recorded of %+v", w)
	}
}

func TestADrillEndsByItselfWhateverBecomesOfWhoBeganIt(t *testing.T) {
	t.Parallel()
	h, call := drilled(t, inProcess)
	if _, stderr, code := h.Vouch("drill", "revoke", "--credential", "api", "--yes"); code != 1 || !strings.Contains(stderr, "nobody holds a lease of this credential: api; start what uses it") {
		t.Errorf("without a lease it exits %d: %s", code, stderr)
	}
	if !call() {
		t.Fatal("it is not called before the drill")
	}
	if _, stderr, code := h.Vouch("drill", "revoke", "--credential", "api"); code != 2 || !strings.Contains(stderr, "--yes") {
		t.Errorf("without a terminal it exits %d: %s", code, stderr)
	}
	begin, _ := vouch(t, h, "drill", "revoke", "--credential", "api", "--for", "3s", "--yes")
	eventually(t, "it is withheld", func() bool { return !call() })
	must(t, begin.Process.Kill())
	eventually(t, "it is given back", call)

	begin, _ = vouch(t, h, "drill", "revoke", "--credential", "api", "--for", "1h", "--recovery", "1s", "--yes")
	eventually(t, "it is withheld again", func() bool { return !call() })
	must(t, begin.Process.Signal(syscall.SIGINT))
	eventually(t, "it is given back at once", call)

	withhold := func() {
		_, err := h.Admin().BeginDrill(t.Context(), view.DrillRequest{Credential: "api", For: time.Hour})
		must(t, err)
		if call() {
			t.Error("it is called during the drill")
		}
	}
	withhold()
	if _, err := h.Admin().BeginDrill(t.Context(), view.DrillRequest{Credential: "api", For: time.Hour}); err == nil || !strings.Contains(err.Error(), "is going on") {
		t.Errorf("a second one: %v", err)
	}
	if p := strings.Join(h.Problems(), "\n"); !strings.Contains(p, "vouch drill end --credential api gives it back now") {
		t.Errorf("status says %s", p)
	}
	h.OK("drill", "end", "--credential", "api")
	if p := strings.Join(h.Problems(), "\n"); strings.Contains(p, "drill") {
		t.Errorf("after the end, status says %s", p)
	}
	eventually(t, "it is given back by another command", call)
	withhold()
	h.Stop()
	h.Host.Start()
	eventually(t, "it is given back by a start", call)
}

func TestADrillIsOverAndRecordedOnceAKilledDaemonStartsAnew(t *testing.T) {
	t.Parallel()
	h, call := drilled(t, asProgram)
	if !call() {
		t.Fatal("it is not called before the drill")
	}
	begin, said := vouch(t, h, "drill", "revoke", "--credential", "api", "--identity", "spiffe://example.org/agent", "--for", "1h", "--yes")
	said.Wait(t, "Ctrl-C gives it back")
	if call() {
		t.Error("it is called during the drill")
	}
	h.Kill()
	h.StartProcess()
	h.Ready()
	eventually(t, "it is given back", call)
	if err := begin.Wait(); begin.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), "vouchd was started anew during the drill, and has given api back") {
		t.Errorf("the command ends with %v, and says %s", err, said)
	}
	h.Stop()
	h.StartProcess()
	told := 0
	for _, r := range daemontest.RecordsYet(h.Host, string(audit.EventAdmin), audit.Success) {
		if strings.Contains(r.Reason, "the drill is over, since vouchd started anew: credential api from spiffe://example.org/agent is granted again") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the log has the end %d times", told)
	}
	if _, err := os.Stat(h.Path("state/drills")); !os.IsNotExist(err) {
		t.Errorf("the drill is kept: %v", err)
	}
}

func TestALeaseThatIsRevokedDuringADrillStaysRevoked(t *testing.T) {
	t.Parallel()
	h, call := drilled(t, inProcess)
	if !call() {
		t.Fatal("it is not called before the drill")
	}
	_, err := h.Admin().BeginDrill(t.Context(), view.DrillRequest{Credential: "api", For: time.Hour})
	must(t, err)
	if out := h.OK("lease", "revoke", "--credential", "api"); !strings.Contains(out, "1 lease ended") {
		t.Errorf("revoking says %s", out)
	}
	h.OK("drill", "end", "--credential", "api")
	if call() {
		t.Error("the end of the drill has undone the revocation")
	}
}
