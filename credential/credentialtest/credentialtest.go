// Package credentialtest has what the tests of brokers need: a workload that
// authenticates, a machine that seals, and a broker from a definition.
package credentialtest

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

// Canary is a secret to look for where none may be.
const Canary = "canary-4f1b"

// Issuer is the iss claim of JWT-SVIDs, and KeyID their kid.
const (
	Issuer = "https://example.org"
	KeyID  = "k1"
)

// A Workload is an identity whose trust domain has one key for each algorithm, both of
// the same KeyID. It is a [credential.Identity].
type Workload struct {
	ID     spiffeid.ID
	Key    *ecdsa.PrivateKey // of the trust domain, for ES256 and X509-SVIDs
	RSA    *rsa.PrivateKey   // of the trust domain, for RS256
	Change func(*jwt.Claims) // what is wrong with its JWT-SVIDs; nil for nothing
}

// NewWorkload returns a workload of a trust domain with a key of its own.
func NewWorkload(t testing.TB, id spiffeid.ID) *Workload {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &Workload{ID: id, Key: key, RSA: rsaKey}
}

// JWT returns a JWT-SVID, signed with ES256 unless another algorithm is asked for.
func (w *Workload) JWT(_ context.Context, r credential.JWTRequest) (secret.Bytes, error) {
	var key any = w.Key
	algorithm := jose.SignatureAlgorithm(cmp.Or(r.Algorithm, config.ES256))
	if algorithm == jose.RS256 {
		key = w.RSA
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return secret.Bytes{}, err
	}
	c := jwt.Claims{
		Issuer: Issuer, Subject: w.ID.String(), Audience: jwt.Audience{r.Audience}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(time.Now().Add(5 * time.Minute)),
	}
	if w.Change != nil {
		w.Change(&c)
	}
	builder := jwt.Signed(signer).Claims(c)
	if r.Claim != "" {
		builder = builder.Claims(map[string]any{r.Claim: r.Value})
	}
	token, err := builder.Serialize()
	return secret.Of([]byte(token)), err
}

// X509 returns an X509-SVID that the trust domain's key has signed, with a
// common name.
func (w *Workload) X509(context.Context) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: w.ID.String()}, URIs: []*url.URL{w.ID.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, w.authority(), w.Key.Public(), w.Key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: w.Key}, err
}

// Authority returns the certificate, in DER, that certifies X509-SVIDs.
func (w *Workload) Authority() ([]byte, error) {
	template := w.authority()
	return x509.CreateCertificate(rand.Reader, template, template, w.Key.Public(), w.Key)
}

func (w *Workload) authority() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(2 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

// maxLife is the longest that a vendor lets a token live, and clockSkew what it allows.
const (
	maxLife   = time.Hour
	clockSkew = time.Minute
)

// Verify reports whether a token is what somebody accepts who was told to trust the
// trust domain: its algorithm (if none are given, either), kid and typ, its signature,
// iss, sub, aud, jti, iat and exp, and how long it lives.
func (w *Workload) Verify(token, audience string, algorithms ...jose.SignatureAlgorithm) bool {
	if len(algorithms) == 0 {
		algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.RS256}
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(parsed.Headers) != 1 || parsed.Headers[0].KeyID != KeyID || parsed.Headers[0].ExtraHeaders["typ"] != "JWT" {
		return false
	}
	var key any = w.Key.Public()
	if parsed.Headers[0].Algorithm == string(jose.RS256) {
		key = w.RSA.Public()
	}
	var c jwt.Claims
	if err := parsed.Claims(key, &c); err != nil || c.IssuedAt == nil || c.Expiry == nil || c.ID == "" || c.Expiry.Time().Sub(c.IssuedAt.Time()) > maxLife {
		return false
	}
	return c.ValidateWithLeeway(jwt.Expected{Issuer: Issuer, Subject: w.ID.String(), AnyAudience: jwt.Audience{audience}, Time: time.Now()}, clockSkew) == nil
}

// Broker returns the broker of the first definition in text, for the time of
// the test.
func Broker(t testing.TB, kind string, open credential.Opener, text string) (b credential.Broker) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := credential.LoadDefinitions(dir, credential.Brokers{kind: func(d *credential.Definition, s config.Section) (credential.Broker, error) {
		opened, err := open(d, s)
		if b == nil {
			b = opened
		}
		return opened, err
	}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := b.(interface{ Close() }); ok {
		t.Cleanup(c.Close)
	}
	return b
}

// A Machine is a sealer that stands for the TPM of one machine. It keeps
// nothing secret.
type Machine byte

// Seal encrypts.
func (m Machine) Seal(_ context.Context, label string, secret []byte) ([]byte, error) {
	return m.gcm().Seal(nil, make([]byte, 12), secret, []byte(label)), nil
}

// Unseal decrypts what the same machine has sealed under the same label.
func (m Machine) Unseal(_ context.Context, label string, blob []byte) ([]byte, error) {
	return m.gcm().Open(nil, make([]byte, 12), blob, []byte(label))
}

func (m Machine) gcm() cipher.AEAD {
	key := make([]byte, 32)
	key[0] = byte(m)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// NoProcess finds none: every process of before is gone. It is a
// [lease.Processes].
type NoProcess struct{}

// Find reports that it is gone.
func (NoProcess) Find(credential.Process, credential.Bind) (<-chan struct{}, bool, error) {
	return nil, false, nil
}
