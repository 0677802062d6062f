package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
)

const (
	// issueTimeout bounds how long an upstream may take to issue or renew.
	issueTimeout = 20 * time.Second
	// ttlSlack is by how much an upstream that chooses lifetimes may go beyond
	// max_ttl: its clock and its rounding.
	ttlSlack = 30 * time.Second
)

// grants takes leases from a request to the holder's hands.
type grants struct {
	*engine
	drills *drills
}

// grant is [Manager.Grant].
func (g *grants) grant(ctx context.Context, h credential.Holder, a credential.Ask) (*credential.Grant, error) {
	return g.grantAs(ctx, h, a, forValue)
}

func (g *grants) grantAs(ctx context.Context, h credential.Holder, a credential.Ask, as purpose) (*credential.Grant, error) {
	began := g.clock.since()
	p, err := g.admit(h, a)
	if err != nil {
		e := credential.Event{
			Kind: credential.EventIntent, Outcome: credential.Denied, Reason: err.Error(), RequestID: clip(a.RequestID, maxRequestID), Duration: g.clock.since() - began,
			Identity: h.ID, Process: h.Process, Credential: clip(a.Name, credential.MaxName), TTL: a.TTL, Exposure: a.Exposure, Asker: a.Asker,
		}
		return nil, errors.Join(err, g.records.record(ctx, e))
	}
	if p.again != nil {
		return g.handAgain(ctx, p)
	}
	p.lease.purpose = as
	granted, err := g.obtain(ctx, p)
	if err = g.release(p.lease, err); err != nil {
		granted.Wipe()
		return nil, fmt.Errorf("granting %s to %s: %w", a.Name, h.ID, err)
	}
	return granted, nil
}

// A pending is a grant on its way.
type pending struct {
	ask     credential.Ask
	def     *credential.Definition
	lease   *lease
	request credential.Request
	began   time.Duration
	again   *credential.Grant // of an earlier lease, that answers it
}

// admit checks a request, and reserves a lease that counts against the limits.
func (g *grants) admit(h credential.Holder, a credential.Ask) (*pending, error) {
	if !slices.Contains(a.Granted, a.Name) {
		return nil, fmt.Errorf("%w: %.80q to %s; its entry must list it", credential.ErrNotGranted, a.Name, h.ID)
	}
	d, ok := g.book.definitions().Get(a.Name)
	if !ok {
		return nil, fmt.Errorf("%w: %s; add it to the credentials directory", credential.ErrUndefined, a.Name)
	}
	if d.Traits.ProxyOnly && d.Proxy == nil && d.Database == nil {
		return nil, fmt.Errorf("%w: the value of %s is not handed out; add a proxy block to its definition, for vouchd to make calls with it, or set disclosable: true", credential.ErrProxyOnly, a.Name)
	}
	if len(a.RequestID) > maxRequestID || strings.ContainsFunc(a.RequestID, unicode.IsControl) ||
		!slices.Contains([]credential.Exposure{"", credential.InMemory, credential.InFile, credential.InEnvironment}, a.Exposure) {
		return nil, fmt.Errorf("%w: request ID or exposure of %s is malformed", credential.ErrParameter, a.Name)
	}
	params, err := d.Choose(a.Params)
	if err != nil {
		return nil, err
	}
	now := g.clock.now().Round(0)
	until, err := d.Limits.Open(now)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", d.Name, err)
	}
	ttl, err := d.Lifetime(a.TTL)
	if err != nil {
		return nil, err
	}
	if d.Traits.ChoosesTTL && d.Traits.Revocation == credential.ExpiryOnly && !until.IsZero() && until.Before(now.Add(ttl)) {
		// The upstream may give no less, and what it gives cannot be taken back.
		return nil, fmt.Errorf("%w: credential %s lives for %s and cannot be revoked, and its hours end at %s", credential.ErrHours, d.Name, config.FormatDuration(ttl), until.UTC().Format(time.RFC3339))
	}
	if bind := bindOf(d, a); bind != credential.BindLease && h.End(bind) == nil {
		return nil, fmt.Errorf("%w: %s is bound to the caller's %s, but the caller is in none", credential.ErrHolderGone, d.Name, bind)
	}
	request := credential.Request{RequestID: a.RequestID, Holder: h, Params: params, TTL: earlier(now.Add(ttl), until).Sub(now)}
	if earlier, again := g.reusable(d, request, a); again != nil {
		return &pending{ask: a, def: d, lease: earlier, request: request, began: g.clock.since(), again: again}, nil
	}
	l := &lease{
		Lease: credential.Lease{
			ID:         rand.Text(),
			Credential: d.Name,
			Broker:     d.Broker,
			Upstream:   d.Traits.Upstream,
			Identity:   h.ID,
			Process:    h.Process,
			Bind:       bindOf(d, a),
			Revocation: d.Traits.Revocation,
			State:      shown[reserved],
			Granted:    now,
			Expires:    earlier(now.Add(ttl), until),
			Latest:     earlier(now.Add(d.MaxTTL), until),
			Renewable:  d.Renewable,
		},
		source: d,
		slot:   -1,
	}
	withheld := func() error { return g.drills.refuses(h, a.Name, true) }
	if err := g.book.reserve(l, now, withheld); err != nil {
		return nil, err
	}
	request.LeaseID = l.ID
	return &pending{ask: a, def: d, lease: l, request: request, began: g.clock.since()}, nil
}

