// Package loopback serves a program and what it starts on a loopback port, and nobody
// else on the machine.
//
// A port of 127.0.0.1 is open to every user. For each connection the kernel is asked which
// socket is at its other end (sock_diag(7)) and /proc which processes have that: one at
// least, and all of them descendants of this one. It proves who has the socket when the
// connection is made. A process of the tree may pass it to another, as it may pass on
// whatever it reads.
//
// What arrives is passed on to the proxy's socket, which decides. TLS to a host whose calls
// are made with a credential is ended here, with a certificate of the tree's own.
package loopback

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// Options are how connections are passed on.
type Options struct {
	Socket    string            // the proxy's, which is required
	Handles   map[string]string // that this process holds, by credential
	Authority *Authority        // with which TLS is ended; nil: it is not
	Report    func(error)       // of a connection that is refused; required
}

// A Relay passes connections on to the proxy's socket.
type Relay struct {
	Options
	finder Finder
	work   sync.WaitGroup
	turns  chan struct{}
}

// New returns a relay, which serves nobody yet. Processes whose parent exits become
// children of this one from now on, so that they stay in the tree.
func New(o Options) (*Relay, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("adopting orphans: %w", err)
	}
	return &Relay{Options: o, turns: make(chan struct{}, maxConns)}, nil
}

// From has connections come from another network namespace, of which this is a socket of
// sock_diag(7). It is to be called before the relay serves.
func (r *Relay) From(diag *os.File) { r.finder.Diag = diag }

// Listen returns a listener on a port of 127.0.0.1.
func Listen() (net.Listener, error) {
	return net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
}

// maxConns bounds the connections that are open at a time; the rest wait.
const maxConns = 2048

const greetingTimeout = 30 * time.Second // for what says where a connection is to go

// Serve passes on what comes to a port that clients call by name or use as their proxy,
// until the context ends. It closes the listener.
func (r *Relay) Serve(ctx context.Context, l net.Listener) { r.serve(ctx, l, r.proxy) }

// ServeTLS does the same for TLS that was meant for a host itself.
func (r *Relay) ServeTLS(ctx context.Context, l net.Listener) { r.serve(ctx, l, r.direct) }

// ServeHTTP does the same for HTTP without TLS.
func (r *Relay) ServeHTTP(ctx context.Context, l net.Listener) {
	r.serve(ctx, l, func(ctx context.Context, c net.Conn, by []relay.Process) error {
		return r.pass(ctx, c, c, r.hello(relay.Sandbox, by), nil)
	})
}

// ServeSockets passes connections on to Unix sockets as they come, by the address that is
// dialed.
func (r *Relay) ServeSockets(ctx context.Context, l net.Listener, at map[netip.Addr]string) {
	r.serve(ctx, l, func(ctx context.Context, c net.Conn, by []relay.Process) error {
		to, err := netip.ParseAddrPort(c.LocalAddr().String())
		if err != nil {
			return err
		}
		path, ok := at[to.Addr().Unmap()]
		if !ok {
			return r.Attempt(ctx, relay.Attempt{Kind: "tcp", Target: to.String()}, by...)
		}
		up, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		defer up.Close()
		both(ctx, c, c, up, up)
		return nil
	})
}

func (r *Relay) serve(ctx context.Context, l net.Listener, pass func(context.Context, net.Conn, []relay.Process) error) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer r.work.Wait()
	for ctx.Err() == nil {
		r.turns <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			<-r.turns
			if ctx.Err() == nil {
				r.Report(fmt.Errorf("accepting a connection: %w", err))
				time.Sleep(100 * time.Millisecond) // descriptors may come free
			}
			continue
		}
		r.work.Go(func() {
			defer func() { <-r.turns }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			by, err := r.check(c)
			if r.finder.Diag != nil {
				err = nil // nobody else is in that network; who connected may have gone
			}
			if err == nil {
				err = pass(ctx, c, by)
			}
			if err != nil && ctx.Err() == nil {
				r.Report(err)
			}
		})
	}
}

// hello is what the proxy is told of a connection.
func (r *Relay) hello(door string, by []relay.Process) *relay.Hello {
	return &relay.Hello{Door: door, Handles: r.Handles, Processes: by[:min(len(by), relay.MaxProcesses)]}
}

// Attempt tells the proxy of what leads nowhere, for the record.
func (r *Relay) Attempt(ctx context.Context, a relay.Attempt, by ...relay.Process) error {
	h := r.hello(relay.Sandbox, by)
	if len(a.Target) > relay.MaxText {
		a.Target = strings.ToValidUTF8(a.Target[:relay.MaxText], "")
	}
	h.Attempt = &a
	_, err := relay.Dial(ctx, r.Socket, h)
	return err
}

