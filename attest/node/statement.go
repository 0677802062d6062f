package node

import (
	"context"
	"crypto/ed25519"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Statement returns what proves that logKey is used by the machine with this
// TPM: its endorsement key with certificates, the AK and how it was made, the
// node key certified by the AK, the counter and its present value, and a quote
// of the boot state that names logKey. It contains all that [appraisal.VerifyStatement]
// needs and is at most [MaxStatementLen] long; certificates of a chain that do
// not fit are left out, the endorsement key's own never. Born is what [Node.Born]
// made when the log key was, nil for a key of a former version.
func (n *Node) Statement(ctx context.Context, logKey ed25519.PublicKey, born *appraisal.Signed) ([]byte, error) {
	s := appraisal.Statement{
		EK:      n.keys.EK,
		AK:      appraisal.AttestationKey{Public: n.keys.AK.Public, Created: n.keys.Created},
		NodeKey: appraisal.CertifiedKey{Public: n.keys.Node.Public, Signed: n.keys.NodeCertified},
		Counter: appraisal.CertifiedPublic{Public: tpm2.Marshal(appraisal.CounterPublic(n.keys.Counter.Index))},
		Born:    born,
	}
	about := appraisal.AboutLogKey(logKey)
	err := n.tpm.do(ctx, "making the TPM's statement", operationLimit, func(tr transport.TPM) (err error) {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		if s.Quote, err = quote(tr, ak, tpm2.TPMAlgSHA256, appraisal.BootPCRs, about); err != nil {
			return err
		}
		s.Counter.Signed, err = n.certifyCounter(tr, ak, about, n.keys.Counter.authorised())
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.Encode()
}

// Born has the AK sign the counter's value as a log key is made: the first anchor of
// the key's log has that very value, and each later one more.
func (n *Node) Born(ctx context.Context, logKey ed25519.PublicKey) (born appraisal.Signed, err error) {
	err = n.tpm.do(ctx, "certifying the counter for a new log key", operationLimit, func(tr transport.TPM) error {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		born, err = n.certifyCounter(tr, ak, appraisal.AboutBirth(logKey), n.keys.Counter.authorised())
		return err
	})
	return born, err
}

// createAK makes the AK and has it sign how it was made.
func (n *ring) createAK(tr transport.TPM) (blob, appraisal.Creation, error) {
	r, err := tpm2.Create{ParentHandle: n.parent(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(appraisal.AKTemplate())}.Execute(tr)
	if err != nil {
		return blob{}, appraisal.Creation{}, err
	}
	b := newBlob(r)
	ak, err := n.load(tr, b)
	if err != nil {
		return blob{}, appraisal.Creation{}, err
	}
	c, err := tpm2.CertifyCreation{
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		ObjectHandle:   ak,
		CreationHash:   r.CreationHash,
		InScheme:       ecdsaSHA256,
		CreationTicket: r.CreationTicket,
	}.Execute(tr)
	if err != nil {
		return blob{}, appraisal.Creation{}, fmt.Errorf("certifying its creation: %w", err)
	}
	return b, appraisal.Creation{Data: r.CreationData.Bytes(), Signed: newSigned(c.CertifyInfo, c.Signature)}, flush(tr, ak.Handle)
}

// certify has the AK sign that a key is in its TPM.
func (n *ring) certify(tr transport.TPM, akBlob, keyBlob blob, data []byte) (appraisal.Signed, error) {
	ak, err := n.load(tr, akBlob)
	if err != nil {
		return appraisal.Signed{}, err
	}
	key, err := n.load(tr, keyBlob)
	if err != nil {
		return appraisal.Signed{}, err
	}
	r, err := tpm2.Certify{
		ObjectHandle:   withAuth(key, tpm2.PasswordAuth(nil)),
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       ecdsaSHA256,
	}.Execute(tr)
	if err != nil {
		return appraisal.Signed{}, err
	}
	if err := flush(tr, key.Handle); err != nil {
		return appraisal.Signed{}, err
	}
	return newSigned(r.CertifyInfo, r.Signature), flush(tr, ak.Handle)
}
