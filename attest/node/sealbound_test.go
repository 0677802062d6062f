package node

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// A secret that is bound on a node whose own keys are not.
func TestSecretBoundToBootStatesOpensInApprovedOnesAlone(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	s := store(t)
	n := load(t, tpm, s)
	authority := newBootAuthority(t)
	b := &boundNode{Node: n, real: real, authority: authority}
	if err := n.Reseal(b.approved(t)); err == nil {
		t.Error("an approval is taken where nothing is bound")
	}
	secret := someBytes(100_000)
	sealed, err := n.SealBound(t.Context(), "stripe 1", &authority.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Unseal(t.Context(), "stripe 1", sealed); !errors.Is(err, ErrBootState) {
		t.Errorf("before any approval: %v, want %v", err, ErrBootState)
	}
	if err := n.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	opens := func(n *Node, when string) {
		t.Helper()
		if got, err := n.Unseal(t.Context(), "stripe 1", sealed); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %d bytes, %v", when, len(got), err)
		}
	}
	opens(n, "in the approved state")
	if _, err := n.Unseal(t.Context(), "stripe 2", sealed); !errors.Is(err, ErrUnseal) {
		t.Errorf("under another label: %v, want %v", err, ErrUnseal)
	}

	real.Extend(4, "another boot loader")
	if _, err := n.Unseal(t.Context(), "stripe 1", sealed); !errors.Is(err, ErrBootState) {
		t.Errorf("in another state: %v, want %v", err, ErrBootState)
	}
	if _, err := n.Seal(t.Context(), "other", []byte("secret")); err != nil {
		t.Errorf("what is not bound: %v", err)
	}
	if err := n.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	opens(n, "after the update was approved")

	real.Restart()
	opens(load(t, reopen(t, real.Address), s), "back in the former state, after a restart")
	if left := real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}

func TestChangedOrForeignBoundSecretDoesNotOpen(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	authority := newBootAuthority(t)
	b := &boundNode{Node: n, authority: authority}
	sealed, err := n.SealBound(t.Context(), "stripe", &authority.PublicKey, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Reseal(b.approved(t)); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Unseal(t.Context(), "stripe", sealed); err != nil || string(got) != "secret" {
		t.Fatalf("Unseal = %q, %v", got, err)
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if got, err := n.Unseal(t.Context(), "stripe", changed); err == nil {
			t.Errorf("with byte %d changed it opens to %q", i, got)
		}
		if got, err := n.Unseal(t.Context(), "stripe", sealed[:i]); err == nil {
			t.Errorf("cut off at %d it opens to %q", i, got)
		}
	}
	for name, document := range map[string][]byte{
		"nothing": []byte("{}"), "another authority's": (&boundNode{Node: n, authority: newBootAuthority(t)}).approved(t),
	} {
		if err := n.Reseal(document); err == nil {
			t.Errorf("an approval that is %s is taken", name)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.SealBound(t.Context(), "stripe", &p384.PublicKey, nil); err == nil {
		t.Error("a P-384 authority is taken, which no policy of the node's knows")
	}

	other := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	stolen := newNode(other.tpm, nil)
	stolen.keys, stolen.srk, stolen.bindings = n.keys, n.srk, n.bindings
	for name, thief := range map[string]*Node{"another machine": other, "another machine with the stolen store": stolen} {
		if _, err := thief.Unseal(t.Context(), "stripe", sealed); !errors.Is(err, ErrOtherTPM) {
			t.Errorf("on %s: %v, want %v", name, err, ErrOtherTPM)
		}
	}
}

func newBootAuthority(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
