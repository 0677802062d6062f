package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/attest/process/file"
	"github.com/vouchd/vouchd/systemd"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "helper:run" { // vouch run
		exit, err := Run(context.Background(), os.Args[2], os.Args[3], os.Args[4:], os.Environ(), [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(exit.Code())
	}
	os.Exit(m.Run())
}

func needSystemd(t testing.TB) {
	t.Helper()
	comm, _ := os.ReadFile("/proc/1/comm")
	if string(comm) != "systemd\n" || os.Geteuid() != 0 {
		t.Skip("systemd is not PID 1 here, or this is not root; make system-test")
	}
}

// starts remembers what was recorded.
type starts struct {
	mu   sync.Mutex
	all  []Start
	fail error
}

func (s *starts) RecordStart(_ context.Context, start Start) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, start)
	return s.fail
}

func (s *starts) last() Start {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[len(s.all)-1]
}

// A ground is a server with one program, a shell script.
type ground struct {
	socket  string
	starts  *starts
	program *Program
	script  string
}

func serve(t *testing.T, units Units, text string, change func(p *Program)) *ground {
	t.Helper()
	must(t, os.MkdirAll("/opt/programs", 0o755))
	dir, err := os.MkdirTemp("/opt/programs", "x*")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	g := &ground{starts: &starts{}, script: dir + "/agent"}
	must(t, os.WriteFile(g.script, []byte(text), 0o644))
	interpreter := "/bin/sh"
	if strings.HasPrefix(text, "import") {
		interpreter = "/usr/bin/python3"
	}
	_, sum, err := file.Hash(t.Context(), g.script, 1)
	must(t, err)
	g.program = &Program{
		Name: "agent", Command: []string{interpreter, g.script}, Script: g.script, SHA256: sum,
		User: "daemon", UID: 1, Directory: "/", AllowUsers: []string{"root"}, PassEnvironment: []string{"TERM"},
	}
	if change != nil {
		change(g.program)
	}
	g.socket = filepath.Join(t.TempDir(), "run.sock")
	l, err := Listen(nil, g.socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		s := Server{
			Programs: func() map[string]*Program { return map[string]*Program{"agent": g.program} },
			Units:    units, Recorder: g.starts, Report: func(err error) { fmt.Fprintln(t.Output(), err) },
		}
		done <- s.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return g
}

func systemUnits(t *testing.T) *systemd.Units {
	u := &systemd.Units{}
	t.Cleanup(func() { u.Close() })
	return u
}

// vouchRun returns vouch run as another process.
func (g *ground) vouchRun(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, append([]string{"helper:run", g.socket, name}, args...)...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func TestSystemRun(t *testing.T) {
	needSystemd(t)
	units := systemUnits(t)
	for _, tt := range []struct {
		name, script, input string
		args                []string
		out                 string
		code                int
	}{
		{"ends with its exit code", "exit 7", "", nil, "", 7},
		{"reads and writes the caller's streams", "read x; echo out $x; echo err >&2", "in\n", nil, "out in\nerr\n", 0},
		{"is its definition's user", "id -un", "", nil, "daemon\n", 0},
		{"gets what passes of the environment", "echo $TERM-$SECRET-$LD_PRELOAD", "", nil, "vt100--\n", 0},
		{"gets arguments unexpanded", `echo "$@"`, "", []string{"a b", "${TERM}", "$TERM", "%n", ""}, "a b ${TERM} $TERM %n \n", 0},
		{"ends by a signal", "kill -KILL $$", "", nil, "", 128 + 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := serve(t, units, tt.script, func(p *Program) { p.AllowedArguments = true })
			cmd := g.vouchRun(t, "agent", tt.args...)
			cmd.Env = append(os.Environ(), "TERM=vt100", "SECRET=x", "LD_PRELOAD=/nonexistent.so")
			cmd.Stdin = strings.NewReader(tt.input)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.Run()
			got := strings.ReplaceAll(out.String(), "ERROR: ld.so: object '/nonexistent.so' from LD_PRELOAD cannot be preloaded (cannot open shared object file): ignored.\n", "")
			if got != tt.out || cmd.ProcessState.ExitCode() != tt.code {
				t.Errorf("printed %q and ended with %d, want %q and %d", got, cmd.ProcessState.ExitCode(), tt.out, tt.code)
			}
			if s := g.starts.last(); s.Refused != nil || s.PID != cmd.Process.Pid || s.Program != "agent" || s.Unit == "" {
				t.Errorf("recorded %+v", s)
			}
			if state, err := exec.Command("systemctl", "show", "--value", "-p", "LoadState", g.starts.last().Unit).Output(); err != nil || string(state) != "not-found\n" {
				t.Errorf("the unit is %s, %v", state, err)
			}
		})
	}
}

func TestSystemRunRefusals(t *testing.T) {
	needSystemd(t)
	units := systemUnits(t)
	for _, tt := range []struct {
		name    string
		program string
		args    []string
		change  func(g *ground)
		want    string
	}{
		{"program that is not defined", "other", nil, nil, `no program "other" that you may start`},
		{"caller who may not", "agent", nil, func(g *ground) { g.program.AllowUsers = []string{"nobody"} }, `no program "agent" that you may start`},
		{"arguments", "agent", []string{"x"}, nil, "takes no arguments"},
		{"script that has changed", "agent", nil, func(g *ground) { os.WriteFile(g.script, []byte("evil"), 0o644) }, "its definition"},
		{"script that its user owns", "agent", nil, func(g *ground) { os.Chown(g.script, 1, 1) }, "which the process runs as"},
		{"tree that has changed", "agent", nil, func(g *ground) { g.program.TreeSHA256 = strings.Repeat("0", 64) }, "has digest"},
		{"log that cannot be written", "agent", nil, func(g *ground) { g.starts.fail = errors.New("disk full") }, "could not be recorded"},
		{"refusals of a flood", "other", nil, func(g *ground) { g.starts.fail = ErrTooManyRefusals }, ErrTooManyRefusals.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := serve(t, units, "echo started", nil)
			if tt.change != nil {
				tt.change(g)
			}
			out, err := g.vouchRun(t, tt.program, tt.args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) || strings.Contains(string(out), "started\n") {
				t.Errorf("got %v: %s, want %q", err, out, tt.want)
			}
			if s := g.starts.last(); g.starts.fail == nil && s.Refused == nil {
				t.Errorf("recorded %+v", s)
			}
		})
	}
}

