package credential

import (
	"container/heap"
	"time"
)

const (
	// lookEvery is how often the wall clock is compared with the monotonic
	// one. Suspending the machine and setting its clock show as a difference.
	lookEvery = time.Second
	// jumpAbove is the difference that counts as a jump.
	jumpAbove = 2 * time.Second
)

// A schedule is the leases with something to come, the earliest first: their
// expiry, or the next attempt to end them. It is a [heap.Interface].
type schedule []*lease

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due < s[j].due }
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].slot, s[j].slot = i, j
}
func (s *schedule) Push(x any) {
	l := x.(*lease)
	l.slot = len(*s)
	*s = append(*s, l)
}
func (s *schedule) Pop() any {
	old := *s
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*s = old[:len(old)-1]
	l.slot = -1
	return l
}

// scheduleAt schedules a lease for a time of the wall clock, as far away as that
// is now: setting the clock back does not prolong a lease. The manager's mu is
// held.
func (m *Manager) scheduleAt(l *lease, at time.Time) { m.scheduleIn(l, at.Sub(m.now())) }

// scheduleIn schedules a lease. The manager's mu is held.
func (m *Manager) scheduleIn(l *lease, d time.Duration) {
	if m.leases[l.ID] != l {
		return // it is gone
	}
	l.due = m.clock() + max(d, 0)
	if l.slot < 0 {
		heap.Push(&m.schedule, l)
	} else {
		heap.Fix(&m.schedule, l.slot)
	}
	if l.slot == 0 {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

func (m *Manager) unschedule(l *lease) {
	if l.slot >= 0 {
		heap.Remove(&m.schedule, l.slot)
	}
}

// keepTime ends leases as they expire, by whichever clock says so first.
func (m *Manager) keepTime() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	drift := m.drift()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.wake:
		case <-timer.C:
		}
		if d := m.drift(); (d - drift).Abs() > jumpAbove {
			drift = d
			m.clockJumped()
		}
		timer.Reset(m.takeDue())
	}
}

// drift is by how much the wall clock is ahead of the monotonic one.
func (m *Manager) drift() time.Duration { return m.now().Round(0).Sub(m.started) - m.clock() }

// takeDue begins the end of the leases that are due, and returns how long the
// next is off, at most lookEvery.
func (m *Manager) takeDue() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.schedule) > 0 {
		l := m.schedule[0]
		if wait := l.due - m.clock(); wait > 0 {
			return min(wait, lookEvery)
		}
		heap.Pop(&m.schedule)
		m.end(l, "expired")
	}
	if len(m.leases) == 0 {
		return time.Hour // the first lease wakes it
	}
	return lookEvery
}

// clockJumped ends what has expired by the wall clock. It is the upstream's
// clock that counts there, and the machine's is the best guess at it.
func (m *Manager) clockJumped() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for _, l := range m.leases {
		if l.State == Active && !l.ending && now.After(l.Expires) {
			m.end(l, "expired; the clock was set forward")
		}
	}
}

// A watch waits for the end of a process or unit, once for all its leases.
type watch struct {
	key    watchKey
	leases map[*lease]struct{}
	stop   chan struct{}
}

type watchKey struct {
	bind    Bind
	process Process
}

// watchHolder ends the lease when end is closed. The manager's mu is held.
func (m *Manager) watchHolder(l *lease, end <-chan struct{}) {
	if l.Bind == BindLease || end == nil {
		return
	}
	key := watchKey{l.Bind, l.Process}
	if key.bind == BindUnit {
		key.process.PID, key.process.StartTime = 0, 0
	}
	w := m.watches[key]
	if w == nil {
		w = &watch{key: key, leases: make(map[*lease]struct{}, 1), stop: make(chan struct{})}
		m.watches[key] = w
		m.work.Go(func() { m.awaitEnd(w, end) })
	}
	w.leases[l] = struct{}{}
	l.watch = w
}

func (m *Manager) awaitEnd(w *watch, end <-chan struct{}) {
	select {
	case <-end:
	case <-w.stop:
		return
	case <-m.ctx.Done():
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watches[w.key] == w {
		delete(m.watches, w.key)
	}
	for l := range w.leases {
		m.end(l, string(w.key.bind)+" ended")
	}
}

func (m *Manager) unwatch(l *lease) {
	w := l.watch
	if w == nil {
		return
	}
	l.watch = nil
	delete(w.leases, l)
	if len(w.leases) == 0 && m.watches[w.key] == w {
		delete(m.watches, w.key)
		close(w.stop)
	}
}
