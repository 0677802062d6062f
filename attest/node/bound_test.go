package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

var boundPCRs = []uint{4, 7}

// A boundNode works in approved boot states only.
type boundNode struct {
	*Node
	real      *tpmtest.TPM
	store     Store
	authority *ecdsa.PrivateKey
}

func newBoundNode(t *testing.T) *boundNode {
	t.Helper()
	tpm, real := open(t)
	b := &boundNode{real: real, store: store(t)}
	var err error
	if b.authority, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if b.Node, err = LoadBound(t.Context(), tpm, b.store, &b.authority.PublicKey); err != nil {
		t.Fatal(err)
	}
	return b
}

// approved returns an approval of the state that the machine is in now.
func (b *boundNode) approved(t *testing.T) []byte {
	t.Helper()
	now, err := b.BootState(t.Context(), boundPCRs)
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.ApproveBootState(b.authority, now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func sign(s crypto.Signer) error {
	_, err := s.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

func TestBoundKeysWorkInApprovedStatesOnly(t *testing.T) {
	t.Parallel()
	b := newBoundNode(t)
	if err := sign(b.Signer()); !errors.Is(err, ErrBootState) || !strings.Contains(err.Error(), "vouch node reseal") {
		t.Errorf("before any approval: %v, want %v", err, ErrBootState)
	}
	if err := b.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	checkSignature(t, b.Signer())
	sealed, err := b.Seal(t.Context(), "label", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := b.Key(t.Context(), "jwt")
	if err != nil {
		t.Fatal(err)
	}

	b.real.Extend(4, "another boot loader")
	for name, err := range map[string]error{
		"signing": sign(b.Signer()), "signing with a named key": sign(jwt),
		"unsealing": second(b.Unseal(t.Context(), "label", sealed)),
	} {
		if !errors.Is(err, ErrBootState) {
			t.Errorf("%s in another state: %v, want %v", name, err, ErrBootState)
		}
	}
	// The AK says which state it is all the same.
	v := statementOf(t, b.Node)
	if !v.NodeKey.Equal(b.NodeKey()) {
		t.Error("the statement is of another node key")
	}

	// The update is approved: the same keys work again, and what was sealed
	// can be read.
	if err := b.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	checkSignature(t, b.Signer())
	checkSignature(t, jwt)
	if secret, err := b.Unseal(t.Context(), "label", sealed); err != nil || string(secret) != "secret" {
		t.Errorf("Unseal = %q, %v", secret, err)
	}

	// And so does the old state, after a fall back to it, for a daemon that
	// knows nothing of the binding.
	b.real.Restart()
	again := load(t, reopen(t, b.real.Address), b.store)
	if !again.Bound() {
		t.Error("the keys are not bound after loading them")
	}
	checkSignature(t, again.Signer())
	if left := b.real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}

func second[T any](_ T, err error) error { return err }

// Whoever owns the host can talk to the TPM past vouchd.
func TestBoundKeysCannotBeUsedWithoutTheirPolicy(t *testing.T) {
	t.Parallel()
	b := newBoundNode(t)
	if err := b.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	approved := b.binding()
	b.real.Extend(7, "another key")
	now, err := b.BootState(t.Context(), boundPCRs)
	if err != nil {
		t.Fatal(err)
	}
	forged := appraisal.BootApproval{Version: 1, PCRs: map[uint]appraisal.Hex{4: now[4], 7: now[7]}, Signature: approved.Approvals[0].Signature}
	attacker, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var own appraisal.BootApproval
	ownJSON, err := appraisal.ApproveBootState(attacker, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(ownJSON, &own); err != nil {
		t.Fatal(err)
	}
	ownKey := binding{Approvals: []appraisal.BootApproval{own}}
	if ownKey.Authority, err = publicDER(attacker); err != nil {
		t.Fatal(err)
	}
	policy := func(satisfy func(transport.TPM, tpm2.TPMISHPolicy) error) tpm2.Session {
		return tpm2.Policy(tpm2.TPMAlgSHA256, nonceLen, func(tr transport.TPM, s tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			return satisfy(tr, s)
		})
	}
	for name, session := range map[string]tpm2.Session{
		"an empty password":               tpm2.PasswordAuth(nil),
		"an empty authorisation":          tpm2.HMAC(tpm2.TPMAlgSHA256, nonceLen),
		"an empty policy":                 policy(func(transport.TPM, tpm2.TPMISHPolicy) error { return nil }),
		"the PCRs alone":                  policy(func(tr transport.TPM, s tpm2.TPMISHPolicy) error { return pcrsOnly(tr, s) }),
		"an approval of other values":     policy((&binding{Authority: approved.Authority, Approvals: []appraisal.BootApproval{forged}}).satisfy),
		"an approval of another's":        policy((&binding{Authority: approved.Authority, Approvals: []appraisal.BootApproval{own}}).satisfy),
		"another authority":               policy(ownKey.satisfy),
		"an approval of the former state": policy(func(tr transport.TPM, s tpm2.TPMISHPolicy) error { return former(tr, s, approved) }),
	} {
		t.Run(name, func(t *testing.T) {
			err := b.tpm.do(t.Context(), "signing", operationLimit, func(tr transport.TPM) error {
				h, err := b.load(tr, b.keys.Node)
				if err != nil {
					t.Fatal(err)
				}
				_, err = tpm2.Sign{
					KeyHandle: withAuth(h, session), Digest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)}, InScheme: ecdsaSHA256,
					Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
				}.Execute(tr)
				return err
			})
			if err == nil {
				t.Error("the TPM signed")
			}
		})
	}
}

func pcrsOnly(tr transport.TPM, s tpm2.TPMISHPolicy) error {
	_, err := tpm2.PolicyPCR{PolicySession: s, Pcrs: appraisal.Selection(tpm2.TPMAlgSHA256, boundPCRs)}.Execute(tr)
	return err
}

// former shows the present PCRs and the approval of those before.
func former(tr transport.TPM, s tpm2.TPMISHPolicy, b *binding) error {
	if err := pcrsOnly(tr, s); err != nil {
		return err
	}
	policy, err := b.Approvals[0].Policy()
	if err != nil {
		return err
	}
	key, ticket, err := b.ticket(tr, b.Approvals[0])
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: s, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: policy},
		PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(appraisal.BootApprovalRef)}, KeySign: key, CheckTicket: ticket,
	}.Execute(tr)
	return err
}

