package spire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// Tests do not wait as long.
var (
	syncEvery = 5 * time.Second
	settle    = 10 * time.Second
)

const (
	lastRetry    = 2 * time.Minute
	foreignEvery = time.Minute // bundles of others, where no hint says otherwise
	keepEvery    = time.Minute // how often the time of the last sync is kept
	attestEvery  = time.Minute // where attesting fails, and the present SVID is good
	prefetchMost = 1000        // entries whose SVIDs are made ahead
)

// running is what Run knows from one round to the next.
type running struct {
	failures    int                                // in a row
	told        string                             // why attestation failed, as it was recorded
	retired     []*connection                      // of former SVIDs, closed a round later
	posted      uint64                             // bundle sequence that the server was told, and 1
	attested    time.Time                          // in this run
	nextAttest  time.Time                          // not before, where the present SVID is good for longer
	keptSync    time.Time                          // the time of a sync that is in the store
	foreignNext map[spiffeid.TrustDomain]time.Time // when to ask for a bundle
	foreignRaw  map[string][]byte                  // as they are kept
}

// Run keeps in step with the server until the context ends, or the server bans this host.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.hangUp()
	for {
		err := k.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.reached(ctx, err)
		if k.State().Banned {
			<-ctx.Done()
			return nil
		}
		timer := time.NewTimer(k.wait(err))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// wait is how long to wait before the next round: five seconds, and ever longer where the
// server fails, up to two minutes. Hosts that lost it at the same time do not come back at
// the same time.
func (k *Keeper) wait(err error) time.Duration {
	if err == nil {
		return syncEvery - rand.N(syncEvery/10)
	}
	d := min(syncEvery<<min(k.run.failures, 10), lastRetry)
	return d/2 + rand.N(d)
}

func (k *Keeper) hangUp() {
	k.mu.Lock()
	conn := k.conn
	k.conn = nil
	k.mu.Unlock()
	for _, c := range append(k.run.retired, conn) {
		if c != nil {
			c.Close()
		}
	}
}

// round does once all that is due.
func (k *Keeper) round(ctx context.Context) error {
	for _, c := range k.run.retired {
		c.Close()
	}
	k.run.retired = nil
	if err := k.ensureAgent(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	conn := k.conn
	k.mu.Unlock()
	if err := k.fetchBundle(ctx, conn); err != nil {
		return err
	}
	known, err := k.syncEntries(ctx, conn)
	if err != nil {
		return err
	}
	if !known {
		return nil // the next round will tell
	}
	k.mu.Lock()
	sequence := k.bundle.Sequence
	k.mu.Unlock()
	if k.run.posted != sequence+1 {
		if err := conn.postStatus(ctx, sequence, k.o.Version); err != nil {
			return err
		}
		k.run.posted = sequence + 1
	}
	return errors.Join(k.fetchForeign(ctx, conn), k.renew(ctx, conn))
}

// ensureAgent sees to it that this host is attested, and has an SVID with half of its life
// to come.
func (k *Keeper) ensureAgent(ctx context.Context) error {
	k.mu.Lock()
	a, conn, b := k.agent, k.conn, k.bundle
	k.mu.Unlock()
	now := k.o.Now()
	if a != nil && now.Before(a.until()) && conn == nil {
		conn, err := dial(k.o.Server, k.o.TrustDomain, verifying{k}, a.certificate(&k.o))
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.conn = conn
		k.mu.Unlock()
	}
	if a != nil && (!a.due(now) || now.Before(a.until()) && now.Before(k.run.nextAttest)) {
		return nil
	}
	if b == nil || a == nil || !now.Before(a.until()) {
		open, err := dial(k.o.Server, k.o.TrustDomain, verifying{k}, nil)
		if err != nil {
			return err
		}
		defer open.Close()
		if err := k.fetchBundle(ctx, open); err != nil {
			return err
		}
	}
	err := k.attest(ctx)
	if err == nil {
		k.run.attested = now
		return nil
	}
	if a != nil && now.Before(a.until()) && !banned(err) {
		k.run.nextAttest = now.Add(attestEvery)
		k.o.Logger.Warn("renewing this host's SVID; the present one is good until its end", "until", a.until(), "err", err)
		return nil
	}
	return err
}

// reached takes note of how a round went.
func (k *Keeper) reached(ctx context.Context, err error) {
	if banned(err) {
		k.ban(ctx, err)
		return
	}
	switch reason(err) {
	case spirev1.PermissionDeniedDetails_AGENT_EXPIRED, spirev1.PermissionDeniedDetails_AGENT_NOT_ATTESTED, spirev1.PermissionDeniedDetails_AGENT_NOT_ACTIVE:
		k.forgetAgent()
	}
	k.mu.Lock()
	was, first := k.state.Online, k.state.Since.IsZero()
	k.state.Failure = err
	if err == nil {
		k.run.failures = 0
	} else {
		k.run.failures++
		if status.Code(err) == codes.DeadlineExceeded && k.conn != nil { // it may be one that leads nowhere any more
			k.run.retired = append(k.run.retired, k.conn)
			k.conn = nil
		}
	}
	online := err == nil || was && k.run.failures < 2
	if online != was || first {
		k.state.Online, k.state.Since = online, k.o.Now()
	}
	k.mu.Unlock()
	if online == was && !first {
		return
	}
	s := k.State()
	if err := k.o.Recorder.Reached(ctx, Reach{Server: k.o.Server, Online: online, LastSync: s.LastSync, Until: later(s.X509Until, s.EntriesUntil), Cause: err}); err != nil {
		k.o.Logger.Error("recording whether the SPIRE server answers", "err", err)
	}
	if online {
		k.o.Logger.Info("the SPIRE server answers", "server", k.o.Server)
	} else {
		k.o.Logger.Error("the SPIRE server does not answer", "server", k.o.Server, "err", err)
	}
}

// forgetAgent has this host attested anew: the server does not take it for this agent.
func (k *Keeper) forgetAgent() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn != nil {
		k.run.retired = append(k.run.retired, k.conn)
	}
	k.agent, k.conn = nil, nil
}

// ban cuts everybody off: the server has banned this host.
func (k *Keeper) ban(ctx context.Context, cause error) {
	if err := k.o.Recorder.Attested(ctx, Attestation{Server: k.o.Server, Attestor: k.o.Attestor.Name(), Agent: k.State().Agent, Failure: cause, Banned: true}); err != nil {
		k.o.Logger.Error("recording that the SPIRE server has banned this host", "err", err)
	}
	k.mu.Lock()
	for id := range k.x509 {
		if err := k.vault.remove(svidFile(id)); err != nil {
			k.o.Logger.Error("removing the SVIDs of a host that is banned", "err", err)
		}
	}
	clear(k.x509)
	clear(k.jwt)
	k.entries = newEntries(k.o.TrustDomain, nil)
	k.agent = nil
	k.state.Banned, k.state.Online, k.state.Failure, k.state.Since = true, false, cause, k.o.Now()
	k.mu.Unlock()
	for _, name := range []string{agentFile, entriesFile, syncFile} {
		if err := k.vault.remove(name); err != nil {
			k.o.Logger.Error("removing what a host that is banned was given", "err", err)
		}
	}
	k.o.Logger.Error("the SPIRE server has banned this host; nothing is issued any more", "server", k.o.Server, "err", cause)
	k.o.Apply(nil, [32]byte{})
}

// keptBundles are the bundles as the server sent them.
type keptBundles struct {
	Own     []byte            `json:"own"`
	Foreign map[string][]byte `json:"foreign"`
	First   string            `json:"first"` // digest over Options.Roots as the bundle came
}

func (k *Keeper) rootsDigest() string {
	var all []byte
	for _, c := range k.o.Roots {
		all = append(all, c.Raw...)
	}
	return digest(all)
}

func (k *Keeper) saveBundles(own *bundle) error {
	raw, err := proto.Marshal(own.raw)
	if err != nil {
		return err
	}
	data, err := json.Marshal(keptBundles{raw, k.run.foreignRaw, k.rootsDigest()})
	if err != nil {
		return err
	}
	return k.vault.save(bundleFile, data)
}

// fetchBundle puts the server's bundle in force if it is another one. One that goes back is
// refused.
func (k *Keeper) fetchBundle(ctx context.Context, conn *connection) error {
	raw, err := conn.bundle(ctx)
	if err != nil {
		return err
	}
	next, err := parseBundle(k.o.TrustDomain, raw)
	if err != nil {
		return fmt.Errorf("SPIRE server %s: %w", k.o.Server, err)
	}
	k.mu.Lock()
	old := k.bundle
	k.mu.Unlock()
	change := next.change(k.o.TrustDomain)
	var known []Authority
	if old != nil {
		switch before := old.change(k.o.TrustDomain); {
		case next.Sequence < old.Sequence:
			return fmt.Errorf("SPIRE server %s: its bundle goes from sequence %d back to %d; it was set back, or is another server: see that it is the right one, then remove %s from the state directory", k.o.Server, old.Sequence, next.Sequence, bundleFile)
		case before.SHA256 == change.SHA256 && next.Sequence == old.Sequence:
			if k.otherRoots {
				return k.tookRoots(old)
			}
			return nil
		}
		known = old.authorities
	}
	added := slices.DeleteFunc(slices.Clone(next.authorities), func(a Authority) bool {
		return slices.ContainsFunc(known, func(b Authority) bool { return a.ID == b.ID && a.SHA256 == b.SHA256 })
	})
	if len(added) > 0 {
		if err := k.o.Recorder.Authorities(ctx, added); err != nil {
			return fmt.Errorf("recording the authorities of the SPIRE server's bundle: %w", err)
		}
	}
	if err := k.o.Recorder.Bundle(ctx, change); err != nil {
		return fmt.Errorf("recording the SPIRE server's bundle: %w", err)
	}
	if err := k.saveBundles(next); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bundle, k.otherRoots = next, false
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// tookRoots notes that the server was verified with other roots, and has the bundle that is
// in force.
func (k *Keeper) tookRoots(b *bundle) error {
	if err := k.saveBundles(b); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.otherRoots = false
	return nil
}

// fetchForeign asks for the bundles of the trust domains that entries federate with.
func (k *Keeper) fetchForeign(ctx context.Context, conn *connection) error {
	k.mu.Lock()
	want, own := k.entries.federated(), k.bundle
	have := maps.Clone(k.foreign)
	k.mu.Unlock()
	now := k.o.Now()
	var failed error
	changed := false
	for td := range want {
		if now.Before(k.run.foreignNext[td]) {
			continue
		}
		k.run.foreignNext[td] = now.Add(foreignEvery)
		raw, err := conn.foreignBundle(ctx, td)
		if status.Code(err) == codes.NotFound {
			k.o.Logger.Warn("an entry federates with a trust domain of which the SPIRE server has no bundle", "trust_domain", td.Name())
			continue
		}
		var next *foreign.Bundle
		if err == nil {
			next, err = parseForeign(td, raw)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if old := have[td]; old != nil && (old.Digest == next.Digest || next.Sequence < old.Sequence) {
			continue
		}
		if err := k.o.Recorder.Bundle(ctx, foreignChange(next)); err != nil {
			return fmt.Errorf("recording the bundle of %s: %w", td.Name(), err)
		}
		b, err := proto.Marshal(raw)
		if err != nil {
			return err
		}
		have[td], k.run.foreignRaw[td.Name()], changed = next, b, true
	}
	for td := range have {
		if !want[td] {
			delete(have, td)
			delete(k.run.foreignRaw, td.Name())
			changed = true
		}
	}
	if !changed {
		return failed
	}
	if err := k.saveBundles(own); err != nil {
		return errors.Join(failed, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.foreign = have
	close(k.foreignChanged)
	k.foreignChanged = make(chan struct{})
	return failed
}

func foreignChange(b *foreign.Bundle) BundleChange {
	c := BundleChange{TrustDomain: b.TrustDomain.Name(), Sequence: b.Sequence, SHA256: fmt.Sprintf("%x", b.Digest)}
	for _, root := range b.Roots {
		c.X509 = append(c.X509, authorityID(root))
	}
	for kid := range b.JWT.JWTAuthorities() {
		c.JWT = append(c.JWT, keyID(kid))
	}
	slices.Sort(c.X509)
	slices.Sort(c.JWT)
	return c
}

// syncEntries puts the server's entries in force. Just after an attestation a server says
// that there are none, until its cache knows the agent; that is not believed at once.
func (k *Keeper) syncEntries(ctx context.Context, conn *connection) (known bool, err error) {
	k.mu.Lock()
	old, never := k.entries, k.state.LastSync.IsZero()
	k.mu.Unlock()
	byID, err := conn.sync(ctx, old.byID)
	if err != nil {
		return false, err
	}
	now := k.o.Now()
	if len(byID) == 0 && now.Sub(k.run.attested) < settle {
		return false, nil
	}
	if !never && old.hold(byID) && old.expire(k.o.TrustDomain, now) == old {
		return true, k.synced(now)
	}
	next := newEntries(k.o.TrustDomain, byID).expire(k.o.TrustDomain, now)
	return true, k.putInForce(ctx, old, next, now)
}

// putInForce replaces the entries.
func (k *Keeper) putInForce(ctx context.Context, old, next *entries, now time.Time) error {
	if err := k.o.Recorder.Entries(ctx, next.change(old)); err != nil {
		return fmt.Errorf("recording the SPIRE server's entries: %w", err)
	}
	if err := k.saveEntries(next); err != nil {
		return err
	}
	var gone []string
	k.mu.Lock()
	k.entries, k.state.LastSync = next, now
	for id := range k.x509 {
		if next.byID[id] == nil {
			gone = append(gone, id)
			delete(k.x509, id)
		}
	}
	k.mu.Unlock()
	k.o.Apply(next.list, next.digest)
	for _, id := range gone {
		if err := k.vault.remove(svidFile(id)); err != nil {
			return err
		}
	}
	return k.synced(now)
}

// saveEntries keeps the entries, in the form in which the server sends them.
func (k *Keeper) saveEntries(es *entries) error {
	all := new(spirev1.GetAuthorizedEntriesResponse)
	for _, id := range slices.Sorted(maps.Keys(es.byID)) {
		all.Entries = append(all.Entries, es.byID[id])
	}
	data, err := proto.Marshal(all)
	if err != nil {
		return err
	}
	return k.vault.save(entriesFile, data)
}

// synced notes that the entries are those of now, and keeps that now and then.
func (k *Keeper) synced(now time.Time) error {
	k.mu.Lock()
	k.state.LastSync = now
	k.mu.Unlock()
	if now.Sub(k.run.keptSync).Abs() < keepEvery {
		return nil
	}
	data, err := now.MarshalBinary()
	if err == nil {
		err = k.vault.save(syncFile, data)
	}
	if err == nil {
		k.run.keptSync = now
	}
	return err
}

// renew has SVIDs signed that are due, and those of new entries ahead of need.
func (k *Keeper) renew(ctx context.Context, conn *connection) error {
	k.mu.Lock()
	now := k.o.Now()
	var due []*spirev1.Entry
	for _, e := range k.entries.list {
		raw := k.entries.byID[e.Server]
		h := k.x509[e.Server]
		switch {
		case h == nil && (raw.GetAdditionalAttributes().GetDisableX509SvidPrefetch() || len(k.x509)+len(due) >= prefetchMost):
		case h == nil, !h.of(raw), h.due(k.bundle, now):
			due = append(due, raw)
		}
	}
	k.mu.Unlock()
	err := k.sign(ctx, conn, due)
	if _, ok := errors.AsType[refusedEntry](err); ok {
		k.o.Logger.Warn("the SPIRE server has not signed for some entries", "err", err)
		return nil
	}
	return err
}

// load puts in force what is kept.
func (k *Keeper) load() error {
	k.run = running{foreignNext: make(map[spiffeid.TrustDomain]time.Time), foreignRaw: make(map[string][]byte)}
	now := k.o.Now()
	if err := k.loadBundles(); err != nil {
		k.vault.useless(bundleFile, err)
		k.bundle = nil
	}
	if k.bundle == nil {
		return nil // nothing can be verified
	}
	k.agent = k.vault.loadAgent(&k.o, k.bundle)
	data := k.vault.load(entriesFile)
	if data == nil {
		return nil
	}
	var all spirev1.GetAuthorizedEntriesResponse
	byID := make(map[string]*spirev1.Entry)
	err := proto.Unmarshal(data, &all)
	if err == nil {
		err = take(byID, all.Entries)
	}
	if err != nil {
		k.vault.useless(entriesFile, err)
		return nil
	}
	k.entries = newEntries(k.o.TrustDomain, byID).expire(k.o.TrustDomain, now)
	if data := k.vault.load(syncFile); data != nil {
		if err := k.state.LastSync.UnmarshalBinary(data); err != nil {
			k.vault.useless(syncFile, err)
		}
	}
	if k.state.LastSync.After(now) { // the clock was set back
		k.state.LastSync = now
	}
	for _, e := range k.entries.list {
		if h := k.vault.loadSVID(k.o.TrustDomain, k.entries.byID[e.Server], k.bundle, now); h != nil {
			k.x509[e.Server] = h
		}
	}
	k.o.Apply(k.entries.list, k.entries.digest)
	return nil
}

func (k *Keeper) loadBundles() error {
	data := k.vault.load(bundleFile)
	if data == nil {
		return nil
	}
	var kept keptBundles
	if err := json.Unmarshal(data, &kept); err != nil {
		return err
	}
	raw := new(spirev1.Bundle)
	if err := proto.Unmarshal(kept.Own, raw); err != nil {
		return err
	}
	own, err := parseBundle(k.o.TrustDomain, raw)
	if err != nil {
		return err
	}
	for name, b := range kept.Foreign {
		raw := new(spirev1.Bundle)
		td, err := spiffeid.TrustDomainFromString(name)
		if err == nil {
			err = proto.Unmarshal(b, raw)
		}
		if err != nil {
			return err
		}
		other, err := parseForeign(td, raw)
		if err != nil {
			return err
		}
		k.foreign[td], k.run.foreignRaw[name] = other, b
	}
	k.bundle, k.otherRoots = own, kept.First != k.rootsDigest()
	return nil
}
