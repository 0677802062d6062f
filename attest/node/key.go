package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"regexp"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// A Key is an ECDSA P-256 key in the TPM. It is loaded for each signature and
// flushed after it, so it takes none of the TPM's few places in between and
// survives a restart of the TPM.
type Key struct {
	ring   *ring
	blob   blob
	public *ecdsa.PublicKey
}

var _ crypto.Signer = (*Key)(nil)

var keyName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Key returns the signing key of a name (lower-case letters, digits and
// hyphens, at most 32), making it in the TPM on first use.
func (n *keyring) Key(ctx context.Context, name string) (crypto.Signer, error) {
	if !keyName.MatchString(name) {
		return nil, fmt.Errorf("TPM key %.40q: want a name of lower-case letters, digits and hyphens", name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var b blob
	data, _, err := n.store.Load(keyFilePrefix+name, keysVersion)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if b, err = n.makeKey(ctx, name); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("loading TPM key %s: %w", name, err)
	default:
		if err := json.Unmarshal(data, &b); err != nil {
			return nil, fmt.Errorf("loading TPM key %s: %w", name, err)
		}
	}
	k, err := n.newKey(b)
	if err != nil {
		return nil, fmt.Errorf("loading TPM key %s: %w", name, err)
	}
	return k, nil
}

func (n *keyring) makeKey(ctx context.Context, name string) (b blob, err error) {
	err = n.tpm.do(ctx, "making TPM key "+name, creationLimit, func(tr transport.TPM) (err error) {
		b, err = n.createKey(tr)
		return err
	})
	if err != nil {
		return blob{}, err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return blob{}, err
	}
	if err := n.store.Save(keyFilePrefix+name, keysVersion, data); err != nil {
		return blob{}, fmt.Errorf("saving TPM key %s: %w", name, err)
	}
	return b, nil
}

func (n *keyring) newKey(b blob) (*Key, error) {
	public, err := b.public()
	if err != nil {
		return nil, err
	}
	k, err := appraisal.P256(public)
	if err != nil {
		return nil, err
	}
	return &Key{ring: n.ring, blob: b, public: k}, nil
}

// Public returns the *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs a SHA-256 digest in the TPM and returns the signature in ASN.1
// DER. The TPM draws the random numbers; rand is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("signing in the TPM: want a SHA-256 digest")
	}
	answer, err := k.ring.sign(k.blob, digest, ecdsaSHA256)
	if err != nil {
		return nil, err
	}
	signature, err := derSignature(answer)
	if err != nil {
		return nil, err
	}
	// What the bus or a broken TPM returned is not passed on unseen.
	if !ecdsa.VerifyASN1(k.public, digest, signature) {
		return nil, errors.New("signing in the TPM: the signature that came back does not verify")
	}
	return signature, nil
}

// sign has the TPM sign a SHA-256 digest with a key it wrapped.
func (n *ring) sign(key blob, digest []byte, scheme tpm2.TPMTSigScheme) (signature tpm2.TPMTSignature, err error) {
	bound := n.binding()
	err = n.tpm.do(context.Background(), "signing in the TPM", operationLimit, func(tr transport.TPM) error {
		h, err := n.load(tr, key)
		if err != nil {
			return err
		}
		r, err := tpm2.Sign{
			KeyHandle:  withAuth(h, n.use(bound)),
			Digest:     tpm2.TPM2BDigest{Buffer: digest},
			InScheme:   scheme,
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(tr)
		if err != nil {
			return err
		}
		signature = r.Signature
		return nil
	})
	return signature, err
}

var ecdsaSHA256 = tpm2.TPMTSigScheme{
	Scheme:  tpm2.TPMAlgECDSA,
	Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
}

func derSignature(s tpm2.TPMTSignature) ([]byte, error) {
	e, err := s.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	if e.Hash != tpm2.TPMAlgSHA256 {
		return nil, errors.New("signature over another hash than SHA-256")
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer),
	})
}

// A blob is a key as the TPM gave it out: useless in any other TPM.
type blob struct {
	Public  []byte `json:"public"`  // TPMT_PUBLIC
	Private []byte `json:"private"` // contents of TPM2B_PRIVATE, encrypted by the TPM
}

func newBlob(r *tpm2.CreateResponse) blob {
	return blob{Public: r.OutPublic.Bytes(), Private: r.OutPrivate.Buffer}
}

func (b blob) public() (*tpm2.TPMTPublic, error) {
	return appraisal.Structure[tpm2.TPMTPublic](b.Public)
}

