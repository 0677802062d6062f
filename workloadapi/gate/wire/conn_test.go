package wire

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
)

func TestMessagesOfOtherProcessesNameThem(t *testing.T) {
	t.Parallel()
	ours, theirs := socketpair(t)
	peer, err := process.PeerOf(ours) // this process made the pair
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(ours, peer, func() { peer.Close() })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	file, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("sh", "-c", "printf x >&3")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 10))
	if err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(cmd.Process.Pid)+" sent") {
		t.Errorf("Read returned error %v, want one that names process %d", err, cmd.Process.Pid)
	}
}

func socketpair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// TestAnInterruptedReadLeavesTheConnectionAsItIs: a server interrupts its reads by
// deadlines, between requests.
func TestAnInterruptedReadLeavesTheConnectionAsItIs(t *testing.T) {
	t.Parallel()
	ours, theirs := socketpair(t)
	peer, err := process.PeerOf(ours)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(ours, peer, func() { peer.Close() })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read returned %v", err)
	}
	c.SetReadDeadline(time.Time{})
	if _, err := theirs.Write([]byte("GET")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if n, err := c.Read(b); string(b[:n]) != "GET" || err != nil {
		t.Errorf("Read returned %q and %v", b[:n], err)
	}
	if c.HTTP2() {
		t.Error("a request of HTTP/1.1 is taken for HTTP/2")
	}
}
