package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/vouchd/vouchd/credential"
)

const (
	// endTimeout bounds one attempt to revoke.
	endTimeout = 15 * time.Second
	// workers is how many leases of one definition are ended at a time: one
	// slow upstream holds nothing else up, and a thousand ends at once are
	// bounded work for a quick one.
	workers = 8
	// stuckAfter is how many failed attempts make a lease an administrator's.
	stuckAfter = 8
	firstRetry = 250 * time.Millisecond
	lastRetry  = 5 * time.Minute
	// clockSlack is how much later than the upstream's own end a credential
	// counts as provably expired: the clocks of two machines differ.
	clockSlack = time.Minute
)

// ends brings leases to their end, with separate workers for each definition. The book's
// mu guards the queues.
type ends struct {
	*engine
	queues map[*credential.Definition]*queue
}

// A queue is the leases of one definition that wait for their end.
type queue struct {
	waiting []*lease
	workers int
}

// begin begins the end of a lease, or its next attempt if one was made before.
// While a request of the holder is under way, that is cancelled and lets the
// lease go when it is over. The book's mu is held.
func (d *ends) begin(l *lease, reason string) {
	if !l.ending() {
		l.Reason = reason
	}
	if _, err := l.take(end); err != nil {
		return // nothing is left of it
	}
	if l.over != nil {
		close(l.over)
		l.over = nil
	}
	if !l.inRequest() {
		d.enqueue(l)
	} else if l.cancel != nil {
		l.cancel()
	}
}

// beginAll begins the end of leases, for wait to wait for. The book's mu is held.
func (d *ends) beginAll(leases []*lease, reason string) (all []begun) {
	for _, l := range leases {
		gone := l.goneChannel()
		l.revoked = true
		d.begin(l, reason)
		all = append(all, begun{l.Handle, l.Upstream, gone})
	}
	return all
}

// A begun end is waited for.
type begun struct {
	handle, upstream string
	gone             <-chan struct{}
}

// wait returns once ends are confirmed, or there is nothing left to do but to
// let the credential expire.
func (d *ends) wait(ctx context.Context, ends []begun) error {
	for _, e := range ends {
		select {
		case <-e.gone:
		case <-ctx.Done():
			return fmt.Errorf("revoking %s at %s is not confirmed yet and continues: %w", e.handle, e.upstream, ctx.Err())
		case <-d.ctx.Done():
			return credential.ErrClosed
		}
	}
	return nil
}

// letGo begins the end of a lease whose holder's request is over. The book's mu
// is held.
func (d *ends) letGo(l *lease, reason string) error {
	if !l.ending() {
		l.Reason = reason
	}
	if _, err := l.take(letGo); err != nil {
		return err
	}
	if l.stage == dropped {
		d.forget(l)
		return nil
	}
	d.enqueue(l)
	return nil
}

// enqueue hands a lease to a worker. The book's mu is held.
func (d *ends) enqueue(l *lease) {
	if l.queued || d.book.closed {
		return
	}
	d.schedule.remove(l)
	l.queued = true
	if !l.issued {
		d.book.uncount(l) // nobody was given it
	}
	q := d.queues[l.source]
	if q == nil {
		q = &queue{}
		d.queues[l.source] = q
	}
	q.waiting = append(q.waiting, l)
	if q.workers < workers {
		q.workers++
		d.work.Go(func() { d.drain(l.source, q) })
	}
}

// drain ends leases until none waits.
func (d *ends) drain(source *credential.Definition, q *queue) {
	for {
		d.book.mu.Lock()
		if len(q.waiting) == 0 || d.book.closed {
			q.workers--
			if q.workers == 0 {
				delete(d.queues, source)
			}
			d.book.mu.Unlock()
			return
		}
		l := q.waiting[0]
		q.waiting = q.waiting[1:]
		d.book.mu.Unlock()
		d.attempt(l)
	}
}

// attempt takes one step towards a lease's end.
func (d *ends) attempt(l *lease) {
	d.book.mu.Lock()
	m, err := l.take(attempt)
	state := l.encode()
	d.book.mu.Unlock()
	if err == nil {
		err = d.records.keep(d.ctx, m, l.ID, state, credential.Event{})
	}
	if errors.Is(err, credential.ErrClosed) {
		return
	}
	if err != nil {
		// Ending it regardless is the safe side: at worst the next start
		// revokes it again.
		d.log.Error("lease journal", "lease", d.records.hash(l.ID), "err", err)
	}
	began := d.clock.since()
	use, outcome, err := d.upstream(l)
	switch outcome {
	case confirm, runOut:
		err = d.finish(l, outcome, use, d.clock.since()-began)
	case await:
		err = d.await(l)
	}
	if err != nil {
		d.retry(l, err)
	}
}

