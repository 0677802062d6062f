package appraisal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// MaxStatementLen bounds a statement, in bytes, so that it fits into a record.
const MaxStatementLen = 10 << 10

const statementVersion = 1

// A Statement says which TPM stands behind a log, and with which keys.
type Statement struct {
	Version int             `json:"version"`
	EK      EndorsementKey  `json:"ek"`
	AK      AttestationKey  `json:"ak"`
	NodeKey CertifiedKey    `json:"node_key"`
	Quote   Quote           `json:"quote"`   // for the log key
	Counter CertifiedPublic `json:"counter"` // TPMS_NV_PUBLIC, TPM2_NV_Certify
	// Born is the counter's value when the log key was made (TPM2_NV_Certify);
	// keys of former versions have none.
	Born *Signed `json:"born,omitempty"`
}

// An AttestationKey is an AK and how its TPM says it was made.
type AttestationKey struct {
	Public  []byte   `json:"public"` // TPMT_PUBLIC
	Created Creation `json:"created"`
}

// A Creation is how the TPM says it made a key (TPM2_CertifyCreation).
type Creation struct {
	Data []byte `json:"data"` // TPMS_CREATION_DATA
	Signed
}

// A CertifiedPublic is the public area of an object or NV index and what the AK
// certified of it: TPM2_Certify or TPM2_NV_Certify, TPM 2.0 Part 3, 18.2, 31.16.
type CertifiedPublic struct {
	Public []byte `json:"public"`
	Signed
}

// A CertifiedKey is a signing key that the AK certified for one purpose.
type CertifiedKey CertifiedPublic // TPMT_PUBLIC, TPM2_Certify

// Encode returns the document that [VerifyStatement] takes. It leaves out what
// of the endorsement key's chain does not fit.
func (s Statement) Encode() ([]byte, error) {
	s.Version = statementVersion
	for {
		b, err := json.Marshal(s)
		if err != nil {
			return nil, err
		}
		if len(b) <= MaxStatementLen {
			return b, nil
		}
		if len(s.EK.Certificates) < 2 {
			return nil, fmt.Errorf("making the TPM's statement: %d bytes are more than %d", len(b), MaxStatementLen)
		}
		s.EK.Certificates = s.EK.Certificates[:len(s.EK.Certificates)-1]
	}
}

// AboutLogKey is the qualifying data of a statement for a log key.
func AboutLogKey(logKey ed25519.PublicKey) []byte {
	h := sha256.New()
	h.Write([]byte("vouchd log key v1\n"))
	h.Write(logKey)
	return h.Sum(nil)
}

// AboutBirth is the qualifying data of the counter's value when a log key was made.
func AboutBirth(logKey ed25519.PublicKey) []byte {
	h := sha256.New()
	h.Write([]byte("vouchd log key made v1\n"))
	h.Write(logKey)
	return h.Sum(nil)
}

// An Anchor is the counter and the boot state, signed together with a digest.
type Anchor struct {
	Version int    `json:"version"`
	Counter Signed `json:"counter"` // TPM2_NV_Certify
	Quote   Signed `json:"quote"`   // TPM2_Quote of the boot PCRs
}

const (
	anchorVersion = 1
	maxAnchorLen  = 8 << 10 // bytes
)

// Encode returns the document that [Verified.Anchor] takes.
func (a Anchor) Encode() ([]byte, error) {
	a.Version = anchorVersion
	return json.Marshal(a)
}
