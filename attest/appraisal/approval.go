package appraisal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// A BootApproval says that keys may be used while these PCRs have these values.
type BootApproval struct {
	Version   int          `json:"version"`
	PCRs      map[uint]Hex `json:"pcrs"`      // SHA-256 bank
	Signature []byte       `json:"signature"` // ASN.1 DER, ECDSA with SHA-256
}

const (
	approvalVersion = 1
	maxApprovalLen  = 8 << 10 // bytes
)

// BootApprovalRef keeps an approval from being mistaken for another policy that the
// root signs (TPM 2.0 Part 3, 23.16: policyRef).
const BootApprovalRef = "vouchd boot state v1"

// ApproveBootState signs, with a root's ECDSA P-256 key, that nodes which trust the
// root may use their bound keys while the PCRs (SHA-256 bank) have these values. It
// needs no TPM: take the values from a [Result], or from the TPM of a machine known
// to be good.
func ApproveBootState(authority crypto.Signer, pcrs map[uint][]byte) ([]byte, error) {
	a := BootApproval{Version: approvalVersion, PCRs: make(map[uint]Hex)}
	for pcr, value := range pcrs {
		a.PCRs[pcr] = value
	}
	if _, err := AuthorityArea(authority.Public()); err != nil {
		return nil, fmt.Errorf("approving a boot state: %w", err)
	}
	digest, err := a.Digest()
	if err != nil {
		return nil, fmt.Errorf("approving a boot state: %w", err)
	}
	if a.Signature, err = authority.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, fmt.Errorf("approving a boot state: %w", err)
	}
	return json.Marshal(a)
}

// ErrOtherAuthority means that an approval is signed by another key than its
// reader trusts.
var ErrOtherAuthority = errors.New("it is not signed by the root that the keys are bound to")

// ParseBootApproval reads an approval and verifies that the root with this key signed
// it. It returns [ErrOtherAuthority] if not.
func ParseBootApproval(b []byte, authority *ecdsa.PublicKey) (BootApproval, error) {
	var a BootApproval
	if err := DecodeJSON(b, maxApprovalLen, &a); err != nil {
		return BootApproval{}, err
	}
	if a.Version != approvalVersion {
		return BootApproval{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", a.Version, approvalVersion)
	}
	digest, err := a.Digest()
	if err != nil {
		return BootApproval{}, err
	}
	if !ecdsa.VerifyASN1(authority, digest[:], a.Signature) {
		return BootApproval{}, ErrOtherAuthority
	}
	return a, nil
}

// Selected returns the PCRs that the approval names, in order.
func (a BootApproval) Selected() []uint { return slices.Sorted(maps.Keys(a.PCRs)) }

// Policy returns the digest of TPM2_PolicyPCR for the approved values: TPM 2.0
// Part 3, 23.7.
func (a BootApproval) Policy() ([]byte, error) {
	if len(a.PCRs) == 0 {
		return nil, errors.New("no PCRs are named")
	}
	h := sha256.New()
	for _, pcr := range a.Selected() {
		if pcr >= uint(len(AllPCRs)) || len(a.PCRs[pcr]) != sha256.Size {
			return nil, fmt.Errorf("PCR %d has no value of the SHA-256 bank", pcr)
		}
		h.Write(a.PCRs[pcr])
	}
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	command := tpm2.PolicyPCR{
		PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		Pcrs:      Selection(tpm2.TPMAlgSHA256, a.Selected()),
	}
	if err := command.Update(p); err != nil {
		return nil, err
	}
	return p.Hash().Digest, nil
}

// Digest is what the root signs: TPM 2.0 Part 3, 23.16, aHash.
func (a BootApproval) Digest() (d [sha256.Size]byte, err error) {
	policy, err := a.Policy()
	if err != nil {
		return d, err
	}
	return sha256.Sum256(append(policy, BootApprovalRef...)), nil
}

// AuthorityArea is the public area by which the TPM knows a root.
func AuthorityArea(key crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve.Params().BitSize != 256 {
		return nil, errors.New("the root's key is not an ECDSA P-256 key")
	}
	point, err := ec.Bytes() // uncompressed: 4, X, Y
	if err != nil {
		return nil, err
	}
	area := SigningTemplate()
	area.ObjectAttributes = tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true}
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return &area, nil
}
