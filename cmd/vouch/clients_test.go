//go:build clients

package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The examples in other languages, as their first lines say to run them. They
// need packages of Debian and npm, so that make test-clients runs this, and
// make test does not.

// exampleClients copies the examples and makes them ready; it returns the command
// of each.
func exampleClients(t *testing.T) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(filepath.Join(dir, "examples/clients"), os.DirFS("../../examples/clients")))
	must(t, os.CopyFS(filepath.Join(dir, "workloadapi/credentialv1"), os.DirFS("../../workloadapi/credentialv1")))
	run := func(in string, args ...string) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = filepath.Join(dir, in)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("examples/clients/python", "protoc", "--proto_path=../../../workloadapi/credentialv1", "--python_out=.", "credential.proto")
	run("examples/clients/node", "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	return map[string][]string{
		"python": {"/usr/bin/python3", filepath.Join(dir, "examples/clients/python/agent.py")},
		"node":   {"node", filepath.Join(dir, "examples/clients/node/agent.js")},
	}
}

// shown is what an example prints of a lease.
type shown struct {
	Credential string
	ExpiresAt  int64 `json:"expires_at"`
	Fields     map[string]string
}

func TestExampleClientsLeaseForThemselves(t *testing.T) {
	h, pg := newLeasingHost(t)
	h.Start()
	admin := pg.Admin(t, "postgres")
	roles := func(name string) (n int) {
		must(t, admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", name).Scan(&n))
		return n
	}
	for language, command := range exampleClients(t) {
		client := func(args ...string) (cmd *exec.Cmd, lease func() shown, in io.Closer) {
			cmd = exec.Command(command[0], append(command[1:], args...)...)
			cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
			cmd.Stderr = t.Output()
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			lines := bufio.NewReader(out)
			return cmd, func() (s shown) {
				t.Helper()
				line, err := lines.ReadBytes('\n')
				if err != nil {
					t.Fatalf("%v; the daemon said:\n%s", err, h.Stderr)
				}
				must(t, json.Unmarshal(line, &s))
				if s.Credential != "tides" || s.Fields["password"] != "..." || roles(s.Fields["username"]) != 1 || s.ExpiresAt < time.Now().Unix() {
					t.Errorf("it got %+v", s)
				}
				return s
			}, in
		}
		t.Run(language+" grant", func(t *testing.T) {
			cmd, lease, in := client("tides", "table=tides")
			got := lease()
			must(t, in.Close())
			must(t, cmd.Wait())
			if roles(got.Fields["username"]) != 0 {
				t.Error("the login outlives the lease")
			}
		})
		t.Run(language+" killed", func(t *testing.T) {
			cmd, lease, _ := client("tides")
			got := lease()
			must(t, cmd.Process.Kill())
			eventually(t, "its login is gone", func() bool { return roles(got.Fields["username"]) == 0 })
		})
		t.Run(language+" watch", func(t *testing.T) {
			// The definition's shortest lifetime is 10 s, so the next comes after 7.
			h.Write("credentials.d/a.yaml", strings.Replace(read(t, h.Path("credentials.d/a.yaml")), "max_ttl: 1h", "ttl: 10s\n    max_ttl: 1h", 1))
			_, lease, _ := client("--watch", "tides")
			first := lease()
			if next := lease(); next.Fields["username"] == first.Fields["username"] {
				t.Error("the next lease is the same")
			}
		})
		t.Run(language+" refused", func(t *testing.T) {
			cmd := exec.Command(command[0], append(command[1:], "ungranted")...)
			cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "PERMISSION_DENIED: the caller is not granted this credential") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
