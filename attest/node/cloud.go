package node

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// A platformAK is an attestation key that the cloud made in the machine's
// vTPM and certified, where it certifies no endorsement key: Azure's Trusted
// Launch. It signs that our AK is in the same TPM.
type platformAK struct {
	Public       []byte   `json:"public"`       // TPMT_PUBLIC
	Certificates [][]byte `json:"certificates"` // DER: the key's own first
	Certified    signed   `json:"certified"`    // TPM2_Certify of our AK
}

// Where Azure keeps them.
const (
	azureAK            = tpm2.TPMHandle(0x81000003)
	azureAKCertificate = tpm2.TPMHandle(0x01c101d0)
)

// readPlatformAK returns nil where the machine has none.
func (n *Node) readPlatformAK(tr transport.TPM) (*platformAK, error) {
	der, err := readNV(tr, azureAKCertificate)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	certificates := splitCertificates(der)
	r, err := tpm2.ReadPublic{ObjectHandle: azureAK}.Execute(tr)
	if errors.Is(err, tpm2.TPMRCHandle) || len(certificates) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ak, err := n.load(tr, n.keys.AK)
	if err != nil {
		return nil, err
	}
	c, err := tpm2.Certify{
		ObjectHandle:   withAuth(ak, tpm2.PasswordAuth(nil)),
		SignHandle:     tpm2.AuthHandle{Handle: azureAK, Name: r.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: keyPurpose("ak")},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(tr)
	if err != nil {
		return nil, fmt.Errorf("certifying with it: %w", err)
	}
	p := &platformAK{
		Public:       r.OutPublic.Bytes(),
		Certificates: certificates,
		Certified:    newSigned(c.CertifyInfo, c.Signature),
	}
	return p, flush(tr, ak.Handle)
}

// verify checks that the key in the certificate is one that signs only what
// its TPM made, and that it signed that ak is in that TPM. Whose certificate
// it is, is for the roots to say.
func (p *platformAK) verify(ak *tpm2.TPMTPublic) (*x509.Certificate, error) {
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
	if len(p.Certificates) == 0 {
		return nil, errors.New("has no certificate")
	}
	c, err := x509.ParseCertificate(p.Certificates[0])
	if err != nil {
		return nil, err
	}
	if k, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(key) {
		return nil, errors.New("the certificate is for another key")
	}
	if name := objectName(ak).Buffer; bytes.Equal(name, objectName(public).Buffer) {
		return nil, ErrKey
	}
	return c, p.Certified.verifyCertified(key, ak, keyPurpose("ak"))
}
