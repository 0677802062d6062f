package spire

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// IssueX509 implements [identity.Issuer]: it returns what the server has signed for the
// entry, which other processes of the entry are given too, and has it signed where there is
// nothing, or nothing that should still be handed out. What is valid is served even if the
// server does not answer.
func (k *Keeper) IssueX509(ctx context.Context, e identity.Entry) (*identity.X509SVID, error) {
	var failed error
	for asked := false; ; asked = true {
		k.mu.Lock()
		entry, err := k.maySay(e.Server)
		if err != nil {
			k.mu.Unlock()
			return nil, err
		}
		now, h, conn, b := k.o.Now(), k.x509[e.Server], k.conn, k.bundle
		valid := h != nil && now.Before(h.svid.NotAfter) && h.fits(entry) && h.svid.ID == e.ID
		if valid && (asked || conn == nil || h.of(entry) && !h.due(b, now)) {
			svid := *h.svid
			svid.Server.Offline = k.offline()
			k.mu.Unlock()
			return &svid, nil
		}
		if asked || conn == nil {
			defer k.mu.Unlock()
			k.nudge()
			return nil, fmt.Errorf("%w: there is no X509-SVID of %s that is valid: %w", identity.ErrNoAuthority, e.ID, k.why(failed))
		}
		wait := k.signing[e.Server]
		k.mu.Unlock()
		if wait == nil {
			failed = k.signOne(ctx, conn, b, entry)
			continue
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wait:
			failed = errors.New("the server has not signed one")
		}
	}
}

// signOne is sign for one entry. An answer that the bundle does not verify may be of an
// authority that is in the next.
func (k *Keeper) signOne(ctx context.Context, conn *connection, b *bundle, e *spirev1.Entry) error {
	refused, err := k.sign(ctx, conn, []*spirev1.Entry{e})
	if errors.Is(refused[e.Id], errUnverified) && k.newer(ctx, b) != b {
		refused, err = k.sign(ctx, conn, []*spirev1.Entry{e})
	}
	if err == nil {
		err = refused[e.Id]
	}
	if err != nil {
		k.nudge()
	}
	return err
}

// offline reports whether the server is not to be had now. The caller holds mu.
func (k *Keeper) offline() bool { return !k.state.Online || k.conn == nil }

// why says why there is nothing to hand out: since when the server is away, or what it said.
// The caller holds mu.
func (k *Keeper) why(failed error) error {
	switch code := status.Code(failed); {
	case failed == nil:
		return k.away()
	case code == codes.Unavailable || code == codes.DeadlineExceeded:
		return fmt.Errorf("%w: %w", k.away(), failed)
	}
	return failed
}

// nudge has Run ask the server soon, though no more often than that should be.
func (k *Keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// newer waits a moment for a bundle other than b, and returns the one in force.
func (k *Keeper) newer(ctx context.Context, b *bundle) *bundle {
	ctx, cancel := context.WithTimeout(ctx, bundleTimeout)
	defer cancel()
	for {
		k.mu.Lock()
		now, changed := k.bundle, k.changed
		k.mu.Unlock()
		if now != b {
			return now
		}
		k.nudge()
		select {
		case <-ctx.Done():
			return b
		case <-changed:
		}
	}
}

// batchSize bounds how many SVIDs the server is asked for at once.
const batchSize = 50

// sign has the server sign an SVID for each entry, records and keeps it, and puts it in
// force. Entries that are being asked for already are left out. Those that the server does
// not sign for, though it answers, or not as asked, are refused; an error is that of the
// whole, and ends it.
func (k *Keeper) sign(ctx context.Context, conn *connection, list []*spirev1.Entry) (refused map[string]error, err error) {
	refused = make(map[string]error)
	for part := range slices.Chunk(list, batchSize) {
		part = k.begin(part)
		err := k.signBatch(ctx, conn, part, refused)
		k.end(part)
		if err != nil {
			return refused, err
		}
	}
	return refused, nil
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

func (k *Keeper) signBatch(ctx context.Context, conn *connection, list []*spirev1.Entry, refused map[string]error) error {
	if len(list) == 0 {
		return nil
	}
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
	k.tellSkew(results[0].GetSvid())
	var signings []Signing
	good := make(map[string]*held)
	for i, r := range requests {
		h, s, err := r.take(k.o.TrustDomain, b, results[i], k.o.Now())
		if err != nil {
			refused[r.entry.Id] = err
			continue
		}
		good[r.entry.Id], signings = h, append(signings, s)
	}
	if len(signings) == 0 {
		return nil
	}
	if err := k.o.Recorder.Signed(ctx, signings); err != nil {
		return fmt.Errorf("recording what SPIRE server %s signed: %w", k.o.Server, err)
	}
	for id, h := range good {
		if err := k.vault.saveSVID(id, h); err != nil {
			k.o.Logger.Error("an X509-SVID is served, and would not be after a restart without the SPIRE server", "entry", id, "err", err)
		}
	}
	return k.holdSigned(good)
}

// holdSigned puts SVIDs in force, but for entries that were removed meanwhile.
func (k *Keeper) holdSigned(good map[string]*held) error {
	k.mu.Lock()
	var gone []string
	for id, h := range good {
		if k.entries.byID[id] == nil {
			gone = append(gone, id)
		} else {
			k.x509[id] = h
		}
	}
	k.mu.Unlock()
	for _, id := range gone {
		if err := k.vault.remove(svidFile(id)); err != nil {
			return err
		}
	}
	return nil
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
	now, h, conn, b := k.o.Now(), k.jwt[key], k.conn, k.bundle
	unique := entry.GetAdditionalAttributes().GetJwtSvidIncludeJti()
	valid := h != nil && !unique && h.valid(entry, e.ID, b, now)
	offline := k.offline()
	k.mu.Unlock()
	if valid && h.suffices(entry, conn, offline, now) {
		return h.hand(with, offline)
	}
	var failed error
	if conn != nil {
		var next *heldJWT
		if next, failed = k.signJWT(ctx, conn, b, entry, e.ID, audience); failed == nil {
			if !unique {
				k.holdJWT(key, next, now)
			}
			return next.hand(with, false)
		}
	}
	k.nudge()
	if valid {
		return h.hand(with, true)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return nil, fmt.Errorf("%w: there is no JWT-SVID of %s for %s: %w", identity.ErrNoAuthority, e.ID, strings.Join(audience, ", "), k.why(failed))
}

// holdJWT keeps a token to be given again.
func (k *Keeper) holdJWT(key string, h *heldJWT, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.jwt) >= maxJWTs {
		maps.DeleteFunc(k.jwt, func(_ string, h *heldJWT) bool { return !h.fresh(now) })
	}
	if len(k.jwt) < maxJWTs {
		k.jwt[key] = h
	}
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
	s, err := conn.jwt(ctx, e.Id, audience)
	if err != nil {
		return nil, err
	}
	h, signing, err := takeJWT(e, id, audience, s, b, k.o.Now())
	if errors.Is(err, errUnverified) {
		if next := k.newer(ctx, b); next != b {
			h, signing, err = takeJWT(e, id, audience, s, next, k.o.Now())
		}
	}
	if err != nil {
		return nil, err
	}
	if err := k.o.Recorder.Signed(ctx, []Signing{signing}); err != nil {
		return nil, fmt.Errorf("recording what SPIRE server %s signed: %w", k.o.Server, err)
	}
	return h, nil
}
