package node

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// MaxStatementLen bounds a statement, in bytes, so that it fits into a record.
const MaxStatementLen = 10 << 10

const statementVersion = 1

// statement says which TPM stands behind a log, and with which keys.
type statement struct {
	Version int             `json:"version"`
	EK      endorsementKey  `json:"ek"`
	AK      statedAK        `json:"ak"`
	NodeKey certifiedKey    `json:"node_key"`
	Quote   quoteDocument   `json:"quote"`   // for the log key
	Counter certifiedPublic `json:"counter"` // TPMS_NV_PUBLIC, TPM2_NV_Certify
}

type statedAK struct {
	Public  []byte   `json:"public"` // TPMT_PUBLIC
	Created creation `json:"created"`
}

// creation is how the TPM says it made a key (TPM2_CertifyCreation).
type creation struct {
	Data []byte `json:"data"` // TPMS_CREATION_DATA
	signed
}

type certifiedPublic struct {
	Public []byte `json:"public"`
	signed
}

type certifiedKey certifiedPublic // TPMT_PUBLIC, TPM2_Certify

// Statement returns what proves that logKey is used by the machine with this
// TPM: its endorsement key with certificates, the AK and how it was made, the
// node key certified by the AK, the counter and its present value, and a quote
// of the boot state that names logKey. It contains all that [VerifyStatement]
// needs and is at most [MaxStatementLen] long; certificates of a chain that do
// not fit are left out, the endorsement key's own never.
func (n *Node) Statement(ctx context.Context, logKey ed25519.PublicKey) ([]byte, error) {
	s := statement{
		EK:      n.keys.EK,
		AK:      statedAK{Public: n.keys.AK.Public, Created: n.keys.Created},
		NodeKey: certifiedKey{n.keys.Node.Public, n.keys.NodeCertified},
		Counter: certifiedPublic{Public: tpm2.Marshal(counterPublic(n.keys.Counter.Index))},
	}
	about := aboutLogKey(logKey)
	err := n.tpm.do(ctx, "making the TPM's statement", operationLimit, func(tr transport.TPM) (err error) {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		if s.Quote, err = quote(tr, ak, tpm2.TPMAlgSHA256, bootPCRs, about); err != nil {
			return err
		}
		s.Counter.signed, err = n.certifyCounter(tr, ak, about, n.keys.Counter.authorised())
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.encode()
}

// encode returns the document that [VerifyStatement] takes. It leaves out what
// of the endorsement key's chain does not fit.
func (s statement) encode() ([]byte, error) {
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

// aboutLogKey is the qualifying data of a statement for a log key.
func aboutLogKey(logKey ed25519.PublicKey) []byte {
	h := sha256.New()
	h.Write([]byte("vouchd log key v1\n"))
	h.Write(logKey)
	return h.Sum(nil)
}

// createAK makes the AK and has it sign how it was made.
func (n *Node) createAK(tr transport.TPM) (blob, creation, error) {
	r, err := tpm2.Create{ParentHandle: n.parent(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(akTemplate())}.Execute(tr)
	if err != nil {
		return blob{}, creation{}, err
	}
	b := newBlob(r)
	ak, err := n.load(tr, b)
	if err != nil {
		return blob{}, creation{}, err
	}
	c, err := tpm2.CertifyCreation{
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		ObjectHandle:   ak,
		CreationHash:   r.CreationHash,
		InScheme:       ecdsaSHA256,
		CreationTicket: r.CreationTicket,
	}.Execute(tr)
	if err != nil {
		return blob{}, creation{}, fmt.Errorf("certifying its creation: %w", err)
	}
	return b, creation{Data: r.CreationData.Bytes(), signed: newSigned(c.CertifyInfo, c.Signature)}, flush(tr, ak.Handle)
}

// certify has the AK sign that a key is in its TPM.
func (n *Node) certify(tr transport.TPM, akBlob, keyBlob blob, data []byte) (signed, error) {
	ak, err := n.load(tr, akBlob)
	if err != nil {
		return signed{}, err
	}
	key, err := n.load(tr, keyBlob)
	if err != nil {
		return signed{}, err
	}
	r, err := tpm2.Certify{
		ObjectHandle:   withAuth(key, tpm2.PasswordAuth(nil)),
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       ecdsaSHA256,
	}.Execute(tr)
	if err != nil {
		return signed{}, err
	}
	if err := flush(tr, key.Handle); err != nil {
		return signed{}, err
	}
	return newSigned(r.CertifyInfo, r.Signature), flush(tr, ak.Handle)
}
