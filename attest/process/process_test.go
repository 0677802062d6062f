package process

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vouchd/vouchd/attest"
)

// helpers are the programs that tests start as other processes: the test
// binary, called as one of them.
var helpers = map[string]func(args []string) error{
	"account": helperAccount,
	"actor":   helperActor,
	"connect": helperConnect,
	"attest":  helperAttest,
	"stress":  helperStress,
	"recycle": helperRecycle,
	"filter":  helperFilter,
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if name, ok := strings.CutPrefix(os.Args[1], "helper:"); ok {
			if err := helpers[name](os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// helperConnect connects to the socket, then does what it is told line by
// line on its standard input, and answers each with "ok".
func helperConnect(args []string) error {
	conn, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch command, arg, _ := strings.Cut(in.Text(), " "); command {
		case "setuid":
			var uid int
			fmt.Sscan(arg, &uid)
			err = syscall.Setresuid(uid, uid, uid)
		case "exec":
			err = syscall.Exec(arg, []string{arg, "60"}, nil)
		case "rewrite":
			err = rewrite()
		}
		if err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return nil
}

// listener returns a listening socket that every user may connect to.
func listener(t testing.TB) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(openTempDir(t), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(l.Addr().String(), 0o666); err != nil {
		t.Fatal(err)
	}
	return l
}

// openTempDir returns a new directory that every user may read.
func openTempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "process-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rootsTempDir returns a new directory to which root's directories lead.
func rootsTempDir(t testing.TB) string {
	t.Helper()
	must(t, os.MkdirAll("/opt", 0o755))
	dir, err := os.MkdirTemp("/opt", "process-test-*")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// A workload is a child process that obeys, and the peer it is.
type workload struct {
	*exec.Cmd
	conn *net.UnixConn
	peer *Peer
	tell func(command string)
}

// connect starts a workload, as modified by prepare, and accepts it.
func connect(t testing.TB, prepare func(*exec.Cmd)) *workload {
	t.Helper()
	l := listener(t)
	cmd := exec.CommandContext(t.Context(), readableSelf(t), "helper:connect", l.Addr().String())
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	l.SetDeadline(time.Now().Add(10 * time.Second))
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	peer, err := PeerOf(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	answers := bufio.NewScanner(out)
	return &workload{cmd, conn, peer, func(command string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, command); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(command, "exec ") {
			program := strings.TrimPrefix(command, "exec ")
			eventually(t, "the workload runs "+program, func() bool {
				exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
				return exe == program
			})
		} else if !answers.Scan() || answers.Text() != "ok" {
			t.Fatalf("the workload did not answer %q", command)
		}
	}}
}

// readableSelf returns a copy of the test binary that every user may run.
func readableSelf(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return install(t, exe, filepath.Join(openTempDir(t), "workload"), "")
}

// install copies a program, with something appended to tell it apart.
func install(t testing.TB, from, to, appendix string) string {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	// Another test may fork while the file is open for writing, and Linux does
	// not run a program that is: hence by another process.
	cmd := exec.Command("sh", "-c", `cat > "$1" && chmod 755 "$1"`, "sh", to)
	cmd.Stdin = strings.NewReader(string(b) + appendix)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// run starts a program that goes on until the test ends.
func run(t testing.TB, as *syscall.Credential, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	return cmd
}

func pin(t testing.TB, pid int) *Peer {
	t.Helper()
	p, err := Pin(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// attestPID attests a process that may still be about to start its program.
func attestPID(t testing.TB, a *Attester, pid int) *Attested {
	t.Helper()
	return attestPeer(t, a, pin(t, pid))
}

func attestPeer(t testing.TB, a *Attester, p *Peer) *Attested {
	t.Helper()
	var at *Attested
	eventually(t, "the process has started", func() bool {
		var err error
		if at, err = a.Attest(t.Context(), p); err != nil && !errors.Is(err, ErrChanged) {
			t.Fatal(err)
		}
		return err == nil
	})
	return at
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("after 10 s it is still not so that %s", what)
		}
	}
}

// values returns the values of the selectors of one kind.
func values(s attest.Selectors, kind string) []string {
	var out []string
	for _, text := range s.Strings() {
		if v, ok := strings.CutPrefix(text, kind); ok {
			out = append(out, v)
		}
	}
	return out
}

func wantOnly(t testing.TB, s attest.Selectors, kind string, want ...string) {
	t.Helper()
	if got := values(s, kind); !slices.Equal(got, want) {
		t.Errorf("selectors %s… are %q, want %q", kind, got, want)
	}
}

// wantGap wants one about the program that says why.
func wantGap(t testing.TB, at *Attested, why string) {
	t.Helper()
	for _, gap := range at.Gaps {
		if strings.HasPrefix(gap.Fact, "program") && strings.Contains(gap.Error(), why) {
			return
		}
	}
	t.Errorf("gaps are %v, want one about the program that says %q", at.Gaps, why)
}

func sha256Of(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	return path
}

var nobody = &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: false}

func asRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start processes of other users")
	}
}

// rewrite makes the process show another name and another command line: both
// are in its own memory, where Go's os.Args point as well.
func rewrite() error {
	for _, arg := range os.Args {
		copy(unsafe.Slice(unsafe.StringData(arg), len(arg)), strings.Repeat("/usr/bin/trusted ", len(arg)))
	}
	return os.WriteFile("/proc/self/comm", []byte("trusted) S 1 ("), 0)
}

func pidIn(t testing.TB, out []byte) int {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
