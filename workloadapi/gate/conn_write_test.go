package gate

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestClientThatDoesNotReadIsCutOff: what is written to it ends in writeTimeout,
// and so does all that the daemon keeps for it.
func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	t.Parallel()
	l, err := ListenAt(filepath.Join(t.TempDir(), "s"), 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	tr := transportWith(t, defaultConnLimits)
	c, _, err := tr.ServerHandshake(raw)
	if err != nil {
		t.Fatal(err)
	}
	frame := append([]byte{0, 0x40, 0, 0 /* DATA */, 0, 0, 0, 0, 1}, make([]byte, 0x4000)...)
	for written := 0; err == nil; written += len(frame) {
		if written > 64<<20 {
			t.Fatal("64 MiB were written to nobody")
		}
		_, err = c.Write(frame)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing ends with %v, want %v", err, os.ErrDeadlineExceeded)
	}
	select {
	case <-c.(*conn).Ended():
	default:
		t.Error("the connection is still open")
	}
	if tr.conns != 0 || len(tr.people) != 0 {
		t.Errorf("%d connections are counted, of users %v", tr.conns, tr.people)
	}
}
