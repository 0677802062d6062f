package spire

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// Tests do not wait as long.
var (
	syncEvery = 5 * time.Second
	lastRetry = 2 * time.Minute
	settle    = 10 * time.Second // how long a server has to say that there are no entries until that is believed
)

const (
	askedSoon     = time.Second      // how soon after a round one may begin that somebody waits for
	askedAway     = 30 * time.Second // the same, or up to twice that, while the server is away
	bundleTimeout = 3 * time.Second  // how long somebody waits for another bundle
	attestEvery   = time.Minute      // where attesting fails, and the present SVID is good
)

// running is what Run knows from one round to the next.
type running struct {
	failures       int                                // in a row
	told           string                             // why attestation failed, as it was recorded
	retired        []*connection                      // of former SVIDs, closed a round later
	posted         uint64                             // bundle sequence that the server was told, and 1
	posting        retry                              // of telling it
	attested       time.Time                          // in this run
	emptySince     time.Time                          // of the server's saying that there are no entries; zero: it does not
	mustAttest     bool                               // the server refuses the present SVID in a way of its own
	nextAttest     time.Time                          // not before, where the present SVID is good for longer
	unkept         bool                               // the entries in force are not in the store yet
	keptSync       time.Time                          // the time of a sync that is in the store
	foreignNext    map[spiffeid.TrustDomain]time.Time // when to ask for a bundle
	foreignRaw     map[string][]byte                  // as they are kept
	signings       retry                              // of all signing
	downstream     retry                              // of the host's own CA
	downstreamTold string                             // why there is none, as it was recorded
	refused        map[string]retry                   // of entries, by ID
}

// A retry is when to try again what failed, ever later.
type retry struct {
	failures int
	next     time.Time
}

func (r retry) failed(now time.Time) retry {
	return retry{r.failures + 1, now.Add(retryAfter(r.failures + 1))}
}

// retryAfter is ten seconds after one failure, and twice as much after each, up to two
// minutes, give or take a half: those that failed together do not come back together.
func retryAfter(failures int) time.Duration {
	d := min(syncEvery<<min(failures, 10), lastRetry)
	return d/2 + rand.N(d)
}

// Run keeps in step with the server until the context ends.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.hangUp()
	for {
		err := k.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.reached(ctx, err)
		if k.banned() {
			<-ctx.Done()
			return nil
		}
		if !k.wait(ctx, err) {
			return nil
		}
	}
}

func (k *Keeper) banned() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.Banned
}

// wait waits for the next round: five seconds or so, and ever longer where the server fails.
// Somebody who waits for the server brings it forward. It reports whether the context is
// still good.
func (k *Keeper) wait(ctx context.Context, err error) bool {
	begun, soonest, d := time.Now(), askedSoon, syncEvery*9/10+rand.N(syncEvery/5)
	if err != nil {
		soonest, d = askedAway, retryAfter(k.run.failures)
		soonest += rand.N(soonest)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-k.wake:
			timer.Reset(max(0, min(d, soonest)-time.Since(begun)))
		}
	}
}

// hangUp closes the connection.
func (k *Keeper) hangUp() {
	k.closeRetired()
	k.mu.Lock()
	conn := k.conn
	k.conn = nil
	k.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

func (k *Keeper) closeRetired() {
	for _, c := range k.run.retired {
		c.Close()
	}
	k.run.retired = nil
}

// round does once all that is due.
func (k *Keeper) round(ctx context.Context) error {
	k.closeRetired()
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
		return nil // a later round will tell
	}
	k.postStatus(ctx, conn)
	if err := k.fetchForeign(ctx, conn); err != nil {
		return err
	}
	k.keepDownstream(ctx, conn)
	return k.renew(ctx, conn)
}

// postStatus tells the server which bundle is in force here. Nothing rests on it, and servers
// limit how often it is told from one address, so that it fails is no reason to ask less.
func (k *Keeper) postStatus(ctx context.Context, conn *connection) {
	k.mu.Lock()
	sequence := k.bundle.Sequence
	k.mu.Unlock()
	now := k.o.Now()
	if k.run.posted == sequence+1 || now.Before(k.run.posting.next) {
		return
	}
	if err := conn.postStatus(ctx, sequence, k.o.Version); err != nil {
		k.run.posting = k.run.posting.failed(now)
		k.o.Logger.Debug("the SPIRE server was not told this host's status; telling it later", "err", err)
		return
	}
	k.run.posted, k.run.posting = sequence+1, retry{}
}