func earlier(t, until time.Time) time.Time {
	if !until.IsZero() && until.Before(t) {
		return until
	}
	return t
}

// obtain takes a lease from reserved to issued. On an error, release ends it.
func (g *grants) obtain(ctx context.Context, p *pending) (*credential.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	l := p.lease
	if !g.begin(l, p.request.Holder, cancel) {
		return nil, credential.ErrHolderGone
	}
	chosen, err := l.broker().Plan(ctx, p.request)
	if err != nil {
		return nil, g.refused(ctx, p, fmt.Errorf("planning: %w", err))
	}
	if err := g.plan(ctx, p, chosen); err != nil {
		return nil, err
	}
	issued, err := l.broker().Issue(ctx, p.request, chosen)
	if err != nil {
		return nil, g.refused(ctx, p, err)
	}
	if p.def.Proxy != nil {
		g.book.mu.Lock()
		l.fields = cloned(issued.Fields)
		g.book.mu.Unlock()
	}
	lease, err := g.issue(ctx, p, issued)
	return &credential.Grant{Lease: lease, Fields: issued.Fields}, err
}

// begin lets the end of a lease, such as its process's exit, cancel what the
// grant is doing. It reports whether the lease has not ended yet.
func (g *grants) begin(l *lease, h credential.Holder, cancel context.CancelFunc) bool {
	g.book.mu.Lock()
	defer g.book.mu.Unlock()
	if g.book.closed {
		return false
	}
	l.cancel = cancel
	g.holders.watch(l, h.End(l.Bind))
	return !l.recalled
}

// plan makes the handle durable, and that the upstream is about to be asked.
func (g *grants) plan(ctx context.Context, p *pending, chosen credential.Plan) error {
	l := p.lease
	g.book.mu.Lock()
	l.handle, l.Handle, l.notAfter = chosen.Handle, chosen.Handle.Name, chosen.NotAfter
	if l.Revocation == credential.ExpiryOnly && l.notAfter.IsZero() {
		l.notAfter = l.Latest.Add(ttlSlack)
	}
	m, err := l.take(plan)
	state := l.encode()
	e := g.event(credential.EventIntent, p)
	g.book.mu.Unlock()
	if err != nil {
		return err
	}
	return g.records.keep(ctx, m, l.ID, state, e)
}

