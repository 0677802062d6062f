package github

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/vouchd/vouchd/credential"
)

// Keys are the RSA keys in the TPM that were made elsewhere.
type Keys interface {
	// RSAKey returns a key by its name; the error satisfies [fs.ErrNotExist]
	// if there is none.
	RSAKey(name string) (crypto.Signer, error)
	// ImportRSA puts one into the TPM durably, in the place of the last.
	ImportRSA(ctx context.Context, name string, key *rsa.PrivateKey) (crypto.Signer, error)
}

const (
	// jwtLife is how long the app's assertion may be used, and is used once.
	// GitHub takes no more than ten minutes.
	jwtLife = 3 * time.Minute
	// jwtBackdate is what GitHub recommends against clocks that are ahead.
	jwtBackdate = time.Minute
)

// assertion authenticates as the app: a JWT of RS256 with iat, exp and iss.
func (b *Broker) assertion(ctx context.Context) (string, error) {
	key, err := b.key(ctx)
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: cryptosigner.Opaque(key)}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	now := b.now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer:   b.settings.AppID.Value,
		IssuedAt: jwt.NewNumericDate(now.Add(-jwtBackdate)),
		Expiry:   jwt.NewNumericDate(now.Add(jwtLife)),
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("%w: signing as app %s: %w", credential.ErrUpstream, b.settings.AppID.Value, err)
	}
	return token, nil
}

// key returns the app's key in the TPM. If the file has a different one, that replaces it:
// this is how the first key is imported, and how it is changed.
func (b *Broker) key(ctx context.Context) (crypto.Signer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	name, path := b.settings.keyName(), b.settings.AppKeyFile.Value
	kept, keptErr := b.keys.RSAKey(name)
	if keptErr != nil && !errors.Is(keptErr, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", credential.ErrUpstream, keptErr)
	}
	given, err := readKey(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && keptErr == nil:
		return kept, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: app %s has no key in the TPM yet; put the one that GitHub gave into %s, which may be removed after the first token", credential.ErrRefused, b.settings.AppID.Value, path)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", credential.ErrRefused, err)
	case keptErr == nil && given.PublicKey.Equal(kept.Public()):
		return kept, nil
	}
	imported, err := b.keys.ImportRSA(ctx, name, given)
	if err != nil {
		return nil, fmt.Errorf("%w: importing %s: %w", credential.ErrUpstream, path, err)
	}
	return imported, nil
}

// readKey reads a key in the form that GitHub gives it, or as PKCS #8.
func readKey(path string) (*rsa.PrivateKey, error) {
	text, err := credential.ReadSecret(path)
	if err != nil {
		return nil, err
	}
	defer text.Wipe()
	block, _ := pem.Decode(text.Reveal())
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file; put the file that GitHub gave there", path)
	}
	defer clear(block.Bytes)
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if key, ok := parsed.(*rsa.PrivateKey); err == nil && ok {
		return key, nil
	}
	return nil, fmt.Errorf("%s holds no RSA private key", path) // err may repeat some of it
}
