package loopback

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve relays to a socket that greets each connection, and returns the port and what is
// refused.
func serve(t *testing.T) (port int, refused chan error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.WriteString(c, "hello ")
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	refused = make(chan error, 10)
	r, err := Listen(l.Addr().String(), func(err error) { refused <- err })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Serve(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return r.listener.Addr().(*net.TCPAddr).Port, refused
}

// call is a shell's call of a port: what it sends comes back.
func call(port int) string {
	return fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && echo you >&3 && head -c 10 <&3", port)
}

func TestADescendantIsServed(t *testing.T) {
	port, refused := serve(t)
	for _, script := range []string{call(port), "bash -c '" + call(port) + "'"} {
		out, err := exec.Command("bash", "-c", script).CombinedOutput()
		if err != nil || string(out) != "hello you\n" {
			t.Errorf("%s: %q (%v)", script, out, err)
		}
	}
	select {
	case err := <-refused:
		t.Error(err)
	default:
	}
}

// TestAProcessOutsideTheTreeIsRefused: this process itself does not descend from itself.
func TestAProcessOutsideTheTreeIsRefused(t *testing.T) {
	port, refused := serve(t)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("it was told %q (%v)", b, err)
	}
	if err := <-refused; !strings.Contains(err.Error(), fmt.Sprintf("of process %d", os.Getpid())) {
		t.Error(err)
	}
}

// TestASocketThatAnotherProcessHasTooIsRefused: it was passed out of the tree.
func TestASocketThatAnotherProcessHasTooIsRefused(t *testing.T) {
	port, refused := serve(t)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := <-refused; !strings.Contains(err.Error(), "has not started") {
		t.Error(err)
	}
}
