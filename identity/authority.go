// Package identity is the trust domain on this host: which SPIFFE IDs exist,
// who is entitled to them, and the authority that issues their SVIDs.
//
// The node key, which stays in the TPM, signs an issuing CA; the issuing CA's
// key is made in memory, never stored, and lives for hours; it signs
// X509-SVIDs in microseconds. JWT-SVIDs are signed by keys that are kept
// sealed to the TPM, or by one that never leaves it.
//
// The package does not know how a process was attested, and it decides nothing
// by time of day alone: a clock that jumps makes new keys, never valid ones
// out of expired ones. Revoking an SVID before it expires is out of reach;
// lifetimes are short for that reason.
package identity

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// backdate is how far before its making a certificate becomes valid, for
// verifiers whose clock is behind.
const backdate = 30 * time.Second

// MaxJWTTTL bounds the life of a JWT-SVID, and with it how long a retired
// signing key stays in the bundle.
const MaxJWTTTL = time.Hour

// ErrNoAuthority means that no signing key is valid now and that none could be made;
// it wraps the cause as well.
var ErrNoAuthority = errors.New("the authority has no valid key")

// A Store keeps small files durably. Load's error satisfies [fs.ErrNotExist]
// if there is none of the name.
type Store interface {
	Load(name string, version int) (data []byte, savedVersion int, err error)
	Save(name string, version int, data []byte) error
}

// A Sealer encrypts to this machine. What it sealed under one label it opens
// under no other.
type Sealer interface {
	Seal(ctx context.Context, label string, secret []byte) ([]byte, error)
	Unseal(ctx context.Context, label string, blob []byte) ([]byte, error)
}

// A Key is an authority key about to be taken into use.
type Key struct {
	ID          string // an issuing CA's subject key ID in hexadecimal, or a JWT key's kid
	Certificate []byte // DER; nil for a JWT key
	PublicKey   []byte // DER SubjectPublicKeyInfo
	NotBefore   time.Time
	NotAfter    time.Time // the last moment anything it signed is valid; zero for a key without end
}

// Options configure an authority. Zero values are refused where no default is
// named.
type Options struct {
	TrustDomain spiffeid.TrustDomain
	NodeKey     crypto.Signer // ECDSA P-256; the root, unless there is an Upstream
	Store       Store
	Sealer      Sealer

	IssuingCATTL time.Duration // life of an issuing CA
	Overlap      time.Duration // how long before its end an issuing CA's successor is made, at most half of either life
	JWTKeyTTL    time.Duration // how long a JWT key signs
	JWTKey       crypto.Signer // signs all JWT-SVIDs, permanently, in place of keys that rotate; nil: they rotate
	JWTIssuer    string        // the iss claim; empty: none

	// JWTAlgorithms are those to have keys of, ES256 and RS256; the first signs where
	// none is asked for. Empty: ES256. A JWTKey is of one.
	JWTAlgorithms []string

	// X509Only has an authority without JWT keys: it signs no JWT-SVIDs.
	X509Only bool

	// Upstream is an organisation's root that signed the node key. The zero
	// Upstream is one that did not yet; nil: the node key is the root.
	Upstream   *Upstream
	HowToEnrol string // what to do without one

	// Announce is called before a key is taken into use, which its error
	// prevents.
	Announce func(context.Context, Key) error

	Now    func() time.Time
	Logger *slog.Logger
}

// An Authority issues SVIDs of one trust domain. Its methods are safe for
// concurrent use.
type Authority struct {
	o Options

	rotating  sync.Mutex          // held while keys are made; guards the fields to the blank line
	roots     []*x509.Certificate // self-signed by the node key, oldest first; or the organisation's one
	announced map[string]bool     // IDs of keys that Announce accepted
	sequence  uint64

	making sync.Mutex                     // held while RSA keys are made; taken before rotating
	spare  atomic.Pointer[rsa.PrivateKey] // made, and not yet in use

	upstream atomic.Pointer[Upstream] // nil: the node key is the root

	ca     atomic.Pointer[issuingCA]
	jwt    atomic.Pointer[jwtKeys]
	bundle atomic.Pointer[Bundle]

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed and replaced when the bundle changes
}