func TestSystemRunPassesSignalsOnAndEndsWithItsCaller(t *testing.T) {
	needSystemd(t)
	g := serve(t, systemUnits(t), "trap 'echo got it; exit 3' INT; echo ready; while :; do sleep 0.05; done", nil)
	start := func() (*exec.Cmd, io.Reader) {
		cmd := g.vouchRun(t, "agent")
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		b := make([]byte, 6)
		if _, err := io.ReadFull(out, b); err != nil || string(b) != "ready\n" {
			t.Fatalf("read %q, %v", b, err)
		}
		return cmd, out
	}
	cmd, out := start()
	must(t, cmd.Process.Signal(syscall.SIGINT))
	if b, err := io.ReadAll(out); string(b) != "got it\n" || err != nil {
		t.Errorf("printed %q, %v", b, err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("ended with %d, want 3", code)
	}

	cmd, out = start()
	cmd.Process.Kill()
	if _, err := io.ReadAll(out); err != nil { // until the program, too, has closed it
		t.Error(err)
	}
	cmd.Wait()
}

func TestSystemRunIsAttestedAsAService(t *testing.T) {
	needSystemd(t)
	units := systemUnits(t)
	g := serve(t, units, "import sys, time\nprint('ready', flush=True)\ntime.sleep(600)\n", nil)
	end := time.Now().Add(50 * time.Millisecond) // so that the script is older than the process
	for time.Now().Before(end) {
		<-time.After(time.Millisecond)
	}
	cmd := g.vouchRun(t, "agent")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	run, err := units.Run(t.Context(), g.starts.last().Unit)
	must(t, err)
	at, err := process.NewAttester(process.Options{Manager: units}).AttestPID(t.Context(), run.PID)
	must(t, err)
	for _, want := range []string{
		"script:path:" + g.script, "script:sha256:" + g.program.SHA256,
		"systemd:slice:vouch-agent.slice", "systemd:id:" + g.starts.last().Unit, "unix:user:daemon", "nnp:true",
	} {
		if s, err := attest.ParseSelector(want); err != nil || !at.Selectors.Has(s) {
			t.Errorf("no selector %s among %v; gaps %v", want, at.Selectors.Strings(), at.Gaps)
		}
	}
}

func TestWithoutSystemdEveryStartIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := serve(t, nil, "echo started", nil)
	out, err := g.vouchRun(t, "agent").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "requires systemd as PID 1") {
		t.Errorf("got %v: %s", err, out)
	}
}

// TestServerEndsOnceNobodyCalls: systemd starts it anew for the next caller.
func TestServerEndsOnceNobodyCalls(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "run.sock")
	l, err := Listen(nil, socket)
	must(t, err)
	var asked int
	s := Server{
		Programs: func() map[string]*Program { return nil }, Recorder: &starts{},
		IdleAfter: 20 * time.Millisecond,
		MayEnd:    func() bool { asked++; return asked == 2 },
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	must(t, err)
	done := make(chan error)
	go func() { done <- s.Serve(t.Context(), l) }()
	conn.SetReadDeadline(time.Now().Add(5 * s.IdleAfter))
	if n, err := conn.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v while a caller is there", n, err)
	}
	conn.Close()
	must(t, <-done)
	if asked != 2 {
		t.Errorf("asked %d times whether it may end", asked)
	}
}

// TestRequestsThatAreNotUnderstood: each is answered with an error.
func TestRequestsThatAreNotUnderstood(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := serve(t, nil, "echo started", nil)
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	fds := func(n int) []byte {
		return syscall.UnixRights(slices.Repeat([]int{int(null.Fd())}, n)...)
	}
	for _, tt := range []struct {
		name   string
		text   string
		rights []byte
		want   string
	}{
		{"no JSON", "x", fds(3), "malformed"},
		{"another type", `{"program":1}`, fds(3), "malformed"},
		{"too many descriptors", `{"program":"agent"}`, fds(4), "or 3 descriptors"},
		{"far too many descriptors", `{"program":"agent"}`, fds(200), "or 3 descriptors"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: g.socket, Net: "unixpacket"})
			must(t, err)
			defer conn.Close()
			_, _, err = conn.WriteMsgUnix([]byte(tt.text), tt.rights, nil)
			must(t, err)
			must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
			b := make([]byte, 1000)
			n, err := conn.Read(b)
			if err != nil || !strings.Contains(string(b[:n]), tt.want) {
				t.Errorf("got %s, %v; want %q", b[:n], err, tt.want)
			}
		})
	}
}
