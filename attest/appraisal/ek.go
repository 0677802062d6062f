package appraisal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// An EndorsementKey is the key that the TPM's maker put into it, with the
// certificate that says so and what of its chain the TPM holds.
type EndorsementKey struct {
	Public       []byte   `json:"public"`       // TPMT_PUBLIC
	Certificates [][]byte `json:"certificates"` // DER: the key's, then its chain in no order
}

const (
	maxCertificateLen = 8 << 10 // bytes, each
	maxCertificates   = 16
)

// ChainOf returns the certificates that lead up from one, out of the parts that they are
// kept in. A certificate may go over several parts, and a part may hold anything: what
// does not begin with a certificate is passed over, and certificates that are not above
// the one are left out.
func ChainOf(certificate []byte, parts [][]byte) (chain [][]byte) {
	below, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil
	}
	var pool []*x509.Certificate
	for ; len(parts) > 0; parts = parts[1:] {
		for _, der := range SplitCertificates(bytes.Join(parts, nil)) {
			if c, err := x509.ParseCertificate(der); err == nil && !slices.ContainsFunc(pool, c.Equal) {
				pool = append(pool, c)
			}
		}
	}
	for path := []*x509.Certificate{below}; len(path) > 0; path = path[1:] {
		pool = slices.DeleteFunc(pool, func(c *x509.Certificate) bool {
			if len(chain) == maxCertificates || !signed(c, path[0]) {
				return false
			}
			chain = append(chain, c.Raw)
			path = append(path, c)
			return true
		})
	}
	return chain
}

// signed reports whether an authority signed the certificate below it. Old makers
// signed with SHA-1, which crypto/x509 does not verify.
func signed(authority, below *x509.Certificate) bool {
	if !bytes.Equal(authority.RawSubject, below.RawIssuer) {
		return false
	}
	err := below.CheckSignatureFrom(authority)
	return err == nil || errors.As(err, new(x509.InsecureAlgorithmError))
}

// SplitCertificates returns the DER certificates that b begins with; what
// makers fill the rest of an index with is dropped.
func SplitCertificates(b []byte) [][]byte {
	// An older profile puts a header before it: tag 0x1001, one byte, tag
	// 0x1002 and their lengths.
	if len(b) > 7 && bytes.HasPrefix(b, []byte{0x10, 0x01}) {
		b = b[7:]
	}
	var certificates [][]byte
	for len(certificates) < maxCertificates {
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(b, &raw)
		if err != nil || raw.Tag != asn1.TagSequence || len(raw.FullBytes) > maxCertificateLen {
			break
		}
		certificates = append(certificates, raw.FullBytes)
		b = rest
	}
	return certificates
}

// Certificate returns the key's own certificate, nil if there is none, and
// [ErrEK] if it is for another key.
func (e EndorsementKey) Certificate() (*x509.Certificate, error) {
	if len(e.Certificates) == 0 {
		return nil, nil
	}
	public, err := e.key()
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(e.Certificates[0])
	if err != nil {
		return nil, fmt.Errorf("endorsement key certificate: %w", err)
	}
	certified, ok := certificateKey(c).(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !certified.Equal(public) {
		return nil, ErrEK
	}
	return c, nil
}

// certificateKey returns a certificate's public key, also where a maker wrote
// id-RSAES-OAEP for the algorithm, which crypto/x509 leaves unparsed.
func certificateKey(c *x509.Certificate) crypto.PublicKey {
	if c.PublicKey != nil {
		return c.PublicKey
	}
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &info); err != nil || len(rest) > 0 {
		return nil
	}
	k, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign())
	if err != nil {
		return nil
	}
	return k
}

// key returns the public key: RSA-2048, P-256 or P-384.
func (e EndorsementKey) key() (crypto.PublicKey, error) {
	public, err := Structure[tpm2.TPMTPublic](e.Public)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	k, err := tpm2.Pub(*public)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	switch k := k.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("endorsement key of %d bits is too short", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if _, err := k.ECDH(); err != nil {
			return nil, fmt.Errorf("endorsement key: %w", err)
		}
	}
	return k, nil
}

// SHA256 returns the digest of the DER SubjectPublicKeyInfo in hexadecimal,
// empty if there is no readable key.
func (e EndorsementKey) SHA256() string {
	k, err := e.key()
	if err != nil {
		return ""
	}
	return keySHA256(k)
}

// keySHA256 returns the digest of a key's DER SubjectPublicKeyInfo in
// hexadecimal.
func keySHA256(k crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return ""
	}
	d := sha256.Sum256(der)
	return hex.EncodeToString(d[:])
}
