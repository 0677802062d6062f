package credential

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/time/rate"

	"github.com/vouchd/vouchd/config"
)

const (
	// issueTimeout bounds how long an upstream may take to issue or renew.
	issueTimeout = 20 * time.Second
	// ttlSlack is by how much an upstream that chooses lifetimes may go beyond
	// max_ttl: its clock and its rounding.
	ttlSlack = 30 * time.Second

	maxRequestIDLen = 128
)

// An Ask is what a workload asks for.
type Ask struct {
	Name      string            // of the credential
	Granted   []string          // what the identity's entries grant
	Params    map[string]string // as the caller chose them
	TTL       time.Duration     // 0 for the definition's
	RequestID string            // ties the events together
	Exposure  Exposure          // where the value goes, as far as the caller says
	Asker     any               // copied into each event of this request, for the recorder
}

// A Grant is a lease and, this once, the values.
type Grant struct {
	Lease  Lease
	Fields []Field
}

// Wipe overwrites the values. A nil Grant has none.
func (g *Grant) Wipe() {
	if g == nil {
		return
	}
	for _, f := range g.Fields {
		f.Value.Wipe()
	}
}

// Grant leases a credential to the holder. When it returns a Grant, the lease
// and its record are durable. If ctx ends first, whatever came of it is ended.
// A caller whose reply does not get through should revoke the lease.
func (m *Manager) Grant(ctx context.Context, h Holder, a Ask) (*Grant, error) {
	began := m.clock()
	p, err := m.admit(h, a)
	if err != nil {
		e := Event{
			Kind: EventIntent, Outcome: Denied, Reason: err.Error(), RequestID: clip(a.RequestID, maxRequestIDLen), Duration: m.clock() - began,
			Identity: h.ID, Process: h.Process, Credential: clip(a.Name, maxNameLen), TTL: a.TTL, Exposure: a.Exposure, Asker: a.Asker,
		}
		return nil, errors.Join(err, m.record(ctx, e))
	}
	g, err := m.obtain(ctx, p)
	if err = m.release(p.lease, err); err != nil {
		g.Wipe()
		return nil, fmt.Errorf("granting %s to %s: %w", a.Name, h.ID, err)
	}
	return g, nil
}

// clip bounds text that a caller chose.
func clip(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// A pending is a grant on its way.
type pending struct {
	ask     Ask
	def     *Definition
	lease   *lease
	request Request
	began   time.Duration
}

// admit checks a request, and reserves a lease that counts against the limits.
func (m *Manager) admit(h Holder, a Ask) (*pending, error) {
	if !slices.Contains(a.Granted, a.Name) {
		return nil, fmt.Errorf("%w: %.80q to %s; its entry must list it", ErrNotGranted, a.Name, h.ID)
	}
	d, ok := m.Definitions().Get(a.Name)
	if !ok {
		return nil, fmt.Errorf("%w: %s; add it to the credentials directory", ErrUndefined, a.Name)
	}
	if d.Traits.ProxyOnly {
		return nil, fmt.Errorf("%w: the value of %s is not handed out, and there is no proxy yet that would use it for %s; its definition can make it disclosable", ErrProxyOnly, a.Name, h.ID)
	}
	if len(a.RequestID) > maxRequestIDLen || strings.ContainsFunc(a.RequestID, unicode.IsControl) ||
		!slices.Contains([]Exposure{"", InMemory, InFile, InEnvironment}, a.Exposure) {
		return nil, fmt.Errorf("%w: request ID or exposure of %s is malformed", ErrParameter, a.Name)
	}
	params, err := d.choose(a.Params)
	if err != nil {
		return nil, err
	}
	now := m.now().Round(0)
	until, err := d.Limits.open(now)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", d.Name, err)
	}
	ttl, err := d.ttl(a.TTL)
	if err != nil {
		return nil, err
	}
	if d.Bind != BindLease && h.end(d.Bind) == nil {
		return nil, fmt.Errorf("%w: %s is bound to the caller's %s, and the caller is in none", ErrHolderGone, d.Name, d.Bind)
	}
	l := &lease{
		Lease: Lease{
			ID:         rand.Text(),
			Credential: d.Name,
			Broker:     d.Broker,
			Upstream:   d.Traits.Upstream,
			Identity:   h.ID,
			Process:    h.Process,
			Bind:       d.Bind,
			Revocation: d.Traits.Revocation,
			State:      Planned,
			Granted:    now,
			Expires:    earlier(now.Add(ttl), until),
			Latest:     earlier(now.Add(d.MaxTTL), until),
			Renewable:  d.Renewable,
		},
		source: d,
		slot:   -1,
		busy:   true,
	}
	if err := m.reserve(l, d); err != nil {
		return nil, err
	}
	return &pending{
		ask:     a,
		def:     d,
		lease:   l,
		request: Request{LeaseID: l.ID, RequestID: a.RequestID, Holder: h, Params: params, TTL: l.Expires.Sub(now)},
		began:   m.clock(),
	}, nil
}