// issue makes the lease durable as one that exists, before anyone has it.
func (g *grants) issue(ctx context.Context, p *pending, issued credential.Issued) (credential.Lease, error) {
	l := p.lease
	g.book.mu.Lock()
	l.issued = true
	if p.ask.Reuse && p.def.Proxy == nil && p.def.Database == nil {
		l.reuse = &reusable{p.request.Params, cloned(issued.Fields), issued.Scope, issued.Audience}
	}
	if issued.Handle != nil {
		l.handle, l.Handle = *issued.Handle, issued.Handle.Name
	}
	m, refusal := l.take(issue)
	err := errors.Join(refusal, l.lifetime(p.def, issued.NotAfter))
	if err == nil && l.recalled {
		err = fmt.Errorf("%w: %s", credential.ErrHolderGone, l.Reason)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	given, state := l.Lease, l.encode()
	e := g.event(credential.EventGrant, p)
	g.book.mu.Unlock()
	e.ScopeGranted, e.Audience = issued.Scope, issued.Audience
	if err != nil {
		e.Outcome, e.Reason = credential.Failed, err.Error()
	}
	return given, errors.Join(err, g.records.keep(ctx, m, l.ID, state, e))
}

// lifetime holds what the upstream gave to what the definition allows. If it did
// not say when it ends what it must, the plan's guess stays.
func (l *lease) lifetime(d *credential.Definition, notAfter time.Time) error {
	if l.purpose == forHandle {
		return nil // there is nothing upstream
	}
	if notAfter.IsZero() && (d.Traits.ChoosesTTL || l.Revocation == credential.ExpiryOnly) {
		return fmt.Errorf("%w: it did not say when the credential expires", credential.ErrUpstream)
	}
	if d.Traits.ChoosesTTL {
		l.Expires = notAfter
	}
	l.notAfter = notAfter
	switch {
	case l.notAfter.IsZero():
		return nil
	case l.notAfter.After(l.Latest.Add(ttlSlack)) && l.Revocation == credential.ExpiryOnly:
		return fmt.Errorf("%w: it set an expiry of %s, which exceeds max_ttl %s; shorten it upstream, or raise max_ttl",
			credential.ErrUpstream, l.notAfter.UTC().Format(time.RFC3339), config.FormatDuration(d.MaxTTL))
	case l.notAfter.Before(l.Expires) || l.Revocation == credential.ExpiryOnly:
		l.Expires = l.notAfter
	}
	return nil
}

// refused records that nothing came of a request.
func (g *grants) refused(ctx context.Context, p *pending, err error) error {
	g.book.mu.Lock()
	p.lease.denied = errors.Is(err, credential.ErrRefused) && !errors.Is(err, credential.ErrUpstream)
	m, refusal := p.lease.take(refuse)
	e := g.event(credential.EventGrant, p)
	if p.lease.recalled {
		err = fmt.Errorf("%w: %s (%w)", credential.ErrHolderGone, p.lease.Reason, err)
	}
	g.book.mu.Unlock()
	e.Outcome, e.Reason = credential.Failed, err.Error()
	return errors.Join(err, refusal, g.records.keep(ctx, m, p.lease.ID, nil, e))
}

// event returns an event about a grant. The book's mu is held.
func (g *grants) event(kind credential.EventKind, p *pending) credential.Event {
	e := g.records.about(kind, p.lease)
	e.RequestID, e.Exposure, e.Asker = p.ask.RequestID, p.ask.Exposure, p.ask.Asker
	e.TTL, e.NotBefore = p.request.TTL, p.lease.Granted
	e.Duration = g.clock.since() - p.began
	for _, param := range p.def.Parameters {
		e.ScopeAsked = append(e.ScopeAsked, param.Name+"="+p.request.Params[param.Name])
	}
	return e
}

// release ends the holder's request: the lease is handed out and scheduled for its
// expiry, or ended because of err or because its end was requested in the meantime. It
// returns why.
func (g *grants) release(l *lease, err error) error {
	g.book.mu.Lock()
	defer g.book.mu.Unlock()
	l.cancel = nil
	switch {
	case err != nil:
		return errors.Join(err, g.ends.letGo(l, clip(err.Error(), maxReason)))
	case l.recalled:
		return errors.Join(fmt.Errorf("%w: %s", credential.ErrHolderGone, l.Reason), g.ends.letGo(l, l.Reason))
	}
	if _, err := l.take(handOut); err != nil {
		return err
	}
	g.schedule.at(l, l.Expires)
	return nil
}
