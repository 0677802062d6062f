package loopback

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// A proxy stands in for vouchd's: it greets who has been passed on.
type proxy struct {
	net.Listener
	said chan *relay.Hello
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &proxy{l, make(chan *relay.Hello, 10)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.greet(c)
		}
	}()
	return p
}

func (p *proxy) greet(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	r, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	h, err := relay.Of(r)
	if err != nil || h == nil {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		return
	}
	p.said <- h
	if h.Attempt != nil {
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		return
	}
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+relay.Protocol+"\r\n\r\n")
	line, err := in.ReadString('\n')
	if err == nil {
		io.WriteString(c, "hello "+line)
	}
}

// serve relays to a proxy, and returns the port, what the proxy is told and what is refused.
func serve(t *testing.T, hosts ...string) (port int, p *proxy, refused chan error, a *Authority) {
	t.Helper()
	p, refused = newProxy(t), make(chan error, 10)
	if len(hosts) > 0 {
		var err error
		if a, err = NewAuthority(hosts); err != nil {
			t.Fatal(err)
		}
	}
	r, err := New(Options{Socket: p.Addr().String(), Handles: map[string]string{"api": "handle"}, Authority: a, Report: func(err error) { refused <- err }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Serve(ctx, l); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return l.Addr().(*net.TCPAddr).Port, p, refused, a
}

// call is a shell's call of a port.
func call(port int) string {
	return fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && echo you >&3 && head -c 10 <&3", port)
}

func TestADescendantIsServed(t *testing.T) {
	port, p, refused, _ := serve(t)
	for _, script := range []string{call(port), "bash -c '" + call(port) + "'"} {
		out, err := exec.Command("bash", "-c", script).CombinedOutput()
		if err != nil || string(out) != "hello you\n" {
			t.Errorf("%s: %q (%v)", script, out, err)
		}
		if h := <-p.said; h.Door != relay.Loopback || h.Handles["api"] != "handle" || len(h.Processes) == 0 || h.Processes[0].Start == 0 {
			t.Errorf("the proxy is told %+v", h)
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
	port, _, refused, _ := serve(t)
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
	port, _, refused, _ := serve(t)
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
