package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/credential"
)

// renewals lets leases live longer.
type renewals struct{ *engine }

// A renewal is a lease that is being renewed.
type renewal struct {
	asked   credential.Renewal
	lease   *lease
	def     *credential.Definition
	ttl     time.Duration
	expires time.Time
	before  time.Time // Expires before
	began   time.Duration
	must    must // be durable before the upstream is asked
}

// renew is [Manager.Renew].
func (n *renewals) renew(ctx context.Context, h credential.Holder, a credential.Renewal) (credential.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	r, err := n.admit(h, a, cancel)
	if err != nil {
		e := credential.Event{
			Kind: credential.EventRenew, Outcome: credential.Denied, Reason: err.Error(), RequestID: clip(a.RequestID, maxRequestID),
			Identity: h.ID, Process: h.Process, Asker: a.Asker, Lease: n.records.hash(a.Lease), TTL: a.TTL,
		}
		err = fmt.Errorf("renewing lease %.64q: %w", a.Lease, err)
		return credential.Lease{}, errors.Join(err, n.records.record(ctx, e))
	}
	notAfter, err := n.ask(ctx, r)
	renewed, err := n.extend(ctx, r, notAfter, err)
	renewed, err = n.release(r, renewed, err)
	if err != nil {
		return credential.Lease{}, fmt.Errorf("renewing %s for %s: %w", r.lease.Credential, h.ID, err)
	}
	return renewed, nil
}

// admit checks a renewal, and gives the request the lease in hand.
func (n *renewals) admit(h credential.Holder, a credential.Renewal, cancel context.CancelFunc) (*renewal, error) {
	n.book.mu.Lock()
	defer n.book.mu.Unlock()
	l := n.book.leases[a.Lease]
	switch {
	case n.book.closed:
		return nil, credential.ErrClosed
	case l == nil || !h.Holds(&l.Lease):
		return nil, credential.ErrNoLease
	case !l.Renewable:
		return nil, fmt.Errorf("%w: %s; ask for a new one", credential.ErrNotRenewable, l.Credential)
	case l.State != credential.Active || l.ending():
		return nil, fmt.Errorf("%w: it is ending: %s", credential.ErrNotRenewable, l.Reason)
	case l.inRequest():
		return nil, fmt.Errorf("%w: it is already being renewed", credential.ErrNotRenewable)
	}
	ttl, err := l.source.Lifetime(a.TTL)
	if err != nil {
		return nil, err
	}
	now := n.clock.now().Round(0)
	if _, err := l.source.Limits.Open(now); err != nil {
		return nil, err
	}
	expires := earlier(now.Add(ttl), l.Latest)
	if !expires.After(l.Expires) {
		return nil, fmt.Errorf("%w: it ends at %s, and may end at %s at the latest", credential.ErrNotRenewable,
			l.Expires.UTC().Format(time.RFC3339), l.Latest.UTC().Format(time.RFC3339))
	}
	m, err := l.take(renew)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", credential.ErrNotRenewable, err)
	}
	l.cancel = cancel
	return &renewal{asked: a, lease: l, def: l.source, ttl: expires.Sub(now), expires: expires, before: l.Expires, began: n.clock.since(), must: m}, nil
}

// ask writes down how long the upstream might keep the credential if its answer is lost, and
// then asks it.
func (n *renewals) ask(ctx context.Context, r *renewal) (notAfter time.Time, err error) {
	l := r.lease
	n.book.mu.Lock()
	if longest := r.expires.Add(clockSlack); !l.notAfter.IsZero() && longest.After(l.notAfter) {
		l.notAfter = longest
	}
	state := l.encode()
	n.book.mu.Unlock()
	if err := n.records.keep(ctx, r.must, l.ID, state, credential.Event{}); err != nil {
		return time.Time{}, err
	}
	return l.broker().Renew(ctx, l.handle, r.ttl)
}

// extend makes the later expiry durable, or records that the upstream did not
// renew.
func (n *renewals) extend(ctx context.Context, r *renewal, notAfter time.Time, refusal error) (credential.Lease, error) {
	l, how := r.lease, extend
	n.book.mu.Lock()
	if refusal == nil {
		l.Expires, l.notAfter = earlier(r.expires, notAfter), notAfter
	} else {
		how = refuse
	}
	m, err := l.take(how)
	renewed, state := l.Lease, l.encode()
	e := n.records.about(credential.EventRenew, l)
	n.book.mu.Unlock()
	e.RequestID, e.Asker, e.TTL, e.Duration = r.asked.RequestID, r.asked.Asker, r.ttl, n.clock.since()-r.began
	if refusal != nil {
		e.Outcome, e.Reason = credential.Failed, clip(refusal.Error(), maxReason)
	}
	return renewed, errors.Join(refusal, err, n.records.keep(ctx, m, l.ID, state, e))
}

// release ends the holder's request. If the lease was not renewed, it ends when
// it would have.
func (n *renewals) release(r *renewal, renewed credential.Lease, err error) (credential.Lease, error) {
	l := r.lease
	n.book.mu.Lock()
	defer n.book.mu.Unlock()
	l.cancel = nil
	if err != nil {
		l.Expires = r.before
	}
	if l.recalled {
		return credential.Lease{}, errors.Join(err, fmt.Errorf("%w: %s", credential.ErrHolderGone, l.Reason), n.ends.letGo(l, l.Reason))
	}
	if _, gone := l.take(handOut); gone != nil {
		return credential.Lease{}, errors.Join(err, gone)
	}
	n.schedule.at(l, l.Expires)
	return renewed, err
}
