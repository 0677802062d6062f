// Package node attests the machine through its TPM 2.0.
//
// It is the attester: it keeps the node's keys in the TPM and makes what proves them:
// statements, quotes and anchors for the log, evidence for a verifier, and requests for
// an [appraisal.Authority]. Package appraisal judges these, without a TPM; the documents
// that pass between the two are defined there.
//
// The AK is restricted: the TPM signs with it only structures that it made itself.
// Everything here therefore rests on one signature by a key with exactly the right
// attributes, and nothing is read from a structure before that signature is verified.
//
// Two things stay out of reach. A TPM vouches for the machine it is soldered to, not for
// the path to it: evidence relayed from another machine's TPM (the cuckoo attack) looks
// like this machine's own, and only an inventory of endorsement keys distinguishes them.
// And anyone who controls the host's kernel can use every key in the TPM, though not
// extract it.
package node

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// ErrOtherTPM means that the keys in the store belong to another TPM, or to this one
// before it was cleared. They cannot be used here and were left alone.
var ErrOtherTPM = errors.New("the stored keys belong to another TPM, or this one was cleared since; " +
	"if that was meant, start over with vouch node reset")

// A Store keeps small files durably. A file that is missing is an error that
// satisfies [fs.ErrNotExist]. *state.Dir is one.
type Store interface {
	Load(name string, version int) (data []byte, savedVersion int, err error)
	Save(name string, version int, data []byte) error
}

// A Node is this machine: its TPM and the keys that vouchd keeps in it. What it
// does with them is in parts: it signs with keys, seals secrets, counts, and
// makes evidence of itself.
type Node struct {
	*ring
	endorsed
	keyring
	sealer
	ticker
	node *Key
}

// A ring is the node's keys and the TPM that they are in: what all parts of a
// [Node] work with.
type ring struct {
	tpm   *TPM
	store Store
	keys  keys
	srk   tpm2.TPMTPublic
	ak    tpm2.TPMTPublic

	mu       sync.Mutex // guards keys.Binding and bindings; held while a named key is looked up or made
	bindings []*binding // of what SealBound has sealed, one for each root; replaced whole
}

// An endorsed shows which TPM the attestation key is in: by the endorsement key
// and, where a cloud certified one, by the platform's key.
type endorsed struct{ *ring }

// A keyring makes and finds keys that sign.
type keyring struct{ *ring }

// A sealer seals secrets, and keeps the boot states that are approved.
type sealer struct{ *ring }

// A ticker is the node's counter.
type ticker struct {
	*ring
	certified atomic.Uint64 // the counter's value when it was certified last, 0 before
}

func newNode(t *TPM, s Store) *Node {
	r := &ring{tpm: t, store: s}
	return &Node{ring: r, endorsed: endorsed{r}, keyring: keyring{r}, sealer: sealer{r}, ticker: ticker{ring: r}}
}

// Files in the store.
const (
	keysFile      = "tpm-keys"
	keysVersion   = 1
	keyFilePrefix = "tpm-key-"
)

// keys is the contents of tpm-keys. The private parts are encrypted by the TPM
// under the storage root key.
type keys struct {
	SRK     storageRoot              `json:"srk"`
	EK      appraisal.EndorsementKey `json:"ek"`
	Ignored []string                 `json:"ek_ignored,omitempty"` // what was passed over on the way to it
	AK      blob                     `json:"ak"`
	Created appraisal.Creation       `json:"ak_creation"`
	Node    blob                     `json:"node_key"`
	Counter counter                  `json:"counter"`
	Seal    blob                     `json:"seal_key"`

	NodeCertified appraisal.Signed `json:"node_key_certified"`
	Binding       *binding         `json:"binding,omitempty"` // replaced whole, guarded by ring.mu
}

// Load loads the node's keys from the store, or on first use makes them: the
// AK and the node key (ECDSA P-256) and a key to seal with, under the TPM's
// ECC storage root key, and a counter in its NV memory. It returns
// [ErrOtherTPM] if the keys in the store are another TPM's, and deletes
// nothing.
//
// The Node uses t and s from then on and closes neither.
func Load(ctx context.Context, t *TPM, s Store) (*Node, error) {
	return loadNode(ctx, t, s, nil)
}

// loadNode binds what it makes, if there is a binding.
func loadNode(ctx context.Context, t *TPM, s Store, bound *binding) (*Node, error) {
	n := newNode(t, s)
	data, _, err := s.Load(keysFile, keysVersion)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := n.create(ctx, bound); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("loading the node's keys: %w", err)
	default:
		if err := json.Unmarshal(data, &n.keys); err != nil {
			return nil, fmt.Errorf("loading the node's keys: %w", err)
		}
		if err := n.recognise(ctx); err != nil {
			return nil, err
		}
	}
	if !n.keys.Counter.Made {
		if err := n.makeCounter(ctx); err != nil {
			return nil, err
		}
	}
	if err := n.loadBindings(); err != nil {
		return nil, err
	}
	return n, n.parse()
}

