package door

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/address"
)

// upstreams are the connections to upstreams, kept for each definition: calls by two
// definitions share none.
type upstreams struct {
	mu sync.Mutex // guards the field below
	of map[*policy.Policy]*upstream
}

// An upstream is what one definition's calls are made over.
type upstream struct {
	*http.Transport
	used time.Time // last; guarded by upstreams.mu
}

const (
	idleConns       = 256 // kept for each upstream
	maxUpstreamHead = 256 << 10

	// maxUpstreamAhead is how much of a response is taken, over HTTP/2, before the agent
	// reads it: agents may be many, and slow.
	maxUpstreamAhead = 256 << 10
	forgetAfter      = 10 * time.Minute // of a definition that is no longer called
)

// get returns the connections of a definition.
func (u *upstreams) get(p *policy.Policy) *upstream {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.of == nil {
		u.of = make(map[*policy.Policy]*upstream)
	}
	now := time.Now()
	t := u.of[p]
	if t == nil {
		for other, of := range u.of {
			if now.Sub(of.used) > forgetAfter {
				of.CloseIdleConnections()
				delete(u.of, other)
			}
		}
		t = &upstream{Transport: newTransport(p)}
		u.of[p] = t
	}
	t.used = now
	return t
}

func (u *upstreams) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, t := range u.of {
		t.CloseIdleConnections()
	}
}

// dialer connects to a definition's upstreams, at the addresses that they may have.
func dialer(p *policy.Policy) *net.Dialer {
	return &net.Dialer{Timeout: p.Connect, KeepAlive: 30 * time.Second, ControlContext: func(_ context.Context, _, to string, _ syscall.RawConn) error {
		return address.Check(to, p.Addresses)
	}}
}

// newTransport returns connections that go to the definition's upstream alone, whatever
// the environment says of proxies, and follow no redirect.
func newTransport(p *policy.Policy) *http.Transport {
	d, to := dialer(p), p.UpstreamPort()
	return &http.Transport{
		DialContext:            func(ctx context.Context, network, _ string) (net.Conn, error) { return d.DialContext(ctx, network, to) },
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.Roots(), ServerName: p.Base().Hostname()},
		TLSHandshakeTimeout:    p.Connect,
		ResponseHeaderTimeout:  p.Header,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    idleConns,
		MaxResponseHeaderBytes: maxUpstreamHead,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerStream: maxUpstreamAhead},
	}
}
