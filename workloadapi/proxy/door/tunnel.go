package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// tunnel goes on in the protocol that the upstream has switched to. In it the credential
// cannot be replaced, so that it ends if the credential comes.
func (c *call) tunnel(ctx context.Context, resp *http.Response) error {
	up, ok := resp.Body.(io.ReadWriteCloser)
	if got := resp.Header.Get("Upgrade"); !ok || c.upgrade == "" || !strings.EqualFold(got, c.upgrade) {
		return refuse(http.StatusBadGateway, "upstream_upgrade", "the upstream switches to %.40q, and %.40q was asked for", c.scrub(got), c.upgrade)
	}
	head := http.Header{"Connection": {"Upgrade"}, "Upgrade": {c.upgrade}}
	for name, values := range withoutHops(resp.Header) {
		if name == "Set-Cookie" && !c.policy.Cookies || name == "Content-Length" {
			continue
		}
		for _, v := range values {
			head.Add(c.scrub(name), c.cleaned(v))
		}
	}
	down, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the connection: %w", err)
	}
	defer down.Close()
	defer context.AfterFunc(ctx, func() { down.Close(); up.Close() })()
	answer := &http.Response{StatusCode: http.StatusSwitchingProtocols, ProtoMajor: 1, ProtoMinor: 1, Header: head}
	if err := errors.Join(answer.Write(buffered), buffered.Flush()); err != nil {
		return brokenOff{err}
	}
	both := make(chan error, 2)
	go func() {
		n, err := io.Copy(up, &active{buffered, c})
		c.sent.Add(n)
		up.Close()
		both <- err
	}()
	go func() {
		f := c.screen(io.Discard)
		_, err := io.Copy(down, &searched{active{up, c}, f})
		f.Close() // into nothing
		f.tally()
		down.Close()
		both <- err
	}()
	first, second := <-both, <-both
	if err := errors.Join(first, second); errors.Is(err, errEcho) {
		return brokenOff{refuse(http.StatusBadGateway, "echo_blocked", "%v", errEcho)}
	}
	if cause := context.Cause(ctx); cause != nil && c.r.Context().Err() == nil {
		return brokenOff{c.failure(ctx, cause)}
	}
	return nil
}

// An active reader keeps a call from being idle.
type active struct {
	io.Reader
	call *call
}

func (a *active) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	a.call.idle.Reset(a.call.policy.Idle)
	return n, err
}

var errEcho = errors.New("a secret is in what the upstream sent, where it cannot be taken out")

// A searched reader ends where a secret does that may not pass.
type searched struct {
	active
	screen *screen
}

func (s *searched) Read(p []byte) (int, error) {
	n, err := s.active.Read(p)
	s.call.received += int64(n)
	if _, wrong := s.screen.Write(p[:n]); wrong != nil || s.screen.found() {
		return 0, errEcho
	}
	return n, err
}

// connect passes TLS to a host as it is, where the definition has that (passthrough).
func (s *server) connect(w http.ResponseWriter, r *http.Request, over *conn, daemon *client, t *target) error {
	host, _, _ := net.SplitHostPort(t.host) // has been split before
	if !t.policy.Passthrough {
		return refuse(http.StatusForbidden, "not_intercepted",
			"calls to %s are made with credential %s, which cannot be put into TLS of the caller's: start the program by vouch exec --proxy %[2]s --intercept, or call http://localhost/%[2]s/ on this socket", host, t.names[0])
	}
	handle := ""
	if over.says != nil {
		handle = over.says.Handles[t.names[0]]
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	a, id, err := daemon.ask(ctx, cancel, over, &link.Ask{
		Conn: over.id, Definitions: t.names, Handle: handle, Request: &policy.Request{Method: r.Method, Target: policy.Target{Path: t.host}},
	})
	switch {
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	case a.Refused != nil:
		return &refusal{*a.Refused}
	}
	defer daemon.finished(a.Lease, id)
	c := &call{server: s, daemon: daemon, w: w, r: r, policy: t.policy, answer: a, id: id, began: time.Now()}
	c.idle = time.AfterFunc(c.policy.Idle, func() { cancel(errIdle) })
	defer c.idle.Stop()
	err = c.passThrough(ctx, host)
	c.report(err)
	return err
}

// passThrough connects, and passes bytes both ways once the greeting is for that host.
func (c *call) passThrough(ctx context.Context, host string) error {
	up, err := dialer(c.policy).DialContext(ctx, "tcp", c.policy.TunnelTo(host))
	if err != nil {
		return c.failure(ctx, err)
	}
	defer up.Close()
	down, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the connection: %w", err)
	}
	defer down.Close()
	defer context.AfterFunc(ctx, func() { down.Close(); up.Close() })()
	c.status = http.StatusOK
	if _, err := io.WriteString(down, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return brokenOff{err}
	}
	name, in, err := relay.ServerName(down, buffered, c.policy.Connect)
	if err == nil && name != host {
		err = fmt.Errorf("TLS is for %.100q, and the connection for %s", name, host)
	}
	if err != nil {
		return brokenOff{err}
	}
	sent := make(chan error, 1)
	go func() {
		n, err := io.Copy(up, &active{in, c})
		c.sent.Add(n)
		up.(*net.TCPConn).CloseWrite()
		sent <- err
	}()
	c.received, err = io.Copy(down, &active{up, c})
	down.Close()
	<-sent
	if cause := context.Cause(ctx); cause != nil && c.r.Context().Err() == nil {
		return brokenOff{c.failure(ctx, cause)}
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return brokenOff{err}
	}
	return nil
}
