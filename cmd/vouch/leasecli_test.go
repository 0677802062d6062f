package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func TestCommandLineLeases(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	for _, tt := range []struct {
		args     []string
		code     int
		out, err string // regular expressions
	}{
		{[]string{"get", "tides"}, 1, `^$`, `ends with the process .* vouch exec`},
		{[]string{"get", "ungranted"}, 1, `^$`, `not granted`},
		{[]string{"get", "tides-for-all", "--param", "table=pg_authid"}, 1, `^$`, `"pg_authid" is not one of tides`},
		{[]string{"get", "tides-for-all", "--param", "nonsense=1"}, 1, `^$`, `no parameter "nonsense"`},
		{[]string{"get", "tides-for-all", "--ttl", "2h"}, 1, `^$`, `above the 1h`},
		{[]string{"get", "tides-for-all", "--param", "table"}, 2, `^$`, `want key=value`},
		{[]string{"get", "tides-for-all", "--output", "yaml"}, 2, `^$`, `want text or json or env`},
		{[]string{"get"}, 2, `^$`, `accepts 1 arg`},
		{[]string{"get", "tides-for-all", "--field", "username"}, 0, `^vouch_tides_for_all_\w+$`, `^$`},
		{[]string{"get", "tides-for-all", "--output", "env"}, 0, `(?m)^PASSWORD='[^']+'$`, `^$`},
		{[]string{"exec", "--", "true"}, 2, `^$`, `--credential NAME=VARIABLE or --env-file is required`},
		{[]string{"exec", "--credential", "tides", "--", "true"}, 2, `^$`, `want NAME=VARIABLE`},
		{[]string{"exec", "--credential", "tides=PG", "--", "sh", "-c", "echo $PG_USERNAME; exit 7"}, 7, `^vouch_tides_\w+\n$`, `^$`},
		{[]string{"exec", "--credential", "tides:username=WHO", "--", "sh", "-c", "echo $WHO; kill -KILL $$"}, 137, `^vouch_tides_\w+\n$`, `^$`},
		{[]string{"exec", "--on-revoke", "panic", "--credential", "tides=PG", "--", "true"}, 2, `^$`, `want signal, stop or ignore`},
		{[]string{"exec", "--credential", "tides:nothing=WHO", "--", "true"}, 2, `^$`, `no field "nothing"`},
		{[]string{"exec", "--credential", "tides=PG", "--", "/nonexistent"}, 127, `^$`, `nonexistent`},
		{[]string{"lease", "revoke"}, 2, `^$`, `--all alone`},
		{[]string{"lease", "revoke", "--credential", "tides", "--all"}, 2, `^$`, `--all alone`},
		{[]string{"lease", "revoke", "--identity", "nobody"}, 2, `^$`, `--identity`},
		{[]string{"lease", "list"}, 0, `tides-for-all\s+spiffe://example\.org/agent\s+active`, `^$`},
		{[]string{"lease", "revoke", "--identity", "spiffe://example.org/other"}, 0, `^0 leases`, `^$`},
		{[]string{"lease", "revoke", "--credential", "tides-for-all"}, 0, `^2 leases`, `^$`},
		{[]string{"lease", "list"}, 0, `^$`, `^$`},
	} {
		out, stderr, code := h.Vouch(tt.args...)
		if code != tt.code || !matches(tt.out, out) || !matches(tt.err, stderr) {
			t.Errorf("vouch %s exits %d, want %d\n-- out, want %s --\n%s-- err, want %s --\n%s", strings.Join(tt.args, " "), code, tt.code, tt.out, out, tt.err, stderr)
		}
	}
	var n int
	roles := h.roles("tides-for-all")
	must(t, pg.Admin(t, "postgres").QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)", roles).Scan(&n))
	if len(roles) != 2 || n != 0 {
		t.Errorf("of the roles %q, %d are left", roles, n)
	}
	for event, reason := range map[string]string{
		"admin.request":      "revoke leases of credential tides-for-all",
		"lease.grant_intent": `"ungranted" to spiffe://example.org/agent`,
	} {
		if out, _, _ := h.Vouch("log", "show", "--event", event); !strings.Contains(out, reason) {
			t.Errorf("the log does not say %q:\n%s", reason, out)
		}
	}
}

// roles returns every role that was leased, as the log has them.
func (h *host) roles(credential string) (names []string) {
	h.T.Helper()
	out, stderr, code := h.Vouch("log", "show", "--credential", credential, "--event", "lease.grant", "--output", "json")
	if code != 0 {
		h.T.Fatalf("vouch log show: %s", stderr)
	}
	for line := range strings.Lines(out) {
		var r leasetest.Record
		must(h.T, json.Unmarshal([]byte(line), &r))
		if r.Event == "lease.grant" {
			names = append(names, r.Credential.Handle)
		}
	}
	return names
}

