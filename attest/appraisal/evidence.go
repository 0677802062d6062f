package appraisal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vouchd/vouchd/attest/appraisal/bootlog"
)

// Bounds of evidence, in bytes. An event log is some 10 to 200 KiB, an IMA
// list some 150 bytes for each program and library that ran. In base64, the logs
// together take less than 29 MiB.
const (
	MaxEvidenceLen     = 32 << 20
	MaxEventLogLen     = bootlog.MaxFirmwareLen
	MaxUserspaceLogLen = bootlog.MaxUserspaceLen
	MaxIMALen          = 16 << 20
	// MinNonceLen and MaxNonceLen bound the verifier's nonce.
	MinNonceLen = 16
	MaxNonceLen = 64
)

const evidenceVersion = 1

// Evidence is the evidence document; docs/evidence.md describes every field.
type Evidence struct {
	Version  int             `json:"version"`
	Nonce    string          `json:"nonce"` // hexadecimal
	Host     HostFacts       `json:"host"`
	EK       EndorsementKey  `json:"ek"`
	Platform *PlatformKey    `json:"platform_ak,omitempty"`
	AK       AttestationKey  `json:"ak"`
	NodeKey  CertifiedKey    `json:"node_key"`
	Counter  CertifiedPublic `json:"counter"`
	Bank     string          `json:"bank"` // of the quote: "sha256", or "sha1" where there is no other
	Quote    Quote           `json:"quote"`
	EventLog []byte          `json:"event_log,omitempty"`
	IMA      []byte          `json:"ima,omitempty"`
	// UserspaceLog is missing unless systemd measured into a PCR that a rule is
	// about, so that verifiers of earlier versions take what they can judge.
	UserspaceLog []byte `json:"userspace_log,omitempty"`
}

// HostFacts are the host's own word. The quote covers them, so nobody changed
// them on the way, but nobody else vouches for them either.
type HostFacts struct {
	Hostname    string    `json:"hostname"`
	MadeAt      time.Time `json:"made_at"`             // by the host's clock
	BootedAt    time.Time `json:"booted_at,omitzero"`  // by the host's clock
	CommandLine string    `json:"kernel_command_line"` // proven where the event log has its digest
	TPM         TPMFacts  `json:"tpm"`
}

// TPMFacts are what the TPM says of itself, TPM 2.0 Part 2, 6.13.
type TPMFacts struct {
	Manufacturer string `json:"manufacturer"`     // TPM_PT_MANUFACTURER, four letters
	Vendor       string `json:"vendor"`           // TPM_PT_VENDOR_STRING_1 to _4
	Firmware     string `json:"firmware_version"` // TPM_PT_FIRMWARE_VERSION_1 and _2, dotted
	Revision     string `json:"revision"`         // of the specification, TPM_PT_REVISION, such as 1.59
}

// AllPCRs are those that evidence quotes, all that the TCG's PC Client Platform
// TPM Profile has: what of it matters is for the policy to say.
var AllPCRs = []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

// Encode returns the document that [Appraise] and [Challenge] take.
func (e Evidence) Encode() ([]byte, error) {
	e.Version = evidenceVersion
	if !bootlog.ReadsUserspace(e.UserspaceLog) {
		e.UserspaceLog = nil
	}
	b, err := json.Marshal(e)
	if err == nil && len(b) > MaxEvidenceLen {
		err = fmt.Errorf("making evidence: %d bytes are more than %d", len(b), MaxEvidenceLen)
	}
	return b, err
}

// Banks of PCRs that evidence may quote.
const (
	BankSHA256 = "sha256"
	BankSHA1   = "sha1"
)

// AboutEvidence is the qualifying data of evidence. A nonce is the verifier's
// choice, so it is hashed with a name that keeps a verifier from having
// something else signed, a statement for example.
func AboutEvidence(nonce []byte, host HostFacts) []byte {
	facts, err := json.Marshal(host)
	if err != nil {
		return nil // a time beyond the year 9999; no quote has empty qualifying data
	}
	hashed := sha256.Sum256(facts)
	h := sha256.New()
	fmt.Fprintf(h, "vouchd evidence v1\n%d\n", len(nonce))
	h.Write(nonce)
	h.Write(hashed[:])
	return h.Sum(nil)
}

// parseEvidence reads the document and judges nothing.
func parseEvidence(b []byte) (*Evidence, error) {
	var e Evidence
	if err := DecodeJSON(b, MaxEvidenceLen, &e); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if e.Version != evidenceVersion {
		return nil, fmt.Errorf("evidence: version %d is unknown; this vouch knows %d", e.Version, evidenceVersion)
	}
	nonce, err := e.nonce()
	if err != nil || len(nonce) < MinNonceLen || len(nonce) > MaxNonceLen {
		return nil, fmt.Errorf("evidence: its nonce is not %d to %d bytes in hexadecimal", MinNonceLen, MaxNonceLen)
	}
	if e.Bank != BankSHA256 && e.Bank != BankSHA1 {
		return nil, fmt.Errorf("evidence: bank %.20q is unknown", e.Bank)
	}
	return &e, nil
}

// nonce returns the nonce that the evidence says it was made for.
func (e *Evidence) nonce() ([]byte, error) { return hex.DecodeString(e.Nonce) }

// verifiedEvidence is what holds of evidence without any policy.
type verifiedEvidence struct {
	ak      *ecdsa.PublicKey
	akName  string
	nodeKey *ecdsa.PublicKey
	counter uint64
	state   BootState
}

// verify checks all signatures of the evidence for the nonce it has in it.
func (e *Evidence) verify() (verifiedEvidence, error) {
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
	about := AboutEvidence(nonce, e.Host)
	quote, err := e.Quote.verify(ak, e.bank(), AllPCRs, about)
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
	if _, v.counter, err = (&Verified{ak: ak, counter: index}).count(e.Counter.Signed, about); err != nil {
		return v, fmt.Errorf("counter: %w", err)
	}
	return v, nil
}

func (e *Evidence) bank() tpm2.TPMAlgID {
	if e.Bank == BankSHA1 {
		return tpm2.TPMAlgSHA1
	}
	return tpm2.TPMAlgSHA256
}

func (e *Evidence) hash() crypto.Hash {
	if e.Bank == BankSHA1 {
		return crypto.SHA1
	}
	return crypto.SHA256
}

// bootDigest is the digest over the PCRs that quotes and anchors name too.
func (e *Evidence) bootDigest() string {
	h := sha256.New()
	for _, pcr := range BootPCRs {
		h.Write(e.Quote.PCRs[pcr])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// bootLog replays what firmware and systemd measured.
func (e *Evidence) bootLog() (bootlog.Log, error) {
	pcrs := make(map[uint][]byte, len(e.Quote.PCRs))
	for pcr, value := range e.Quote.PCRs {
		pcrs[pcr] = value
	}
	return bootlog.Replay(e.EventLog, e.UserspaceLog, e.hash(), pcrs)
}

// imaEntries returns the measurements that the quoted PCR 10 proves.
func (e *Evidence) imaEntries() ([]imaEntry, error) {
	if e.Bank != BankSHA256 {
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
