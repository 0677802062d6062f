package appraisal

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// BootPCRs are the PCRs that say how the machine booted and that then stay as
// they are: firmware, boot loader, Secure Boot, kernel and what systemd
// measures. Left out are 10, into which IMA measures each program that runs,
// and those that can be reset without a reboot (16 to 23).
var BootPCRs = []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15}

// A BootState is what a quote says. It is a fact only if it comes from a quote
// that was verified, or from this machine's own TPM.
type BootState struct {
	// PCRDigest is the digest over the quoted PCRs in their order (PCRs 0 to 9
	// and 11 to 15 of the SHA-256 bank), in hexadecimal.
	PCRDigest string `json:"pcr_digest"`
	// Resets grows by one with each boot and Restarts with each resume from
	// hibernation. The TPM adds to both, for an AK like ours, an offset that
	// is constant for the AK (TPM 2.0 Part 1, 36.7), so only differences mean
	// something; they are modulo 2^32.
	Resets   uint32 `json:"resets"`
	Restarts uint32 `json:"restarts"`
	// Clock is the time for which the TPM was ever powered, since it was last
	// cleared. It goes back, by at most the time between two updates of NV
	// memory, only while Safe is false.
	Clock time.Duration `json:"clock_ns"`
	Safe  bool          `json:"safe"`
}

// A Quote is what TPM2_Quote signed (TPM 2.0 Part 3, 18.4), with the values of
// the PCRs that it signed the digest of.
type Quote struct {
	Version int          `json:"version,omitempty"`
	PCRs    map[uint]Hex `json:"pcrs"`
	Signed
}

const (
	quoteVersion = 1
	maxQuoteLen  = 8 << 10 // bytes
)

// Encode returns the document that [Verified.Quote] takes.
func (d Quote) Encode() ([]byte, error) {
	d.Version = quoteVersion
	return json.Marshal(d)
}

// Hex is a PCR's value, in hexadecimal in JSON.
type Hex []byte

// MarshalText writes lower-case hexadecimal.
func (p Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(p)), nil }

// UnmarshalText reads hexadecimal of either case.
func (p *Hex) UnmarshalText(text []byte) (err error) {
	*p, err = hex.DecodeString(string(text))
	return err
}

// Selection selects PCRs of one bank as a PC Client TPM writes it into a quote:
// TPMS_PCR_SELECTION, TPM 2.0 Part 2, 10.6.2.
func Selection(bank tpm2.TPMAlgID, pcrs []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: bank, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)},
	}}
}

// verifyQuote verifies a quote of exactly these PCRs, and that the values are
// those that were quoted.
func (d Quote) verify(key crypto.PublicKey, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (*tpm2.TPMSAttest, error) {
	a, err := d.Signed.verify(key, tpm2.TPMSTAttestQuote, data)
	if err != nil {
		return nil, err
	}
	return a, CheckPCRs(a, bank, pcrs, d.PCRs)
}

// CheckPCRs checks that a quote is of exactly these PCRs and that the values are
// those that were quoted. It returns [ErrSelection] or [ErrPCRs] if not.
func CheckPCRs(a *tpm2.TPMSAttest, bank tpm2.TPMAlgID, pcrs []uint, values map[uint]Hex) error {
	digest, err := quotedDigest(a, bank, pcrs)
	if err != nil {
		return err
	}
	if !slices.Equal(slices.Sorted(maps.Keys(values)), pcrs) {
		return fmt.Errorf("%w: values are given for other PCRs", ErrPCRs)
	}
	hash, err := bank.Hash()
	if err != nil {
		return err
	}
	// The digest is by the hash of the AK's scheme: TPM 2.0 Part 3, 18.4.
	h := sha256.New()
	for _, pcr := range pcrs {
		if len(values[pcr]) != hash.Size() {
			return fmt.Errorf("%w: PCR %d has %d bytes", ErrPCRs, pcr, len(values[pcr]))
		}
		h.Write(values[pcr])
	}
	if !bytes.Equal(h.Sum(nil), digest) {
		return ErrPCRs
	}
	return nil
}

// quotedDigest returns the digest in a quote of exactly these PCRs.
func quotedDigest(a *tpm2.TPMSAttest, bank tpm2.TPMAlgID, pcrs []uint) ([]byte, error) {
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(info.PCRSelect), tpm2.Marshal(Selection(bank, pcrs))) {
		return nil, ErrSelection
	}
	return info.PCRDigest.Buffer, nil
}

// ReadBootState reads what a quote of the boot PCRs says.
func ReadBootState(a *tpm2.TPMSAttest) (BootState, error) {
	digest, err := quotedDigest(a, tpm2.TPMAlgSHA256, BootPCRs)
	if err != nil {
		return BootState{}, err
	}
	return BootState{
		PCRDigest: hex.EncodeToString(digest),
		Resets:    a.ClockInfo.ResetCount,
		Restarts:  a.ClockInfo.RestartCount,
		Clock:     clock(a),
		Safe:      bool(a.ClockInfo.Safe),
	}, nil
}

func clock(a *tpm2.TPMSAttest) time.Duration {
	const longest = uint64(1<<63-1) / uint64(time.Millisecond)
	return time.Duration(min(a.ClockInfo.Clock, longest)) * time.Millisecond
}
