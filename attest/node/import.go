package node

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// An RSAKey is an RSA key in the TPM that was made elsewhere, such as one issued by a
// vendor. The TPM signs with it and never releases it: without a policy for it, nothing
// authorises TPM2_Duplicate. It cannot vouch that nobody has kept a copy.
type RSAKey struct {
	ring   *ring
	blob   blob
	public *rsa.PublicKey
}

var _ crypto.Signer = (*RSAKey)(nil)

const (
	rsaFilePrefix = "tpm-rsa-"
	rsaVersion    = 1
	rsaBits       = 2048 // what every TPM has
)

// RSAKey returns an imported key by its name. The error satisfies
// [fs.ErrNotExist] if none was imported under it.
func (n *keyring) RSAKey(name string) (crypto.Signer, error) {
	if !keyName.MatchString(name) {
		return nil, fmt.Errorf("TPM key %.40q: want a name of lower-case letters, digits and hyphens", name)
	}
	data, _, err := n.store.Load(rsaFilePrefix+name, rsaVersion)
	if err != nil {
		return nil, fmt.Errorf("loading TPM key %s: %w", name, err)
	}
	var b blob
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("loading TPM key %s: %w", name, err)
	}
	k, err := n.newRSAKey(b)
	if err != nil {
		return nil, fmt.Errorf("loading TPM key %s: %w", name, err)
	}
	return k, nil
}

// ImportRSA puts an RSA key of 2048 bits into the TPM, in the place of the last
// one of the name (as [Node.Key] has them), to sign RSASSA with SHA-256. It is
// durable when ImportRSA returns. The private half travels encrypted to the
// storage root key.
func (n *keyring) ImportRSA(ctx context.Context, name string, key *rsa.PrivateKey) (crypto.Signer, error) {
	if !keyName.MatchString(name) {
		return nil, fmt.Errorf("TPM key %.40q: want a name of lower-case letters, digits and hyphens", name)
	}
	if key.N.BitLen() != rsaBits || len(key.Primes) != 2 {
		return nil, fmt.Errorf("TPM key %s: it is an RSA key of %d bits, and a TPM takes %d", name, key.N.BitLen(), rsaBits)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	template, err := n.template(rsaTemplate(&key.PublicKey))
	if err != nil {
		return nil, err
	}
	duplicate, seed, err := n.wrap(&template, key)
	if err != nil {
		return nil, fmt.Errorf("importing TPM key %s: %w", name, err)
	}
	var b blob
	err = n.tpm.do(ctx, "importing TPM key "+name, creationLimit, func(tr transport.TPM) error {
		r, err := tpm2.Import{
			ParentHandle: n.parent(tpm2.PasswordAuth(nil)),
			ObjectPublic: tpm2.New2B(template),
			Duplicate:    tpm2.TPM2BPrivate{Buffer: duplicate},
			InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: seed},
			Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}, // no inner wrapper: the outer one is enough
		}.Execute(tr)
		if err != nil {
			return err
		}
		b = blob{Public: tpm2.Marshal(template), Private: r.OutPrivate.Buffer}
		return nil
	})
	if err != nil {
		return nil, err
	}
	k, err := n.newRSAKey(b)
	if err != nil {
		return nil, fmt.Errorf("importing TPM key %s: %w", name, err)
	}
	data, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	if err := n.store.Save(rsaFilePrefix+name, rsaVersion, data); err != nil {
		return nil, fmt.Errorf("saving TPM key %s: %w", name, err)
	}
	return k, nil
}

// wrap encrypts a key so that only this TPM can import it: TPM 2.0 Part 1, 23.3, with
// an outer wrapper only.
func (n *keyring) wrap(public *tpm2.TPMTPublic, key *rsa.PrivateKey) (duplicate, seed []byte, err error) {
	srk, err := tpm2.ImportEncapsulationKey(&n.srk)
	if err != nil {
		return nil, nil, err
	}
	prime := key.Primes[0].FillBytes(make([]byte, rsaBits/16))
	defer clear(prime)
	sensitive := tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgRSA,
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgRSA, &tpm2.TPM2BPrivateKeyRSA{Buffer: prime}),
	})
	defer clear(sensitive)
	return tpm2.CreateDuplicate(rand.Reader, srk, appraisal.ObjectName(public).Buffer, sensitive)
}

// rsaTemplate is the template of an imported key, which signs whatever it is given.
// FixedTPM and SensitiveDataOrigin are clear, as for everything made elsewhere.
func rsaTemplate(k *rsa.PublicKey) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgRSA,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits:  rsaBits,
			Exponent: exponent(k),
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.FillBytes(make([]byte, rsaBits/8))}),
	}
}

// exponent is zero for the usual one.
func exponent(k *rsa.PublicKey) uint32 {
	if k.E == 65537 {
		return 0
	}
	return uint32(k.E)
}

func (n *keyring) newRSAKey(b blob) (*RSAKey, error) {
	public, err := b.public()
	if err != nil {
		return nil, err
	}
	k, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("is not an RSA key")
	}
	return &RSAKey{ring: n.ring, blob: b, public: key}, nil
}

// Public returns the *rsa.PublicKey.
func (k *RSAKey) Public() crypto.PublicKey { return k.public }

// Sign signs a SHA-256 digest in the TPM: RSASSA-PKCS1-v1_5. rand is not used.
func (k *RSAKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); opts == nil || pss || opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("signing in the TPM: want a SHA-256 digest for RSASSA-PKCS1-v1_5")
	}
	answer, err := k.ring.sign(k.blob, digest, rsassaSHA256)
	if err != nil {
		return nil, err
	}
	s, err := answer.Signature.RSASSA()
	if err != nil {
		return nil, err
	}
	signature := s.Sig.Buffer
	// What the bus or a broken TPM returned is not passed on unseen.
	if err := rsa.VerifyPKCS1v15(k.public, crypto.SHA256, digest, signature); err != nil {
		return nil, errors.New("signing in the TPM: the signature that came back does not verify")
	}
	return signature, nil
}

var rsassaSHA256 = tpm2.TPMTSigScheme{
	Scheme:  tpm2.TPMAlgRSASSA,
	Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
}
