package credential

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// endTimeout bounds one attempt to revoke.
	endTimeout = 15 * time.Second
	// workers is how many leases of one definition are ended at a time, so
	// that one slow upstream holds nothing else up, and a thousand ends at once
	// are bounded work for a quick one.
	workers = 8
	// stuckAfter is how many failed attempts make a lease an administrator's.
	stuckAfter = 8
	firstRetry = 250 * time.Millisecond
	lastRetry  = 5 * time.Minute
	// clockSlack is how much later than the upstream's own end a credential
	// counts as provably expired: the clocks of two machines differ.
	clockSlack = time.Minute
)

// A queue is the leases of one definition that wait for their end.
type queue struct {
	waiting []*lease
	workers int
}

// end begins the end of a lease, or its next attempt if one was made before.
// The manager's mu is held.
func (m *Manager) end(l *lease, reason string) {
	if !l.ending {
		l.ending, l.Reason = true, reason
	}
	if l.busy {
		if l.cancel != nil {
			l.cancel()
		}
		return // whoever is busy goes on with it
	}
	m.enqueue(l)
}

// enqueue hands a lease to a worker. The manager's mu is held.
func (m *Manager) enqueue(l *lease) {
	if l.queued || m.closed {
		return
	}
	m.unschedule(l)
	l.queued = true
	q := m.queues[l.source]
	if q == nil {
		q = &queue{}
		m.queues[l.source] = q
	}
	q.waiting = append(q.waiting, l)
	if q.workers < workers {
		q.workers++
		m.work.Go(func() { m.drain(l.source, q) })
	}
}

// drain ends leases until none waits.
func (m *Manager) drain(d *Definition, q *queue) {
	for {
		m.mu.Lock()
		if len(q.waiting) == 0 || m.closed {
			q.workers--
			if q.workers == 0 {
				delete(m.queues, d)
			}
			m.mu.Unlock()
			return
		}
		l := q.waiting[0]
		q.waiting = q.waiting[1:]
		m.mu.Unlock()
		m.attempt(l)
	}
}

