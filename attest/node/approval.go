package node

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

// An approval says that keys may be used while these PCRs have these values.
type approval struct {
	Version   int             `json:"version"`
	PCRs      map[uint]pcrHex `json:"pcrs"`      // SHA-256 bank
	Signature []byte          `json:"signature"` // ASN.1 DER, ECDSA with SHA-256
}

const (
	approvalVersion = 1
	maxApprovalLen  = 8 << 10 // bytes
)

// approvalPurpose keeps an approval from being taken for another policy that
// the authority signs (TPM 2.0 Part 3, 23.16: policyRef).
const approvalPurpose = "vouchd boot state v1"

// ApproveBootState signs, with an ECDSA P-256 key, that nodes which trust this
// authority may use their bound keys while the PCRs (SHA-256 bank) have these
// values. It needs no TPM; take the values from a [Result] or from
// [Node.BootState] on a machine known to be good.
func ApproveBootState(authority crypto.Signer, pcrs map[uint][]byte) ([]byte, error) {
	a := approval{Version: approvalVersion, PCRs: make(map[uint]pcrHex)}
	for pcr, value := range pcrs {
		a.PCRs[pcr] = value
	}
	if _, err := authorityArea(authority.Public()); err != nil {
		return nil, fmt.Errorf("approving a boot state: %w", err)
	}
	digest, err := a.digest()
	if err != nil {
		return nil, fmt.Errorf("approving a boot state: %w", err)
	}
	if a.Signature, err = authority.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, fmt.Errorf("approving a boot state: %w", err)
	}
	return json.Marshal(a)
}

var errOtherAuthority = errors.New("it is not signed by the authority that the keys are bound to")

func parseApproval(b []byte, authority *ecdsa.PublicKey) (approval, error) {
	var a approval
	if err := decodeJSON(b, maxApprovalLen, &a); err != nil {
		return approval{}, err
	}
	if a.Version != approvalVersion {
		return approval{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", a.Version, approvalVersion)
	}
	digest, err := a.digest()
	if err != nil {
		return approval{}, err
	}
	if !ecdsa.VerifyASN1(authority, digest[:], a.Signature) {
		return approval{}, errOtherAuthority
	}
	return a, nil
}

func (a approval) selected() []uint { return slices.Sorted(maps.Keys(a.PCRs)) }

// policy returns the digest of TPM2_PolicyPCR for the approved values.
func (a approval) policy() ([]byte, error) {
	if len(a.PCRs) == 0 {
		return nil, errors.New("no PCRs are named")
	}
	h := sha256.New()
	for _, pcr := range a.selected() {
		if pcr >= uint(len(evidencePCRs)) || len(a.PCRs[pcr]) != sha256.Size {
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
		Pcrs:      selection(tpm2.TPMAlgSHA256, a.selected()),
	}
	if err := command.Update(p); err != nil {
		return nil, err
	}
	return p.Hash().Digest, nil
}

// digest is what the authority signs: TPM 2.0 Part 3, 23.16, aHash.
func (a approval) digest() (d [sha256.Size]byte, err error) {
	policy, err := a.policy()
	if err != nil {
		return d, err
	}
	return sha256.Sum256(append(policy, approvalPurpose...)), nil
}

// authorityArea is the public area by which the TPM knows an authority.
func authorityArea(key crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve.Params().BitSize != 256 {
		return nil, errors.New("the authority's key is not an ECDSA P-256 key")
	}
	point, err := ec.Bytes() // uncompressed: 4, X, Y
	if err != nil {
		return nil, err
	}
	area := signingTemplate()
	area.ObjectAttributes = tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true}
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return &area, nil
}
