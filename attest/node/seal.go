package node

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ErrUnseal means that a blob was not sealed by this node under this label, or
// was changed since.
var ErrUnseal = errors.New("not sealed by this node under this label, or changed since")

// Format of a sealed blob: version, salt, AES-256-GCM over the secret. Each blob has
// its own key, derived from the seal key and the salt, so its nonce can be zero.
// Version 2 is that of [Node.SealBound].
const (
	sealVersion = 1
	sealSalt    = 32 // bytes
	sealKeyLen  = 32 // bytes
	sealHeader  = 1 + sealSalt
)

// Seal encrypts a secret of any length for this node's TPM: only it can decrypt it, and
// only under the same label. Replacing a blob with an older one goes unnoticed: the TPM
// knows the key, not the blobs.
func (n *sealer) Seal(ctx context.Context, label string, secret []byte) ([]byte, error) {
	sealed := make([]byte, sealHeader, sealHeader+len(secret)+16)
	sealed[0] = sealVersion
	rand.Read(sealed[1:])
	aead, err := n.sealCipher(ctx, label, sealed[1:])
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", label, err)
	}
	return aead.Seal(sealed, make([]byte, aead.NonceSize()), secret, []byte(label)), nil
}

// Unseal returns the secret that Seal or SealBound was given. It returns
// [ErrUnseal] if the blob is not one that this node sealed under this label, and
// [ErrBootState] if it may be opened in other boot states only.
func (n *sealer) Unseal(ctx context.Context, label string, sealed []byte) ([]byte, error) {
	if len(sealed) > 0 && sealed[0] == sealBoundVersion {
		return n.unsealBound(ctx, label, sealed)
	}
	if len(sealed) < sealHeader || sealed[0] != sealVersion {
		return nil, fmt.Errorf("unsealing %s: %w", label, ErrUnseal)
	}
	aead, err := n.sealCipher(ctx, label, sealed[1:sealHeader])
	if err != nil {
		return nil, fmt.Errorf("unsealing %s: %w", label, err)
	}
	secret, err := aead.Open(nil, make([]byte, aead.NonceSize()), sealed[sealHeader:], []byte(label))
	if err != nil {
		return nil, fmt.Errorf("unsealing %s: %w", label, ErrUnseal)
	}
	return secret, nil
}

// sealCipher takes the seal key from the TPM for just long enough to derive one blob's
// key.
func (n *sealer) sealCipher(ctx context.Context, label string, salt []byte) (cipher.AEAD, error) {
	master, err := n.takeKey(ctx, n.keys.Seal, n.binding())
	if err != nil {
		return nil, err
	}
	defer clear(master)
	key, err := hkdf.Key(sha256.New, master, salt, "vouchd seal v1\n"+label, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return newGCM(key)
}

// takeKey returns a key that is sealed in the TPM, in an encrypted session. The
// caller overwrites it.
func (n *ring) takeKey(ctx context.Context, sealed blob, bound *binding) (key []byte, err error) {
	err = n.tpm.do(ctx, "taking a seal key", operationLimit, func(tr transport.TPM) error {
		h, err := n.load(tr, sealed)
		if err != nil {
			return err
		}
		r, err := tpm2.Unseal{
			ItemHandle: withAuth(h, n.use(bound, tpm2.AESEncryption(128, tpm2.EncryptOut))),
		}.Execute(tr)
		if err != nil {
			return err
		}
		key = r.OutData.Buffer
		return nil
	})
	if err == nil && len(key) != sealKeyLen {
		err = fmt.Errorf("the TPM returned a seal key of %d bytes", len(key))
	}
	return key, err
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// createSealKey seals a new random key as the node's keys are made.
func (n *ring) createSealKey(tr transport.TPM) (blob, error) {
	template, err := n.template(sealTemplate())
	if err != nil {
		return blob{}, err
	}
	key := make([]byte, sealKeyLen)
	rand.Read(key)
	defer clear(key)
	return n.sealKey(tr, template, key)
}

// sealKey seals a key in the TPM; it travels encrypted.
func (n *ring) sealKey(tr transport.TPM, template tpm2.TPMTPublic, key []byte) (blob, error) {
	r, err := tpm2.Create{
		ParentHandle: n.parent(n.salted(tpm2.AESEncryption(128, tpm2.EncryptIn))),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
		}},
		InPublic: tpm2.New2B(template),
	}.Execute(tr)
	if err != nil {
		return blob{}, err
	}
	return newBlob(r), nil
}