// attempt takes one step towards a lease's end.
func (m *Manager) attempt(l *lease) {
	m.mu.Lock()
	if l.handle.Name == "" {
		m.forget(l) // nothing was planned, so nothing can be upstream
		m.mu.Unlock()
		return
	}
	if l.State != Stuck {
		l.State = Revoking
	}
	state := l.encode()
	m.mu.Unlock()
	if err := m.put(l.ID, state); err != nil {
		if errors.Is(err, ErrClosed) {
			return
		}
		// Ending it regardless is the safe side: at worst the next start
		// revokes it again.
		m.log.Error("lease journal", "lease", m.LeaseHash(l.ID), "err", err)
	}
	began := m.clock()
	use, outcome, err := m.endUpstream(l)
	if err != nil {
		m.retry(l, err)
		return
	}
	if outcome == "" {
		return // it waits for the upstream's clock
	}
	m.mu.Lock()
	e := m.event(EventRevoke, l)
	e.Outcome, e.Reason, e.Use, e.Duration = outcome, l.Reason, use, m.clock()-began
	m.mu.Unlock()
	// Only the log's acceptance ends a lease; revoking once more is harmless.
	if err := m.record(m.ctx, e); err != nil {
		m.retry(l, err)
		return
	}
	if err := m.journal.end(l.ID); err != nil {
		m.log.Error("lease journal", "lease", m.LeaseHash(l.ID), "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.State = map[Outcome]State{Success: Revoked, RanOut: Expired}[outcome]
	m.forget(l)
}

// endUpstream revokes, or finds that the upstream's clock has done so. The
// outcome is empty if that is still to come; the lease is scheduled for it.
func (m *Manager) endUpstream(l *lease) (Use, Outcome, error) {
	now := m.now()
	m.mu.Lock()
	use, source := l.use, l.source
	ranOut := !l.notAfter.IsZero() && !now.Before(l.notAfter)
	certain := ranOut && now.After(l.notAfter.Add(clockSlack))
	onlyExpires := l.Revocation == ExpiryOnly
	if onlyExpires && !ranOut {
		m.awaitExpiry(l)
		m.mu.Unlock()
		return Use{}, "", nil
	}
	m.mu.Unlock()
	if onlyExpires || l.Revocation == Unrevocable {
		return Use{}, RanOut, nil
	}
	if source == nil {
		if certain {
			return Use{}, RanOut, nil
		}
		return Use{}, "", fmt.Errorf("credential %s of %s is no longer defined for %s; define it again so that the lease can be ended, or end it upstream by hand", l.Credential, l.Broker, l.Upstream)
	}
	ctx, cancel := context.WithTimeout(m.ctx, endTimeout)
	defer cancel()
	var err error
	if l.issued {
		var now Use
		now, err = source.broker.Revoke(ctx, l.handle)
		use = use.and(now)
	} else {
		err = source.broker.Recover(ctx, l.handle)
	}
	switch {
	case err == nil:
		m.mu.Lock()
		l.use = use // should the record fail, the next attempt sees nothing
		m.mu.Unlock()
		return use, Success, nil
	case certain:
		return use, RanOut, nil
	case errors.Is(err, ErrOnlyExpires):
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.notAfter.IsZero() {
			break
		}
		l.Revocation = ExpiryOnly
		m.awaitExpiry(l)
		return use, "", nil
	}
	return use, "", err
}

// awaitExpiry leaves a lease to the upstream's clock: whoever waits for its end
// has what can be had. The manager's mu is held.
func (m *Manager) awaitExpiry(l *lease) {
	l.queued = false
	m.scheduleAt(l, l.notAfter)
	l.tellGone()
}

// and adds what a further look could tell.
func (u Use) and(v Use) Use {
	switch {
	case !u.Known || u.Count == 0 && v.Known:
		return v
	case v.Known && v.Count > 0:
		u.Count += v.Count
		if v.Last.After(u.Last) {
			u.Last = v.Last
		}
	}
	return u
}

// retry schedules the next attempt, and tells an administrator once it takes
// too many.
func (m *Manager) retry(l *lease, err error) {
	if m.ctx.Err() != nil {
		return // the next start goes on with it
	}
	m.mu.Lock()
	l.Attempts++
	becomesStuck := l.Attempts >= stuckAfter || l.source == nil
	tell := becomesStuck && l.State != Stuck
	if becomesStuck {
		l.State = Stuck
	}
	delay := min(lastRetry, firstRetry<<min(l.Attempts, 20))
	delay += time.Duration(rand.Int64N(int64(delay)/4 + 1))
	state := l.encode()
	e := m.event(EventRevoke, l)
	e.Outcome, e.Reason = Failed, clip(err.Error(), maxReason)
	attempts := l.Attempts
	m.mu.Unlock()
	m.log.Warn("revoking a lease", "lease", e.Lease, "credential", l.Credential, "handle", l.Handle, "upstream", l.Upstream, "attempts", attempts, "retry_in", delay, "err", err)
	if tell {
		if err := errors.Join(m.put(l.ID, state), m.record(m.ctx, e)); err != nil {
			m.log.Error("lease is stuck and that could not be recorded", "lease", e.Lease, "err", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.queued = false
	m.scheduleIn(l, delay)
}

// forget drops a lease of which nothing is left. The manager's mu is held.
func (m *Manager) forget(l *lease) {
	m.unschedule(l)
	m.unwatch(l)
	delete(m.leases, l.ID)
	m.usageOf(l, nil).leases--
	if l.source != nil {
		l.source.leases--
		m.retire(l.source)
	}
	l.tellGone()
	l.handle.Data.Wipe()
}

// retire closes the broker of a definition that is no longer in force, after
// its last lease. The manager's mu is held.
func (m *Manager) retire(d *Definition) {
	if current, ok := m.defs.Get(d.Name); d.leases == 0 && !(ok && current == d) {
		d.close()
	}
}
