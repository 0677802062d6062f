package credential

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Renew lets a lease of the holder live longer: for ttl from now, or its
// definition's TTL if that is 0, and never beyond its latest end. The asker is
// copied into the events, as an [Ask]'s is.
func (m *Manager) Renew(ctx context.Context, h Holder, id string, ttl time.Duration, requestID string, asker any) (Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	r, err := m.beginRenewal(h, id, ttl, cancel)
	if err != nil {
		e := Event{
			Kind: EventRenew, Outcome: Denied, Reason: err.Error(), RequestID: clip(requestID, maxRequestIDLen),
			Identity: h.ID, Process: h.Process, Lease: m.LeaseHash(id), TTL: ttl, Asker: asker,
		}
		err = fmt.Errorf("renewing lease %.64q: %w", id, err)
		return Lease{}, errors.Join(err, m.record(ctx, e))
	}
	notAfter, err := m.renewUpstream(ctx, r)
	renewed, err := m.endRenewal(ctx, r, notAfter, err, requestID, asker)
	if err != nil {
		return Lease{}, fmt.Errorf("renewing %s for %s: %w", r.lease.Credential, h.ID, err)
	}
	return renewed, nil
}

// A renewal is a lease that is being renewed.
type renewal struct {
	lease   *lease
	def     *Definition
	ttl     time.Duration
	expires time.Time
	before  time.Time // Expires before
	began   time.Duration
}

// beginRenewal checks a renewal, and makes the lease busy with it.
func (m *Manager) beginRenewal(h Holder, id string, ttl time.Duration, cancel context.CancelFunc) (*renewal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.leases[id]
	switch {
	case m.closed:
		return nil, ErrClosed
	case l == nil || !h.holds(&l.Lease):
		return nil, ErrNoLease
	case !l.Renewable:
		return nil, fmt.Errorf("%w: %s is not; ask for the next one", ErrNotRenewable, l.Credential)
	case l.State != Active || l.ending:
		return nil, fmt.Errorf("%w: it is ending: %s", ErrNotRenewable, l.Reason)
	case l.busy:
		return nil, fmt.Errorf("%w: it is being renewed already", ErrNotRenewable)
	}
	ttl, err := l.source.ttl(ttl)
	if err != nil {
		return nil, err
	}
	now := m.now().Round(0)
	if _, err := l.source.Limits.open(now); err != nil {
		return nil, err
	}
	expires := earlier(now.Add(ttl), l.Latest)
	if !expires.After(l.Expires) {
		return nil, fmt.Errorf("%w: it ends at %s, and may not end later than %s", ErrNotRenewable,
			l.Expires.UTC().Format(time.RFC3339), l.Latest.UTC().Format(time.RFC3339))
	}
	l.busy, l.cancel = true, cancel
	return &renewal{lease: l, def: l.source, ttl: expires.Sub(now), expires: expires, before: l.Expires, began: m.clock()}, nil
}

// renewUpstream writes down how long the upstream may come to keep the
// credential, should its answer be lost, and then asks it.
func (m *Manager) renewUpstream(ctx context.Context, r *renewal) (notAfter time.Time, err error) {
	l := r.lease
	m.mu.Lock()
	if longest := r.expires.Add(clockSlack); !l.notAfter.IsZero() && longest.After(l.notAfter) {
		l.notAfter = longest
	}
	state := l.encode()
	m.mu.Unlock()
	if err := m.put(l.ID, state); err != nil {
		return time.Time{}, err
	}
	return r.def.broker.Renew(ctx, l.handle, r.ttl)
}

// endRenewal makes the later expiry durable. If it cannot, or the upstream did
// not renew, the lease ends when it would have.
func (m *Manager) endRenewal(ctx context.Context, r *renewal, notAfter time.Time, err error, requestID string, asker any) (Lease, error) {
	l := r.lease
	m.mu.Lock()
	if err == nil {
		l.Expires, l.notAfter = earlier(r.expires, notAfter), notAfter
	}
	renewed, state := l.Lease, l.encode()
	e := m.event(EventRenew, l)
	m.mu.Unlock()
	e.RequestID, e.Asker, e.TTL, e.Duration = requestID, asker, r.ttl, m.clock()-r.began
	if err == nil {
		err = m.both(ctx, l.ID, state, e)
	} else {
		e.Outcome, e.Reason = Failed, clip(err.Error(), maxReason)
		err = errors.Join(err, m.record(ctx, e))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.busy, l.cancel = false, nil
	if err != nil {
		l.Expires = r.before
	}
	if l.ending {
		m.enqueue(l)
		return Lease{}, errors.Join(err, fmt.Errorf("%w: %s", ErrHolderGone, l.Reason))
	}
	m.scheduleAt(l, l.Expires)
	return renewed, err
}
