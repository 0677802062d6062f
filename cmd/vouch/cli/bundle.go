package cli

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// refreshHint is how often another trust domain is to fetch the bundle (SPIFFE
// Trust Domain and Bundle §4.1.2): often enough for a day's keys.
const refreshHint = 5 * time.Minute

// SPIFFEBundle makes a trust domain's bundle of its roots, DER and concatenated, and its JWT
// keys, a JWK Set, either of which may be missing. Sequence 0 is none.
func SPIFFEBundle(trustDomain string, roots, jwks []byte, sequence uint64) (*spiffebundle.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's bundle: %w", err)
	}
	b := spiffebundle.New(td)
	if len(jwks) > 0 {
		if b, err = spiffebundle.Parse(td, jwks); err != nil {
			return nil, fmt.Errorf("reading the daemon's keys: %w", err)
		}
	}
	certs, err := x509.ParseCertificates(roots)
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's roots: %w", err)
	}
	b.SetX509Authorities(certs)
	if sequence > 0 {
		b.SetSequenceNumber(sequence)
	}
	b.SetRefreshHint(refreshHint)
	return b, nil
}