// recognise makes sure that this TPM is the one the keys were made in. With
// the storage root key where it was left, that is one command.
func (n *ring) recognise(ctx context.Context) error {
	public, err := appraisal.Structure[tpm2.TPMTPublic](n.keys.SRK.Public)
	if err != nil {
		return fmt.Errorf("loading the node's keys: storage root key: %w", err)
	}
	want := n.keys.SRK
	err = n.tpm.do(ctx, "recognising the TPM", creationLimit, func(tr transport.TPM) (err error) {
		n.keys.SRK, err = findStorageRoot(tr, want.Handle, public)
		return err
	})
	if err == nil && n.keys.SRK.Handle != want.Handle {
		err = n.save()
	}
	return err
}

// create makes everything new, and saves it before it defines the NV counter: a crash
// then leaves no counter that nothing refers to.
func (n *Node) create(ctx context.Context, bound *binding) error {
	err := n.tpm.do(ctx, "making the node's keys", creationLimit, func(tr transport.TPM) (err error) {
		k := keys{Binding: bound}
		if k.SRK, err = findStorageRoot(tr, 0, nil); err != nil {
			return err
		}
		n.keys = k
		if err := n.parseSRK(); err != nil {
			return err
		}
		if k.EK, k.Ignored, err = readEndorsementKey(tr); err != nil {
			return fmt.Errorf("endorsement key: %w", err)
		}
		if k.AK, k.Created, err = n.createAK(tr); err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
		if k.Node, err = n.createKey(tr); err != nil {
			return fmt.Errorf("node key: %w", err)
		}
		if k.NodeCertified, err = n.certify(tr, k.AK, k.Node, appraisal.KeyPurpose("node")); err != nil {
			return fmt.Errorf("certifying the node key: %w", err)
		}
		if k.Seal, err = n.createSealKey(tr); err != nil {
			return fmt.Errorf("seal key: %w", err)
		}
		if k.Counter, err = newCounter(tr); err != nil {
			return fmt.Errorf("counter: %w", err)
		}
		n.keys = k
		return nil
	})
	if err != nil {
		return err
	}
	return n.save()
}

func (n *ring) save() error {
	data, err := json.Marshal(n.keys)
	if err != nil {
		return err
	}
	if err := n.store.Save(keysFile, keysVersion, data); err != nil {
		return fmt.Errorf("saving the node's keys: %w", err)
	}
	return nil
}

func (n *Node) parse() error {
	if err := n.parseSRK(); err != nil {
		return err
	}
	ak, err := n.keys.AK.public()
	if err != nil {
		return fmt.Errorf("loading the node's keys: attestation key: %w", err)
	}
	n.ak = *ak
	n.node, err = n.newKey(n.keys.Node)
	if err != nil {
		return fmt.Errorf("loading the node's keys: node key: %w", err)
	}
	return nil
}

func (n *ring) parseSRK() error {
	srk, err := appraisal.Structure[tpm2.TPMTPublic](n.keys.SRK.Public)
	if err != nil {
		return fmt.Errorf("loading the node's keys: storage root key: %w", err)
	}
	n.srk = *srk
	return nil
}

// EKSHA256 returns the SHA-256 digest, in hexadecimal, of the endorsement
// key's public key as a DER SubjectPublicKeyInfo: the machine's identity.
func (n *endorsed) EKSHA256() string { return n.keys.EK.SHA256() }

// AKName returns the attestation key's TPM name in hexadecimal: the algorithm
// and digest of its public area (TPM 2.0 Part 1, 16).
func (n *endorsed) AKName() string { return hex.EncodeToString(appraisal.ObjectName(&n.ak).Buffer) }

// HasEKCertificate reports whether the TPM's manufacturer certified the endorsement
// key, so that a verifier can trace it to the manufacturer.
func (n *endorsed) HasEKCertificate() bool { return len(n.keys.EK.Certificates) > 0 }

// Ignored returns what in the TPM was of no use when the endorsement key and its
// certificates were read, and why, each in one sentence.
func (n *endorsed) Ignored() []string { return n.keys.Ignored }

// Signer returns the node key. Signing takes SHA-256 digests only and at most
// 30 seconds, the TPM's time included.
func (n *Node) Signer() crypto.Signer { return n.node }

// NodeKey returns the node key's public half.
func (n *Node) NodeKey() *ecdsa.PublicKey { return n.node.public }
