package oauth2

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/vouchd/vouchd/credential"
)

// assertionTTL is how long a client assertion may be used, and is used once.
const assertionTTL = time.Minute

// assert authenticates the client by a JWT that its key signs (RFC 7523 §3,
// private_key_jwt of OpenID Connect Core §9).
func (b *Broker) assert(form url.Values) error {
	signer, err := b.signer()
	if err != nil {
		return err
	}
	now := b.now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer:   b.settings.ClientID,
		Subject:  b.settings.ClientID,
		Audience: jwt.Audience{b.audience()},
		ID:       rand.Text(),
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(now.Add(assertionTTL)),
	}).Serialize()
	if err != nil {
		return err
	}
	setAssertion(form, token)
	return nil
}

// signer reads the key anew, so that changing it needs no restart.
func (b *Broker) signer() (jose.Signer, error) {
	path := b.settings.ClientKeyFile.Value
	text, err := credential.ReadSecret(path)
	if err != nil {
		return nil, err
	}
	defer text.Wipe()
	block, _ := pem.Decode(text.Reveal())
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s is not a PEM file of a PKCS #8 PRIVATE KEY; convert it with openssl pkcs8 -topk8 -nocrypt", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no private key", path)
	}
	algorithm, err := algorithmOf(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: b.settings.ClientKeyID}}, (&jose.SignerOptions{}).WithType("JWT"))
}

func algorithmOf(key crypto.PrivateKey) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		}
	case *rsa.PrivateKey:
		if k.N.BitLen() >= 2048 {
			return jose.RS256, nil
		}
	case ed25519.PrivateKey:
		return jose.EdDSA, nil
	}
	return "", errors.New("the key is not P-256, P-384, Ed25519 or RSA of 2048 bits")
}
