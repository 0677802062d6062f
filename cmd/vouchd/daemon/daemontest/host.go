// Package daemontest runs a daemon for tests: a [Host] is a machine with a TPM of
// its own, a configuration and sockets.
//
// The daemon runs in the test's process, where the race detector sees it, or as
// the program that ships, for tests of what only a process has: signals, being
// killed, memory, its environment. The command line is always the program that
// ships. The TPM is swtpm, and nothing is left behind once a test ends, but for
// the programs, which [RemovePrograms] removes.
package daemontest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/workloadapi/admin/client"
)

// patience bounds everything that a test waits for.
const patience = 30 * time.Second

// programs builds what ships, once, if a test runs any of it.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "vouchd-bin"); err != nil {
		return "", err
	}
	built = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir, "github.com/vouchd/vouchd/cmd/vouchd", "github.com/vouchd/vouchd/cmd/vouch")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %v\n%s", err, out)
	}
	return dir, nil
})

// built is where programs put them; empty if no test ran one.
var built string

// Program returns the path of a program as it ships, "vouchd" or "vouch".
func Program(t testing.TB, name string) string {
	t.Helper()
	dir, err := programs()
	must(t, err)
	return filepath.Join(dir, name)
}

// RemovePrograms removes what Program built. TestMain calls it at the end.
func RemovePrograms() {
	if built != "" {
		os.RemoveAll(built)
	}
}

// A Host is a machine with a TPM and a configuration, on which the daemon is
// started and stopped.
type Host struct {
	Daemon
	Dir         string
	TPM         *tpmtest.TPM
	TrustDomain string
}

// New returns a host in the trust domain example.org, whose daemon is not started
// yet.
func New(t testing.TB) *Host {
	t.Helper()
	return NewOf(t, "example.org")
}

// NewOf is [New] in another trust domain.
func NewOf(t testing.TB, trustDomain string) *Host {
	t.Helper()
	dir, err := os.MkdirTemp("", "vd") // short, because a socket's path is
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &Host{Daemon{T: t, Config: filepath.Join(dir, "vouchd.yaml")}, dir, tpmtest.Start(t), trustDomain}
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Mkdir(h.Path("entries.d"), 0o755))
	must(t, os.Mkdir(h.Path("federation.d"), 0o755))
	h.Configure("")
	return h
}

// Configure writes vouchd.yaml, with more at its end.
func (h *Host) Configure(more string) {
	h.T.Helper()
	h.Write("vouchd.yaml", fmt.Sprintf(`trust_domain: %s
tpm: %s
state_dir: %s
agent_socket: %s
admin_socket: %s
entries_dir: %s
credentials_dir: %s
federation_dir: %s
grants_dir: %s
node:
  policy: %s
  ek_chain_dir: %s
`, h.TrustDomain, h.TPM.Address, h.Path("state"), h.Path("agent.sock"), h.Path("admin.sock"), h.Path("entries.d"), h.Path("credentials.d"), h.Path("federation.d"), h.Path("grants.d"),
		h.Path("node-policy.yaml"), h.Path("ek-chain.d"))+more)
}

// Path returns the path of a file of the host.
func (h *Host) Path(name string) string { return filepath.Join(h.Dir, name) }

// Write replaces a file as an editor or a configuration manager does.
func (h *Host) Write(name, content string) {
	h.T.Helper()
	must(h.T, os.WriteFile(h.Path(name)+".tmp~", []byte(content), 0o644))
	must(h.T, os.Rename(h.Path(name)+".tmp~", h.Path(name)))
}

// Read returns a file of the host.
func (h *Host) Read(name string) string {
	h.T.Helper()
	b, err := os.ReadFile(h.Path(name))
	must(h.T, err)
	return string(b)
}

// Admin returns a client of the administrators' socket.
func (h *Host) Admin() *client.Client { return client.New(h.Path("admin.sock")) }

// Vouch runs the command line.
func (h *Host) Vouch(args ...string) (stdout, stderr string, code int) {
	h.T.Helper()
	return h.VouchReads(nil, args...)
}

// VouchReads runs the command line with something to read.
func (h *Host) VouchReads(stdin []byte, args ...string) (stdout, stderr string, code int) {
	h.T.Helper()
	cmd := exec.Command(Program(h.T, "vouch"), args...)
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
	cmd.Stdin = bytes.NewReader(stdin)
	return run(h.T, cmd)
}

// OK runs the command line, which must succeed, and returns its standard output.
func (h *Host) OK(args ...string) string {
	h.T.Helper()
	out, stderr, code := h.Vouch(args...)
	return succeeded(h.T, args, out, stderr, code)
}

func succeeded(t testing.TB, args []string, out, stderr string, code int) string {
	t.Helper()
	if code != 0 {
		t.Fatalf("vouch %s exits %d:\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

func run(t testing.TB, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
