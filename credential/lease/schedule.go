package lease

import (
	"container/heap"
	"context"
	"time"

	"github.com/vouchd/vouchd/credential"
)

const (
	// lookEvery is how often the wall clock is compared with the monotonic
	// one. Suspending the machine and setting its clock show as a difference.
	lookEvery = time.Second
	// jumpAbove is the difference that counts as a jump.
	jumpAbove = 2 * time.Second
)

// A clock is the machine's, by the wall and monotonic.
type clock struct {
	now     func() time.Time // the wall clock
	started time.Time
}

// since is monotonic, from when the engine started.
func (c clock) since() time.Duration { return time.Since(c.started) }

// drift is by how much the wall clock is ahead of the monotonic one.
func (c clock) drift() time.Duration { return c.now().Round(0).Sub(c.started) - c.since() }

// A schedule is the leases with something to come: their expiry, or the next
// attempt to end them. The book's mu guards it.
type schedule struct {
	clock clock
	due   due
	wake  chan struct{} // there is an earlier first lease
}

// at schedules a lease for a time of the wall clock, as far away as that is now:
// setting the clock back does not prolong a lease.
func (s *schedule) at(l *lease, at time.Time) { s.in(l, at.Sub(s.clock.now())) }

// in schedules a lease.
func (s *schedule) in(l *lease, d time.Duration) {
	l.due = s.clock.since() + max(d, 0)
	if l.slot < 0 {
		heap.Push(&s.due, l)
	} else {
		heap.Fix(&s.due, l.slot)
	}
	if l.slot == 0 {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *schedule) remove(l *lease) {
	if l.slot >= 0 {
		heap.Remove(&s.due, l.slot)
	}
}

// take removes the leases that are due, and returns them and how long the next
// is off.
func (s *schedule) take() (now []*lease, next time.Duration) {
	for len(s.due) > 0 {
		l := s.due[0]
		if wait := l.due - s.clock.since(); wait > 0 {
			return now, wait
		}
		heap.Pop(&s.due)
		now = append(now, l)
	}
	return now, lookEvery
}

// due is a heap of leases, the earliest first. It is a [heap.Interface].
type due []*lease

func (d due) Len() int           { return len(d) }
func (d due) Less(i, j int) bool { return d[i].due < d[j].due }
func (d due) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].slot, d[j].slot = i, j
}
func (d *due) Push(x any) {
	l := x.(*lease)
	l.slot = len(*d)
	*d = append(*d, l)
}
func (d *due) Pop() any {
	old := *d
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	l.slot = -1
	return l
}

// A timekeeper ends leases as they expire, by whichever clock says so first.
type timekeeper struct {
	book     *book
	schedule *schedule
	ends     *ends
}

// keep returns when ctx ends.
func (t timekeeper) keep(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	drift := t.schedule.clock.drift()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.schedule.wake:
		case <-timer.C:
		}
		if d := t.schedule.clock.drift(); (d - drift).Abs() > jumpAbove {
			drift = d
			t.jumped()
		}
		timer.Reset(t.endDue())
	}
}

// endDue begins the end of the leases that are due, and returns when to look
// again.
func (t timekeeper) endDue() time.Duration {
	t.book.mu.Lock()
	defer t.book.mu.Unlock()
	now, next := t.schedule.take()
	for _, l := range now {
		t.ends.begin(l, "expired")
	}
	if len(t.book.leases) == 0 {
		return time.Hour // the first lease wakes it
	}
	return min(next, lookEvery)
}

// jumped ends what has expired by the wall clock. It is the upstream's clock
// that counts there, and the machine's is the best guess at it.
func (t timekeeper) jumped() {
	t.book.mu.Lock()
	defer t.book.mu.Unlock()
	now := t.schedule.clock.now()
	for _, l := range t.book.leases {
		if l.State == credential.Active && !l.ending() && now.After(l.Expires) {
			t.ends.begin(l, "expired; the clock was set forward")
		}
	}
}
