package appraisal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// A Verified is a statement that was verified: the keys that later quotes and
// anchors are checked with, and what the statement said.
//
// It proves that one TPM holds the AK, the node key and the counter, and that
// the TPM named the log key. That the endorsement key is in the same TPM is
// the host's word until credential activation shows it.
type Verified struct {
	EKSHA256 string // of the endorsement key, as [EndorsementKey.SHA256]
	AKName   string // the AK's TPM name in hexadecimal
	NodeKey  *ecdsa.PublicKey
	Counter  uint64          // when the statement was made
	Born     uint64          // the counter when the log key was made; 0 where that is not said
	PCRs     map[uint][]byte // values of the quoted PCRs, SHA-256 bank
	BootState

	ek      EndorsementKey
	ak      *ecdsa.PublicKey
	counter []byte // name of the NV index
}

// CounterName is the TPM name of the NV index that counts, in hexadecimal.
func (v *Verified) CounterName() string { return hex.EncodeToString(v.counter) }

// VerifyStatement verifies a statement about a log key. What it refuses it
// refuses with one of the errors above. It needs no TPM and no network.
func VerifyStatement(data []byte, logKey ed25519.PublicKey) (*Verified, error) {
	v, err := verifyStatement(data, logKey)
	if err != nil {
		return nil, fmt.Errorf("verifying the TPM's statement: %w", err)
	}
	return v, nil
}

func verifyStatement(data []byte, logKey ed25519.PublicKey) (*Verified, error) {
	var s Statement
	if err := DecodeJSON(data, MaxStatementLen, &s); err != nil {
		return nil, err
	}
	if s.Version != statementVersion {
		return nil, fmt.Errorf("version %d is unknown; this vouch knows %d", s.Version, statementVersion)
	}
	if len(logKey) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("log key of %d bytes", len(logKey))
	}
	v := &Verified{ek: s.EK, EKSHA256: s.EK.SHA256()}
	if _, err := s.EK.key(); err != nil {
		return nil, err
	}
	if _, err := s.EK.Certificate(); err != nil {
		return nil, err
	}
	ak, name, err := s.AK.verify()
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	v.ak, v.AKName = ak, hex.EncodeToString(name)
	if v.NodeKey, err = s.NodeKey.verify(ak, "node"); err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	about := AboutLogKey(logKey)
	a, err := s.Quote.verify(ak, tpm2.TPMAlgSHA256, BootPCRs, about)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	if v.BootState, err = ReadBootState(a); err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	v.PCRs = make(map[uint][]byte, len(s.Quote.PCRs))
	for pcr, value := range s.Quote.PCRs {
		v.PCRs[pcr] = value
	}
	if v.counter, err = counterName(s.Counter.Public); err != nil {
		return nil, fmt.Errorf("counter: %w", err)
	}
	if _, v.Counter, err = v.count(s.Counter.Signed, about); err != nil {
		return nil, fmt.Errorf("counter: %w", err)
	}
	if s.Born != nil {
		if _, v.Born, err = v.count(*s.Born, AboutBirth(logKey)); err == nil && (v.Born == 0 || v.Born > v.Counter) {
			err = fmt.Errorf("%w: its value was %d, and is %d", ErrCounter, v.Born, v.Counter)
		}
		if err != nil {
			return nil, fmt.Errorf("counter when the log key was made: %w", err)
		}
	}
	return v, nil
}

// verify returns the AK and its name if it is of the right kind and made in
// its TPM.
func (s AttestationKey) verify() (*ecdsa.PublicKey, []byte, error) {
	public, err := Structure[tpm2.TPMTPublic](s.Public)
	if err != nil {
		return nil, nil, err
	}
	if !Matches(*public, AKTemplate()) {
		return nil, nil, ErrAK
	}
	ak, err := P256(public)
	if err != nil {
		return nil, nil, err
	}
	name := ObjectName(public).Buffer
	a, err := s.Created.verify(ak, tpm2.TPMSTAttestCreation, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("its creation: %w", err)
	}
	info, err := a.Attested.Creation()
	if err != nil {
		return nil, nil, fmt.Errorf("its creation: %w", err)
	}
	made := sha256.Sum256(s.Created.Data)
	if !bytes.Equal(info.ObjectName.Buffer, name) || !bytes.Equal(info.CreationHash.Buffer, made[:]) {
		return nil, nil, fmt.Errorf("its creation: %w", ErrKey)
	}
	return ak, name, nil
}