// load loads a key; the operation flushes it.
func (n *ring) load(tr transport.TPM, b blob) (tpm2.NamedHandle, error) {
	r, err := tpm2.Load{
		ParentHandle: n.parent(tpm2.PasswordAuth(nil)),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: b.Private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](b.Public),
	}.Execute(tr)
	if err != nil {
		// TPM_RC_INTEGRITY is what another or a cleared TPM says; a missing
		// parent is what is left of a storage root key after a clear.
		if errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCHandle) {
			return tpm2.NamedHandle{}, fmt.Errorf("loading key: %w: %w", ErrOtherTPM, err)
		}
		return tpm2.NamedHandle{}, fmt.Errorf("loading key: %w", err)
	}
	return tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, nil
}

func (n *ring) createKey(tr transport.TPM) (blob, error) {
	template, err := n.template(appraisal.SigningTemplate())
	if err != nil {
		return blob{}, err
	}
	r, err := tpm2.Create{ParentHandle: n.parent(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(template)}.Execute(tr)
	if err != nil {
		return blob{}, err
	}
	return newBlob(r), nil
}

func (n *ring) parent(auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: n.keys.SRK.Handle, Name: *appraisal.ObjectName(&n.srk), Auth: auth}
}

// salted returns a session whose key only this TPM can have: it is encrypted to the
// storage root key as it was when the node's keys were made, not to one presented by
// someone on the bus. The options add who is authorised and which direction is
// encrypted.
func (n *ring) salted(opts ...tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceLen, append(opts, tpm2.Salted(n.keys.SRK.Handle, n.srk))...)
}

const nonceLen = 16 // bytes, of a session's nonces

func withAuth(h tpm2.NamedHandle, auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: auth}
}

// A storageRoot says where the storage root key is. The owner hierarchy's seed and the
// TCG's template determine the key, so it can be made again until the TPM is cleared.
type storageRoot struct {
	Handle tpm2.TPMHandle `json:"handle"`
	Public []byte         `json:"public"` // TPMT_PUBLIC
}

// storageRootHandles are where a storage root key is kept: first where the TCG (and
// systemd) put it, then nearby if that one is of another kind, then at places of our own.
var storageRootHandles = []tpm2.TPMHandle{
	0x81000001, 0x81000002, 0x81000010, 0x81000011,
	0x81007664, 0x81007665, 0x81007666, 0x81007667,
}

// findStorageRoot finds the ECC storage root key, or makes it and keeps it at
// the first free handle. If want is given, it must be that key and is looked
// for at hint first.
func findStorageRoot(tr transport.TPM, hint tpm2.TPMHandle, want *tpm2.TPMTPublic) (storageRoot, error) {
	suits := func(p *tpm2.TPMTPublic) bool {
		return appraisal.Matches(*p, tpm2.ECCSRKTemplate) && (want == nil || bytes.Equal(tpm2.Marshal(p), tpm2.Marshal(want)))
	}
	handles := storageRootHandles
	if hint != 0 {
		handles = append([]tpm2.TPMHandle{hint}, handles...)
	}
	var free tpm2.TPMHandle
	for _, h := range handles {
		public, err := readPublic(tr, h)
		if errors.Is(err, tpm2.TPMRCHandle) {
			if free == 0 {
				free = h
			}
			continue
		}
		if isUnusable(err) {
			continue // somebody's, of another kind
		}
		if err != nil {
			return storageRoot{}, err
		}
		if suits(public) {
			return storageRoot{Handle: h, Public: tpm2.Marshal(public)}, nil
		}
	}
	r, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(tr)
	if err != nil {
		return storageRoot{}, fmt.Errorf("making the storage root key: %w", err)
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		return storageRoot{}, err
	}
	if !suits(public) {
		return storageRoot{}, ErrOtherTPM
	}
	if free == 0 {
		return storageRoot{}, fmt.Errorf("keeping the storage root key: handles %x are taken; free one with tpm2_evictcontrol", handles)
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
		PersistentHandle: free,
	}.Execute(tr)
	if err != nil {
		return storageRoot{}, fmt.Errorf("keeping the storage root key: %w", err)
	}
	return storageRoot{Handle: free, Public: tpm2.Marshal(public)}, flush(tr, r.ObjectHandle)
}

// flush makes room before the operation ends; a TPM has room for three objects.
func flush(tr transport.TPM, h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(tr)
	return err
}

func readPublic(tr transport.TPM, h tpm2.TPMHandle) (*tpm2.TPMTPublic, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(tr)
	if err != nil {
		return nil, err
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		return nil, unusable(fmt.Sprintf("its public area is malformed: %v", err))
	}
	return public, nil
}

func newSigned(attested tpm2.TPM2BAttest, signature tpm2.TPMTSignature) appraisal.Signed {
	return appraisal.Signed{Attested: attested.Bytes(), Signature: tpm2.Marshal(signature)}
}
