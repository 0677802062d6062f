package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/workloadapi/admin/client"
)

// binaries builds the programs once, as they are shipped.
var binaries = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "vouchd-bin"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", dir, "github.com/vouchd/vouchd/cmd/vouchd", "github.com/vouchd/vouchd/cmd/vouch")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %v\n%s", err, out)
	}
	return dir, nil
})

// followSocket makes a process of the test program one that follows its
// identities on that socket.
const followSocket = "TEST_FOLLOW_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(followSocket); socket != "" {
		if err := follow(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if socket := os.Getenv(leaseSocket); socket != "" {
		if err := lease(socket, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	stopDatabase()
	if dir, err := binaries(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// A host is a machine with a TPM and a configuration, on which the daemon is
// started and stopped as a real process.
type host struct {
	t    testing.TB
	dir  string
	name string // the host's name; empty: the test machine's
	tpm  *tpmtest.TPM
	env  []string // more for the daemon
	wrap []string // what the daemon is started by; empty: directly

	cmd    *exec.Cmd
	stderr *lines
	waited chan error
}

func newHost(t testing.TB) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "vd") // short, because a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{t: t, dir: dir, tpm: tpmtest.Start(t)}
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Mkdir(h.path("entries.d"), 0o755))
	h.configure("")
	return h
}

// configure writes vouchd.yaml, with more at its end.
func (h *host) configure(more string) {
	h.t.Helper()
	h.write("vouchd.yaml", fmt.Sprintf(`trust_domain: example.org
tpm: %s
state_dir: %s
agent_socket: %s
admin_socket: %s
entries_dir: %s
credentials_dir: %s
node:
  policy: %s
  ek_chain_dir: %s
`, h.tpm.Address, h.path("state"), h.path("agent.sock"), h.path("admin.sock"), h.path("entries.d"), h.path("credentials.d"),
		h.path("node-policy.yaml"), h.path("ek-chain.d"))+more)
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

// write replaces a file as an editor or a configuration manager does.
func (h *host) write(name, content string) {
	h.t.Helper()
	must(h.t, os.WriteFile(h.path(name)+".tmp~", []byte(content), 0o644))
	must(h.t, os.Rename(h.path(name)+".tmp~", h.path(name)))
}

// start starts the daemon and returns once it serves.
func (h *host) start(args ...string) {
	h.t.Helper()
	h.launch(args...)
	h.stderr.wait(h.t, "msg=serving")
}

// launch starts the daemon and does not wait.
func (h *host) launch(args ...string) {
	h.t.Helper()
	dir, err := binaries()
	must(h.t, err)
	h.stderr = newLines()
	h.cmd = exec.Command(filepath.Join(dir, "vouchd"), append([]string{"--config", h.path("vouchd.yaml")}, args...)...)
	if h.name != "" {
		h.cmd = exec.Command("unshare", append([]string{"--uts", "sh", "-c", `hostname "$0" && exec "$@"`, h.name}, h.cmd.Args...)...)
	}
	h.cmd.Args = append(slices.Clone(h.wrap), h.cmd.Args...)
	if len(h.wrap) > 0 {
		h.cmd = exec.Command(h.cmd.Args[0], h.cmd.Args[1:]...)
	}
	h.cmd.Env = append(os.Environ(), h.env...)
	h.cmd.Stderr = h.stderr
	must(h.t, h.cmd.Start())
	cmd, stderr, waited := h.cmd, h.stderr, make(chan error, 1)
	h.waited = waited
	go func() {
		err := cmd.Wait()
		stderr.Close()
		waited <- err
	}()
	h.t.Cleanup(func() { cmd.Process.Kill(); <-stderr.closed })
}

// wait returns how the daemon ended.
func (h *host) wait() error {
	h.t.Helper()
	select {
	case err := <-h.waited:
		return err
	case <-time.After(30 * time.Second):
		h.t.Fatalf("the daemon does not end; it said:\n%s", h.stderr)
		return nil
	}
}

// stop ends the daemon in an orderly way.
func (h *host) stop() {
	h.t.Helper()
	must(h.t, h.cmd.Process.Signal(syscall.SIGTERM))
	if err := h.wait(); err != nil {
		h.t.Fatalf("stopping: %v; it said:\n%s", err, h.stderr)
	}
}

func (h *host) admin() *client.Client {
	return client.New(h.path("admin.sock"))
}

// vouch runs the command line.
func (h *host) vouch(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	return h.vouchReads(nil, args...)
}

// vouchReads runs the command line with something to read.
func (h *host) vouchReads(stdin []byte, args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	dir, err := binaries()
	must(h.t, err)
	cmd := exec.Command(filepath.Join(dir, "vouch"), args...)
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.path("agent.sock"))
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// resident returns the daemon's resident memory in bytes.
func (h *host) resident() int {
	h.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	must(h.t, err)
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.Fields(kb)[0])
			must(h.t, err)
			return n << 10
		}
	}
	h.t.Fatal("status has no VmRSS")
	return 0
}

// lines collects output and lets a test wait for some of it.
type lines struct {
	mu     sync.Mutex // guards text and grown
	text   bytes.Buffer
	grown  chan struct{}
	closed chan struct{}
}

func newLines() *lines { return &lines{grown: make(chan struct{}), closed: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grown)
	l.grown = make(chan struct{})
	return l.text.Write(p)
}

func (l *lines) Close() error { close(l.closed); return nil }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait returns the first line that holds text.
func (l *lines) wait(t testing.TB, text string) string {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		l.mu.Lock()
		grown := l.grown
		for scan := bufio.NewScanner(strings.NewReader(l.text.String())); scan.Scan(); {
			if strings.Contains(scan.Text(), text) {
				l.mu.Unlock()
				return scan.Text()
			}
		}
		l.mu.Unlock()
		select {
		case <-grown:
		case <-l.closed:
			if !strings.Contains(l.String(), text) {
				t.Fatalf("the daemon ended without %q; it said:\n%s", text, l)
			}
		case <-late:
			t.Fatalf("the daemon does not say %q; it said:\n%s", text, l)
		}
	}
}

// eventually waits for a condition that has no event.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