// ttl returns the lifetime to ask for.
func (d *Definition) ttl(asked time.Duration) (time.Duration, error) {
	switch {
	case asked == 0:
		return d.TTL, nil
	case asked < time.Second:
		return 0, fmt.Errorf("%w: %s is less than a second", ErrTTL, asked)
	case asked > d.MaxTTL:
		return 0, fmt.Errorf("%w: %s is above the %s that %s may have", ErrTTL, asked, config.FormatDuration(d.MaxTTL), d.Name)
	}
	return asked, nil
}

func earlier(t, until time.Time) time.Time {
	if !until.IsZero() && until.Before(t) {
		return until
	}
	return t
}

// reserve counts a lease against its identity's limits.
func (m *Manager) reserve(l *lease, d *Definition) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	u := m.usageOf(l, d)
	if u.leases >= d.Limits.Concurrent {
		return fmt.Errorf("%w: %s holds %d leases of %s, and may hold %d; revoke one, or wait", ErrLimit, l.Identity, u.leases, d.Name, d.Limits.Concurrent)
	}
	if !u.grants.AllowN(m.now(), 1) {
		return fmt.Errorf("%w: %s may be granted %s %s; wait", ErrLimit, l.Identity, d.Name, d.Limits.Rate)
	}
	u.leases++
	d.leases++
	m.leases[l.ID] = l
	return nil
}

// usageOf returns the count that a lease belongs to. The manager's mu is held.
func (m *Manager) usageOf(l *lease, d *Definition) *usage {
	key := quota{l.Identity, l.Credential}
	u := m.usage[key]
	if u == nil {
		u = &usage{}
		m.usage[key] = u
	}
	if d != nil && u.rate != d.Limits.Rate {
		r := d.Limits.Rate
		u.rate, u.grants = r, rate.NewLimiter(rate.Limit(float64(r.N)/r.Per.Seconds()), r.N)
	}
	return u
}

// obtain takes a lease from planned to active. On an error, release ends it.
func (m *Manager) obtain(ctx context.Context, p *pending) (*Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	l := p.lease
	if !m.begin(l, p.request.Holder, cancel) {
		return nil, ErrHolderGone
	}
	plan, err := p.def.broker.Plan(ctx, p.request)
	if err != nil {
		return nil, m.refused(ctx, p, fmt.Errorf("planning: %w", err))
	}
	if err := m.plan(ctx, p, plan); err != nil {
		return nil, err
	}
	issued, err := p.def.broker.Issue(ctx, p.request, plan)
	if err != nil {
		return nil, m.refused(ctx, p, err)
	}
	lease, err := m.activate(ctx, p, issued)
	return &Grant{Lease: lease, Fields: issued.Fields}, err
}

// begin lets the end of a lease, such as its process's exit, cancel what the
// grant is doing. It reports whether the lease has not ended yet.
func (m *Manager) begin(l *lease, h Holder, cancel context.CancelFunc) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	l.cancel = cancel
	m.watchHolder(l, h.end(l.Bind))
	return !l.ending
}

