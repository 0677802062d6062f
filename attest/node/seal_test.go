package node

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestSealedSecrets(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	for _, length := range []int{0, 1, 200, 100_000} {
		secret := someBytes(length)
		sealed, err := n.Seal(t.Context(), "jwt", secret)
		if err != nil {
			t.Fatal(err)
		}
		got, err := n.Unseal(t.Context(), "jwt", sealed)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("Unseal of %d bytes = %d bytes, %v", length, len(got), err)
		}
		if _, err := n.Unseal(t.Context(), "jwt2", sealed); !errors.Is(err, ErrUnseal) {
			t.Errorf("under another label: %v, want %v", err, ErrUnseal)
		}
	}
	sealed, err := n.Seal(t.Context(), "jwt", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := n.Unseal(t.Context(), "jwt", changed); !errors.Is(err, ErrUnseal) {
			t.Errorf("with byte %d changed: %v, want %v", i, err, ErrUnseal)
		}
		if _, err := n.Unseal(t.Context(), "jwt", sealed[:i]); !errors.Is(err, ErrUnseal) {
			t.Errorf("cut off at %d: %v, want %v", i, err, ErrUnseal)
		}
	}
}

func TestSealedOnOneTPMStaysSealedOnAnother(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	sealed, err := n.Seal(t.Context(), "jwt", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	other := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	if _, err := other.Unseal(t.Context(), "jwt", sealed); !errors.Is(err, ErrUnseal) {
		t.Errorf("Unseal with another node's keys: %v, want %v", err, ErrUnseal)
	}
	// Nor with this node's stored blobs beside the other TPM.
	stolen := newNode(other.tpm, nil)
	stolen.keys, stolen.srk = n.keys, n.srk
	if _, err := stolen.Unseal(t.Context(), "jwt", sealed); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("Unseal with the stolen store: %v, want %v", err, ErrOtherTPM)
	}
}

// The seal key must not be seen on the bus. The session is encrypted, so
// nothing that goes over the wire contains it.
func TestSecretsDoNotTravelInTheClear(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	var seen recorded
	tpm.open = recording(tpm.open, &seen)
	n := load(t, tpm, store(t))
	if _, err := n.Seal(t.Context(), "jwt", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Anchor(t.Context(), [32]byte{}); err != nil {
		t.Fatal(err)
	}
	var key []byte
	err := tpm.do(t.Context(), "unsealing", operationLimit, func(tr transport.TPM) error {
		h, err := n.load(tr, n.keys.Seal)
		if err != nil {
			return err
		}
		r, err := tpm2.Unseal{ItemHandle: withAuth(h, n.salted(tpm2.AESEncryption(128, tpm2.EncryptOut)))}.Execute(tr)
		if err == nil {
			key = r.OutData.Buffer
		}
		return err
	})
	if err != nil || len(key) != sealKeyLen {
		t.Fatalf("seal key of %d bytes, %v", len(key), err)
	}
	for name, secret := range map[string][]byte{"seal key": key, "counter's authorisation": n.keys.Counter.Auth.Reveal()} {
		if bytes.Contains(seen.bytes(), secret) {
			t.Errorf("the %s went over the bus in the clear", name)
		}
	}
	if !bytes.Contains(seen.bytes(), n.keys.Seal.Public) {
		t.Error("the recording missed what does travel in the clear")
	}
}