func TestApprovalsAreChecked(t *testing.T) {
	t.Parallel()
	b := newBoundNode(t)
	good := b.approved(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now, err := b.BootState(t.Context(), boundPCRs)
	if err != nil {
		t.Fatal(err)
	}
	others, err := appraisal.ApproveBootState(other, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string][]byte{
		"another authority's":  others,
		"other values":         bytes.Replace(good, []byte(`"7":"`), []byte(`"8":"`), 1),
		"an unknown version":   bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1),
		"no PCRs":              []byte(`{"version":1,"pcrs":{},"signature":""}`),
		"a value of no length": []byte(`{"version":1,"pcrs":{"7":""},"signature":""}`),
		"nothing":              nil,
	} {
		if err := b.Reseal(a); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := sign(b.Signer()); !errors.Is(err, ErrBootState) {
		t.Errorf("after refused approvals: %v, want %v", err, ErrBootState)
	}
	if _, err := LoadBound(t.Context(), b.tpm, b.store, &other.PublicKey); err == nil {
		t.Error("keys bound to one authority were loaded as another's")
	}
	unboundStore := store(t)
	unbound := load(t, b.tpm, unboundStore)
	if _, err := LoadBound(t.Context(), b.tpm, unboundStore, &b.authority.PublicKey); err == nil {
		t.Error("keys that are not bound were loaded as bound")
	}
	if err := unbound.Reseal(good); err == nil {
		t.Error("keys that are not bound were resealed")
	}
	for name, pcrs := range map[string]map[uint][]byte{"no PCRs": {}, "PCR 24": {24: make([]byte, 32)}, "a SHA-1 value": {7: make([]byte, 20)}} {
		if _, err := appraisal.ApproveBootState(b.authority, pcrs); err == nil {
			t.Errorf("%s: approved", name)
		}
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appraisal.ApproveBootState(ed, now); err == nil {
		t.Error("approved with an Ed25519 key, which no TPM verifies")
	}
}

func TestApprovalsDoNotPileUp(t *testing.T) {
	t.Parallel()
	b := newBoundNode(t)
	for i := range maxApprovals + 5 {
		b.real.Extend(4, string(rune('a'+i)))
		if err := b.Reseal(b.approved(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.binding().Approvals); n != maxApprovals {
		t.Errorf("%d approvals are kept, want %d", n, maxApprovals)
	}
	checkSignature(t, b.Signer())
}

// IMA extends PCR 10 whenever it likes, which ends a policy that was shown.
func TestBoundKeysWorkWhilePCRsAreExtended(t *testing.T) {
	t.Parallel()
	b := newBoundNode(t)
	if err := b.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	raced := false
	var mu sync.Mutex
	inner := b.tpm.open
	b.tpm.open = func(ctx context.Context) (link, error) {
		l, err := inner(ctx)
		return racingLink{l, func() {
			mu.Lock()
			defer mu.Unlock()
			if !raced {
				raced = true
				extendOver(t, l)
			}
		}}, err
	}
	if err := sign(b.Signer()); err != nil {
		t.Error(err)
	}
	if !raced {
		t.Error("nothing was extended in between")
	}
}

// A racingLink does something right before a signature.
type racingLink struct {
	link
	before func()
}

func (l racingLink) exchange(ctx context.Context, command []byte) ([]byte, error) {
	if bytes.Equal(command[6:10], []byte{0, 0, 1, 0x5d}) { // TPM2_Sign
		l.before()
	}
	return l.link.exchange(ctx, command)
}

func extendOver(t *testing.T, l link) {
	o := &operation{ctx: t.Context(), link: l}
	if err := extendPCR(o, 10, nil, make([]byte, 32)); err != nil {
		t.Error(err)
	}
}

func publicDER(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.MarshalPKIXPublicKey(&key.PublicKey)
}
