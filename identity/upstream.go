package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ErrNotEnrolled means that the organisation whose trust domain this is has
// not signed the node key, or that its signature has expired. Until it does,
// nothing is issued.
var ErrNotEnrolled = errors.New("this host is not enrolled in its trust domain")

// An Upstream is an organisation's root of the trust domain, which made the
// node key a CA of it. The zero Upstream is a root that did not yet.
type Upstream struct {
	Chain []*x509.Certificate // the node key's certificate first, without the root
	Root  *x509.Certificate
}

// SetUpstream puts a new certificate of the node key in force, at once for
// what is issued from now on. Only an authority that was made with an Upstream
// has one.
func (a *Authority) SetUpstream(ctx context.Context, u Upstream) error {
	if a.upstream.Load() == nil {
		return errors.New("this authority is its own root")
	}
	if err := u.check(a.o.NodeKey.Public()); err != nil {
		return err
	}
	a.rotating.Lock()
	a.upstream.Store(&u)
	a.rotating.Unlock()
	return a.Rotate(ctx)
}

// check makes sure that what is issued under u verifies as far as this host
// can tell. Whose root it is, the caller has made sure.
func (u *Upstream) check(nodeKey crypto.PublicKey) error {
	if len(u.Chain) == 0 && u.Root == nil {
		return nil
	}
	if len(u.Chain) == 0 || u.Root == nil {
		return errors.New("upstream: want both the node key's certificate and the root")
	}
	if key, ok := u.Chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(nodeKey) {
		return errors.New("upstream: the certificate is for another key than the node's")
	}
	above := append(u.Chain[1:len(u.Chain):len(u.Chain)], u.Root)
	for i, c := range u.Chain {
		if err := c.CheckSignatureFrom(above[i]); err != nil {
			return fmt.Errorf("upstream: certificate %d of the chain: %w", i, err)
		}
	}
	return nil
}

// notAfter returns when the first certificate expires, the zero time where
// there is none.
func (u *Upstream) notAfter() time.Time {
	if u.Root == nil {
		return time.Time{}
	}
	first := u.Root.NotAfter
	for _, c := range u.Chain {
		first = earlier(first, c.NotAfter)
	}
	return first
}

// enrolled returns nil if the node key is the root or is certified now.
func (a *Authority) enrolled(now time.Time) error {
	u := a.upstream.Load()
	switch {
	case u == nil:
		return nil
	case u.Root == nil:
		return fmt.Errorf("%w: %w: %s", ErrNoAuthority, ErrNotEnrolled, a.o.HowToEnrol)
	case !now.Before(u.notAfter()):
		return fmt.Errorf("%w: %w any more, since %s: %s",
			ErrNoAuthority, ErrNotEnrolled, u.notAfter().Format(time.RFC3339), a.o.HowToEnrol)
	}
	return nil
}

// parent returns the certificate of the node key that issuing CAs are signed
// under.
func (a *Authority) parent() (*x509.Certificate, error) {
	if u := a.upstream.Load(); u != nil && len(u.Chain) > 0 {
		return u.Chain[0], nil
	}
	if len(a.roots) == 0 {
		return nil, errors.New("there is no root")
	}
	return a.roots[len(a.roots)-1], nil
}

// endsWithEnrolment reports whether no issuing CA could last longer than ca.
func (a *Authority) endsWithEnrolment(ca *issuingCA) bool {
	u := a.upstream.Load()
	return u != nil && !ca.cert.NotAfter.Before(u.notAfter())
}

// between returns the certificates between an issuing CA and the bundle.
func (u *Upstream) between() []byte {
	if u == nil {
		return nil
	}
	var b bytes.Buffer
	for _, c := range u.Chain {
		b.Write(c.Raw)
	}
	return b.Bytes()
}
