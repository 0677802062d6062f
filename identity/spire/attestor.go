package spire

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/vouchd/vouchd/secret"
)

// An Attestor proves to the server which host this is.
type Attestor interface {
	Name() string // of the server's plug-in: join_token, x509pop or vouchd
	Begin(ctx context.Context) (Attempt, error)
}

// An Attempt is one attestation.
type Attempt interface {
	Payload() []byte
	// Answer answers a challenge of the server's.
	Answer(ctx context.Context, challenge []byte) ([]byte, error)
	// EvidenceSHA256 is of what was presented, hexadecimal; empty: nothing that outlasts it.
	EvidenceSHA256() string
	// Granted is called once the server's answer is kept.
	Granted() error
}

// JoinToken attests by a token that the server takes once. Used is called when it is spent.
func JoinToken(read func() (secret.Bytes, error), used func() error) Attestor {
	return joinToken{read, used}
}

type joinToken struct {
	read func() (secret.Bytes, error)
	used func() error
}

func (joinToken) Name() string { return "join_token" }

func (j joinToken) Begin(context.Context) (Attempt, error) {
	token, err := j.read()
	if err != nil {
		return nil, err
	}
	text := strings.TrimSpace(string(token.Reveal()))
	if text == "" || len(text) > 1024 {
		return nil, errors.New("the join token is empty, or too long to be one")
	}
	return &tokenAttempt{[]byte(text), j.used}, nil
}

type tokenAttempt struct {
	token []byte
	used  func() error
}

func (a *tokenAttempt) Payload() []byte { return a.token }

func (a *tokenAttempt) Answer(context.Context, []byte) ([]byte, error) {
	return nil, errors.New("the server challenges a join token, which none does")
}

func (a *tokenAttempt) EvidenceSHA256() string { return "" }
func (a *tokenAttempt) Granted() error         { return a.used() }

// X509POP attests by a certificate and its key, ECDSA. It is asked for at each attestation.
func X509POP(leaf func() (chain []*x509.Certificate, key crypto.Signer, err error)) Attestor {
	return x509POP{leaf}
}

type x509POP struct {
	leaf func() ([]*x509.Certificate, crypto.Signer, error)
}

func (x509POP) Name() string { return "x509pop" }

func (p x509POP) Begin(context.Context) (Attempt, error) {
	chain, key, err := p.leaf()
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate to attest with")
	}
	if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
		return nil, fmt.Errorf("the key to attest with is a %T, not ECDSA", key.Public())
	}
	var data struct {
		Certificates [][]byte `json:"certificates"`
	}
	for _, c := range chain {
		data.Certificates = append(data.Certificates, c.Raw)
	}
	payload, err := json.Marshal(data)
	sum := sha256.Sum256(chain[0].Raw)
	return &popAttempt{payload, key, hex.EncodeToString(sum[:])}, err
}

type popAttempt struct {
	payload  []byte
	key      crypto.Signer
	evidence string
}

// A popNonce is a challenge by which possession of an ECDSA key is proved, and with a
// signature the answer.
type popNonce struct {
	Nonce []byte `json:"nonce"`
	R     []byte `json:"r,omitempty"`
	S     []byte `json:"s,omitempty"`
}

type popMessage struct {
	ECDSA *popNonce `json:"ecdsa_signature"`
}

const popNonceLen = 32

func (a *popAttempt) Payload() []byte        { return a.payload }
func (a *popAttempt) EvidenceSHA256() string { return a.evidence }
func (a *popAttempt) Granted() error         { return nil }

// Answer signs both sides' nonces. The server has the first, so it is held to its length,
// lest it have something else signed.
func (a *popAttempt) Answer(_ context.Context, challenge []byte) ([]byte, error) {
	var c popMessage
	if err := json.Unmarshal(challenge, &c); err != nil {
		return nil, fmt.Errorf("reading the server's challenge: %w", err)
	}
	if c.ECDSA == nil || len(c.ECDSA.Nonce) != popNonceLen {
		return nil, fmt.Errorf("the server's challenge is not a nonce of %d bytes for ECDSA", popNonceLen)
	}
	own := make([]byte, popNonceLen)
	rand.Read(own)
	digest := sha256.Sum256(append(c.ECDSA.Nonce, own...))
	der, err := a.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing the server's challenge: %w", err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return nil, fmt.Errorf("signing the server's challenge: %w", err)
	}
	return json.Marshal(popMessage{&popNonce{own, sig.R.Bytes(), sig.S.Bytes()}})
}
