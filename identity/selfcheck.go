package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// SelfCheck issues one SVID of each kind, for no process, and verifies them with the
// bundle as a relying party would.
func (a *Authority) SelfCheck(ctx context.Context) error {
	id, err := spiffeid.FromPath(a.o.TrustDomain, "/vouchd/self-check")
	if err != nil {
		return err
	}
	x, err := a.IssueX509(ctx, Entry{ID: id, X509TTL: time.Minute})
	if err != nil {
		return err
	}
	x.PrivateKey.Wipe()
	roots, err := x509bundle.ParseRaw(a.o.TrustDomain, a.Bundle().X509)
	if err != nil {
		return fmt.Errorf("reading the bundle: %w", err)
	}
	chain, err := x509.ParseCertificates(x.Chain)
	if err != nil {
		return fmt.Errorf("reading an issued X509-SVID: %w", err)
	}
	if _, _, err := x509svid.Verify(chain, roots, x509svid.WithTime(a.o.Now())); err != nil {
		return fmt.Errorf("verifying an issued X509-SVID: %w", err)
	}
	for _, algorithm := range a.o.JWTAlgorithms {
		if a.jwt.Load().of(algorithm).signing(a.o.Now()) == nil && algorithm == RS256 {
			continue // its key is still being made
		}
		if err := a.checkJWT(ctx, id, algorithm); err != nil {
			return err
		}
	}
	return nil
}

func (a *Authority) checkJWT(ctx context.Context, id spiffeid.ID, algorithm string) error {
	const audience = "vouchd self-check"
	j, err := a.IssueJWT(ctx, Entry{ID: id, JWTTTL: time.Minute}, []string{audience}, With{Algorithm: algorithm})
	if err != nil {
		return err
	}
	if _, err := a.Bundle().ValidateJWT(j.Token, audience); err != nil {
		return fmt.Errorf("verifying a JWT-SVID issued with %s: %w", algorithm, err)
	}
	return nil
}
