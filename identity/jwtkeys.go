package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/vouchd/vouchd/config"
)

// The algorithms that sign JWT-SVIDs.
const (
	ES256 = config.ES256
	RS256 = config.RS256
)

const (
	jwtKeysVersion = 1
	maxJWTKeys     = 16 // of an algorithm; more can only come from a clock that keeps jumping
	rsaBits        = 2048
)

// jwtKeysFile is where an algorithm's keys are kept, and the label they are sealed
// under. Each has its own: a version that knows only ES256 reads what it always did.
func jwtKeysFile(algorithm string) string {
	if algorithm == RS256 {
		return "jwt-keys-rs256"
	}
	return "jwt-keys"
}

// A jwtKey signs from from until until, and stays in the bundle for as long as
// anything it signed is valid.
type jwtKey struct {
	id        string
	algorithm string
	public    crypto.PublicKey
	spki      []byte      // DER of public
	signer    jose.Signer // sets alg, kid and typ, and no other header (JWT-SVID §2)
	pkcs8     []byte      // nil for a key that is not ours to keep
	from      time.Time
	until     time.Time // zero: without end
}

// published is the end of the key's time in the bundle.
func (k *jwtKey) published() time.Time {
	if k.until.IsZero() {
		return time.Time{}
	}
	return k.until.Add(MaxJWTTTL + backdate)
}

// jwtKeys is immutable; of each algorithm, oldest first.
type jwtKeys []*jwtKey

// of returns the keys of one algorithm.
func (ks jwtKeys) of(algorithm string) (of jwtKeys) {
	for _, k := range ks {
		if k.algorithm == algorithm {
			of = append(of, k)
		}
	}
	return of
}

// signing returns the key to sign with now, the newest if several may. All are of one
// algorithm.
func (ks jwtKeys) signing(now time.Time) *jwtKey {
	for _, k := range slices.Backward(ks) {
		if !now.Before(k.from) && (k.until.IsZero() || now.Before(k.until)) {
			return k
		}
	}
	return nil
}

// good is how long a copy of these keys is enough to verify what the algorithms sign:
// to the end of the last key of each; zero if that is without end, and now if an
// algorithm has no key yet.
func (ks jwtKeys) good(algorithms []string, now time.Time) (until time.Time) {
	for _, algorithm := range algorithms {
		last := now
		for _, k := range ks.of(algorithm) {
			if k.until.IsZero() {
				return time.Time{}
			}
			if k.until.After(last) {
				last = k.until
			}
		}
		if until.IsZero() || last.Before(until) {
			until = last
		}
	}
	return until
}

// rotateJWTKeys makes the keys of each algorithm that are due, except for RSA's, which
// makeRSA makes. Trouble with one algorithm leaves the others alone.
func (a *Authority) rotateJWTKeys(ctx context.Context, now time.Time) error {
	var keys jwtKeys
	var errs []error
	for _, algorithm := range a.o.JWTAlgorithms {
		of, err := a.rotateJWTKeysOf(ctx, algorithm, now)
		keys, errs = append(keys, of...), append(errs, err)
	}
	a.jwt.Store(&keys)
	return errors.Join(errs...)
}

// rotateJWTKeysOf seals and saves new keys before it announces them, and announces them
// before they are published or used. On an error it returns those of before.
func (a *Authority) rotateJWTKeysOf(ctx context.Context, algorithm string, now time.Time) (jwtKeys, error) {
	before := a.jwt.Load().of(algorithm)
	keys := before
	if a.o.JWTKey == nil {
		advanced, err := before.advance(now, a.o.JWTKeyTTL, a.fresh(algorithm))
		if err != nil {
			return before, fmt.Errorf("making a JWT key: %w", err)
		}
		if !slices.Equal(advanced, before) {
			if err := a.saveJWTKeys(ctx, algorithm, advanced); err != nil {
				return before, err
			}
		}
		keys = advanced
	}
	for _, k := range keys {
		if err := a.announce(ctx, Key{ID: k.id, PublicKey: k.spki, NotBefore: k.from, NotAfter: k.published()}); err != nil {
			return before, err
		}
	}
	return keys, nil
}

// fresh returns what makes a key of the algorithm: none as long as makeRSA has left no
// RSA key.
func (a *Authority) fresh(algorithm string) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) {
		if algorithm == ES256 {
			return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		}
		if key := a.spare.Swap(nil); key != nil {
			return key, nil
		}
		return nil, nil
	}
}

