package door

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
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
	return &net.Dialer{Timeout: p.Connect, KeepAlive: 30 * time.Second, ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
		return checkAddress(address, p.Addresses)
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

// errAddress means that an upstream's name leads to where nobody meant it to.
type errAddress struct{ addr netip.Addr }

func (e errAddress) Error() string {
	return fmt.Sprintf("the upstream's address is %s, which is not a public one; name it in allow_addresses of the credential's proxy block if it is meant", e.addr)
}

// notPublic are addresses that are not the upstream's on the internet: of this host, of
// the local network, of clouds' metadata, and forms in which those can be written.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("3fff::/20"), netip.MustParsePrefix("5f00::/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("ff00::/8"),
}

// checkAddress checks the address that is about to be connected to, after the name was
// resolved and for each attempt: nothing can change between the check and its use.
func checkAddress(address string, allowed []netip.Prefix) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("the upstream's address %q cannot be read", address)
	}
	addr := ap.Addr().Unmap().WithZone("")
	for _, p := range allowed {
		if p.Contains(addr) {
			return nil
		}
	}
	for _, p := range notPublic {
		if p.Contains(addr) {
			return errAddress{addr}
		}
	}
	return nil
}