// NewAuthority loads what the store has, makes what is missing and returns an
// authority that can issue. RSA keys, which take long to make, are left to Run and to
// the first who needs one.
func NewAuthority(ctx context.Context, o Options) (*Authority, error) {
	if o.TrustDomain.IsZero() || o.NodeKey == nil || o.Store == nil || o.Sealer == nil || o.Announce == nil {
		return nil, errors.New("authority: trust domain, node key, store, sealer and announce are required")
	}
	if o.Overlap <= 0 || 2*o.Overlap > o.IssuingCATTL || 2*o.Overlap > o.JWTKeyTTL {
		return nil, fmt.Errorf("authority: rotation overlap %v is not between 0 and half of %v and %v", o.Overlap, o.IssuingCATTL, o.JWTKeyTTL)
	}
	if len(o.JWTAlgorithms) == 0 {
		o.JWTAlgorithms = []string{ES256}
	}
	for _, algorithm := range o.JWTAlgorithms {
		if algorithm != ES256 && algorithm != RS256 {
			return nil, fmt.Errorf("authority: JWT-SVIDs are signed by ES256 or RS256, not %q", algorithm)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Authority{o: o, announced: make(map[string]bool), changed: make(chan struct{})}
	if o.Upstream != nil {
		if err := o.Upstream.check(o.NodeKey.Public()); err != nil {
			return nil, fmt.Errorf("authority: %w", err)
		}
		a.upstream.Store(o.Upstream)
	}
	if err := a.loadSequence(); err != nil {
		return nil, err
	}
	jwt := new(jwtKeys)
	if !o.X509Only {
		var err error
		if jwt, err = a.loadJWTKeys(ctx); err != nil {
			return nil, err
		}
	}
	a.jwt.Store(jwt)
	if err := a.Rotate(ctx); err != nil && !errors.Is(err, ErrNotEnrolled) {
		return nil, err
	}
	return a, nil
}

// Run makes each key's successor in time, until the context ends. If that fails it
// tries again; keys that are still valid remain in use.
func (a *Authority) Run(ctx context.Context) {
	const look = 10 * time.Second // often enough to notice a clock that jumped
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := a.Rotate(ctx)
		if errors.Is(err, ErrNotEnrolled) {
			err = nil
		}
		if err = errors.Join(err, a.makeRSA(ctx)); err != nil && ctx.Err() == nil {
			a.o.Logger.Error("rotating authority keys; those in use stay until they expire", "err", err)
		}
		timer.Reset(look)
	}
}

// Rotate makes the successors that are due now. It is a no-op when none is.
func (a *Authority) Rotate(ctx context.Context) error {
	a.rotating.Lock()
	defer a.rotating.Unlock()
	now := a.o.Now()
	rootErr := a.rotateRoots(now)
	caErr := a.rotateIssuingCA(ctx, now)
	var jwtErr error
	if !a.o.X509Only {
		jwtErr = a.rotateJWTKeys(ctx, now)
	}
	return errors.Join(rootErr, caErr, jwtErr, a.publish())
}

// announce reports a key once.
func (a *Authority) announce(ctx context.Context, k Key) error {
	if a.announced[k.ID] {
		return nil
	}
	if err := a.o.Announce(ctx, k); err != nil {
		return fmt.Errorf("announcing key %s: %w", k.ID, err)
	}
	a.announced[k.ID] = true
	return nil
}

// TrustDomain returns the trust domain.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.o.TrustDomain }

// Status says how long the authority can go on.
type Status struct {
	RootNotAfter      time.Time
	IssuingCAKeyID    string
	IssuingCANotAfter time.Time
	JWTKeyID          string    // the key that signs now, of the first algorithm
	JWTKeyUntil       time.Time // zero: without end
	BundleSequence    uint64
}

// Status returns the state of the keys.
func (a *Authority) Status() Status {
	var s Status
	b := a.bundle.Load()
	s.BundleSequence = b.Sequence
	s.RootNotAfter = b.rootNotAfter
	if ca := a.ca.Load(); ca != nil {
		s.IssuingCAKeyID, s.IssuingCANotAfter = ca.keyID, ca.cert.NotAfter
	}
	if k := a.jwt.Load().of(a.o.JWTAlgorithms[0]).signing(a.o.Now()); k != nil {
		s.JWTKeyID, s.JWTKeyUntil = k.id, k.until
	}
	return s
}

// load reads a file of the store that may be missing; then it returns nil.
func (a *Authority) load(name string, version int) ([]byte, error) {
	data, _, err := a.o.Store.Load(name, version)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
