package spire

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// Options are what a Keeper works with. All but MaxStale, Version, Now and Logger are
// required.
type Options struct {
	Server      string // host and port
	TrustDomain spiffeid.TrustDomain
	Roots       []*x509.Certificate // what the server is verified with the first time
	Attestor    Attestor
	AgentKey    crypto.Signer // ECDSA P-256: the agent's SVID's
	Store       Store
	Sealer      identity.Sealer
	MaxStale    time.Duration // how old entries may become while the server is away; 0: the longest TTL among them
	Version     string        // of the agent, as the server shows it
	Recorder    Recorder

	Downstream *Downstream // nil: this host is no CA of the server's

	// Apply puts the server's entries in force. They have no Credentials. It is called
	// from Open and Run, one call at a time.
	Apply func(list []identity.Entry, digest [32]byte)

	Now    func() time.Time
	Logger *slog.Logger
}

// A Keeper is the agent of a SPIRE server. It implements [identity.Issuer]. Its methods are
// safe for concurrent use, but that Run runs once.
type Keeper struct {
	o     Options
	vault *vault
	none  *identity.Bundle // until there is one

	mu             sync.Mutex // guards all below
	bundle         *bundle    // in force; nil: none yet
	foreign        map[spiffeid.TrustDomain]*foreign.Bundle
	changed        chan struct{}
	foreignChanged chan struct{}
	entries        *entries
	x509           map[string]*held // by entry ID
	jwt            map[string]*heldJWT
	wit            map[string]*heldWIT      // by entry ID
	signing        map[string]chan struct{} // entry IDs that are being asked for; closed afterwards
	agent          *agent                   // nil: the server has not attested this host
	conn           *connection              // as that agent
	state          State
	otherRoots     bool // Options.Roots are others than those that the bundle began with

	wake chan struct{} // has Run ask the server at once
	run  running       // what only Run touches
}

var _ identity.Issuer = (*Keeper)(nil)

// Open loads what the server gave before and puts it in force. It does not ask the server.
func Open(ctx context.Context, o Options) (*Keeper, error) {
	if o.Server == "" || o.TrustDomain.IsZero() || len(o.Roots) == 0 || o.Attestor == nil || o.AgentKey == nil || o.Store == nil || o.Sealer == nil || o.Recorder == nil || o.Apply == nil {
		return nil, errors.New("server, trust domain, roots, attestor, agent key, store, sealer, recorder and apply are required")
	}
	if key, ok := o.AgentKey.Public().(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the agent key is a %T, not ECDSA on P-256", o.AgentKey.Public())
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	none, err := identity.NewBundle(o.TrustDomain, 0, nil, nil)
	if err != nil {
		return nil, err
	}
	v, err := openVault(ctx, o.Store, o.Sealer, o.Logger)
	if err != nil {
		return nil, err
	}
	k := &Keeper{
		o: o, vault: v, wake: make(chan struct{}, 1), changed: make(chan struct{}), foreignChanged: make(chan struct{}),
		foreign: make(map[spiffeid.TrustDomain]*foreign.Bundle), x509: make(map[string]*held),
		jwt: make(map[string]*heldJWT), wit: make(map[string]*heldWIT), signing: make(map[string]chan struct{}),
		entries: newEntries(o.TrustDomain, nil), none: none,
		state: State{Server: o.Server, Attestor: o.Attestor.Name()},
	}
	k.load()
	return k, nil
}

// TrustDomain implements [identity.Issuer].
func (k *Keeper) TrustDomain() spiffeid.TrustDomain { return k.o.TrustDomain }

// Bundle implements [identity.Issuer]. Before the server has said anything, it is empty.
func (k *Keeper) Bundle() *identity.Bundle {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bundle == nil {
		return k.none
	}
	return k.bundle.Bundle
}

// Changed implements [identity.Issuer].
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// ForeignBundle returns the server's bundle of another trust domain; nil: it has none.
func (k *Keeper) ForeignBundle(td spiffeid.TrustDomain) *foreign.Bundle {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.foreign[td]
}

// ForeignChanged returns a channel that is closed when one of these is next replaced.
func (k *Keeper) ForeignChanged() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.foreignChanged
}

// Signs implements [identity.Issuer], by the bundle's keys.
func (k *Keeper) Signs(algorithm string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bundle == nil {
		return false
	}
	return slices.ContainsFunc(k.bundle.authorities, func(a Authority) bool {
		if a.Certificate != nil || a.WIT || a.Tainted {
			return false
		}
		key, err := x509.ParsePKIXPublicKey(a.PublicKey)
		switch key := key.(type) {
		case *ecdsa.PublicKey:
			return err == nil && algorithm == identity.ES256 && key.Curve.Params().BitSize == 256
		case *rsa.PublicKey:
			return err == nil && algorithm == identity.RS256
		}
		return false
	})
}

// maySay returns the entry if something may be handed out for it now. The caller holds mu.
func (k *Keeper) maySay(id string) (*spirev1.Entry, error) {
	now := k.o.Now()
	switch e := k.entries.byID[id]; {
	case k.state.Banned:
		return nil, fmt.Errorf("%w: SPIRE server %s has banned this host", identity.ErrNoAuthority, k.o.Server)
	case k.state.Refused:
		return nil, fmt.Errorf("%w: SPIRE server %s has refused this host: %v", identity.ErrNoAuthority, k.o.Server, k.state.Failure)
	case k.bundle == nil:
		return nil, fmt.Errorf("%w: there is no bundle: %w", identity.ErrNoAuthority, k.away())
	case e == nil || e.ExpiresAt > 0 && !now.Before(seconds(e.ExpiresAt)):
		return nil, fmt.Errorf("%w: entry %.80s of SPIRE server %s is not there any more", identity.ErrNoAuthority, id, k.o.Server)
	case !now.Before(k.staleFrom()):
		return nil, fmt.Errorf("%w: the entries are too old to go by (authority.spire.max_stale): %w", identity.ErrNoAuthority, k.away())
	default:
		return e, nil
	}
}

// away says since when the server has not answered. The caller holds mu.
func (k *Keeper) away() error {
	since := "yet"
	if !k.state.LastSync.IsZero() {
		since = "since " + k.state.LastSync.Format(time.RFC3339)
	}
	err := fmt.Errorf("the SPIRE server %s has not answered %s", k.o.Server, since)
	if k.state.Failure != nil {
		err = fmt.Errorf("%w: %w", err, k.state.Failure)
	}
	return err
}

// staleFrom is when nothing is served any more unless the server answers. The caller holds
// mu.
func (k *Keeper) staleFrom() time.Time {
	return k.state.LastSync.Add(cmp.Or(k.o.MaxStale, k.entries.longest, defaultX509TTL))
}

// verifying is what the server itself is verified with: the bundle in force, and the first
// one until there is any, or once an administrator has brought another.
type verifying struct{ k *Keeper }

// GetX509BundleForTrustDomain implements [x509bundle.Source].
func (v verifying) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != v.k.o.TrustDomain {
		return nil, fmt.Errorf("the server is of trust domain %s, and this host of %s", td.Name(), v.k.o.TrustDomain.Name())
	}
	v.k.mu.Lock()
	defer v.k.mu.Unlock()
	var roots []*x509.Certificate
	if v.k.bundle != nil {
		roots = v.k.bundle.roots.X509Authorities()
	}
	if v.k.bundle == nil || v.k.otherRoots {
		roots = slices.Concat(roots, v.k.o.Roots)
	}
	return x509bundle.FromX509Authorities(v.k.o.TrustDomain, roots).GetX509BundleForTrustDomain(td)
}
