package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

const (
	jwtKeysFile    = "jwt-keys"
	jwtKeysVersion = 1
	maxJWTKeys     = 16 // more can only come from a clock that keeps jumping
)

// A jwtKey signs from from until until, and stays in the bundle for as long as
// anything it signed is valid.
type jwtKey struct {
	id     string
	public *ecdsa.PublicKey
	spki   []byte      // DER of public
	signer jose.Signer // sets alg, kid and typ, and no other header (JWT-SVID §2)
	pkcs8  []byte      // nil for a key that is not ours to keep
	from   time.Time
	until  time.Time // zero: without end
}

// good is how long a copy of these keys is enough to verify what is signed: to
// the end of the last; zero if that is without end.
func (ks jwtKeys) good() (until time.Time) {
	for _, k := range ks {
		if k.until.IsZero() {
			return time.Time{}
		}
		if k.until.After(until) {
			until = k.until
		}
	}
	return until
}

// published is the end of the key's time in the bundle.
func (k *jwtKey) published() time.Time {
	if k.until.IsZero() {
		return time.Time{}
	}
	return k.until.Add(MaxJWTTTL + backdate)
}

// jwtKeys is immutable; oldest first.
type jwtKeys []*jwtKey

// signing returns the key to sign with now, the newest if several may.
func (ks jwtKeys) signing(now time.Time) *jwtKey {
	for _, k := range slices.Backward(ks) {
		if !now.Before(k.from) && (k.until.IsZero() || now.Before(k.until)) {
			return k
		}
	}
	return nil
}

// rotateJWTKeys seals and saves new keys before it announces them, and
// announces them before they are published or used.
func (a *Authority) rotateJWTKeys(ctx context.Context, now time.Time) error {
	keys := *a.jwt.Load()
	if a.o.JWTKey == nil {
		advanced, err := keys.advance(now, a.o.JWTKeyTTL)
		if err != nil {
			return fmt.Errorf("making a JWT key: %w", err)
		}
		if !slices.Equal(advanced, keys) {
			if err := a.saveJWTKeys(ctx, advanced); err != nil {
				return err
			}
		}
		keys = advanced
	}
	for _, k := range keys {
		if err := a.announce(ctx, Key{ID: k.id, PublicKey: k.spki, NotBefore: k.from, NotAfter: k.published()}); err != nil {
			return err
		}
	}
	a.jwt.Store(&keys)
	return nil
}

// advance drops keys whose last token has expired, and makes sure that there is one
// that signs now and a successor. Every bundle therefore has the key that signs next:
// anyone who keeps a copy of it, or publishes one as a file, has a key's lifetime to
// fetch the next (Federation §4.1).
func (ks jwtKeys) advance(now time.Time, ttl time.Duration) (jwtKeys, error) {
	var next jwtKeys
	for _, k := range ks {
		if now.Before(k.published()) {
			next = append(next, k)
		}
	}
	signing := next.signing(now)
	if signing == nil {
		k, err := newJWTKey(now, now.Add(ttl))
		if err != nil {
			return nil, err
		}
		next, signing = append(next, k), k
	}
	if next.signing(signing.until) == nil {
		k, err := newJWTKey(signing.until, signing.until.Add(ttl))
		if err != nil {
			return nil, err
		}
		next = append(next, k)
	}
	if len(next) > maxJWTKeys {
		return nil, fmt.Errorf("more than %d keys are still published; the clock has gone back too often", maxJWTKeys)
	}
	return next, nil
}

func newJWTKey(from, until time.Time) (*jwtKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return jwtKeyOf(key, pkcs8, from, until)
}

// jwtKeyOf names the key by its RFC 7638 thumbprint.
func jwtKeyOf(signer crypto.Signer, pkcs8 []byte, from, until time.Time) (*jwtKey, error) {
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("JWT key is a %T, want ECDSA P-256", signer.Public())
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	thumb, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	k := &jwtKey{
		id:     base64.RawURLEncoding.EncodeToString(thumb),
		public: pub, spki: spki, pkcs8: pkcs8, from: from, until: until,
	}
	k.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: cryptosigner.Opaque(signer), KeyID: k.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	return k, err
}

// storedJWTKey is a key as it is in the sealed file.
type storedJWTKey struct {
	PKCS8 []byte    `json:"pkcs8"`
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

func (a *Authority) loadJWTKeys(ctx context.Context) (*jwtKeys, error) {
	if a.o.JWTKey != nil {
		k, err := jwtKeyOf(a.o.JWTKey, nil, time.Time{}, time.Time{})
		return &jwtKeys{k}, err
	}
	blob, err := a.load(jwtKeysFile, jwtKeysVersion)
	if err != nil {
		return nil, fmt.Errorf("loading JWT keys: %w", err)
	}
	if blob == nil {
		return &jwtKeys{}, nil
	}
	data, err := a.o.Sealer.Unseal(ctx, jwtKeysFile, blob)
	if err != nil {
		return nil, fmt.Errorf("unsealing JWT keys: %w", err)
	}
	defer clear(data)
	var stored []storedJWTKey
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, fmt.Errorf("reading unsealed JWT keys: %w", err)
	}
	var keys jwtKeys
	for _, s := range stored {
		key, err := x509.ParsePKCS8PrivateKey(s.PKCS8)
		if err != nil {
			return nil, fmt.Errorf("reading an unsealed JWT key: %w", err)
		}
		signer, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("an unsealed JWT key is a %T, want ECDSA", key)
		}
		k, err := jwtKeyOf(signer, s.PKCS8, s.From, s.Until)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return &keys, nil
}

func (a *Authority) saveJWTKeys(ctx context.Context, keys jwtKeys) error {
	stored := make([]storedJWTKey, len(keys))
	for i, k := range keys {
		stored[i] = storedJWTKey{k.pkcs8, k.from, k.until}
	}
	data, err := json.Marshal(stored)
	if err != nil {
		return err
	}
	defer clear(data)
	blob, err := a.o.Sealer.Seal(ctx, jwtKeysFile, data)
	if err != nil {
		return fmt.Errorf("sealing JWT keys: %w", err)
	}
	return a.o.Store.Save(jwtKeysFile, jwtKeysVersion, blob)
}