// verify returns the key if the AK certified it for this purpose.
func (c CertifiedKey) verify(ak *ecdsa.PublicKey, purpose string) (*ecdsa.PublicKey, error) {
	public, err := Structure[tpm2.TPMTPublic](c.Public)
	if err != nil {
		return nil, err
	}
	if !Matches(*public, SigningTemplate()) && !Matches(*public, BoundTemplate(SigningTemplate(), public.AuthPolicy.Buffer)) {
		return nil, fmt.Errorf("%w: its attributes are others", ErrKey)
	}
	if err := c.verifyCertified(ak, public, KeyPurpose(purpose)); err != nil {
		return nil, err
	}
	return P256(public)
}

// counterName returns the name of an NV index that can only count up.
func counterName(data []byte) ([]byte, error) {
	public, err := Structure[tpm2.TPMSNVPublic](data)
	if err != nil {
		return nil, err
	}
	if want := CounterPublic(public.NVIndex); !bytes.Equal(data, tpm2.Marshal(want)) {
		return nil, fmt.Errorf("%w: its attributes are others", ErrCounter)
	}
	name, err := tpm2.NVName(public)
	if err != nil {
		return nil, err
	}
	return name.Buffer, nil
}

func (v *Verified) count(s Signed, data []byte) (*tpm2.TPMSAttest, uint64, error) {
	a, err := s.verify(v.ak, tpm2.TPMSTAttestNV, data)
	if err != nil {
		return nil, 0, err
	}
	info, err := a.Attested.NV()
	if err != nil {
		return nil, 0, err
	}
	if !bytes.Equal(info.IndexName.Buffer, v.counter) || info.Offset != 0 || len(info.NVContents.Buffer) != CounterLen {
		return nil, 0, ErrCounter
	}
	return a, binary.BigEndian.Uint64(info.NVContents.Buffer), nil
}

// AnchorFacts are what an anchor says.
type AnchorFacts struct {
	Counter uint64 // value of the TPM's counter, which only goes up
	BootState
}

// Anchor verifies an anchor of digest made by the statement's machine.
func (v *Verified) Anchor(data []byte, digest [32]byte) (AnchorFacts, error) {
	facts, err := v.anchor(data, digest)
	if err != nil {
		return AnchorFacts{}, fmt.Errorf("verifying the TPM's anchor: %w", err)
	}
	return facts, nil
}

func (v *Verified) anchor(data []byte, digest [32]byte) (facts AnchorFacts, err error) {
	var doc Anchor
	if err := DecodeJSON(data, maxAnchorLen, &doc); err != nil {
		return AnchorFacts{}, err
	}
	if doc.Version != anchorVersion {
		return AnchorFacts{}, fmt.Errorf("version %d is unknown; this vouch knows %d", doc.Version, anchorVersion)
	}
	counted, n, err := v.count(doc.Counter, digest[:])
	if err != nil {
		return AnchorFacts{}, fmt.Errorf("counter: %w", err)
	}
	quoted, err := doc.Quote.verify(v.ak, tpm2.TPMSTAttestQuote, digest[:])
	if err != nil {
		return AnchorFacts{}, fmt.Errorf("quote: %w", err)
	}
	facts.Counter = n
	if facts.BootState, err = ReadBootState(quoted); err != nil {
		return AnchorFacts{}, fmt.Errorf("quote: %w", err)
	}
	if counted.ClockInfo.ResetCount != quoted.ClockInfo.ResetCount || clock(quoted) < clock(counted) {
		return AnchorFacts{}, fmt.Errorf("quote: %w: not taken right after counting", ErrNonce)
	}
	return facts, nil
}

// Quote verifies the encoding of a quote made for data by the statement's
// machine, and returns what it says and the PCRs' values (SHA-256 bank).
func (v *Verified) Quote(data []byte, about [32]byte) (BootState, map[uint][]byte, error) {
	state, pcrs, err := v.quote(data, about)
	if err != nil {
		return BootState{}, nil, fmt.Errorf("verifying a quote: %w", err)
	}
	return state, pcrs, nil
}

func (v *Verified) quote(data []byte, about [32]byte) (BootState, map[uint][]byte, error) {
	var doc Quote
	if err := DecodeJSON(data, maxQuoteLen, &doc); err != nil {
		return BootState{}, nil, err
	}
	if doc.Version != quoteVersion {
		return BootState{}, nil, fmt.Errorf("version %d is unknown; this vouch knows %d", doc.Version, quoteVersion)
	}
	a, err := doc.verify(v.ak, tpm2.TPMAlgSHA256, BootPCRs, about[:])
	if err != nil {
		return BootState{}, nil, err
	}
	state, err := ReadBootState(a)
	if err != nil {
		return BootState{}, nil, err
	}
	pcrs := make(map[uint][]byte, len(doc.PCRs))
	for pcr, value := range doc.PCRs {
		pcrs[pcr] = value
	}
	return state, pcrs, nil
}
