package node

import (
	"crypto"
	"crypto/ecdsa"
	_ "crypto/sha1" // for the SHA-1 bank, where a policy accepts it
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// parseEvidence reads the document and judges nothing.
func parseEvidence(b []byte) (*evidence, error) {
	var e evidence
	if err := decodeJSON(b, MaxEvidenceLen, &e); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if e.Version != evidenceVersion {
		return nil, fmt.Errorf("evidence: version %d is unknown; this vouch knows %d", e.Version, evidenceVersion)
	}
	nonce, err := e.nonce()
	if err != nil || len(nonce) < MinNonceLen || len(nonce) > MaxNonceLen {
		return nil, fmt.Errorf("evidence: its nonce is not %d to %d bytes in hexadecimal", MinNonceLen, MaxNonceLen)
	}
	if e.Bank != bankSHA256 && e.Bank != bankSHA1 {
		return nil, fmt.Errorf("evidence: bank %.20q is unknown", e.Bank)
	}
	return &e, nil
}

// nonce returns the nonce that the evidence says it was made for.
func (e *evidence) nonce() ([]byte, error) { return hex.DecodeString(e.Nonce) }

// verifiedEvidence is what holds of evidence without any policy.
type verifiedEvidence struct {
	ak      *ecdsa.PublicKey
	akName  string
	nodeKey *ecdsa.PublicKey
	counter uint64
	state   BootState
}

// verify checks all signatures of the evidence for the nonce it has in it.
func (e *evidence) verify() (verifiedEvidence, error) {
	var v verifiedEvidence
	ak, name, err := e.AK.verify()
	if err != nil {
		return v, fmt.Errorf("attestation key: %w", err)
	}
	v.ak, v.akName = ak, hex.EncodeToString(name)
	if v.nodeKey, err = e.NodeKey.verify(ak, "node"); err != nil {
		return v, fmt.Errorf("node key: %w", err)
	}
	nonce, err := e.nonce()
	if err != nil {
		return v, fmt.Errorf("nonce: %w", err)
	}
	about := aboutEvidence(nonce, e.Host)
	quote, err := e.Quote.verify(ak, e.bank(), evidencePCRs, about)
	if err != nil {
		return v, fmt.Errorf("quote: %w", err)
	}
	v.state = BootState{
		PCRDigest: e.bootDigest(),
		Resets:    quote.ClockInfo.ResetCount, Restarts: quote.ClockInfo.RestartCount,
		Clock: clock(quote), Safe: bool(quote.ClockInfo.Safe),
	}
	index, err := counterName(e.Counter.Public)
	if err != nil {
		return v, fmt.Errorf("counter: %w", err)
	}
	if _, v.counter, err = (&Verified{ak: ak, counter: index}).count(e.Counter.signed, about); err != nil {
		return v, fmt.Errorf("counter: %w", err)
	}
	return v, nil
}

func (e *evidence) bank() tpm2.TPMAlgID {
	if e.Bank == bankSHA1 {
		return tpm2.TPMAlgSHA1
	}
	return tpm2.TPMAlgSHA256
}

func (e *evidence) hash() crypto.Hash {
	if e.Bank == bankSHA1 {
		return crypto.SHA1
	}
	return crypto.SHA256
}

// bootDigest is the digest over the PCRs that quotes and anchors name too.
func (e *evidence) bootDigest() string {
	h := sha256.New()
	for _, pcr := range bootPCRs {
		h.Write(e.Quote.PCRs[pcr])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// imaEntries returns the measurements that the quoted PCR 10 proves.
func (e *evidence) imaEntries() ([]imaEntry, error) {
	if e.Bank != bankSHA256 {
		return nil, fmt.Errorf("%w: the list's SHA-1 digests prove nothing", ErrIMA)
	}
	if len(e.IMA) > MaxIMALen {
		return nil, fmt.Errorf("%w: %d bytes are more than %d", ErrIMA, len(e.IMA), MaxIMALen)
	}
	entries, err := parseIMA(e.IMA)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIMA, err)
	}
	return replayIMA(entries, e.Quote.PCRs[imaPCR])
}