// proxy serves a client that knows where it is: by a path, by an absolute URL, or with CONNECT.
func (r *Relay) proxy(ctx context.Context, c net.Conn, by []relay.Process) error {
	in := bufio.NewReaderSize(c, 4<<10)
	if err := c.SetReadDeadline(time.Now().Add(greetingTimeout)); err != nil {
		return err
	}
	if !isConnect(in) {
		return errors.Join(c.SetReadDeadline(time.Time{}), r.pass(ctx, c, in, r.hello(relay.Loopback, by), nil))
	}
	to, err := target(in)
	if err != nil {
		fmt.Fprintf(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		return fmt.Errorf("a connection from %s: %w", c.RemoteAddr(), err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(to)
	if port != "443" || !r.Authority.Has(host) {
		return r.pass(ctx, c, in, r.hello(relay.Connect, by), connectTo(to))
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return err
	}
	return r.intercept(ctx, c, in, host, r.hello(relay.Connect, by))
}

// connect begins a request for a tunnel, and maxConnect bounds it in bytes.
const (
	connect    = "CONNECT "
	maxConnect = 64 << 10
)

// isConnect reports whether a client begins so. It waits for no byte more than it needs.
func isConnect(in *bufio.Reader) bool {
	for n := 1; n <= len(connect); n++ {
		if b, err := in.Peek(n); err != nil || string(b) != connect[:n] {
			return false
		}
	}
	return true
}

// target reads a request for a tunnel.
func target(in *bufio.Reader) (string, error) {
	var head bytes.Buffer
	for !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")) {
		line, err := in.ReadSlice('\n')
		head.Write(line)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return "", fmt.Errorf("reading its CONNECT: %w", err)
		}
		if head.Len() > maxConnect {
			return "", fmt.Errorf("its CONNECT has more than %d bytes", maxConnect)
		}
	}
	req, err := http.ReadRequest(bufio.NewReader(&head))
	if err != nil {
		return "", fmt.Errorf("its CONNECT: %w", err)
	}
	if !isTarget(req.RequestURI) {
		return "", errors.New("its CONNECT is not for a host and a port")
	}
	return req.RequestURI, nil
}

// isTarget reports whether text is a host and a port, and can be part of a request.
func isTarget(s string) bool {
	_, _, err := net.SplitHostPort(s)
	return err == nil && len(s) <= relay.MaxText && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

func connectTo(to string) []byte {
	return fmt.Appendf(nil, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", to)
}

// direct serves a client of TLS that believes to have reached its host.
func (r *Relay) direct(ctx context.Context, c net.Conn, by []relay.Process) error {
	name, in, err := relay.ServerName(c, c, greetingTimeout)
	to := net.JoinHostPort(name, "443")
	switch {
	case err != nil || name == "" || !isTarget(to):
		return r.Attempt(ctx, relay.Attempt{Kind: "tls", Target: fmt.Sprintf("%.100q at %s", name, c.LocalAddr())}, by...)
	case r.Authority.Has(name):
		return r.intercept(ctx, c, in, name, r.hello(relay.Sandbox, by))
	}
	up, err := relay.Dial(ctx, r.Socket, r.hello(relay.Sandbox, by))
	if err != nil {
		return err
	}
	defer up.Close()
	if _, err := up.Write(connectTo(to)); err != nil {
		return err
	}
	answer := bufio.NewReader(up)
	resp, err := http.ReadResponse(answer, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return nil // the proxy has recorded why
	}
	both(ctx, c, in, up, answer)
	return nil
}

// intercept ends TLS for a host, and passes on what is in it.
func (r *Relay) intercept(ctx context.Context, c net.Conn, in io.Reader, host string, h *relay.Hello) error {
	inside := tls.Server(&buffered{c, in}, r.Authority.config(host))
	defer inside.Close()
	shaking, cancel := context.WithTimeout(ctx, greetingTimeout)
	err := inside.HandshakeContext(shaking)
	cancel()
	if wrong := (misnamed)(""); errors.As(err, &wrong) {
		return r.Attempt(ctx, relay.Attempt{Kind: "tls", Target: fmt.Sprintf("%.100q over a connection for %s", string(wrong), host)}, h.Processes...)
	}
	if err != nil {
		return fmt.Errorf("TLS of a client for %s: %w; does it read the certificates that its variables name? docs/sandbox.md has the switches of others", host, err)
	}
	h.Host, h.Authority = host, r.Authority.Digest()
	return r.pass(ctx, inside, inside, h, nil)
}

// A buffered connection has been read from already.
type buffered struct {
	net.Conn
	in io.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// pass passes a connection on to the proxy. What comes first is sent before what the client
// sends.
func (r *Relay) pass(ctx context.Context, c net.Conn, in io.Reader, h *relay.Hello, first []byte) error {
	up, err := relay.Dial(ctx, r.Socket, h)
	if err != nil {
		return err
	}
	defer up.Close()
	if _, err := up.Write(first); err != nil {
		return err
	}
	both(ctx, c, in, up, up)
	return nil
}

// both passes bytes both ways until both sides have ended.
func both(ctx context.Context, c net.Conn, in io.Reader, up net.Conn, out io.Reader) {
	defer context.AfterFunc(ctx, func() { c.Close(); up.Close() })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, in) // an error ends the connection, whichever side it is of
		closeWrite(up)
	}()
	io.Copy(c, out)
	closeWrite(c)
	up.Close()
	c.SetReadDeadline(time.Now()) // nobody takes what it sends
	<-done
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// ProcessOf returns a process that lives.
func ProcessOf(pid int) (relay.Process, bool) {
	st, ok := statOf(pid)
	return relay.Process{PID: pid, Start: st.start}, ok
}

// check returns the processes at the other end of a connection, and an error unless all
// of them descend from this one.
func (r *Relay) check(c net.Conn) ([]relay.Process, error) {
	there := c.RemoteAddr()
	uid, owners, err := r.finder.Find(c)
	if err != nil {
		return nil, fmt.Errorf("a connection from %s: %w", there, err)
	}
	if uid != uint32(os.Geteuid()) {
		return nil, fmt.Errorf("a connection from %s is one of user %d", there, uid)
	}
	if len(owners) == 0 {
		return nil, fmt.Errorf("a connection from %s is of no process that can be seen", there)
	}
	var by []relay.Process
	for _, pid := range owners {
		if !descends(pid) {
			return nil, fmt.Errorf("a connection from %s is of process %d, which the command has not started", there, pid)
		}
		if p, ok := ProcessOf(pid); ok {
			by = append(by, p)
		}
	}
	return by, nil
}
