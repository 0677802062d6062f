package link

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/credential/policy"
)

func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = FromFile(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestAConnectionArrivesWithItsMessage(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	served, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if err := a.Send(&Message{ID: 7, Open: true}, served); err != nil {
		t.Fatal(err)
	}
	m, f, err := b.Receive()
	if err != nil || m.ID != 7 || !m.Open || f == nil {
		t.Fatalf("%+v with %v (%v)", m, f, err)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cred := -1
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			cred = int(u.Pid)
		}
	})
	if cred != os.Getpid() {
		t.Errorf("the kernel says that process %d is at its other end", cred)
	}
	// It is in no way less of a connection for having been shown.
	if _, err := served.Write([]byte("x")); err != nil {
		t.Error(err)
	}
}

func TestAMessageArrivesWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	long := &Message{Ask: &Ask{Request: &policy.Request{Method: strings.Repeat("x", MaxMessage)}}}
	if err := a.Send(long, nil); !errors.Is(err, ErrTooLong) {
		t.Errorf("a message that fits no packet: %v", err)
	}
	long.Ask.Request.Method = strings.Repeat("x", MaxMessage-1000)
	if err := a.Send(long, nil); err != nil {
		t.Fatal(err)
	}
	m, _, err := b.Receive()
	if err != nil || m.Ask.Request.Method != long.Ask.Request.Method {
		t.Errorf("a long one: %v", err)
	}
	a.Close()
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the other end: %v", err)
	}
}

func TestWhatIsNoLinkIsRefused(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	if _, err := FromFile(os.NewFile(uintptr(fds[0]), "stream")); err == nil || !strings.Contains(err.Error(), "is not a Unix socket of packets") {
		t.Errorf("a stream: %v", err)
	}
}

// FuzzReceive: whatever a packet holds, it is a message or an error, and nothing is left
// open.
func FuzzReceive(f *testing.F) {
	for _, s := range []string{`{}`, `{"id":1,"ask":{"conn":1,"definitions":["a"],"request":{"Method":"GET"}}}`, `{"outcomes":[{"id":1}]}`, `[]`, `{"id":-1}`, "\xff"} {
		f.Add([]byte(s))
	}
	a, b := pair(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 || len(packet) > MaxMessage {
			return
		}
		if err := a.send(packet, nil); err != nil {
			t.Fatal(err)
		}
		m, file, err := b.Receive()
		if file != nil || m == nil && err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%q: %+v, %v, %v", packet, m, file, err)
		}
	})
}
