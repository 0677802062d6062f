package appraisal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// Why something that a TPM is said to have signed is refused.
var (
	// ErrSignature means that the key named did not sign these bytes.
	ErrSignature = errors.New("the signature does not verify with the attestation key")
	// ErrNotTPMMade means that the key signed something that no TPM made.
	ErrNotTPMMade = errors.New("not a structure made by a TPM")
	// ErrType means that the TPM attested to something of another kind.
	ErrType = errors.New("an attestation of another kind")
	// ErrNonce means that the TPM signed it for another occasion.
	ErrNonce = errors.New("made for another nonce or subject")
	// ErrSelection means that other PCRs, or another bank, were quoted.
	ErrSelection = errors.New("a quote of other PCRs than required")
	// ErrPCRs means that the PCR values are not those quoted.
	ErrPCRs = errors.New("the PCR values are not those that were quoted")
	// ErrAK means that the attestation key could also sign other things than
	// what the TPM made, or could leave the TPM.
	ErrAK = errors.New("the attestation key is not restricted to what its TPM made")
	// ErrKey means that a key was not certified as what it is presented as.
	ErrKey = errors.New("the key is not certified as a key of this TPM for this purpose")
	// ErrEK means that the endorsement key is not the one in its certificate.
	ErrEK = errors.New("the endorsement key is not the one in its certificate")
	// ErrCounter means that another NV index was certified than the counter.
	ErrCounter = errors.New("not the node's counter")
)

// Signed is a structure that a TPM signed: TPM 2.0 Part 2, 10.12.
type Signed struct {
	Attested  []byte `json:"attested"`  // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// verify returns the structure if key signed it, a TPM made it, it is of the
// given kind and it was made for the given qualifying data. Nothing is parsed
// before the signature holds.
func (s Signed) verify(key crypto.PublicKey, kind tpm2.TPMST, data []byte) (*tpm2.TPMSAttest, error) {
	if len(s.Attested) > maxStructureLen {
		return nil, fmt.Errorf("TPM structure of %d bytes is longer than %d", len(s.Attested), maxStructureLen)
	}
	signature, err := Structure[tpm2.TPMTSignature](s.Signature)
	if err != nil {
		return nil, err
	}
	if !verifies(key, sha256.Sum256(s.Attested), signature) {
		return nil, ErrSignature
	}
	// A restricted key signs any other data too, but never data that begins
	// with this value unless the TPM made it: TPM 2.0 Part 1, 31.5.
	if len(s.Attested) < 4 || binary.BigEndian.Uint32(s.Attested) != uint32(tpm2.TPMGeneratedValue) {
		return nil, ErrNotTPMMade
	}
	a, err := Structure[tpm2.TPMSAttest](s.Attested)
	if err != nil {
		return nil, err
	}
	if a.Type != kind {
		return nil, fmt.Errorf("%w: type %#04x, want %#04x", ErrType, uint16(a.Type), uint16(kind))
	}
	if !bytes.Equal(a.ExtraData.Buffer, data) {
		return nil, ErrNonce
	}
	return a, nil
}

// verifies accepts SHA-256 only, with ECDSA, RSASSA or RSAPSS.
func verifies(key crypto.PublicKey, digest [32]byte, s *tpm2.TPMTSignature) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		e, err := s.Signature.ECDSA()
		return err == nil && e.Hash == tpm2.TPMAlgSHA256 && ecdsa.Verify(key, digest[:],
			new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer))
	case *rsa.PublicKey:
		if r, err := s.Signature.RSASSA(); err == nil {
			return r.Hash == tpm2.TPMAlgSHA256 && rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], r.Sig.Buffer) == nil
		}
		if r, err := s.Signature.RSAPSS(); err == nil {
			return r.Hash == tpm2.TPMAlgSHA256 && rsa.VerifyPSS(key, crypto.SHA256, digest[:], r.Sig.Buffer, nil) == nil
		}
	}
	return false
}

// verifyCertified checks that a TPM certified the object with this public area
// (TPM2_Certify).
func (s Signed) verifyCertified(key crypto.PublicKey, public *tpm2.TPMTPublic, data []byte) error {
	a, err := s.verify(key, tpm2.TPMSTAttestCertify, data)
	if err != nil {
		return err
	}
	info, err := a.Attested.Certify()
	if err != nil {
		return err
	}
	if name := ObjectName(public).Buffer; len(name) == 0 || !bytes.Equal(info.Name.Buffer, name) {
		return ErrKey
	}
	return nil
}

// KeyPurpose is the qualifying data under which the AK certifies a key, so
// that a key made for one purpose is not taken for another.
func KeyPurpose(purpose string) []byte {
	d := sha256.Sum256([]byte("vouchd key v1\n" + purpose))
	return d[:]
}
