package node

import (
	"errors"
	"fmt"

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
// certificate is in NV memory and fits; if there is no certificate at all, as in many
// cloud vTPMs, the RSA-2048 key without one.
func readEndorsementKey(tr transport.TPM) (appraisal.EndorsementKey, error) {
	persistent, err := persistentKeys(tr)
	if err != nil {
		return appraisal.EndorsementKey{}, err
	}
	for _, template := range ekTemplates() {
		der, err := readNV(tr, template.certificate)
		if absent(err) {
			continue
		}
		if err != nil {
			return appraisal.EndorsementKey{}, err
		}
		certificates := appraisal.SplitCertificates(der)
		if len(certificates) == 0 {
			continue
		}
		public, err := endorsementPublic(tr, template, persistent)
		if err != nil {
			return appraisal.EndorsementKey{}, err
		}
		ek := appraisal.EndorsementKey{Public: tpm2.Marshal(public), Certificates: certificates[:1]}
		if _, err := ek.Certificate(); err != nil {
			continue // for another template; one of the others may fit
		}
		chain, err := readChain(tr)
		if err != nil {
			return appraisal.EndorsementKey{}, err
		}
		ek.Certificates = append(ek.Certificates, chain...)
		return ek, nil
	}
	public, err := endorsementPublic(tr, ekTemplates()[0], persistent)
	if err != nil {
		return appraisal.EndorsementKey{}, err
	}
	return appraisal.EndorsementKey{Public: tpm2.Marshal(public)}, nil
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
		if err != nil {
			return nil, err
		}
		keys = append(keys, public)
	}
	return keys, nil
}

func endorsementPublic(tr transport.TPM, template ekTemplate, persistent []*tpm2.TPMTPublic) (*tpm2.TPMTPublic, error) {
	for _, public := range persistent {
		if appraisal.Matches(*public, template.public) {
			return public, nil
		}
	}
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

const maxChainLen = 128 << 10 // bytes, of all certificates together

// readChain reads the certificates above the endorsement key's: TCG EK
// Credential Profile, 2.2.1.5.2.
func readChain(tr transport.TPM) ([][]byte, error) {
	indices, err := listHandles(tr, 0x01c00100, 0x01c001ff)
	if err != nil {
		return nil, err
	}
	var all []byte // one certificate may go over several indices
	for _, index := range indices {
		part, err := readNV(tr, index)
		if err != nil {
			return nil, err
		}
		if all = append(all, part...); len(all) > maxChainLen {
			break
		}
	}
	return appraisal.SplitCertificates(all), nil
}

func listHandles(tr transport.TPM, first, last tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: uint32(last - first + 1)}.Execute(tr)
	if err != nil {
		return nil, err
	}
	l, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	var handles []tpm2.TPMHandle
	for _, h := range l.Handle {
		if h >= first && h <= last {
			handles = append(handles, h)
		}
	}
	return handles, nil
}

// absent reports whether an NV index is not there for us: not defined, never written,
// or readable only by others.
func absent(err error) bool {
	for _, rc := range []tpm2.TPMRC{
		tpm2.TPMRCHandle, tpm2.TPMRCNVUninitialized, tpm2.TPMRCNVAuthorization, tpm2.TPMRCNVLocked,
		tpm2.TPMRCAuthUnavailable, tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth,
	} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// readNV reads an NV index that anybody, or the owner, may read.
func readNV(tr transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
	if err != nil {
		return nil, err
	}
	public, err := p.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	h := tpm2.NamedHandle{Handle: index, Name: p.NVName}
	by := h
	if !public.Attributes.AuthRead {
		by = tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
	}
	data := make([]byte, 0, public.DataSize)
	const step = 512 // bytes, what every TPM can read at once
	for len(data) < int(public.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: withAuth(by, tpm2.PasswordAuth(nil)),
			NVIndex:    h,
			Size:       min(step, public.DataSize-uint16(len(data))),
			Offset:     uint16(len(data)),
		}.Execute(tr)
		if err != nil {
			return nil, fmt.Errorf("reading NV index %#x: %w", index, err)
		}
		if len(r.Data.Buffer) == 0 {
			return nil, fmt.Errorf("reading NV index %#x: no data at %d", index, len(data))
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}
