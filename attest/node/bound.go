package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// ErrBootState means that keys are bound to boot states and the machine is in
// none that is approved.
var ErrBootState = errors.New("the machine is in no approved boot state: boot into one, " +
	"or have this one approved and run vouch node reseal")

// A binding ties the node's keys to boot states. What the keys know is only
// who may approve states (TPM2_PolicyAuthorize), so a new state needs a new
// approval and no new key.
type binding struct {
	Authority []byte                   `json:"authority"` // DER SubjectPublicKeyInfo, ECDSA P-256
	Approvals []appraisal.BootApproval `json:"approvals"`
}

const maxApprovals = 16 // known-good states at a time; the oldest goes first

// LoadBound is [Load] for a node whose keys, made on first use, work only in
// boot states that a root approved with [appraisal.ApproveBootState]; authority is its
// key (ECDSA P-256).
// Keys that exist and are bound otherwise are an error. The approvals are added
// to those in the store.
//
// The AK is never bound: it must be able to attest that the state is wrong.
func LoadBound(ctx context.Context, t *TPM, s Store, authority *ecdsa.PublicKey, approvals ...[]byte) (*Node, error) {
	der, err := x509.MarshalPKIXPublicKey(authority)
	if err != nil {
		return nil, fmt.Errorf("binding the node's keys: %w", err)
	}
	if _, err := appraisal.AuthorityArea(authority); err != nil {
		return nil, fmt.Errorf("binding the node's keys: %w", err)
	}
	n, err := loadNode(ctx, t, s, &binding{Authority: der})
	if err != nil {
		return nil, err
	}
	if b := n.binding(); b == nil || !bytes.Equal(b.Authority, der) {
		return nil, errors.New("the node's keys exist, but are not bound to this root's boot states; start over with vouch node reset")
	}
	if err := n.Reseal(approvals...); err != nil {
		return nil, err
	}
	return n, nil
}

// Reseal adds approvals of boot states, such as the one that an update will
// boot into, to everything bound to the root that signed them: the node's keys and
// what SealBound has sealed. Keys and secrets are unchanged.
func (n *sealer) Reseal(approvals ...[]byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, document := range approvals {
		if err := n.approve(document); err != nil {
			return fmt.Errorf("adding an approved boot state: %w", err)
		}
	}
	return nil
}

// approve adds one approval. The caller holds mu.
func (n *sealer) approve(document []byte) error {
	if n.keys.Binding == nil && len(n.bindings) == 0 {
		return errors.New("nothing is bound to boot states here, neither the node's keys nor a sealed secret; see vouch node reset and vouch secret seal")
	}
	taken := false
	if b := n.keys.Binding; b != nil {
		next, err := b.with(document)
		switch {
		case err == nil:
			taken, n.keys.Binding = true, next
			if err := n.save(); err != nil {
				return err
			}
		case !errors.Is(err, appraisal.ErrOtherAuthority):
			return err
		}
	}
	for i, b := range n.bindings {
		next, err := b.with(document)
		if errors.Is(err, appraisal.ErrOtherAuthority) {
			continue
		}
		if err != nil {
			return err
		}
		bindings := slices.Clone(n.bindings)
		bindings[i] = next
		if err := n.saveBindings(bindings); err != nil {
			return err
		}
		taken = true
	}
	if !taken {
		return appraisal.ErrOtherAuthority
	}
	return nil
}

// with returns the binding with one more approval.
func (b *binding) with(document []byte) (*binding, error) {
	authority, err := b.authority()
	if err != nil {
		return nil, err
	}
	a, err := appraisal.ParseBootApproval(document, authority)
	if err != nil {
		return nil, err
	}
	next := &binding{Authority: b.Authority, Approvals: slices.Clone(b.Approvals)}
	// An approval that comes again becomes the newest.
	next.Approvals = slices.DeleteFunc(next.Approvals, func(old appraisal.BootApproval) bool {
		return maps.EqualFunc(old.PCRs, a.PCRs, func(x, y appraisal.Hex) bool { return bytes.Equal(x, y) })
	})
	next.Approvals = append(next.Approvals, a)
	next.Approvals = next.Approvals[max(0, len(next.Approvals)-maxApprovals):]
	return next, nil
}

// Bound reports whether the node's keys are bound to approved boot states.
func (n *sealer) Bound() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys.Binding != nil
}

// BootState reads the present values of PCRs (SHA-256 bank), to have them
// approved.
func (n *Node) BootState(ctx context.Context, pcrs []uint) (map[uint][]byte, error) {
	sorted := slices.Compact(slices.Sorted(slices.Values(pcrs)))
	if len(sorted) == 0 || sorted[len(sorted)-1] >= uint(len(appraisal.AllPCRs)) {
		return nil, fmt.Errorf("reading PCRs %d: want some of 0 to 23", pcrs)
	}
	values := make(map[uint][]byte)
	err := n.tpm.do(ctx, "reading PCRs", operationLimit, func(tr transport.TPM) error {
		read, err := readPCRs(tr, tpm2.TPMAlgSHA256, sorted)
		for pcr, value := range read {
			values[pcr] = value
		}
		return err
	})
	return values, err
}

