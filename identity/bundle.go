package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

const (
	sequenceFile    = "bundle-sequence"
	sequenceVersion = 1
)

// A Bundle holds what is needed to verify everything of this trust domain that
// is still valid. It is immutable.
type Bundle struct {
	Sequence uint64 // rises with every change (Trust Domain and Bundle §4.1.1)
	X509     []byte // root certificates, DER, concatenated (Workload API §5.2.2)
	JWKS     []byte // RFC 7517, keys of use jwt-svid only (Workload API §6.2.2)
	WITKeys  []byte // RFC 7517, keys of use wit-svid only; nil: WIT-SVIDs are not signed here
	// JWKSGoodUntil is until when a copy of the JWKS suffices to verify every JWT-SVID
	// that is signed; zero: permanently. Fetch the next one before that.
	JWKSGoodUntil time.Time
	// Tainted are the key IDs of authorities that are in the bundle and no longer to be
	// relied on, sorted. What they signed is issued anew.
	Tainted []string

	jwt          *jwtbundle.Bundle
	rootNotAfter time.Time
}

// Bundle returns the present bundle.
func (a *Authority) Bundle() *Bundle { return a.bundle.Load() }

// WholeBundle returns the bundle with keys of every algorithm, for those who publish
// it. It may wait seconds for an RSA key to be made.
func (a *Authority) WholeBundle(ctx context.Context) (*Bundle, error) {
	err := a.makeRSA(ctx)
	return a.Bundle(), err
}

// Changed returns a channel that is closed when the bundle is next replaced.
// Take it before Bundle, so as to miss nothing.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// publish replaces the bundle if the keys have changed. The caller holds
// rotating.
func (a *Authority) publish() error {
	b, err := a.makeBundle()
	if err != nil {
		return fmt.Errorf("making the bundle: %w", err)
	}
	if old := a.bundle.Load(); old != nil && bytes.Equal(old.X509, b.X509) && bytes.Equal(old.JWKS, b.JWKS) {
		return nil
	}
	b.Sequence, err = a.nextSequence(b)
	if err != nil {
		return err
	}
	a.bundle.Store(b)
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

func (a *Authority) makeBundle() (*Bundle, error) {
	var keys []JWTAuthority
	for _, k := range *a.jwt.Load() {
		keys = append(keys, JWTAuthority{k.id, k.public})
	}
	b, err := NewBundle(a.o.TrustDomain, 0, a.roots, keys)
	if err != nil {
		return nil, err
	}
	b.JWKSGoodUntil = a.jwt.Load().good(a.o.JWTAlgorithms, a.o.Now())
	return b, nil
}

// A JWTAuthority is a key that verifies JWT-SVIDs, or WIT-SVIDs.
type JWTAuthority struct {
	ID  string // the kid, which JWT-SVID §6.1 asks for
	Key crypto.PublicKey
}

// NewBundle returns the bundle of a trust domain.
func NewBundle(td spiffeid.TrustDomain, sequence uint64, roots []*x509.Certificate, keys []JWTAuthority) (*Bundle, error) {
	b := &Bundle{Sequence: sequence, jwt: jwtbundle.New(td)}
	for _, r := range roots {
		b.X509 = append(b.X509, r.Raw...)
		b.rootNotAfter = r.NotAfter
	}
	for _, k := range keys {
		if err := b.jwt.AddJWTAuthority(k.ID, k.Key); err != nil {
			return nil, err
		}
	}
	var err error
	b.JWKS, err = jwks(keys, "jwt-svid") // JWT-SVID §6.1
	return b, err
}

// SetWITKeys has the bundle verify WIT-SVIDs too, if there are keys of theirs.
func (b *Bundle) SetWITKeys(keys []JWTAuthority) (err error) {
	if len(keys) > 0 {
		b.WITKeys, err = jwks(keys, "wit-svid") // WIT-SVID §6.1
	}
	return err
}

func jwks(keys []JWTAuthority, use string) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Key, KeyID: k.ID, Use: use})
	}
	return json.Marshal(set)
}

// ValidateJWT checks a JWT-SVID in full (JWT-SVID §5, Workload API §6.2.3) with the bundle of
// its subject's trust domain (Workload API §6.3), and returns its claims. That is this one, or
// one of those given; without it the token is refused.
func (b *Bundle) ValidateJWT(token, audience string, foreign ...*jwtbundle.Bundle) (*jwtsvid.SVID, error) {
	bundles := jwtbundle.NewSet(foreign...)
	bundles.Add(b.jwt)
	return jwtsvid.ParseAndValidate(token, bundles, []string{audience})
}

// nextSequence continues the stored sequence: the same number for the same
// bundle, as after a restart, and the next for a changed one.
func (a *Authority) nextSequence(b *Bundle) (uint64, error) {
	digest := bundleDigest(b)
	stored, err := a.load(sequenceFile, sequenceVersion)
	if err != nil {
		return 0, fmt.Errorf("loading the bundle's sequence: %w", err)
	}
	if bytes.Equal(stored, sequenceRecord(a.sequence, digest)) {
		return a.sequence, nil
	}
	if err := a.o.Store.Save(sequenceFile, sequenceVersion, sequenceRecord(a.sequence+1, digest)); err != nil {
		return 0, fmt.Errorf("saving the bundle's sequence: %w", err)
	}
	a.sequence++
	return a.sequence, nil
}

func (a *Authority) loadSequence() error {
	stored, err := a.load(sequenceFile, sequenceVersion)
	if err != nil {
		return fmt.Errorf("loading the bundle's sequence: %w", err)
	}
	if len(stored) == 8+sha256.Size {
		a.sequence = binary.BigEndian.Uint64(stored)
	}
	return nil
}

func sequenceRecord(n uint64, digest [32]byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, n), digest[:]...)
}

func bundleDigest(b *Bundle) [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", len(b.X509))
	h.Write(b.X509)
	h.Write(b.JWKS)
	return [32]byte(h.Sum(nil))
}
