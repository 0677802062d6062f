package spire

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Check reports whether a server at this address is the trust domain's, as these roots
// verify it, and answers. It returns the sequence of its bundle.
func Check(ctx context.Context, address string, td spiffeid.TrustDomain, roots []*x509.Certificate) (sequence uint64, err error) {
	k := &Keeper{o: Options{Server: address, TrustDomain: td, Roots: roots, Now: time.Now}}
	c, err := k.dial(nil)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.bundle(ctx)
	if err != nil {
		return 0, err
	}
	b, err := parseBundle(td, raw)
	if err != nil {
		return 0, c.failed("reading the bundle", err)
	}
	return b.Sequence, nil
}

// ParseRoots reads a trust domain's X.509 authorities, in PEM or in SPIFFE's JSON. It returns
// nil where there are none.
func ParseRoots(td spiffeid.TrustDomain, text []byte) []*x509.Certificate {
	if b, err := spiffebundle.Parse(td, text); err == nil {
		return b.X509Authorities()
	}
	if b, err := x509bundle.Parse(td, text); err == nil {
		return b.X509Authorities()
	}
	return nil
}
