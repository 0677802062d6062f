package node

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Handles that the TCG set aside for endorsement keys.
const (
	firstEKHandle = tpm2.TPMHandle(0x81010000)
	lastEKHandle  = tpm2.TPMHandle(0x810100ff)
)

// readEndorsementKey returns the first endorsement key, in the templates' order, whose
// certificate is in NV memory and fits; if there is no such certificate, as in many
// cloud vTPMs, the RSA-2048 key without one. It also returns what it passed over and why.
func readEndorsementKey(tr transport.TPM) (ek appraisal.EndorsementKey, ignored []string, err error) {
	persistent, err := persistentKeys(tr)
	if err != nil {
		return ek, nil, err
	}
	for _, template := range ekTemplates() {
		ek, err := certifiedKey(tr, template, persistent)
		switch {
		case errors.Is(err, errNoCertificate):
			continue
		case isUnusable(err):
			ignored = append(ignored, fmt.Sprintf("EK certificate in NV index %#x: %v", uint32(template.certificate), err))
			continue
		case err != nil:
			return ek, nil, fmt.Errorf("EK certificate in NV index %#x: %w", uint32(template.certificate), err)
		}
		chain, more, err := readChain(tr, ek)
		ek.Certificates = append(ek.Certificates, chain...)
		return ek, append(ignored, more...), err
	}
	// A key that is kept loaded without a certificate may be anybody's.
	public, err := deriveEndorsementKey(tr, ekTemplates()[0])
	if err != nil {
		return ek, nil, err
	}
	return appraisal.EndorsementKey{Public: tpm2.Marshal(public)}, ignored, nil
}

var errNoCertificate = errors.New("there is no certificate")

// certifiedKey returns the template's key with its certificate.
func certifiedKey(tr transport.TPM, template ekTemplate, persistent []*tpm2.TPMTPublic) (ek appraisal.EndorsementKey, err error) {
	der, err := readNV(tr, template.certificate)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return ek, errNoCertificate
	}
	if err != nil {
		return ek, err
	}
	certificates := appraisal.SplitCertificates(der)
	if len(certificates) == 0 {
		return ek, unusable(fmt.Sprintf("its %d bytes do not begin with a certificate", len(der)))
	}
	if _, err := x509.ParseCertificate(certificates[0]); err != nil {
		return ek, unusable(fmt.Sprintf("it is malformed: %v", err))
	}
	fits := func(public *tpm2.TPMTPublic) bool {
		ek = appraisal.EndorsementKey{Public: tpm2.Marshal(public), Certificates: certificates[:1]}
		_, err = ek.Certificate()
		return err == nil
	}
	if slices.ContainsFunc(persistent, func(p *tpm2.TPMTPublic) bool { return appraisal.Matches(*p, template.public) && fits(p) }) {
		return ek, nil
	}
	public, err := deriveEndorsementKey(tr, template)
	if err != nil {
		return ek, err
	}
	if !fits(public) {
		return ek, unusable(fmt.Sprintf("it is not for this TPM's %s key: %v", template.kind, err))
	}
	return ek, nil
}

// persistentKeys reads the public areas of the endorsement keys that are kept loaded:
// deriving one again from its seed takes as long as generating an RSA key.
func persistentKeys(tr transport.TPM) ([]*tpm2.TPMTPublic, error) {
	handles, err := listHandles(tr, firstEKHandle, lastEKHandle)
	if err != nil {
		return nil, err
	}
	var keys []*tpm2.TPMTPublic
	for _, h := range handles {
		public, err := readPublic(tr, h)
		if isUnusable(err) {
			continue // no endorsement key
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, public)
	}
	return keys, nil
}

func deriveEndorsementKey(tr transport.TPM, template ekTemplate) (*tpm2.TPMTPublic, error) {
	r, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template.public),
	}.Execute(tr)
	if err != nil {
		return nil, fmt.Errorf("making the %s key: %w", template.kind, err)
	}
	if err := flush(tr, r.ObjectHandle); err != nil {
		return nil, err
	}
	return r.OutPublic.Contents()
}

// Indices of the certificates above the endorsement key's: TCG EK Credential
// Profile, 2.2.1.5.2.
const (
	firstChainIndex = tpm2.TPMHandle(0x01c00100)
	lastChainIndex  = tpm2.TPMHandle(0x01c001ff)
)

const maxChainLen = 128 << 10 // bytes, of all indices together

// readChain reads the certificates that lead up from the endorsement key's, and
// returns what it passed over and why.
func readChain(tr transport.TPM, ek appraisal.EndorsementKey) (chain [][]byte, ignored []string, err error) {
	indices, err := listHandles(tr, firstChainIndex, lastChainIndex)
	if err != nil {
		return nil, nil, err
	}
	var parts [][]byte
	total := 0
	for _, index := range indices {
		part, err := readNV(tr, index)
		if err == nil && total+len(part) > maxChainLen {
			err = unusable(fmt.Sprintf("with it the chain has more than %d bytes", maxChainLen))
		}
		if isUnusable(err) {
			ignored = append(ignored, fmt.Sprintf("certificate in NV index %#x: %v", uint32(index), err))
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("certificate in NV index %#x: %w", uint32(index), err)
		}
		parts = append(parts, part)
		total += len(part)
	}
	return appraisal.ChainOf(ek.Certificates[0], parts), ignored, nil
}