// ensureAgent sees to it that this host is attested, has an SVID with half of its life to
// come, and a connection with it.
func (k *Keeper) ensureAgent(ctx context.Context) error {
	k.mu.Lock()
	a, conn, b := k.agent, k.conn, k.bundle
	k.mu.Unlock()
	now := k.o.Now()
	good := a != nil && b != nil && now.Before(a.until())
	if good && conn == nil {
		conn, err := k.dial(a.certificate(&k.o))
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.conn = conn
		k.mu.Unlock()
	}
	if good && !k.run.mustAttest && (!a.due(b, now) || now.Before(k.run.nextAttest)) {
		return nil
	}
	if !good || k.run.mustAttest {
		open, err := k.dial(nil)
		if err != nil {
			return err
		}
		defer open.Close()
		if err := k.fetchBundle(ctx, open); err != nil {
			return err
		}
	}
	err := k.attest(ctx)
	k.mu.Lock() // a refusal is an answer, where a server that is away gives none
	k.state.Refused = err != nil && (k.state.Refused || !good && status.Code(err) == codes.PermissionDenied)
	k.mu.Unlock()
	k.run.nextAttest = now.Add(attestEvery)
	if err == nil {
		k.run.attested, k.run.mustAttest = now, false
		k.mu.Lock()
		defer k.mu.Unlock()
		if !k.agent.due(k.bundle, now) { // it is if the server signs by a tainted authority
			k.run.nextAttest = time.Time{}
		}
		return nil
	}
	if good {
		k.run.nextAttest = earlier(k.run.nextAttest, now.Add(a.until().Sub(now)/4))
	}
	if good && !k.run.mustAttest && !banned(err) {
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
	limited := status.Code(err) == codes.ResourceExhausted // the server answers, and wants to be asked less
	if err == nil {
		k.run.failures = 0
	} else {
		k.run.failures++
		if !limited { // the next round connects anew: gRPC would at times of its own
			k.hangUp()
		}
		k.afterRefusal(err)
	}
	k.mu.Lock()
	was, first := k.state.Online, k.state.Since.IsZero()
	k.state.Failure = err
	online := err == nil || was && (limited || k.run.failures < 2)
	if online != was || first {
		k.state.Online, k.state.Since = online, k.o.Now()
	}
	k.mu.Unlock()
	if online == was && !first {
		return
	}
	s := k.State()
	if err := k.o.Recorder.Reached(ctx, Reach{Server: k.o.Server, Online: online, LastSync: s.LastSync, Until: later(s.X509Until, s.JWTUntil), Cause: err}); err != nil {
		k.o.Logger.Error("recording whether the SPIRE server answers", "err", err)
	}
	if online {
		k.o.Logger.Info("the SPIRE server answers", "server", k.o.Server)
	} else {
		k.o.Logger.Error("the SPIRE server does not answer", "server", k.o.Server, "err", err)
	}
}

// afterRefusal has this host attested anew if that is what the server wants. A server that
// was built anew knows this host's authority no more, and says so in a TLS alert.
func (k *Keeper) afterRefusal(err error) {
	k.mu.Lock()
	a := k.agent
	k.mu.Unlock()
	switch reason(err) {
	case spirev1.PermissionDeniedDetails_AGENT_EXPIRED, spirev1.PermissionDeniedDetails_AGENT_NOT_ATTESTED, spirev1.PermissionDeniedDetails_AGENT_NOT_ACTIVE:
		k.mu.Lock()
		k.agent = nil // the server does not take this host for it
		k.mu.Unlock()
	default:
		strange := status.Code(err) == codes.Unauthenticated || strings.Contains(err.Error(), "remote error: tls:")
		if a != nil && a.reattestable && strange && k.run.failures >= 2 {
			k.run.mustAttest = true
		}
	}
}

// ban cuts everybody off: the server has banned this host.
func (k *Keeper) ban(ctx context.Context, cause error) {
	if err := k.o.Recorder.Attested(ctx, Attestation{Server: k.o.Server, Attestor: k.o.Attestor.Name(), Agent: k.State().Agent, Failure: cause, Banned: true}); err != nil {
		k.o.Logger.Error("recording that the SPIRE server has banned this host", "err", err)
	}
	k.hangUp()
	k.mu.Lock()
	before := k.entries
	clear(k.x509)
	clear(k.jwt)
	clear(k.wit)
	k.entries = newEntries(k.o.TrustDomain, nil)
	k.agent = nil
	k.state.Banned, k.state.Online, k.state.Failure, k.state.Since = true, false, cause, k.o.Now()
	k.mu.Unlock()
	k.o.Logger.Error("the SPIRE server has banned this host; nothing is issued any more", "server", k.o.Server, "err", cause)
	k.o.Apply(nil, k.entries.digest)
	if err := errors.Join(k.vault.remove(agentFile), k.vault.remove(syncFile), k.vault.remove(downstreamFile), k.vault.removeSVIDs(before, k.entries), k.vault.saveEntries(k.entries)); err != nil {
		k.o.Logger.Error("removing what a host that is banned was given", "err", err)
	}
}

// renew has SVIDs signed that are due, and those of new entries ahead of need. That some are
// not signed does not mean that the server is away.
func (k *Keeper) renew(ctx context.Context, conn *connection) error {
	now := k.o.Now()
	if now.Before(k.run.signings.next) {
		return nil
	}
	due := k.due(now)
	if len(due) == 0 {
		k.run.signings = retry{}
		return nil
	}
	refused, err := k.sign(ctx, conn, due)
	var told error
	for _, e := range due {
		if why := refused[e.Id]; why != nil {
			k.run.refused[e.Id] = k.run.refused[e.Id].failed(now)
			told = why
		} else if err == nil {
			delete(k.run.refused, e.Id)
		}
	}
	if told != nil {
		k.o.Logger.Warn("the SPIRE server has not signed for some entries; asking again later", "entries", len(refused), "one", told)
	}
	if status.Code(err) == codes.ResourceExhausted {
		k.run.signings = k.run.signings.failed(now)
		k.o.Logger.Warn("the SPIRE server limits how often it is asked; asking again later", "err", err)
		return nil
	}
	if err == nil {
		k.run.signings = retry{}
	}
	return err
}

// due are the entries that need an SVID now.
func (k *Keeper) due(now time.Time) (due []*spirev1.Entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries.list {
		raw, h := k.entries.byID[e.Server], k.x509[e.Server]
		switch {
		case h == nil && (raw.GetAdditionalAttributes().GetDisableX509SvidPrefetch() || len(k.x509)+len(due) >= prefetchMost):
		case now.Before(k.run.refused[e.Server].next):
		case h == nil, !h.of(raw), h.due(k.bundle, now):
			due = append(due, raw)
		}
	}
	return due
}

// prefetchMost is how many entries' SVIDs are made ahead of need.
const prefetchMost = 1000
