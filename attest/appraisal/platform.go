package appraisal

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// A PlatformKey is an attestation key that the cloud made in the machine's
// vTPM and certified, where it certifies no endorsement key: Azure's Trusted
// Launch, Google's Confidential VMs. It signs that our AK is in the same TPM.
type PlatformKey struct {
	Public       []byte   `json:"public"`       // TPMT_PUBLIC
	Certificates [][]byte `json:"certificates"` // DER: the key's own first
	Certified    Signed   `json:"certified"`    // TPM2_Certify of our AK
}

// verify returns the platform's key if it is one that signs only what its TPM
// made, and signed that ak is in that TPM. Whose key it is, is for its
// certificate or a list to say.
func (p *PlatformKey) verify(ak *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	public, err := Structure[tpm2.TPMTPublic](p.Public)
	if err != nil {
		return nil, err
	}
	a := public.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return nil, ErrAK
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	return key, p.Certified.verifyCertified(key, ak, KeyPurpose("ak"))
}

// verifyCertificate checks that a root's owner certified the key.
func (p *PlatformKey) verifyCertificate(key crypto.PublicKey, roots *x509.CertPool, now time.Time) error {
	if len(p.Certificates) == 0 {
		return fmt.Errorf("%w: it has none", ErrCertificate)
	}
	c, err := x509.ParseCertificate(p.Certificates[0])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if k, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(key) {
		return fmt.Errorf("%w: it is for another key", ErrCertificate)
	}
	return verifyChain(c, p.Certificates[1:], roots, now)
}
