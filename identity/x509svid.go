package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/secret"
)

// An issuingCA is never stored: a restart makes a new one.
type issuingCA struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	keyID string
}

// An X509SVID is a workload's certificate with its key (X509-SVID §2).
type X509SVID struct {
	ID         spiffeid.ID
	Chain      []byte       // DER, leaf first, then the issuing CA and any between it and the bundle (Workload API §5.2.1)
	Leaf       []byte       // DER, the beginning of Chain
	PrivateKey secret.Bytes // PKCS#8 DER
	Serial     string       // hexadecimal
	Names      Names
	IssuerID   string // the issuing CA's subject key ID, hexadecimal
	NotBefore  time.Time
	NotAfter   time.Time
	Server     Server
}

// Names are what an X509-SVID is called beside its SPIFFE ID, for relying parties that
// go by those. The zero value is nothing.
type Names struct {
	Common string   // the subject's common name, at most 64 characters
	DNS    []string // subject alternative names
}

// maxCommonName is in characters (RFC 5280, appendix A).
const maxCommonName = 64

// CommonName is a SPIFFE ID's name where there is room for only one: the ID itself if
// it fits in the 64 characters of a common name (RFC 5280 §4.1.2.6, appendix A), else
// its SHA-256 in hexadecimal, which is not an ID. No two IDs have the same name.
func CommonName(id spiffeid.ID) string {
	if name := id.String(); len(name) <= maxCommonName {
		return name
	}
	sum := sha256.Sum256([]byte(id.String()))
	return hex.EncodeToString(sum[:])
}

// IssueX509 makes a key and an X509-SVID for an entry, valid for its TTL or until the
// issuing CA expires if that is sooner. It returns [ErrNoAuthority] if there is no valid
// issuing CA and none could be made.
func (a *Authority) IssueX509(ctx context.Context, e Entry) (*X509SVID, error) {
	now := a.o.Now()
	if err := a.mayIssue(e.ID, e.X509TTL, now); err != nil {
		return nil, err
	}
	upstream := a.upstream.Load()
	ca, err := a.issuingCA(ctx, now)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	notAfter := earlier(now.Add(e.X509TTL), ca.cert.NotAfter)
	if upstream != nil {
		notAfter = earlier(notAfter, upstream.notAfter())
	}
	t := leafTemplate(e.ID, now, notAfter)
	t.Subject.CommonName, t.DNSNames = e.Names.Common, e.Names.DNS
	leaf, err := x509.CreateCertificate(rand.Reader, t, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("signing X509-SVID for %s: %w", e.ID, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	chain := append(append(leaf[:len(leaf):len(leaf)], ca.cert.Raw...), upstream.between()...)
	return &X509SVID{
		ID:         e.ID,
		Chain:      chain,
		Leaf:       chain[:len(leaf)],
		PrivateKey: secret.Of(pkcs8),
		Serial:     t.SerialNumber.Text(16),
		Names:      e.Names,
		IssuerID:   ca.keyID,
		NotBefore:  t.NotBefore.Truncate(time.Second),
		NotAfter:   t.NotAfter.Truncate(time.Second),
	}, nil
}

// leafTemplate has the ID as its only URI SAN, critical where the subject is
// empty (X509-SVID §2, §3.1), cA unset (§4.1), a critical key usage of
// digitalSignature (§4.3), and both TLS purposes (§4.4).
func leafTemplate(id spiffeid.ID, now, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serialNumber(),
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// mayIssue keeps foreign IDs, the trust domain's own ID (X509-SVID §3.1: a
// leaf has a path) and empty lifetimes out of every SVID, and issues nothing
// for an organisation that does not stand behind this host now.
func (a *Authority) mayIssue(id spiffeid.ID, ttl time.Duration, now time.Time) error {
	switch {
	case !id.MemberOf(a.o.TrustDomain):
		return fmt.Errorf("%s is not in trust domain %s", id, a.o.TrustDomain.Name())
	case id.Path() == "":
		return fmt.Errorf("%s has no path, so no workload can have it", id)
	case ttl <= 0:
		return fmt.Errorf("lifetime %v of an SVID for %s is not positive", ttl, id)
	}
	return a.enrolled(now)
}

// issuingCA returns the CA to sign with now. Usually Run has made it in time;
// after a clock jump or a long suspend it is made here.
func (a *Authority) issuingCA(ctx context.Context, now time.Time) (*issuingCA, error) {
	if ca := a.ca.Load(); ca.valid(now) {
		return ca, nil
	}
	err := a.Rotate(ctx)
	if ca := a.ca.Load(); ca.valid(now) {
		return ca, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrNoAuthority, err)
}

func (ca *issuingCA) valid(now time.Time) bool {
	return ca != nil && !now.Before(ca.cert.NotBefore) && now.Before(ca.cert.NotAfter)
}

// rotateIssuingCA makes a CA when there is none, or one overlap before the
// present one ends.
func (a *Authority) rotateIssuingCA(ctx context.Context, now time.Time) error {
	if err := a.enrolled(now); err != nil {
		return fmt.Errorf("making an issuing CA: %w", err)
	}
	if ca := a.ca.Load(); ca.valid(now) && (now.Before(ca.cert.NotAfter.Add(-a.o.Overlap)) || a.endsWithEnrolment(ca)) {
		return nil
	}
	ca, err := a.makeIssuingCA(now)
	if err != nil {
		return fmt.Errorf("making an issuing CA: %w", err)
	}
	err = a.announce(ctx, Key{
		ID:          ca.keyID,
		Certificate: ca.cert.Raw,
		PublicKey:   ca.cert.RawSubjectPublicKeyInfo,
		NotBefore:   ca.cert.NotBefore,
		NotAfter:    ca.cert.NotAfter,
	})
	if err != nil {
		return err
	}
	a.ca.Store(ca)
	return nil
}

func (a *Authority) makeIssuingCA(now time.Time) (*issuingCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keyID, err := subjectKeyID(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	parent, err := a.parent()
	if err != nil {
		return nil, err
	}
	notAfter := earlier(now.Add(a.o.IssuingCATTL), parent.NotAfter)
	if u := a.upstream.Load(); u != nil {
		notAfter = earlier(notAfter, u.notAfter())
	}
	t := a.caTemplate("issuing CA", keyID, now, notAfter)
	t.MaxPathLenZero = true
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, a.o.NodeKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issuingCA{cert: cert, key: key, keyID: hex.EncodeToString(keyID)}, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
