package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
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
