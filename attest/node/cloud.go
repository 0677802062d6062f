package node

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// platforms says where clouds keep them: the certificate in NV memory, and the
// key at a handle (Azure) or as a template in NV memory from which the
// endorsement hierarchy makes it again (Google).
var platforms = []struct{ certificate, handle, template tpm2.TPMHandle }{
	{certificate: 0x01c101d0, handle: 0x81000003},   // Azure, RSA-2048
	{certificate: 0x01c10002, template: 0x01c10003}, // Google, P-256
	{certificate: 0x01c10000, template: 0x01c10001}, // Google, RSA-2048
}

// readPlatformAK returns nil where the machine has none that is of use.
func (n *endorsed) readPlatformAK(tr transport.TPM) (*appraisal.PlatformKey, error) {
	for _, place := range platforms {
		der, err := readNV(tr, place.certificate)
		if isUnusable(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p := &appraisal.PlatformKey{Certificates: appraisal.SplitCertificates(der)}
		if len(p.Certificates) == 0 {
			continue // another vendor's index
		}
		key, public, err := loadPlatformKey(tr, place.handle, place.template)
		if err == nil {
			p.Public = public
			p.Certified, err = n.certifyByPlatform(tr, key)
		}
		if err == nil {
			return p, nil
		}
		if !isUnusable(err) {
			return nil, err
		}
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
func (n *endorsed) certifyByPlatform(tr transport.TPM, key tpm2.NamedHandle) (signed appraisal.Signed, err error) {
	if key.Handle>>24 == 0x80 { // made for this, not kept loaded
		defer func() { err = errors.Join(err, flush(tr, key.Handle)) }()
	}
	ak, err := n.load(tr, n.keys.AK)
	if err != nil {
		return signed, err
	}
	defer func() { err = errors.Join(err, flush(tr, ak.Handle)) }()
	c, err := tpm2.Certify{
		ObjectHandle:   withAuth(ak, tpm2.PasswordAuth(nil)),
		SignHandle:     withAuth(key, tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: appraisal.KeyPurpose("ak")},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the key's own
	}.Execute(tr)
	if err != nil {
		return signed, fmt.Errorf("certifying with it: %w", err)
	}
	return newSigned(c.CertifyInfo, c.Signature), nil
}