func (b *binding) authority() (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(b.Authority)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("the root's key is not an ECDSA key")
	}
	return key, nil
}

// keyPolicy is the authorisation policy of bound keys.
func (b *binding) keyPolicy() ([]byte, error) {
	authority, err := b.authority()
	if err != nil {
		return nil, err
	}
	area, err := appraisal.AuthorityArea(authority)
	if err != nil {
		return nil, err
	}
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	command := tpm2.PolicyAuthorize{PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(appraisal.BootApprovalRef)}, KeySign: *appraisal.ObjectName(area)}
	if err := command.Update(p); err != nil {
		return nil, err
	}
	return p.Hash().Digest, nil
}

// template returns the template as the node's keys are made.
func (n *ring) template(t tpm2.TPMTPublic) (tpm2.TPMTPublic, error) {
	if n.keys.Binding == nil {
		return t, nil
	}
	policy, err := n.keys.Binding.keyPolicy()
	return appraisal.BoundTemplate(t, policy), err
}

// use returns the session that authorises the use of one of the node's keys.
// With options it is salted and does what they say.
func (n *ring) use(bound *binding, opts ...tpm2.AuthOption) tpm2.Session {
	if bound == nil && len(opts) == 0 {
		return tpm2.PasswordAuth(nil)
	}
	if bound == nil {
		return n.salted(opts...)
	}
	if len(opts) > 0 {
		opts = append(opts, tpm2.Salted(n.keys.SRK.Handle, n.srk))
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, nonceLen, func(tr transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		return bound.satisfy(tr, session)
	}, opts...)
}

// binding returns the binding as it is now; what it points to never changes.
func (n *ring) binding() *binding {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys.Binding
}

// satisfy shows the TPM that it is in an approved state.
func (b *binding) satisfy(tr transport.TPM, session tpm2.TPMISHPolicy) error {
	a, err := b.current(tr)
	if err != nil {
		return err
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: session, Pcrs: appraisal.Selection(tpm2.TPMAlgSHA256, a.Selected())}).Execute(tr); err != nil {
		return fmt.Errorf("showing the PCRs: %w", err)
	}
	policy, err := a.Policy()
	if err != nil {
		return err
	}
	key, ticket, err := b.ticket(tr, a)
	if err != nil {
		return fmt.Errorf("showing the approval: %w", err)
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession:  session,
		ApprovedPolicy: tpm2.TPM2BDigest{Buffer: policy},
		PolicyRef:      tpm2.TPM2BDigest{Buffer: []byte(appraisal.BootApprovalRef)},
		KeySign:        key,
		CheckTicket:    ticket,
	}.Execute(tr)
	if errors.Is(err, tpm2.TPMRCValue) { // the PCRs changed since they were read
		return fmt.Errorf("%w: %w", ErrBootState, err)
	}
	return err
}

// current returns the approval of the state that the machine is in.
func (b *binding) current(tr transport.TPM) (appraisal.BootApproval, error) {
	now := make(map[uint]appraisal.Hex)
	for _, a := range slices.Backward(b.Approvals) {
		for _, pcr := range a.Selected() {
			if _, ok := now[pcr]; !ok {
				read, err := readPCRs(tr, tpm2.TPMAlgSHA256, a.Selected())
				if err != nil {
					return appraisal.BootApproval{}, err
				}
				maps.Copy(now, read)
			}
		}
		if !slices.ContainsFunc(a.Selected(), func(pcr uint) bool { return !bytes.Equal(now[pcr], a.PCRs[pcr]) }) {
			return a, nil
		}
	}
	return appraisal.BootApproval{}, ErrBootState
}

// ticket has the TPM verify the root's signature.
func (b *binding) ticket(tr transport.TPM, a appraisal.BootApproval) (key tpm2.TPM2BName, ticket tpm2.TPMTTKVerified, err error) {
	authority, err := b.authority()
	if err != nil {
		return key, ticket, err
	}
	area, err := appraisal.AuthorityArea(authority)
	if err != nil {
		return key, ticket, err
	}
	signature, err := tpmSignature(a.Signature)
	if err != nil {
		return key, ticket, err
	}
	digest, err := a.Digest()
	if err != nil {
		return key, ticket, err
	}
	// A ticket is of a hierarchy's; there is none for the null hierarchy.
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*area), Hierarchy: tpm2.TPMRHOwner}.Execute(tr)
	if err != nil {
		return key, ticket, err
	}
	r, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name},
		Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: *signature,
	}.Execute(tr)
	if err != nil {
		return key, ticket, err
	}
	return loaded.Name, r.Validation, flush(tr, loaded.ObjectHandle)
}

func tpmSignature(der []byte) (*tpm2.TPMTSignature, error) {
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 {
		return nil, errors.New("the signature is malformed")
	}
	if rs.R.Sign() <= 0 || rs.S.Sign() <= 0 || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return nil, errors.New("the signature is out of range")
	}
	return &tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.FillBytes(make([]byte, 32))},
		}),
	}, nil
}
