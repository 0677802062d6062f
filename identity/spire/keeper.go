package spire

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// Options are what a Keeper works with. All but MaxStale are required.
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

	mu             sync.Mutex // guards all below
	bundle         *bundle    // in force; nil: none yet
	foreign        map[spiffeid.TrustDomain]*foreign.Bundle
	changed        chan struct{}
	foreignChanged chan struct{}
	entries        *entries
	x509           map[string]*held // by entry ID
	jwt            map[string]*heldJWT
	signing        map[string]chan struct{} // entry IDs that are being asked for; closed afterwards
	agent          *agent                   // nil: the server has not attested this host
	conn           *connection              // as that agent
	state          State
	otherRoots     bool // Options.Roots are others than those that the bundle began with

	run running // what only Run touches
}

var _ identity.Issuer = (*Keeper)(nil)

// Open loads what the server gave before and puts it in force. It does not ask the server.
func Open(ctx context.Context, o Options) (*Keeper, error) {
	v, err := openVault(ctx, o.Store, o.Sealer, o.Logger)
	if err != nil {
		return nil, err
	}
	k := &Keeper{
		o: o, vault: v, changed: make(chan struct{}), foreignChanged: make(chan struct{}),
		foreign: make(map[spiffeid.TrustDomain]*foreign.Bundle), x509: make(map[string]*held),
		jwt: make(map[string]*heldJWT), signing: make(map[string]chan struct{}),
		entries: newEntries(o.TrustDomain, nil),
		state:   State{Server: o.Server, Attestor: o.Attestor.Name()},
	}
	return k, k.load()
}

// TrustDomain implements [identity.Issuer].
func (k *Keeper) TrustDomain() spiffeid.TrustDomain { return k.o.TrustDomain }

// Bundle implements [identity.Issuer]. Before the server has said anything, it is empty.
func (k *Keeper) Bundle() *identity.Bundle {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bundle == nil {
		return new(identity.Bundle)
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
		if a.Certificate != nil || a.Tainted {
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
	case k.bundle == nil:
		return nil, k.away("has given no bundle")
	case e == nil || e.ExpiresAt > 0 && !now.Before(seconds(e.ExpiresAt)):
		return nil, fmt.Errorf("%w: entry %.80s of SPIRE server %s is not there any more", identity.ErrNoAuthority, id, k.o.Server)
	case !now.Before(k.staleFrom()):
		return nil, k.away("its entries are too old to go by (authority.spire.max_stale)")
	default:
		return e, nil
	}
}

// away says since when the server has not answered. The caller holds mu.
func (k *Keeper) away(why string) error {
	since := "yet"
	if !k.state.LastSync.IsZero() {
		since = "since " + k.state.LastSync.Format(time.RFC3339)
	}
	err := fmt.Errorf("%w: the SPIRE server %s has not answered %s: %s", identity.ErrNoAuthority, k.o.Server, since, why)
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

// IssueX509 implements [identity.Issuer]: it returns what the server has signed for the
// entry, which other processes of the entry are given too, and has it signed where there is
// nothing.
func (k *Keeper) IssueX509(ctx context.Context, e identity.Entry) (*identity.X509SVID, error) {
	for asked := false; ; {
		k.mu.Lock()
		entry, err := k.maySay(e.Server)
		if err != nil {
			k.mu.Unlock()
			return nil, err
		}
		now := k.o.Now()
		h := k.x509[e.Server]
		valid := h != nil && now.Before(h.svid.NotAfter) && h.of(entry) && h.svid.ID == e.ID
		if valid && (asked || !h.due(k.bundle, now) || !k.state.Online) {
			svid := *h.svid
			svid.Server.Offline = !k.state.Online
			k.mu.Unlock()
			return &svid, nil
		}
		wait, conn := k.signing[e.Server], k.conn
		k.mu.Unlock()
		if wait != nil {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-wait:
				continue
			}
		}
		if conn == nil {
			err = errors.New("this host is not attested")
		} else {
			err = k.sign(ctx, conn, []*spirev1.Entry{entry})
		}
		if err == nil && !asked {
			asked = true
			continue
		}
		if err == nil {
			err = errors.New("it was withdrawn just now")
		}
		if valid { // it is past half of its life, and good until its end
			svid := *h.svid
			svid.Server.Offline = true
			return &svid, nil
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", k.away("there is no X509-SVID of "+e.ID.String()+" that is valid"), err)
	}
}

// A refusedEntry is an entry that the server has not signed for, though it answers.
type refusedEntry struct{ error }

// batchSize bounds how many SVIDs the server is asked for at once.
const batchSize = 50

// sign has the server sign an SVID for each entry, records and keeps it, and puts it in
// force. Entries that are being asked for already are left out.
func (k *Keeper) sign(ctx context.Context, conn *connection, list []*spirev1.Entry) error {
	var failed error
	for part := range slices.Chunk(k.begin(list), batchSize) {
		failed = errors.Join(failed, k.signBatch(ctx, conn, part))
		k.end(part)
	}
	return failed
}

// begin marks entries as being asked for, and returns those that were not.
func (k *Keeper) begin(list []*spirev1.Entry) []*spirev1.Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(list), func(e *spirev1.Entry) bool {
		if k.signing[e.Id] != nil {
			return true
		}
		k.signing[e.Id] = make(chan struct{})
		return false
	})
}

