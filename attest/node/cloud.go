package node

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// A platformAK is an attestation key that the cloud made in the machine's
// vTPM and certified, where it certifies no endorsement key: Azure's Trusted
// Launch, Google's Confidential VMs. It signs that our AK is in the same TPM.
type platformAK struct {
	Public       []byte   `json:"public"`       // TPMT_PUBLIC
	Certificates [][]byte `json:"certificates"` // DER: the key's own first
	Certified    signed   `json:"certified"`    // TPM2_Certify of our AK
}

// platforms says where clouds keep them: the certificate in NV memory, and the
// key at a handle (Azure) or as a template in NV memory from which the
// endorsement hierarchy makes it again (Google).
var platforms = []struct{ certificate, handle, template tpm2.TPMHandle }{
	{certificate: 0x01c101d0, handle: 0x81000003},   // Azure, RSA-2048
	{certificate: 0x01c10002, template: 0x01c10003}, // Google, P-256
	{certificate: 0x01c10000, template: 0x01c10001}, // Google, RSA-2048
}

// readPlatformAK returns nil where the machine has none.
func (n *Node) readPlatformAK(tr transport.TPM) (*platformAK, error) {
	for _, place := range platforms {
		der, err := readNV(tr, place.certificate)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		certificates := splitCertificates(der)
		key, public, err := loadPlatformKey(tr, place.handle, place.template)
		if absent(err) || len(certificates) == 0 {
			continue // an index of somebody else's
		}
		if err != nil {
			return nil, err
		}
		return n.certifyByPlatform(tr, key, &platformAK{Public: public, Certificates: certificates})
	}
	return nil, nil
}

func loadPlatformKey(tr transport.TPM, handle, template tpm2.TPMHandle) (tpm2.NamedHandle, []byte, error) {
	if handle != 0 {
		r, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(tr)
		if err != nil {
			return tpm2.NamedHandle{}, nil, err
		}
		return tpm2.NamedHandle{Handle: handle, Name: r.Name}, r.OutPublic.Bytes(), nil
	}
	b, err := readNV(tr, template)
	if err != nil {
		return tpm2.NamedHandle{}, nil, err
	}
	r, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.BytesAs2B[tpm2.TPMTPublic](b),
	}.Execute(tr)
	if err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("making it from its template: %w", err)
	}
	return tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, r.OutPublic.Bytes(), nil
}

// certifyByPlatform has the platform's key sign that our AK is in its TPM.
func (n *Node) certifyByPlatform(tr transport.TPM, key tpm2.NamedHandle, p *platformAK) (*platformAK, error) {
	ak, err := n.load(tr, n.keys.AK)
	if err != nil {
		return nil, err
	}
	c, err := tpm2.Certify{
		ObjectHandle:   withAuth(ak, tpm2.PasswordAuth(nil)),
		SignHandle:     withAuth(key, tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: keyPurpose("ak")},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the key's own
	}.Execute(tr)
	if err != nil {
		return nil, fmt.Errorf("certifying with it: %w", err)
	}
	p.Certified = newSigned(c.CertifyInfo, c.Signature)
	if key.Handle>>24 == 0x80 { // made for this, not kept loaded
		if err := flush(tr, key.Handle); err != nil {
			return nil, err
		}
	}
	return p, flush(tr, ak.Handle)
}

// verify returns the platform's key if it is one that signs only what its TPM
// made, and signed that ak is in that TPM. Whose key it is, is for its
// certificate or a list to say.
func (p *platformAK) verify(ak *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	public, err := exact[tpm2.TPMTPublic](p.Public)
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
	return key, p.Certified.verifyCertified(key, ak, keyPurpose("ak"))
}

// verifyCertificate checks that a root's owner certified the key.
func (p *platformAK) verifyCertificate(key crypto.PublicKey, roots *x509.CertPool, now time.Time) error {
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