// finish records the end of a lease, and forgets it. Only the log's acceptance
// ends a lease; revoking once more is harmless.
func (d *ends) finish(l *lease, how event, use credential.Use, took time.Duration) error {
	d.book.mu.Lock()
	e := d.records.about(credential.EventRevoke, l)
	e.Outcome, e.Reason, e.Use, e.Duration, e.Asker = credential.Success, l.Reason, use, took, l.asker
	if l.pulled {
		e.Reason += ", for a drill"
	}
	if how == runOut {
		e.Outcome = credential.RanOut
	}
	m := life[l.stage][how].must
	d.book.mu.Unlock()
	if err := d.records.keep(d.ctx, m, l.ID, nil, e); err != nil {
		return err
	}
	d.book.mu.Lock()
	defer d.book.mu.Unlock()
	if _, err := l.take(how); err != nil {
		return err
	}
	d.forget(l)
	return nil
}

// upstream revokes, or finds that the upstream's clock has done so. It returns
// what that is for the lease: confirm, runOut, await or, with an error, fail.
func (d *ends) upstream(l *lease) (credential.Use, event, error) {
	now := d.clock.now()
	d.book.mu.Lock()
	use, source, ended := l.use, l.source, l.ended
	ranOut := !l.notAfter.IsZero() && !now.Before(l.notAfter)
	certain := ranOut && now.After(l.notAfter.Add(clockSlack))
	onlyExpires := l.Revocation == credential.ExpiryOnly
	nothing := l.denied && !l.issued
	ended = ended || l.purpose == forHandle
	d.book.mu.Unlock()
	switch {
	case ended:
		return use, confirm, nil
	case onlyExpires && nothing:
		return credential.Use{Known: true}, confirm, nil
	case onlyExpires && !ranOut:
		return credential.Use{}, await, nil
	case onlyExpires || l.Revocation == credential.Unrevocable:
		return credential.Use{}, runOut, nil
	case source == nil && certain:
		return credential.Use{}, runOut, nil
	case source == nil:
		return credential.Use{}, fail, fmt.Errorf("credential %s of %s is no longer defined for %s; define it again to have the lease ended, or end it upstream by hand", l.Credential, l.Broker, l.Upstream)
	}
	ctx, cancel := context.WithTimeout(d.ctx, endTimeout)
	defer cancel()
	var err error
	if l.issued {
		var seen credential.Use
		seen, err = source.Source().Revoke(ctx, l.handle)
		use = and(use, seen)
	} else {
		err = source.Source().Recover(ctx, l.handle)
	}
	switch {
	case err == nil:
		d.book.mu.Lock()
		l.use, l.ended = use, true // should the record fail, the next attempt could not tell
		d.book.mu.Unlock()
		return use, confirm, nil
	case certain:
		return use, runOut, nil
	case errors.Is(err, credential.ErrOnlyExpires) && nothing:
		return credential.Use{Known: true}, confirm, nil
	case errors.Is(err, credential.ErrOnlyExpires) && !l.notAfter.IsZero():
		return use, await, nil
	}
	return use, fail, err
}

// await leaves a lease to the upstream's clock: those who wait for its end have
// what can be had.
func (d *ends) await(l *lease) error {
	d.book.mu.Lock()
	defer d.book.mu.Unlock()
	if _, err := l.take(await); err != nil {
		return err
	}
	l.Revocation = credential.ExpiryOnly
	l.queued = false
	d.book.uncount(l)
	d.schedule.at(l, l.notAfter)
	l.tellGone()
	return nil
}

// and adds to what is known of a credential's use what a further look told.
func and(u, v credential.Use) credential.Use {
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

// retry schedules the next attempt, and notifies an administrator once there have been
// too many.
func (d *ends) retry(l *lease, cause error) {
	if d.ctx.Err() != nil {
		return // the next start continues with it
	}
	d.book.mu.Lock()
	l.Attempts++
	l.Failure = clip(cause.Error(), maxReason)
	failed := fail
	if (l.Attempts >= stuckAfter || l.source == nil) && l.stage != stuck {
		failed = giveUp
	}
	m, err := l.take(failed)
	state := l.encode()
	e := d.records.about(credential.EventRevoke, l)
	e.Outcome, e.Reason, e.Asker = credential.Failed, clip(cause.Error(), maxReason), l.asker
	attempts := l.Attempts
	d.book.mu.Unlock()
	delay := min(lastRetry, firstRetry<<min(attempts, 20))
	delay += time.Duration(rand.Int64N(int64(delay)/4 + 1))
	d.log.Warn("revoking a lease", "lease", e.Lease, "credential", l.Credential, "handle", l.Handle, "upstream", l.Upstream, "attempts", attempts, "retry_in", delay, "err", cause)
	if err == nil {
		err = d.records.keep(d.ctx, m, l.ID, state, e)
	}
	if err != nil {
		d.log.Error("recording that a lease is stuck", "lease", e.Lease, "err", err)
	}
	d.book.mu.Lock()
	defer d.book.mu.Unlock()
	l.queued = false
	d.schedule.in(l, delay)
}

// forget drops a lease once nothing is left of it. The book's mu is held.
func (d *ends) forget(l *lease) {
	d.schedule.remove(l)
	d.holders.leave(l)
	d.book.remove(l)
	l.tellGone()
	l.handle.Data.Wipe()
	for _, f := range l.fields {
		f.Value.Wipe()
	}
	l.reuse.wipe()
}
