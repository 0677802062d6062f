package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// A Quote is what the TPM signed about the machine's state for one occasion.
type Quote struct {
	Encoding []byte // what a record keeps and Verified.Quote takes
	appraisal.BootState
}

// Quote has the TPM sign the PCRs that say how the machine booted, together
// with data, which makes the quote one for this occasion.
func (n *Node) Quote(ctx context.Context, data [32]byte) (Quote, error) {
	var doc appraisal.Quote
	err := n.tpm.do(ctx, "quoting PCRs", operationLimit, func(tr transport.TPM) (err error) {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		doc, err = quote(tr, ak, tpm2.TPMAlgSHA256, appraisal.BootPCRs, data[:])
		return err
	})
	if err != nil {
		return Quote{}, err
	}
	a, err := appraisal.Structure[tpm2.TPMSAttest](doc.Attested)
	if err != nil {
		return Quote{}, err
	}
	state, err := appraisal.ReadBootState(a)
	if err != nil {
		return Quote{}, err
	}
	encoding, err := doc.Encode()
	if err != nil {
		return Quote{}, err
	}
	return Quote{Encoding: encoding, BootState: state}, nil
}

// quote reads PCRs and quotes them. What extends a PCR in between makes the
// two differ, so they are taken again.
func quote(tr transport.TPM, ak tpm2.NamedHandle, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (appraisal.Quote, error) {
	const attempts = 5
	for range attempts {
		values, err := readPCRs(tr, bank, pcrs)
		if err != nil {
			return appraisal.Quote{}, err
		}
		s, err := quoteOnce(tr, ak, bank, pcrs, data)
		if err != nil {
			return appraisal.Quote{}, err
		}
		a, err := appraisal.Structure[tpm2.TPMSAttest](s.Attested)
		if err != nil {
			return appraisal.Quote{}, err
		}
		if appraisal.CheckPCRs(a, bank, pcrs, values) == nil {
			return appraisal.Quote{PCRs: values, Signed: s}, nil
		}
	}
	return appraisal.Quote{}, fmt.Errorf("PCRs changed %d times between reading and quoting them", attempts)
}

func quoteOnce(tr transport.TPM, ak tpm2.NamedHandle, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (appraisal.Signed, error) {
	r, err := tpm2.Quote{
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       ecdsaSHA256,
		PCRSelect:      appraisal.Selection(bank, pcrs),
	}.Execute(tr)
	if err != nil {
		return appraisal.Signed{}, err
	}
	return newSigned(r.Quoted, r.Signature), nil
}

// errNoBank means that the TPM does not keep the PCRs in this bank.
var errNoBank = errors.New("the TPM keeps no PCRs in this bank; allocate SHA-256 in the firmware setup or with tpm2_pcrallocate")

// readPCRs reads PCRs; the TPM returns at most eight at a time.
func readPCRs(tr transport.TPM, bank tpm2.TPMAlgID, pcrs []uint) (map[uint]appraisal.Hex, error) {
	values := make(map[uint]appraisal.Hex, len(pcrs))
	for some := range slices.Chunk(pcrs, 8) {
		r, err := tpm2.PCRRead{PCRSelectionIn: appraisal.Selection(bank, some)}.Execute(tr)
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