func TestExecPassesSignalsAndRevokesAfterwards(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	cmd := exec.Command(daemontest.Program(t, "vouch"), "exec", "--credential", "tides=PG", "--", "sh", "-c",
		`trap 'read last; echo "$last"; exit 9' TERM; printf '{"Username":"%s","Password":"%s"}\n' "$PG_USERNAME" "$PG_PASSWORD"; while :; do sleep 0.01; done`)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
	cmd.Stdin = strings.NewReader("streams are the command's\n")
	out := daemontest.NewLines()
	cmd.Stdout = out
	cmd.Stderr = t.Output()
	must(t, cmd.Start())
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait(); out.Close() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-out.Closed() })
	var l leasetest.Login
	must(t, json.Unmarshal([]byte(out.Wait(t, "Username")), &l))
	session := l.Thief(t, pg)
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	<-waited
	if code := cmd.ProcessState.ExitCode(); code != 9 || !strings.Contains(out.String(), "streams are the command's") {
		t.Errorf("exits %d, want 9, and said %q", code, out)
	}
	// Revoked when vouch ends, and not some time later.
	if conn, err := pg.Login(t.Context(), l.Username, l.Password, "postgres"); err == nil {
		conn.Close(t.Context())
		t.Error("the login works after the command has ended")
	}
	if session.Ping(t.Context()) == nil {
		t.Error("a session goes on after the command has ended")
	}
	h.CheckSecret(l)
}

func TestRemovingTheGrantEndsTheLease(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	a := leasetest.StartAgent(t, h.Host)
	session := a.Thief(t, pg)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [tides-for-all]}\n", os.Getuid()))
	eventually(t, "the session of the lease ends", func() bool { return session.Ping(t.Context()) != nil })
	_, stderr, code := h.Vouch("exec", "--credential", "tides=PG", "--", "true")
	if code != 1 || !strings.Contains(stderr, "not granted") {
		t.Errorf("asking again exits %d: %s", code, stderr)
	}
}

func TestBrokenCredentialsLeaveTheLastGoodInForce(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	h.Start()
	good, err := os.ReadFile(h.Path("credentials.d/a.yaml"))
	must(t, err)
	status := func() view.Status {
		st, err := h.Admin().Status(t.Context())
		must(t, err)
		return st
	}
	h.Write("credentials.d/a.yaml", strings.Replace(string(good), "max_ttl", "maximum_ttl", 1))
	eventually(t, "status says what is wrong", func() bool { return strings.Contains(status().Credentials.Error, "maximum_ttl") })
	if _, stderr, code := h.Vouch("exec", "--credential", "tides=PG", "--", "true"); code != 0 {
		t.Errorf("the last good definition is not in force: %s", stderr)
	}
	if out, stderr, code := h.Vouch("check"); code != 1 || !strings.Contains(stderr, `a.yaml:`) {
		t.Errorf("vouch check exits %d: %s%s", code, out, stderr)
	}
	h.Write("credentials.d/a.yaml", string(bytes.ReplaceAll(good, []byte("name: tides-for-all"), []byte("name: renamed"))))
	eventually(t, "status says which grant is void", func() bool {
		return strings.Contains(strings.Join(status().Problems, "\n"), "grants credential tides-for-all, which is not defined")
	})
	if _, stderr, code := h.Vouch("check"); code != 1 || !strings.Contains(stderr, "tides-for-all") {
		t.Errorf("vouch check exits %d: %s", code, stderr)
	}
	h.Write("credentials.d/a.yaml", string(good))
	eventually(t, "all is well again", func() bool { return status().Credentials.Error == "" && len(status().Problems) == 0 })
	if out, stderr, code := h.Vouch("check"); code != 0 || !strings.Contains(out, "3 credentials") {
		t.Errorf("vouch check exits %d: %s%s", code, out, stderr)
	}
}

func TestCommandIsToldThatItsLeaseWasRevoked(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	h.Start()
	for _, tt := range []struct {
		how  string
		code int
	}{{"signal", 9}, {"stop", 9}, {"ignore", 3}} {
		cmd := exec.Command(daemontest.Program(t, "vouch"), "exec", "--on-revoke", tt.how, "--credential", "tides=PG", "--", "sh", "-c",
			`trap 'exit 9' TERM; trap 'exit 3' USR1; echo runs; while :; do sleep 0.01; done`)
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		out, said := daemontest.NewLines(), daemontest.NewLines()
		cmd.Stdout, cmd.Stderr = out, said
		must(t, cmd.Start())
		waited := make(chan error, 1)
		go func() { waited <- cmd.Wait(); out.Close(); said.Close() }()
		t.Cleanup(func() { cmd.Process.Kill(); <-out.Closed() })
		out.Wait(t, "runs")
		h.OK("lease", "revoke", "--credential", "tides")
		said.Wait(t, "the lease of tides was revoked")
		if tt.how == "ignore" {
			must(t, cmd.Process.Signal(syscall.SIGUSR1)) // it still runs
		}
		<-waited
		if code := cmd.ProcessState.ExitCode(); code != tt.code {
			t.Errorf("--on-revoke %s: exits %d, want %d: %s", tt.how, code, tt.code, said.String())
		}
	}
}

func TestSignalEndsExecWhileItLeases(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	deaf, err := net.Listen("unix", socket) // and never answers
	must(t, err)
	defer deaf.Close()
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT} {
		cmd := exec.Command(daemontest.Program(t, "vouch"), "exec", "--timeout", "10m", "--credential", "tides=PG", "--", "true")
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
		must(t, cmd.Start())
		conn, err := deaf.Accept() // it has begun to ask
		must(t, err)
		must(t, cmd.Process.Signal(s))
		cmd.Wait()
		conn.Close()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(s) {
			t.Errorf("%v: exits %d", s, code)
		}
	}
}