// plan makes the handle durable, and that the upstream is about to be asked.
func (m *Manager) plan(ctx context.Context, p *pending, plan Plan) error {
	l := p.lease
	m.mu.Lock()
	l.handle, l.Handle, l.notAfter = plan.Handle, plan.Handle.Name, plan.NotAfter
	if l.Revocation == ExpiryOnly && l.notAfter.IsZero() {
		l.notAfter = l.Latest.Add(ttlSlack)
	}
	state := l.encode()
	e := m.grantEvent(EventIntent, p)
	m.mu.Unlock()
	return m.both(ctx, l.ID, state, e)
}

// activate makes the lease durable as one that exists, before anyone has it.
func (m *Manager) activate(ctx context.Context, p *pending, issued Issued) (Lease, error) {
	l := p.lease
	m.mu.Lock()
	l.issued = true
	if issued.Handle != nil {
		l.handle, l.Handle = *issued.Handle, issued.Handle.Name
	}
	err := l.lifetime(p.def, issued.NotAfter)
	l.State = Active
	if err == nil && l.ending {
		err = fmt.Errorf("%w: %s", ErrHolderGone, l.Reason)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	active, state := l.Lease, l.encode()
	e := m.grantEvent(EventGrant, p)
	m.mu.Unlock()
	e.ScopeGranted, e.Audience = issued.Scope, issued.Audience
	if err != nil {
		e.Outcome, e.Reason = Failed, err.Error()
	}
	return active, errors.Join(err, m.both(ctx, l.ID, state, e))
}

// lifetime holds what the upstream gave to what the definition allows. If it did
// not say when it ends what it must, the plan's guess stays.
func (l *lease) lifetime(d *Definition, notAfter time.Time) error {
	if notAfter.IsZero() && (d.Traits.ChoosesTTL || l.Revocation == ExpiryOnly) {
		return fmt.Errorf("%w: it did not say when the credential expires", ErrUpstream)
	}
	if d.Traits.ChoosesTTL {
		l.Expires = notAfter
	}
	l.notAfter = notAfter
	switch {
	case l.notAfter.IsZero():
		return nil
	case l.notAfter.After(l.Latest.Add(ttlSlack)) && l.Revocation == ExpiryOnly:
		return fmt.Errorf("%w: it gave a lifetime until %s, and max_ttl %s ends before; shorten it upstream, or raise max_ttl",
			ErrUpstream, l.notAfter.UTC().Format(time.RFC3339), config.FormatDuration(d.MaxTTL))
	case l.notAfter.Before(l.Expires) || l.Revocation == ExpiryOnly:
		l.Expires = l.notAfter
	}
	return nil
}

// refused records that nothing came of a request.
func (m *Manager) refused(ctx context.Context, p *pending, err error) error {
	m.mu.Lock()
	e := m.grantEvent(EventGrant, p)
	if p.lease.ending {
		err = fmt.Errorf("%w: %s (%w)", ErrHolderGone, p.lease.Reason, err)
	}
	m.mu.Unlock()
	e.Outcome, e.Reason = Failed, err.Error()
	return errors.Join(err, m.record(ctx, e))
}

// grantEvent returns an event about a grant. The manager's mu is held.
func (m *Manager) grantEvent(kind EventKind, p *pending) Event {
	e := m.event(kind, p.lease)
	e.RequestID, e.Exposure, e.Asker = p.ask.RequestID, p.ask.Exposure, p.ask.Asker
	e.TTL, e.NotBefore = p.request.TTL, p.lease.Granted
	e.Duration = m.clock() - p.began
	for _, param := range p.def.Parameters {
		e.ScopeAsked = append(e.ScopeAsked, param.Name+"="+p.request.Params[param.Name])
	}
	return e
}

// release ends the caller's hold on a lease: it is scheduled for its expiry, or
// ended because of err or because its holder went meanwhile. It returns why.
func (m *Manager) release(l *lease, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.busy, l.cancel = false, nil
	if err != nil {
		m.end(l, clip(err.Error(), maxReason))
		return err
	}
	if l.ending {
		m.enqueue(l)
		return fmt.Errorf("%w: %s", ErrHolderGone, l.Reason)
	}
	m.scheduleAt(l, l.Expires)
	return nil
}
