package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/databasetest"
)

// static is a definition whose password is a sealed secret, for a role that there is.
func (h *dbHost) static(role, password string, more ...string) {
	h.T.Helper()
	admin := h.Server.Admin(h.T, "postgres")
	_, err := admin.Exec(h.T.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'; GRANT SELECT ON tides TO %[1]s", role, password))
	must(h.T, err)
	h.T.Cleanup(func() { admin.Exec(context.Background(), fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s", role)) })
	h.Write("credentials.d/tides.yaml", fmt.Sprintf(`credentials:
  - name: tides
    broker: static
    ttl: 1h
    limits: {rate: 100000/1m, concurrent: 1000}
    static: {secret: %s}
    database:
      protocol: postgres
      user: %s
      upstream: postgres://localhost:%d/postgres
      ca_file: %s
      allow_addresses: [127.0.0.1/32, "::1/128"]
      %s
`, role, role, h.Server.Port, h.Server.CAFile, strings.Join(more, "\n      ")))
}

// TestPasswordIsNowhereNearTheAgent: not in what it receives, its memory, its environment or
// its files, nor in what the daemon says and keeps.
func TestPasswordIsNowhereNearTheAgent(t *testing.T) {
	t.Parallel()
	const canary = "canary-5f0e9d77b1c24"
	h := newDatabase(t)
	h.static("canary", canary)
	h.StartProcess()
	if _, stderr, code := h.VouchReads([]byte(canary), "secret", "seal", "canary"); code != 0 {
		t.Fatal(stderr)
	}
	h.Ready("tides")
	c := h.Agent()
	_, err := c.Exec(t.Context(), "SELECT 1")
	must(t, err)

	cmd := exec.Command("psql", "-X", "-w", "-A", "-t", "-h", h.Socket("tides"))
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Process.Kill()
	_, err = io.WriteString(in, "SELECT height FROM tides;\n")
	must(t, err)
	var answer [2]byte
	_, err = io.ReadFull(out, answer[:])
	must(t, err)
	if string(answer[:]) != "7\n" {
		t.Errorf("psql reads %q", answer)
	}
	for _, name := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, name))
		must(t, err)
		if bytes.Contains(b, []byte(canary)) {
			t.Errorf("the password is in psql's %s", name)
		}
	}
	if n := memory(t, cmd.Process.Pid, "SELECT height"); n == 0 {
		t.Error("the memory of psql cannot be read")
	}
	if n := memory(t, cmd.Process.Pid, canary); n > 0 {
		t.Errorf("the password is in psql's memory, %d times", n)
	}
	in.Close()
	cmd.Wait()

	// What a broken login tells.
	_, err = h.Server.Admin(t, "postgres").Exec(t.Context(), "ALTER ROLE canary PASSWORD 'another'")
	must(t, err)
	if _, err := h.Connect(t.Context(), ""); stateOf(err) != "08006" || strings.Contains(err.Error(), canary) {
		t.Errorf("a wrong password: %v", err)
	}
	h.Stop()
	for where, text := range map[string]string{"the daemon's words": h.Stderr.String(), "the server's log": h.serverLog()} {
		if strings.Contains(text, canary) && where != "the server's log" { // a superuser's CREATE ROLE is in that
			t.Errorf("the password is in %s", where)
		}
	}
	err = filepath.WalkDir(h.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(canary)) {
			t.Errorf("the password is in %s", path)
		}
		return err
	})
	must(t, err)
}

// memory counts how often text is in what a process may write to.
func memory(t *testing.T, pid int, text string) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	must(t, err)
	defer f.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		b := make([]byte, to-from)
		got, _ := f.ReadAt(b, from)
		n += bytes.Count(b[:got], []byte(text))
	}
	return n
}

// TestAgentReceivesNothingOfTheLogin: every byte that comes is the protocol's after it.
func TestAgentReceivesNothingOfTheLogin(t *testing.T) {
	t.Parallel()
	h := databasetest.NewRedis(t)
	h.Start()
	c, err := net.Dial("unix", h.Socket())
	must(t, err)
	defer c.Close()
	var got bytes.Buffer
	var work sync.WaitGroup
	work.Go(func() { io.Copy(&got, c) })
	_, err = io.WriteString(c, "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n")
	must(t, err)
	work.Wait()
	if got.String() != "+PONG\r\n+OK\r\n" {
		t.Errorf("the agent reads %q", got.String())
	}
}

func TestDatabaseIsLoggedInToByACertificate(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	cert, key := h.Server.ClientCertificate(t, "certified")
	h.static("certified", "unused-4711", "client_cert_file: "+cert, "client_key_file: "+key)
	h.Start()
	if _, stderr, code := h.VouchReads([]byte("unused-4711"), "secret", "seal", "certified"); code != 0 {
		t.Fatal(stderr)
	}
	var user string
	must(t, h.Agent().QueryRow(t.Context(), "SELECT current_user || ' ' || (SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid())").Scan(&user))
	if user != "certified /CN=certified" {
		t.Errorf("the agent is %s", user)
	}
	must(t, os.Remove(key))
	if _, err := h.Connect(t.Context(), ""); stateOf(err) != "08006" {
		t.Errorf("without the key: %v", err)
	}
}
