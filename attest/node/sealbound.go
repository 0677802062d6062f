package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Format of a secret that is bound to boot states: version, the length of the header
// in two bytes, the header, AES-256-GCM over the secret. The key is the blob's own,
// sealed in the TPM, so its nonce can be zero.
const (
	sealBoundVersion = 2
	maxBoundHeader   = 2048 // bytes
)

// A boundHeader is what the TPM needs to give out the key.
type boundHeader struct {
	Authority []byte `json:"authority"` // DER SubjectPublicKeyInfo, ECDSA P-256
	Key       blob   `json:"key"`
}

const (
	bindingsFile    = "tpm-boot-states"
	bindingsVersion = 1
	maxBindings     = 16 // roots
)

// SealBound is Seal for a secret that opens only in boot states that a root approved
// with [appraisal.ApproveBootState], whatever the node's own keys are bound to;
// authority is its key (ECDSA P-256). The TPM itself refuses the secret's key in any
// other state (TPM2_PolicyAuthorize), and an update needs an approval, not a new
// secret. Every approval, including the first, goes to [Node.Reseal].
func (n *sealer) SealBound(ctx context.Context, label string, authority *ecdsa.PublicKey, secret []byte) ([]byte, error) {
	sealed, err := n.sealBound(ctx, label, authority, secret)
	if err != nil {
		return nil, fmt.Errorf("sealing %s to boot states: %w", label, err)
	}
	return sealed, nil
}

func (n *sealer) sealBound(ctx context.Context, label string, authority *ecdsa.PublicKey, secret []byte) ([]byte, error) {
	bound, err := n.bindTo(authority)
	if err != nil {
		return nil, err
	}
	policy, err := bound.keyPolicy()
	if err != nil {
		return nil, err
	}
	header := boundHeader{Authority: bound.Authority}
	key := make([]byte, sealKeyLen)
	rand.Read(key)
	defer clear(key)
	err = n.tpm.do(ctx, "sealing a key", creationLimit, func(tr transport.TPM) (err error) {
		header.Key, err = n.sealKey(tr, appraisal.BoundTemplate(sealTemplate(), policy), key)
		return err
	})
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	sealed := binary.BigEndian.AppendUint16([]byte{sealBoundVersion}, uint16(len(text)))
	sealed = append(sealed, text...)
	return sealWith(key, label, sealed, secret)
}

// bindTo stores the root's key before anything is bound to it: its approvals are
// accepted from then on.
func (n *sealer) bindTo(authority *ecdsa.PublicKey) (*binding, error) {
	if _, err := appraisal.AuthorityArea(authority); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(authority)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.bindings {
		if bytes.Equal(b.Authority, der) {
			return b, nil
		}
	}
	if len(n.bindings) >= maxBindings {
		return nil, fmt.Errorf("secrets are already bound to %d roots, the maximum", maxBindings)
	}
	bound := &binding{Authority: der}
	return bound, n.saveBindings(append(slices.Clone(n.bindings), bound))
}

func (n *sealer) unsealBound(ctx context.Context, label string, sealed []byte) ([]byte, error) {
	header, text, err := readBoundHeader(sealed)
	if err != nil {
		return nil, fmt.Errorf("unsealing %s: %w", label, ErrUnseal)
	}
	key, err := n.takeKey(ctx, header.Key, n.bindingOf(header.Authority))
	if err != nil {
		return nil, fmt.Errorf("unsealing %s: %w", label, err)
	}
	defer clear(key)
	secret, err := openWith(key, label, sealed[:len(text)], sealed[len(text):])
	if err != nil {
		return nil, fmt.Errorf("unsealing %s: %w", label, ErrUnseal)
	}
	return secret, nil
}

// readBoundHeader returns the header, and the bytes that it is read from.
func readBoundHeader(sealed []byte) (h boundHeader, text []byte, err error) {
	if len(sealed) < 3 {
		return h, nil, ErrUnseal
	}
	end := 3 + int(binary.BigEndian.Uint16(sealed[1:]))
	if len(sealed) < end {
		return h, nil, ErrUnseal
	}
	return h, sealed[:end], appraisal.DecodeJSON(sealed[3:end], maxBoundHeader, &h)
}

// bindingOf returns what is known of a root's boot states.
func (n *sealer) bindingOf(authority []byte) *binding {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.bindings {
		if bytes.Equal(b.Authority, authority) {
			return b
		}
	}
	return &binding{Authority: authority}
}

func sealWith(key []byte, label string, header, secret []byte) ([]byte, error) {
	derived, err := hkdf.Key(sha256.New, key, nil, "vouchd seal v2\n"+label, sealKeyLen)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	aead, err := newGCM(derived)
	if err != nil {
		return nil, err
	}
	return aead.Seal(header, make([]byte, aead.NonceSize()), secret, header), nil
}

func openWith(key []byte, label string, header, sealed []byte) ([]byte, error) {
	derived, err := hkdf.Key(sha256.New, key, nil, "vouchd seal v2\n"+label, sealKeyLen)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	aead, err := newGCM(derived)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, make([]byte, aead.NonceSize()), sealed, header)
}

func (n *sealer) loadBindings() error {
	data, _, err := n.store.Load(bindingsFile, bindingsVersion)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n.bindings)
	}
	if err != nil {
		return fmt.Errorf("loading approved boot states: %w", err)
	}
	return nil
}

// saveBindings puts the bindings in the place of those there are. The caller
// holds mu.
func (n *sealer) saveBindings(bindings []*binding) error {
	data, err := json.Marshal(bindings)
	if err != nil {
		return err
	}
	if err := n.store.Save(bindingsFile, bindingsVersion, data); err != nil {
		return fmt.Errorf("saving approved boot states: %w", err)
	}
	n.bindings = bindings
	return nil
}
