package credentialapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A workloadIdentity authenticates a broker to an upstream as the caller: with the caller's
// SVIDs, which leave the daemon only for the upstream. It is a [credential.Identity]. The
// SVIDs are recorded like those that a caller fetches.
type workloadIdentity struct {
	api   *API
	c     *gate.Caller
	entry identity.Entry
}

// JWT issues a JWT-SVID for the upstream.
func (w *workloadIdentity) JWT(ctx context.Context, r credential.JWTRequest) (secret.Bytes, error) {
	audience := []string{r.Audience}
	if err := gate.CheckAudience(audience); err != nil {
		return secret.Bytes{}, err
	}
	with := identity.With{Algorithm: cmp.Or(r.Algorithm, w.entry.JWTAlgorithm), Claim: r.Claim, Value: r.Value}
	svid, err := w.api.authority.IssueJWT(ctx, w.entry, audience, with)
	if err != nil {
		return secret.Bytes{}, err
	}
	if err := w.record(ctx, w.c.DescribeJWT(w.entry, svid)); err != nil {
		return secret.Bytes{}, err
	}
	return secret.Of([]byte(svid.Token)), nil
}

// X509 issues an X509-SVID for the upstream.
func (w *workloadIdentity) X509(ctx context.Context) (tls.Certificate, error) {
	e := w.entry
	e.Names = identity.Names{Common: identity.CommonName(e.ID)}
	svid, err := w.api.authority.IssueX509(ctx, e)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := x509.ParseCertificates(svid.Chain)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading an X509-SVID of %s: %w", w.entry.ID, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(svid.PrivateKey.Reveal())
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading the key of an X509-SVID of %s: %w", w.entry.ID, err)
	}
	cert := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, w.record(ctx, w.c.DescribeX509(w.entry, svid))
}

// record makes the SVID's record durable. If the machine does not pass its appraisal, the
// caller is not authenticated.
func (w *workloadIdentity) record(ctx context.Context, r audit.Record) error {
	if err := w.api.gate.Refusal(); err != nil {
		return err
	}
	return w.c.Record(ctx, r)
}
