package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/vouchd/vouchd/credential"
)

// A reusable is what a lease answers another ask with. It is in memory alone:
// after a restart, the next ask leases anew.
type reusable struct {
	params          map[string]string
	fields          []credential.Field
	scope, audience []string
}

// wipe overwrites the values. A nil reusable has none.
func (r *reusable) wipe() {
	if r == nil {
		return
	}
	for _, f := range r.fields {
		f.Value.Wipe()
	}
}

// bindOf is what a lease ends with. A helper exits before its answer is used, so
// what can only expire is not said to end with it.
func bindOf(d *credential.Definition, a credential.Ask) credential.Bind {
	if a.Reuse && d.Bind == credential.BindProcess && (d.Traits.Revocation == credential.ExpiryOnly || d.Traits.Revocation == credential.Unrevocable) {
		return credential.BindLease
	}
	return d.Bind
}

// reusable returns the lease that answers a helper's ask as well as a new one
// would, and that answer: of the same definition, to the same identity, for the
// same parameters, bound to nothing else than the new one would be, and with at
// least half of its life left. Of several, it is the one that lives longest.
func (g *grants) reusable(d *credential.Definition, r credential.Request, a credential.Ask) (found *lease, again *credential.Grant) {
	bind := bindOf(d, a)
	if !a.Reuse || bind == credential.BindProcess || d.Proxy != nil || d.Database != nil {
		return nil, nil
	}
	var current string
	reopener, opens := d.Source().(credential.Reopener)
	if opens {
		var err error
		if current, err = reopener.Current(); err != nil {
			return nil, nil // asking for a new one says why
		}
	}
	now := g.clock.now()
	g.book.mu.Lock()
	defer g.book.mu.Unlock()
	for _, l := range g.book.leases {
		switch {
		case l.reuse == nil || l.stage != active || l.ending() || l.source != d || l.Identity != r.Holder.ID || l.Bind != bind:
		case bind == credential.BindUnit && !r.Holder.Holds(&l.Lease):
		case opens && l.Handle != current: // the value was replaced
		case !maps.Equal(l.reuse.params, r.Params):
		case l.Expires.Sub(now) < min(r.TTL, l.Expires.Sub(l.Granted))/2:
		case found == nil || l.Expires.After(found.Expires):
			found = l
		}
	}
	if found == nil {
		return nil, nil
	}
	return found, &credential.Grant{Lease: found.Lease, Fields: cloned(found.reuse.fields), Reused: true}
}

// handAgain hands an earlier lease out once more, once that is recorded.
func (g *grants) handAgain(ctx context.Context, p *pending) (*credential.Grant, error) {
	g.book.mu.Lock()
	e := g.event(credential.EventGrant, p)
	if r := p.lease.reuse; r != nil {
		e.ScopeGranted, e.Audience = r.scope, r.audience
	}
	e.Process, e.TTL = p.request.Holder.Process, time.Duration(0)
	g.book.mu.Unlock()
	err := g.records.record(ctx, e)
	g.book.mu.Lock()
	defer g.book.mu.Unlock()
	if err == nil && p.lease.ending() {
		err = fmt.Errorf("%w: %s", credential.ErrHolderGone, p.lease.Reason)
	}
	if err = errors.Join(err, context.Cause(ctx)); err != nil {
		p.again.Wipe()
		return nil, fmt.Errorf("granting %s to %s: %w", p.ask.Name, p.request.Holder.ID, err)
	}
	return p.again, nil
}
