package node

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"io/fs"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestImportedKeySignsInTheTPM(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	s := store(t)
	n := load(t, tpm, s)
	if _, err := n.RSAKey("app"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it was imported: %v", err)
	}
	key := rsaKey(t, 2048)
	var seen recorded
	tpm.open = recording(tpm.open, &seen)
	if _, err := n.ImportRSA(t.Context(), "app", key); err != nil {
		t.Fatal(err)
	}
	// A restart has nothing but the store and the TPM.
	signer, err := load(t, tpm, s).RSAKey("app")
	if err != nil {
		t.Fatal(err)
	}
	checkSignature(t, signer)
	digest := sha256.Sum256([]byte("x"))
	if _, err := signer.Sign(nil, digest[:], crypto.SHA512); err == nil {
		t.Error("signed with another hash")
	}
	if _, err := signer.Sign(nil, digest[:], &rsa.PSSOptions{Hash: crypto.SHA256}); err == nil {
		t.Error("signed with another scheme")
	}
	for i, prime := range key.Primes {
		if bytes.Contains(seen.bytes(), prime.Bytes()) {
			t.Errorf("prime %d went over the bus in the clear", i)
		}
	}
	if !bytes.Contains(seen.bytes(), key.N.Bytes()) {
		t.Error("the recording missed what does travel in the clear")
	}
}

func TestImportedKeyReplacesTheLastOfItsName(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	for range 2 {
		key := rsaKey(t, 2048)
		if _, err := n.ImportRSA(t.Context(), "app", key); err != nil {
			t.Fatal(err)
		}
		if got, err := n.RSAKey("app"); err != nil || !key.PublicKey.Equal(got.Public()) {
			t.Errorf("RSAKey = another key, %v", err)
		}
	}
}

func TestImportedKeyCannotBeExported(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	signer, err := n.ImportRSA(t.Context(), "app", rsaKey(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	err = tpm.do(t.Context(), "duplicating", operationLimit, func(tr transport.TPM) error {
		h, err := n.load(tr, signer.(*RSAKey).blob)
		if err != nil {
			t.Fatal(err)
		}
		for name, auth := range map[string]tpm2.Session{
			"a password": tpm2.PasswordAuth(nil),
			"a policy": tpm2.Policy(tpm2.TPMAlgSHA256, nonceLen, func(tr transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicyCommandCode{PolicySession: session, Code: tpm2.TPMCCDuplicate}.Execute(tr)
				return err
			}),
		} {
			_, err := tpm2.Duplicate{
				ObjectHandle:    withAuth(h, auth),
				NewParentHandle: tpm2.NamedHandle{Handle: tpm2.TPMRHNull},
				Symmetric:       tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
			}.Execute(tr)
			if err == nil {
				t.Errorf("the TPM gives the key out for %s", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportedKeyIsOfNoUseToAnotherTPM(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	signer, err := n.ImportRSA(t.Context(), "app", rsaKey(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	other := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	stolen := &RSAKey{ring: other.ring, blob: signer.(*RSAKey).blob, public: signer.(*RSAKey).public}
	digest := sha256.Sum256([]byte("x"))
	if _, err := stolen.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("signing with a stolen store: %v, want %v", err, ErrOtherTPM)
	}
}

func TestImportRefusesWhatATPMDoesNotTake(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	if _, err := n.ImportRSA(t.Context(), "app", rsaKey(t, 3072)); err == nil {
		t.Error("a key of 3072 bits was imported")
	}
	if _, err := n.ImportRSA(t.Context(), "../app", rsaKey(t, 2048)); err == nil {
		t.Error("a name that is a path was taken")
	}
}