func (k *Keeper) end(list []*spirev1.Entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range list {
		close(k.signing[e.Id])
		delete(k.signing, e.Id)
	}
}

func (k *Keeper) signBatch(ctx context.Context, conn *connection, list []*spirev1.Entry) error {
	var params []*spirev1.NewX509SVIDParams
	var requests []*request
	for _, e := range list {
		r, err := newRequest(e)
		if err != nil {
			return err
		}
		requests, params = append(requests, r), append(params, r.param)
	}
	results, err := conn.sign(ctx, params)
	if err != nil {
		return err
	}
	k.mu.Lock()
	b := k.bundle
	k.mu.Unlock()
	var failed error
	var signings []Signing
	good := make(map[string]*held)
	for i, r := range requests {
		h, s, err := r.take(k.o.TrustDomain, b, results[i], k.o.Now())
		if err != nil {
			failed = errors.Join(failed, refusedEntry{err})
			continue
		}
		good[r.entry.Id], signings = h, append(signings, s)
	}
	if len(signings) == 0 {
		return failed
	}
	if err := k.o.Recorder.Signed(ctx, signings); err != nil {
		return errors.Join(failed, fmt.Errorf("recording what the SPIRE server signed: %w", err))
	}
	for id, h := range good {
		if err := k.vault.saveSVID(id, h); err != nil {
			k.o.Logger.Error("an X509-SVID is served, and would not be after a restart without the SPIRE server", "entry", id, "err", err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.Copy(k.x509, good)
	return failed
}

// maxJWTs bounds the tokens that are kept.
const maxJWTs = 10_000

// IssueJWT implements [identity.Issuer]. A token is given again for half of its life, and
// while the server is away to its end, unless its entry wants each to be unique.
func (k *Keeper) IssueJWT(ctx context.Context, e identity.Entry, audience []string, with identity.With) (*identity.JWTSVID, error) {
	switch {
	case len(audience) == 0:
		return nil, errors.New("a JWT-SVID needs an audience")
	case with.Claim != "" || with.Value != nil:
		return nil, fmt.Errorf("claim %q: a SPIRE server signs no claims of an agent's choice; use a credential that does without, or a host with authority of its own", with.Claim)
	}
	key := fmt.Sprintf("%q %q", e.Server, slices.Sorted(slices.Values(audience)))
	k.mu.Lock()
	entry, err := k.maySay(e.Server)
	if err != nil {
		k.mu.Unlock()
		return nil, err
	}
	now, h := k.o.Now(), k.jwt[key]
	valid := h != nil && now.Before(h.svid.ExpiresAt) && h.revision == entry.RevisionNumber && h.createdAt == entry.CreatedAt && h.svid.ID == e.ID &&
		!k.bundle.tainted(h.svid.KeyID)
	unique, conn, b, online := entry.GetAdditionalAttributes().GetJwtSvidIncludeJti(), k.conn, k.bundle, k.state.Online
	k.mu.Unlock()
	if valid && !unique && (h.fresh(now) || !online) {
		return h.hand(with, !online)
	}
	next, err := k.signJWT(ctx, conn, b, entry, e.ID, audience)
	switch {
	case err == nil:
		if !unique {
			k.mu.Lock()
			if len(k.jwt) >= maxJWTs {
				maps.DeleteFunc(k.jwt, func(_ string, h *heldJWT) bool { return !h.fresh(now) })
			}
			if len(k.jwt) < maxJWTs {
				k.jwt[key] = next
			}
			k.mu.Unlock()
		}
		return next.hand(with, false)
	case valid && !unique:
		return h.hand(with, true)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return nil, fmt.Errorf("%w: %w", k.away("there is no JWT-SVID of "+e.ID.String()+" for "+strings.Join(audience, ", ")), err)
}

// hand returns the token, if it is what is asked for.
func (h *heldJWT) hand(with identity.With, offline bool) (*identity.JWTSVID, error) {
	if with.Algorithm != "" && with.Algorithm != h.algorithm {
		return nil, fmt.Errorf("the SPIRE server signs JWT-SVIDs with %s and not with %s; have it use a key of that type (jwt_key_type)", h.algorithm, with.Algorithm)
	}
	svid := *h.svid
	svid.Server.Offline = offline
	return &svid, nil
}

func (k *Keeper) signJWT(ctx context.Context, conn *connection, b *bundle, e *spirev1.Entry, id spiffeid.ID, audience []string) (*heldJWT, error) {
	if conn == nil {
		return nil, errors.New("this host is not attested")
	}
	s, err := conn.jwt(ctx, e.Id, audience)
	if err != nil {
		return nil, err
	}
	h, signing, err := takeJWT(e, id, audience, s, b, k.o.Now())
	if err != nil {
		return nil, err
	}
	if err := k.o.Recorder.Signed(ctx, []Signing{signing}); err != nil {
		return nil, fmt.Errorf("recording what the SPIRE server signed: %w", err)
	}
	return h, nil
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