// advance drops keys whose last token has expired, and makes sure that there is one
// that signs now and a successor, unless fresh has no key. Every bundle therefore has
// the key that signs next: anyone who keeps a copy of it, or publishes one as a file,
// has a key's lifetime to fetch the next (Federation §4.1).
func (ks jwtKeys) advance(now time.Time, ttl time.Duration, fresh func() (crypto.Signer, error)) (jwtKeys, error) {
	var next jwtKeys
	for _, k := range ks {
		if now.Before(k.published()) {
			next = append(next, k)
		}
	}
	for from, due := next.due(now); due; from, due = next.due(now) {
		key, err := fresh()
		if err != nil || key == nil {
			return next, err
		}
		k, err := newJWTKey(key, from, from.Add(ttl))
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

// due returns from when a key is to sign that is to be made now, if one is.
func (ks jwtKeys) due(now time.Time) (from time.Time, due bool) {
	signing := ks.signing(now)
	if signing == nil {
		return now, true
	}
	return signing.until, ks.signing(signing.until) == nil
}

// makeRSA makes the RSA keys that are due, for Rotate to take into use. That may take
// seconds, in which only those wait who need such a key.
func (a *Authority) makeRSA(ctx context.Context) error {
	if a.o.JWTKey != nil || !slices.Contains(a.o.JWTAlgorithms, RS256) {
		return nil
	}
	a.making.Lock()
	defer a.making.Unlock()
	for range 2 { // the one that signs, and its successor
		if _, due := a.jwt.Load().of(RS256).due(a.o.Now()); !due {
			return nil
		}
		key, err := rsa.GenerateKey(rand.Reader, rsaBits)
		if err != nil {
			return fmt.Errorf("making a JWT key: %w", err)
		}
		a.spare.Store(key)
		if err := a.Rotate(ctx); err != nil && !errors.Is(err, ErrNotEnrolled) {
			return err
		}
	}
	return nil
}

func newJWTKey(key crypto.Signer, from, until time.Time) (*jwtKey, error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return jwtKeyOf(key, pkcs8, from, until)
}

// jwtKeyOf names the key by its RFC 7638 thumbprint.
func jwtKeyOf(signer crypto.Signer, pkcs8 []byte, from, until time.Time) (*jwtKey, error) {
	k := &jwtKey{public: signer.Public(), pkcs8: pkcs8, from: from, until: until}
	switch pub := k.public.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, fmt.Errorf("JWT key is on %s, want P-256", pub.Curve.Params().Name)
		}
		k.algorithm = ES256
	case *rsa.PublicKey:
		if pub.N.BitLen() != rsaBits {
			return nil, fmt.Errorf("JWT key is RSA of %d bits, want %d", pub.N.BitLen(), rsaBits)
		}
		k.algorithm = RS256
	default:
		return nil, fmt.Errorf("JWT key is a %T, want ECDSA P-256 or RSA", pub)
	}
	var err error
	if k.spki, err = x509.MarshalPKIXPublicKey(k.public); err != nil {
		return nil, err
	}
	thumb, err := (&jose.JSONWebKey{Key: k.public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	k.id = base64.RawURLEncoding.EncodeToString(thumb)
	k.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.SignatureAlgorithm(k.algorithm), Key: jose.JSONWebKey{Key: cryptosigner.Opaque(signer), KeyID: k.id}},
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
	var keys jwtKeys
	if a.o.JWTKey != nil {
		k, err := jwtKeyOf(a.o.JWTKey, nil, time.Time{}, time.Time{})
		if err == nil && !slices.Equal(a.o.JWTAlgorithms, []string{k.algorithm}) {
			err = fmt.Errorf("the permanent JWT key signs %s alone, not %q", k.algorithm, a.o.JWTAlgorithms)
		}
		return &jwtKeys{k}, err
	}
	for _, algorithm := range a.o.JWTAlgorithms {
		of, err := a.loadJWTKeysOf(ctx, algorithm)
		if err != nil {
			return nil, err
		}
		keys = append(keys, of...)
	}
	return &keys, nil
}

func (a *Authority) loadJWTKeysOf(ctx context.Context, algorithm string) (keys jwtKeys, err error) {
	file := jwtKeysFile(algorithm)
	blob, err := a.load(file, jwtKeysVersion)
	if err != nil {
		return nil, fmt.Errorf("loading JWT keys: %w", err)
	}
	if blob == nil {
		return nil, nil
	}
	data, err := a.o.Sealer.Unseal(ctx, file, blob)
	if err != nil {
		return nil, fmt.Errorf("unsealing JWT keys: %w", err)
	}
	defer clear(data)
	var stored []storedJWTKey
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, fmt.Errorf("reading unsealed JWT keys: %w", err)
	}
	for _, s := range stored {
		key, err := x509.ParsePKCS8PrivateKey(s.PKCS8)
		if err != nil {
			return nil, fmt.Errorf("reading an unsealed JWT key: %w", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("an unsealed JWT key is a %T, which cannot sign", key)
		}
		k, err := jwtKeyOf(signer, s.PKCS8, s.From, s.Until)
		if err != nil {
			return nil, err
		}
		if k.algorithm != algorithm {
			return nil, fmt.Errorf("an unsealed JWT key of %s is one for %s", algorithm, k.algorithm)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func (a *Authority) saveJWTKeys(ctx context.Context, algorithm string, keys jwtKeys) error {
	stored := make([]storedJWTKey, len(keys))
	for i, k := range keys {
		stored[i] = storedJWTKey{k.pkcs8, k.from, k.until}
	}
	data, err := json.Marshal(stored)
	if err != nil {
		return err
	}
	defer clear(data)
	file := jwtKeysFile(algorithm)
	blob, err := a.o.Sealer.Seal(ctx, file, data)
	if err != nil {
		return fmt.Errorf("sealing JWT keys: %w", err)
	}
	return a.o.Store.Save(file, jwtKeysVersion, blob)
}
