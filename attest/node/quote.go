package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// bootPCRs are the PCRs that say how the machine booted and that then stay as
// they are: firmware, boot loader, Secure Boot, kernel and what systemd
// measures. Left out are 10, into which IMA measures each program that runs,
// and those that can be reset without a reboot (16 to 23).
var bootPCRs = []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15}

// A Quote is what the TPM signed about the machine's state for one occasion.
type Quote struct {
	Encoding []byte // what a record keeps and Verified.Quote takes
	BootState
}

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

// Quote has the TPM sign the PCRs that say how the machine booted, together
// with data, which makes the quote one for this occasion.
func (n *Node) Quote(ctx context.Context, data [32]byte) (Quote, error) {
	var doc quoteDocument
	err := n.tpm.do(ctx, "quoting PCRs", operationLimit, func(tr transport.TPM) (err error) {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		doc, err = quote(tr, ak, tpm2.TPMAlgSHA256, bootPCRs, data[:])
		return err
	})
	if err != nil {
		return Quote{}, err
	}
	a, err := exact[tpm2.TPMSAttest](doc.Attested)
	if err != nil {
		return Quote{}, err
	}
	state, err := bootState(a)
	if err != nil {
		return Quote{}, err
	}
	encoding, err := doc.encode()
	if err != nil {
		return Quote{}, err
	}
	return Quote{Encoding: encoding, BootState: state}, nil
}

// quoteDocument is the encoding of a quote.
type quoteDocument struct {
	Version int             `json:"version,omitempty"`
	PCRs    map[uint]pcrHex `json:"pcrs"`
	signed
}

const (
	quoteVersion = 1
	maxQuoteLen  = 8 << 10 // bytes
)

// encode returns the document that [Verified.Quote] takes.
func (d quoteDocument) encode() ([]byte, error) {
	d.Version = quoteVersion
	return json.Marshal(d)
}

// pcrHex is a PCR's value, in hexadecimal in JSON.
type pcrHex []byte

func (p pcrHex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(p)), nil }

func (p *pcrHex) UnmarshalText(text []byte) (err error) {
	*p, err = hex.DecodeString(string(text))
	return err
}

// quote reads PCRs and quotes them. What extends a PCR in between makes the
// two differ, so they are taken again.
func quote(tr transport.TPM, ak tpm2.NamedHandle, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (quoteDocument, error) {
	const attempts = 5
	for range attempts {
		values, err := readPCRs(tr, bank, pcrs)
		if err != nil {
			return quoteDocument{}, err
		}
		s, err := quoteOnce(tr, ak, bank, pcrs, data)
		if err != nil {
			return quoteDocument{}, err
		}
		a, err := exact[tpm2.TPMSAttest](s.Attested)
		if err != nil {
			return quoteDocument{}, err
		}
		if checkPCRs(a, bank, pcrs, values) == nil {
			return quoteDocument{PCRs: values, signed: s}, nil
		}
	}
	return quoteDocument{}, fmt.Errorf("PCRs changed %d times between reading and quoting them", attempts)
}

func quoteOnce(tr transport.TPM, ak tpm2.NamedHandle, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (signed, error) {
	r, err := tpm2.Quote{
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       ecdsaSHA256,
		PCRSelect:      selection(bank, pcrs),
	}.Execute(tr)
	if err != nil {
		return signed{}, err
	}
	return newSigned(r.Quoted, r.Signature), nil
}

func selection(bank tpm2.TPMAlgID, pcrs []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: bank, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)},
	}}
}

// errNoBank means that the TPM does not keep the PCRs in this bank.
var errNoBank = errors.New("the TPM keeps no PCRs in this bank; allocate SHA-256 in the firmware setup or with tpm2_pcrallocate")

// readPCRs reads PCRs; the TPM returns at most eight at a time.
func readPCRs(tr transport.TPM, bank tpm2.TPMAlgID, pcrs []uint) (map[uint]pcrHex, error) {
	values := make(map[uint]pcrHex, len(pcrs))
	for some := range slices.Chunk(pcrs, 8) {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(bank, some)}.Execute(tr)
		if err != nil {
			return nil, fmt.Errorf("reading PCRs: %w", err)
		}
		if len(r.PCRValues.Digests) != len(some) {
			return nil, fmt.Errorf("reading PCRs %d: %w", some, errNoBank)
		}
		for i, pcr := range some {
			values[pcr] = r.PCRValues.Digests[i].Buffer
		}
	}
	return values, nil
}

// verifyQuote verifies a quote of exactly these PCRs, and that the values are
// those that were quoted.
func (d quoteDocument) verify(key crypto.PublicKey, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (*tpm2.TPMSAttest, error) {
	a, err := d.signed.verify(key, tpm2.TPMSTAttestQuote, data)
	if err != nil {
		return nil, err
	}
	return a, checkPCRs(a, bank, pcrs, d.PCRs)
}

func checkPCRs(a *tpm2.TPMSAttest, bank tpm2.TPMAlgID, pcrs []uint, values map[uint]pcrHex) error {
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
	if !bytes.Equal(tpm2.Marshal(info.PCRSelect), tpm2.Marshal(selection(bank, pcrs))) {
		return nil, ErrSelection
	}
	return info.PCRDigest.Buffer, nil
}

// bootState reads what a quote of the boot PCRs says.
func bootState(a *tpm2.TPMSAttest) (BootState, error) {
	digest, err := quotedDigest(a, tpm2.TPMAlgSHA256, bootPCRs)
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
