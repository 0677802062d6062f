package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// again says that the tests run a second time, as an ordinary user.
const again = "VOUCH_SANDBOX_TEST_AGAIN"

// nobody is that user.
const nobody = 65534

func TestMain(m *testing.M) {
	if IsStage(os.Args) {
		RunStage(os.Args)
	}
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		probe(os.Args[2:])
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "drive":
			drive(os.Args[2:])
		case "supervised":
			supervised(os.Args[2:])
		}
	}
	remove, err := copyProgram()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	remove()
	if code == 0 && os.Geteuid() == 0 && os.Getenv(again) == "" {
		code = asNobody()
	}
	os.Exit(code)
}

// asNobody runs the same tests as an ordinary user.
func asNobody() int {
	cmd := exec.Command("/proc/self/exe")
	for _, arg := range os.Args[1:] { // but for those about files of root's
		if !slices.ContainsFunc([]string{"testlogfile", "coverprofile", "gocoverdir", "outputdir", "bench", "fuzz"}, func(s string) bool { return strings.HasPrefix(arg, "-test."+s) }) {
			cmd.Args = append(cmd.Args, arg)
		}
	}
	cmd.Env = append(os.Environ(), again+"=1", "HOME=/nonexistent")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Run(); err != nil {
		fmt.Println("as an ordinary user:", err)
		return 1
	}
	return 0
}

// drive runs a command in a sandbox as vouch exec does, and does not return.
func drive(command []string) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT) // the terminal sends them to the command too
	status, err := func() (syscall.WaitStatus, error) {
		s, err := Start(context.Background(), Options{Command: command})
		if err != nil {
			return 0, err
		}
		if err := s.Release(environment); err != nil {
			return 0, err
		}
		status, err := s.Wait()
		s.Close()
		for a := range s.Attempts() {
			fmt.Println("attempt", a.Kind, a.Target)
		}
		return status, err
	}()
	if err != nil {
		fmt.Println(err)
		syscall.Exit(1)
	}
	if status.Signaled() {
		syscall.Exit(128 + int(status.Signal()))
	}
	syscall.Exit(status.ExitStatus())
}

// supervised does the same under a filter that has a listener.
func supervised(command []string) {
	runtime.LockOSThread()
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	p := unix.SockFprog{Len: 1, Filter: &program[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&p)))
	if err == nil && errno == 0 {
		_, err = unix.FcntlInt(fd, unix.F_SETFD, 0)
	}
	fmt.Println(err, errno, unix.Exec(self, append([]string{"probe", "drive"}, command...), os.Environ()))
	syscall.Exit(1)
}

// A run is a command in a sandbox, and what it has written.
type run struct {
	*Sandbox
	in       *os.File
	out      chan string
	attempts chan []Attempt
}

// begin starts a sandbox of the test's own, below a directory with a copy of this program.
func begin(t *testing.T, o Options) *run {
	t.Helper()
	if o.Dir == "" {
		o.Dir = directory(t)
	}
	inR, inW, err := os.Pipe()
	must(t, err)
	outR, outW, err := os.Pipe()
	must(t, err)
	if o.Stdin == nil {
		o.Stdin = inR
	}
	if o.Stdout == nil {
		o.Stdout, o.Stderr = outW, outW
	}
	s, err := Start(t.Context(), o)
	must(t, err)
	inR.Close()
	outW.Close()
	r := &run{Sandbox: s, in: inW, out: make(chan string, 1), attempts: make(chan []Attempt, 1)}
	go func() {
		text, _ := io.ReadAll(outR)
		outR.Close()
		r.out <- string(text)
	}()
	go func() {
		var all []Attempt
		for a := range s.Attempts() {
			all = append(all, a)
		}
		r.attempts <- all
	}()
	t.Cleanup(func() { inW.Close(); s.Close() })
	return r
}

// limit is how long a test waits for what takes milliseconds.
const limit = 30 * time.Second

// end waits for the command, and returns how it ended, what it wrote and what it attempted.
func (r *run) end(t *testing.T) (syscall.WaitStatus, string, []Attempt) {
	t.Helper()
	type ended struct {
		status syscall.WaitStatus
		err    error
	}
	done := make(chan ended, 1)
	go func() {
		status, err := r.Wait()
		done <- ended{status, err}
	}()
	select {
	case e := <-done:
		must(t, e.err)
		r.Close()
		return e.status, <-r.out, <-r.attempts
	case <-time.After(limit):
		t.Fatal("the command does not end")
		return 0, "", nil
	}
}

var environment = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/tmp", "LANG=C.UTF-8"}

// do runs a command to its end.
func do(t *testing.T, o Options, command ...string) (syscall.WaitStatus, string, []Attempt) {
	t.Helper()
	o.Command = command
	r := begin(t, o)
	r.in.Close()
	must(t, r.Release(environment))
	return r.end(t)
}

// sh runs a script of the shell, and returns what it wrote.
func sh(t *testing.T, script string) string {
	t.Helper()
	status, out, _ := do(t, Options{}, "sh", "-c", script)
	if status.ExitStatus() != 0 {
		t.Errorf("%s: status %#x: %s", script, status, out)
	}
	return out
}

// probing has this program try things in a sandbox. It returns a line for each.
func probing(t *testing.T, what ...string) (map[string]string, []Attempt) {
	t.Helper()
	_, out, attempts := do(t, Options{}, append([]string{"./probe", "probe"}, what...)...)
	lines := make(map[string]string)
	for line := range strings.Lines(out) {
		what, came, _ := strings.Cut(strings.TrimSpace(line), ": ")
		lines[what] = came
	}
	if len(lines) < len(what) {
		t.Errorf("%q said %q", what, out)
	}
	return lines, attempts
}

// directory returns a fresh one that others may enter, with this program in it as probe.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandbox")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Link(program, filepath.Join(dir, "probe")))
	return dir
}

// program is a copy of this program, made before anything is started, since what is open for
// writing elsewhere cannot be executed.
var program string

func copyProgram() (remove func(), err error) {
	dir, err := os.MkdirTemp("", "sandbox")
	if err != nil {
		return nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	program = filepath.Join(dir, "probe")
	content, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return remove, err
	}
	return remove, os.WriteFile(program, content, 0o755)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
