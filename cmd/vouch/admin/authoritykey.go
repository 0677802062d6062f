package admin

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
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// Where a root key is.
const (
	keyAge = "age"
	keyTPM = "tpm"
)

// tpmKeyName is the root key's name among the node's keys in a TPM.
const tpmKeyName = "authority"

const minPassphrase = 12 // characters: whoever gets the file can try as fast as they can pay for

// authority returns the authority with its key, which done lets go of.
func (s *authorityStore) authority(cmd *cobra.Command) (a appraisal.Authority, done func(), err error) {
	var signer crypto.Signer
	if s.meta.Key == keyTPM {
		signer, done, err = s.tpmKey(cmd.Context())
	} else {
		signer, done, err = s.ageKey(cmd)
	}
	if err != nil {
		return appraisal.Authority{}, nil, fmt.Errorf("root key of %s: %w", s.meta.TrustDomain, err)
	}
	if k, ok := signer.Public().(*ecdsa.PublicKey); !ok || !k.Equal(s.root.PublicKey) {
		done()
		return appraisal.Authority{}, nil, fmt.Errorf("root key of %s: it is not the root certificate's; restore %s from a backup", s.meta.TrustDomain, s.command.dir)
	}
	return appraisal.Authority{Root: s.root, Signer: signer}, done, nil
}

// makeKey makes the root key and keeps it.
func (s *authorityStore) makeKey(cmd *cobra.Command) (crypto.Signer, func(), error) {
	if s.meta.Key == keyTPM {
		return s.tpmKey(cmd.Context())
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
	passphrase, err := s.command.readPassphrase(cmd, true)
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
	return key, func() {}, s.dir.Save(authorityKey, authorityForm, sealed.Bytes())
}

func (s *authorityStore) ageKey(cmd *cobra.Command) (crypto.Signer, func(), error) {
	sealed, _, err := s.dir.Load(authorityKey, authorityForm)
	if err != nil {
		return nil, nil, err
	}
	passphrase, err := s.command.readPassphrase(cmd, false)
	if err != nil {
		return nil, nil, err
	}
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, nil, err
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if err != nil {
		return nil, nil, errors.New("the passphrase is not the one that it was encrypted with")
	}
	der, err := io.ReadAll(io.LimitReader(r, 4096))
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
func (s *authorityStore) tpmKey(ctx context.Context) (crypto.Signer, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	tpm, err := node.Open(ctx, s.meta.TPM)
	if err != nil {
		return nil, nil, err
	}
	n, err := node.Load(ctx, tpm, s.dir)
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

// readPassphrase reads the first line of --passphrase-file, or asks on the
// terminal, twice for a new one.
func (a *authorityCommand) readPassphrase(cmd *cobra.Command, fresh bool) (string, error) {
	var passphrase []byte
	var err error
	if a.passphrase != "" {
		var data []byte
		data, err = cli.ReadDocument(cmd, a.passphrase, 4096)
		passphrase, _, _ = bytes.Cut(data, []byte("\n"))
	} else {
		passphrase, err = cli.AskHidden("Passphrase of the root key: ")
		if err == nil && fresh {
			var again []byte
			if again, err = cli.AskHidden("The same again: "); err == nil && !bytes.Equal(passphrase, again) {
				err = errors.New("the two passphrases differ")
			}
		}
	}
	if err != nil {
		return "", fmt.Errorf("reading the passphrase: %w", err)
	}
	if len(passphrase) == 0 || fresh && len(passphrase) < minPassphrase {
		return "", cli.Usagef("the passphrase has %d characters; want at least %d, some words for instance", len(passphrase), minPassphrase)
	}
	return string(passphrase), nil
}
