package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

const (
	rootsFile    = "roots"
	rootsVersion = 1
	rootTTL      = 10 * 365 * 24 * time.Hour // of the certificate; the key lives as long as the TPM keeps it
)

// rotateRoots keeps the self-signed certificates of the present node key that are
// valid, and makes one if there is none or the newest is past half of its life. Any of
// them verifies whatever the key has signed. Certificates of another key, as after a
// TPM was replaced and its state reset, are dropped: nothing they signed can be
// trusted.
//
// If there is an organisation's root, it is the only one.
func (a *Authority) rotateRoots(now time.Time) error {
	if u := a.upstream.Load(); u != nil {
		if a.roots = nil; u.Root != nil {
			a.roots = []*x509.Certificate{u.Root}
		}
		return nil
	}
	if a.roots == nil {
		stored, err := a.loadRoots()
		if err != nil {
			return err
		}
		a.roots = stored
	}
	valid := a.roots[:0:0]
	for _, r := range a.roots {
		if !now.Before(r.NotBefore) && now.Before(r.NotAfter) {
			valid = append(valid, r)
		}
	}
	fresh := len(valid) > 0 && now.Before(halfLife(valid[len(valid)-1]))
	if !fresh {
		cert, err := a.makeRoot(now)
		if err != nil {
			return fmt.Errorf("making a root certificate: %w", err)
		}
		valid = append(valid, cert)
		if err := a.saveRoots(valid); err != nil {
			return err
		}
	}
	a.roots = valid
	return nil
}

func (a *Authority) loadRoots() ([]*x509.Certificate, error) {
	data, err := a.load(rootsFile, rootsVersion)
	if err != nil {
		return nil, fmt.Errorf("loading root certificates: %w", err)
	}
	certs, err := x509.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("loading root certificates: %w", err)
	}
	pub := a.o.NodeKey.Public().(*ecdsa.PublicKey)
	id := a.o.TrustDomain.ID().String()
	var roots []*x509.Certificate
	for _, c := range certs {
		if pub.Equal(c.PublicKey) && len(c.URIs) == 1 && c.URIs[0].String() == id {
			roots = append(roots, c)
		}
	}
	return roots, nil
}

func (a *Authority) saveRoots(roots []*x509.Certificate) error {
	var b bytes.Buffer
	for _, r := range roots {
		b.Write(r.Raw)
	}
	return a.o.Store.Save(rootsFile, rootsVersion, b.Bytes())
}

func (a *Authority) makeRoot(now time.Time) (*x509.Certificate, error) {
	pub, ok := a.o.NodeKey.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("node key is a %T, want ECDSA", a.o.NodeKey.Public())
	}
	keyID, err := subjectKeyID(pub)
	if err != nil {
		return nil, err
	}
	t := a.caTemplate("root", keyID, now, now.Add(rootTTL))
	t.MaxPathLen = 1
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, a.o.NodeKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// caTemplate is a signing certificate: the trust domain's ID without a path as
// its only URI SAN (X509-SVID §3.2, §5.2), cA set (§4.1), and a critical key
// usage of keyCertSign and cRLSign (§4.3).
func (a *Authority) caTemplate(kind string, keyID []byte, notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serialNumber(),
		Subject: pkix.Name{
			Organization: []string{a.o.TrustDomain.Name()},
			CommonName:   "vouchd " + kind,
			SerialNumber: hex.EncodeToString(keyID),
		},
		URIs:                  []*url.URL{a.o.TrustDomain.ID().URL()},
		NotBefore:             notBefore.Add(-backdate),
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          keyID,
	}
}

// subjectKeyID is a truncated SHA-256 over the public key (RFC 7093 §2,
// method 1).
func subjectKeyID(pub *ecdsa.PublicKey) ([]byte, error) {
	point, err := pub.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(point)
	return sum[:20], nil
}

// serialNumber returns 126 random bits and a leading one: never zero, always
// of one length (RFC 5280 §4.1.2.2).
func serialNumber() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

func halfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}
