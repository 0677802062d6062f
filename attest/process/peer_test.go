package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPeerIsTheProcessThatConnected(t *testing.T) {
	t.Parallel()
	w := connect(t, nil)
	if got, want := w.peer.PID(), w.Process.Pid; got != want {
		t.Errorf("PID is %d, want %d", got, want)
	}
	if got, want := int(w.peer.UID()), os.Getuid(); got != want {
		t.Errorf("UID is %d, want %d", got, want)
	}
	if err := w.peer.Alive(); err != nil {
		t.Errorf("a living peer is not alive: %v", err)
	}
	flags, err := unix.FcntlInt(uintptr(w.peer.pidfd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	if flags&unix.FD_CLOEXEC == 0 {
		t.Error("programs that the daemon starts would inherit the pidfd")
	}
}

func TestZombieIsGone(t *testing.T) {
	t.Parallel()
	w := connect(t, nil)
	done := w.peer.Done()
	w.Process.Kill()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Done is open 10 s after the process was killed")
	}
	// Nobody has waited for it, so that its PID is still taken.
	if err := syscall.Kill(w.Process.Pid, 0); err != nil {
		t.Fatalf("the process is no zombie: %v", err)
	}
	if err := w.peer.Alive(); !errors.Is(err, ErrPeerGone) {
		t.Errorf("Alive returned %v, want %v", err, ErrPeerGone)
	}
	if _, err := NewAttester(Options{}).Attest(t.Context(), w.peer); !errors.Is(err, ErrPeerGone) {
		t.Errorf("Attest returned %v, want %v", err, ErrPeerGone)
	}
}

func TestPeerThatWasReapedIsGone(t *testing.T) {
	t.Parallel()
	l := listener(t)
	cmd := exec.Command(readableSelf(t), "helper:connect", l.Addr().String())
	if err := cmd.Run(); err != nil { // its standard input is at its end
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := PeerOf(conn)
	if err == nil {
		err = p.Alive()
		p.Close()
	}
	if !errors.Is(err, ErrPeerGone) {
		t.Errorf("got error %v, want %v", err, ErrPeerGone)
	}
}

func TestClosedPeerIsGoneAndNeverDone(t *testing.T) {
	t.Parallel()
	p := pin(t, os.Getpid())
	done := p.Done()
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Alive(); !errors.Is(err, ErrPeerGone) {
		t.Errorf("Alive returned %v, want %v", err, ErrPeerGone)
	}
	select {
	case <-done:
		t.Error("Done is closed though the process lives")
	case <-p.Done():
		t.Error("a new Done is closed though the process lives")
	default:
	}
}

func TestExitOfAnyOfManyPeersIsNoticed(t *testing.T) {
	t.Parallel()
	const each = 20
	var peers [50][each]*Peer
	var children [50]*exec.Cmd
	for i := range peers {
		children[i] = run(t, nil, "sleep", "600")
		for j := range each {
			peers[i][j] = pin(t, children[i].Process.Pid)
			peers[i][j].Done()
		}
	}
	for i, child := range children {
		child.Process.Kill()
		for j := range each {
			if j == 0 {
				continue // closed below, unnoticed
			}
			select {
			case <-peers[i][j].Done():
			case <-time.After(10 * time.Second):
				t.Fatal("an exit was not noticed")
			}
		}
		peers[i][0].Close()
		if i+1 < len(peers) {
			select {
			case <-peers[i+1][1].Done():
				t.Fatal("Done is closed though the process lives")
			default:
			}
		}
	}
}

// TestPeerByPID runs the way of kernels before 6.5.
func TestPeerByPID(t *testing.T) {
	t.Parallel()
	child := run(t, nil, "sleep", "600")
	cred := func() *unix.Ucred {
		return &unix.Ucred{Pid: int32(child.Process.Pid), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	}
	now := sinceBoot()
	for _, tt := range []struct {
		name   string
		cred   func() *unix.Ucred
		before time.Duration
		want   string
	}{
		{"process that was there is pinned", cred, now, ""},
		{"process started after the connection is refused", cred, now - time.Minute, "its PID was reused"},
		{"process of another user is refused", func() *unix.Ucred {
			c := cred()
			c.Uid++
			return c
		}, now, "has its PID"},
		{"process that is not visible is refused", func() *unix.Ucred { return &unix.Ucred{} }, now, "pinning process 0"},
		{"reaped process is gone", func() *unix.Ucred {
			cmd := exec.Command("true")
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			c := cred()
			c.Pid = int32(cmd.Process.Pid)
			return c
		}, now, ErrPeerGone.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := pinByPID(tt.cred(), tt.before)
			if err == nil {
				defer p.Close()
			}
			if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRecycledPIDIsRefused takes the PID of a peer that has exited, before
// the daemon pins it by PID: in a PID namespace, where nobody else takes one.
func TestRecycledPIDIsRefused(t *testing.T) {
	t.Parallel()
	namespaces := "-pf"
	if os.Geteuid() != 0 {
		needUserNamespaces(t)
		namespaces = "-Urpf"
	}
	command := []string{"unshare", namespaces, "--mount-proc", "--kill-child"}
	if out, err := exec.Command(command[0], append(command[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("no PID namespace with a /proc of its own here: %s", out)
	}
	command = append(command, readableSelf(t), "helper:recycle")
	if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// helperRecycle is the daemon's side.
func helperRecycle([]string) error {
	dir, err := os.MkdirTemp("", "recycle-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	cmd := exec.Command("/proc/self/exe", "helper:connect", dir+"/s")
	if err := cmd.Run(); err != nil {
		return err
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	accepted := sinceBoot()
	for ticks(sinceBoot()) == ticks(accepted) {
		runtime.Gosched() // a hundredth of a second, at most
	}
	trusted, err := startWithPID(cmd.Process.Pid)
	if err != nil {
		return err
	}
	defer func() { trusted.Process.Kill(); trusted.Wait() }()
	cred, err := readCred(conn)
	if err != nil {
		return err
	}
	if int(cred.Pid) != trusted.Process.Pid {
		return fmt.Errorf("the connection names process %d, want %d", cred.Pid, trusted.Process.Pid)
	}
	if p, err := pinByPID(cred, accepted); err == nil || !strings.Contains(err.Error(), "its PID was reused") {
		return fmt.Errorf("by PID: got %v and error %v, want one of reuse", p, err)
	}
	if !givesPIDFD(conn) {
		return nil // before Linux 6.5 the peer is pinned by its PID, at once
	}
	p, err := PeerOf(conn)
	if err == nil {
		err = p.Alive()
		p.Close()
	}
	if !errors.Is(err, ErrPeerGone) {
		return fmt.Errorf("by pidfd: got error %v, want %v", err, ErrPeerGone)
	}
	return nil
}

// givesPIDFD tells whether the kernel has SO_PEERPIDFD.
func givesPIDFD(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var pidfd int
	ctlErr := raw.Control(func(fd uintptr) { pidfd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD) })
	if err == nil && ctlErr == nil {
		unix.Close(pidfd)
	}
	return !errors.Is(err, unix.ENOPROTOOPT)
}

func readCred(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(ctlErr, err)
}

// startWithPID starts a program that gets the given PID, which must be free.
func startWithPID(pid int) (*exec.Cmd, error) {
	for range 100 { // threads of this process take one, too
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, pid-1), 0); err != nil {
			return nil, err
		}
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if cmd.Process.Pid == pid {
			return cmd, nil
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	return nil, fmt.Errorf("PID %d is not to be had", pid)
}
