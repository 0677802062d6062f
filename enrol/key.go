package enrol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
)

// Where a root key is.
const (
	KeyAge = "age" // in a file, encrypted with age under a passphrase
	KeyTPM = "tpm" // in a TPM, which it never leaves
)

// tpmKeyName is the root key's name among the node's keys in a TPM.
const tpmKeyName = "authority"

// MinPassphrase is how many characters a new passphrase has at least: someone
// with the file can try as many per second as they can pay for.
const MinPassphrase = 12

// authority returns the root with its key, which done releases.
func (r *Root) authority(ctx context.Context) (a appraisal.Authority, done func(), err error) {
	var signer crypto.Signer
	if r.meta.Key == KeyTPM {
		signer, done, err = r.tpmKey(ctx)
	} else {
		signer, done, err = r.ageKey()
	}
	if err != nil {
		return appraisal.Authority{}, nil, fmt.Errorf("root key of %s: %w", r.meta.TrustDomain, err)
	}
	if k, ok := signer.Public().(*ecdsa.PublicKey); !ok || !k.Equal(r.cert.PublicKey) {
		done()
		return appraisal.Authority{}, nil, fmt.Errorf("root key of %s: it does not belong to the root certificate; restore %s from a backup", r.meta.TrustDomain, r.path)
	}
	return appraisal.Authority{Root: r.cert, Signer: signer}, done, nil
}

// makeKey makes the root key and saves it.
func (r *Root) makeKey(ctx context.Context) (crypto.Signer, func(), error) {
	if r.meta.Key == KeyTPM {
		return r.tpmKey(ctx)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(der)
	passphrase, err := r.passphrase()
	if err != nil {
		return nil, nil, err
	}
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, nil, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err == nil {
		_, err = w.Write(der)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("encrypting the root key: %w", err)
	}
	return key, func() {}, r.dir.Save(keyFile, rootForm, sealed.Bytes())
}

func (r *Root) ageKey() (crypto.Signer, func(), error) {
	sealed, _, err := r.dir.Load(keyFile, rootForm)
	if err != nil {
		return nil, nil, err
	}
	passphrase, err := r.passphrase()
	if err != nil {
		return nil, nil, err
	}
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, nil, err
	}
	plain, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if err != nil {
		return nil, nil, errors.New("wrong passphrase")
	}
	der, err := io.ReadAll(io.LimitReader(plain, 4096))
	if err != nil {
		return nil, nil, fmt.Errorf("decrypting: %w", err)
	}
	defer clear(der)
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, err
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("it is a %T, not an ECDSA key", key)
	}
	return signer, func() {}, nil
}

// tpmKey loads the key in the TPM, or makes it. The directory keeps what only
// that TPM can read.
func (r *Root) tpmKey(ctx context.Context) (crypto.Signer, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	tpm, err := node.Open(ctx, r.meta.TPM)
	if err != nil {
		return nil, nil, err
	}
	n, err := node.Load(ctx, tpm, r.dir)
	if err != nil {
		tpm.Close()
		return nil, nil, err
	}
	key, err := n.Key(ctx, tpmKeyName)
	if err != nil {
		tpm.Close()
		return nil, nil, err
	}
	return key, func() { tpm.Close() }, nil
}
