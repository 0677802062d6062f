package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
)

// A Drill is a credential that is withheld for a while on purpose, to see what those who use
// it do. It is kept in memory: a daemon that starts anew has ended it.
type Drill struct {
	Credential string
	Identity   spiffeid.ID // zero: everybody
	Began      time.Time
	Until      time.Time
	Ended      time.Time // zero: it is going on
	Leases     int       // that were revoked

	Unconfirmed string // why not all of their upstreams have confirmed it; empty: they have
	Holders     []DrillHolder
}

// A DrillHolder is a process that had a lease when the drill began, or those of an identity
// that had none and have asked since.
type DrillHolder struct {
	Identity  spiffeid.ID
	Process   credential.Process // of those, the last
	Held      bool               // a lease, as the drill began
	Asks      int                // for a lease, refused
	Calls     int                // or connections with a handle from before, refused
	First     time.Time          // of those that were refused
	Last      time.Time
	Shortest  time.Duration // between two that were refused; 0: there were not two
	Exited    time.Time     // the process, or what the lease was bound to; zero: it goes on
	Recovered time.Time     // something was granted or called again, after the end
}

// drillReason is why leases end at the beginning of a drill. Calls on them do not stay cut off
// after it.
const drillReason = "pulled for a drill"

// Bounds of drills.
const (
	MaxDrill        = time.Hour
	maxDrillHolders = 1000
	drillKept       = time.Hour // after its end, for who asks how it went
)

// What keeps a drill from beginning.
var (
	ErrDrilling  = errors.New("a drill of this credential is going on")
	ErrNoHolders = errors.New("nobody holds a lease of this credential")
	ErrNoDrill   = errors.New("there is no drill of this credential")
)

// drills are those that go on, and those that have ended lately.
type drills struct {
	*engine
	processes Processes

	mu  sync.Mutex // guards the fields below
	all map[string]*drilling
}

type drilling struct {
	Drill
	watched map[seatKey]*DrillHolder
	timer   *time.Timer
	over    func() // told that it has ended by itself
}

// BeginDrill revokes the leases of a credential, of everybody or of one identity, and refuses
// it until EndDrill or the deadline, of which over is told. Nobody holding it is an error,
// unless anyway.
func (m *Manager) BeginDrill(ctx context.Context, name string, id spiffeid.ID, d time.Duration, anyway bool, over func()) error {
	if _, ok := m.Definitions().Get(name); !ok {
		return fmt.Errorf("%w: %s", credential.ErrUndefined, name)
	}
	if d < time.Second || d > MaxDrill {
		return fmt.Errorf("a drill lasts from a second to %v, not %v", MaxDrill, d)
	}
	where := credential.Where{Credential: name, Identity: id}
	held := slices.DeleteFunc(m.Leases(), func(l credential.Lease) bool { return !where.Chooses(&l) })
	if err := m.drills.begin(name, id, d, held, anyway, over); err != nil {
		return err
	}
	if _, err := m.RevokeWhere(ctx, where, drillReason); err != nil {
		m.drills.mu.Lock()
		m.drills.all[name].Unconfirmed = clip(err.Error(), maxReason)
		m.drills.mu.Unlock()
	}
	return nil
}

func (d *drills) begin(name string, id spiffeid.ID, length time.Duration, held []credential.Lease, anyway bool, over func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for other, of := range d.all {
		if !of.Ended.IsZero() && now.Sub(of.Ended) > drillKept {
			delete(d.all, other)
		}
	}
	if of := d.all[name]; of != nil && of.Ended.IsZero() {
		return fmt.Errorf("%w: %s, until %s", ErrDrilling, name, of.Until.Format(time.RFC3339))
	}
	if len(held) == 0 && !anyway {
		return fmt.Errorf("%w: %s", ErrNoHolders, name)
	}
	of := &drilling{
		Drill:   Drill{Credential: name, Identity: id, Began: now, Until: now.Add(length), Leases: len(held)},
		watched: make(map[seatKey]*DrillHolder), over: over,
	}
	for _, l := range held {
		w := of.hold(l.Identity, l.Process)
		if w == nil {
			break
		}
		if end, alive, err := d.processes.Find(l.Process, l.Bind); err == nil && alive && end != nil {
			d.await(w, end)
		}
	}
	of.timer = time.AfterFunc(length, func() {
		if d.ctx.Err() == nil {
			d.finish(of)
		}
	})
	d.all[name] = of
	return nil
}

// await notes when a holder's process ends. The drills' mu is held.
func (d *drills) await(w *DrillHolder, end <-chan struct{}) {
	d.work.Go(func() {
		select {
		case <-end:
			d.mu.Lock()
			defer d.mu.Unlock()
			w.Exited = time.Now()
		case <-time.After(MaxDrill + drillKept):
		case <-d.ctx.Done():
		}
	})
}

// hold has a holder of a lease watched; nil: there are too many.
func (of *drilling) hold(id spiffeid.ID, p credential.Process) *DrillHolder {
	key := keyOf(id, of.Credential, credential.BindProcess, p)
	if of.watched[key] == nil && len(of.watched) < maxDrillHolders {
		of.watched[key] = &DrillHolder{Identity: id, Process: p, Held: true}
	}
	return of.watched[key]
}

// asker returns who is watched as a process that asks: itself if it held a lease, else all
// of its identity that did not, which may be one program started over and over. Nil: there
// are too many.
func (of *drilling) asker(id spiffeid.ID, p credential.Process) *DrillHolder {
	if w := of.watched[keyOf(id, of.Credential, credential.BindProcess, p)]; w != nil {
		return w
	}
	key := seatKey{identity: id, credential: of.Credential}
	w := of.watched[key]
	if w == nil && len(of.watched) < maxDrillHolders {
		w = &DrillHolder{Identity: id}
		of.watched[key] = w
	}
	if w != nil {
		w.Process = p
	}
	return w
}

// refuses returns why a holder gets nothing now, and notes that it asked: for a lease, or by
// a call.
func (d *drills) refuses(h credential.Holder, name string, asks bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.all[name]
	if of == nil || !of.Ended.IsZero() || !of.Identity.IsZero() && of.Identity != h.ID {
		return nil
	}
	if w := of.asker(h.ID, h.Process); w != nil {
		now := time.Now()
		if w.First.IsZero() {
			w.First = now
		} else if gap := now.Sub(w.Last); w.Shortest == 0 || gap < w.Shortest {
			w.Shortest = gap
		}
		w.Last = now
		if asks {
			w.Asks++
		} else {
			w.Calls++
		}
	}
	return fmt.Errorf("%w: %s: an administrator withholds it until %s", credential.ErrRevoked, name, of.Until.UTC().Format("15:04:05 MST"))
}

// served notes that a holder got something, which after a drill is its recovery.
func (d *drills) served(h credential.Holder, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.all[name]
	if of == nil || of.Ended.IsZero() {
		return
	}
	if w := of.asker(h.ID, h.Process); w != nil && w.Recovered.IsZero() {
		w.Recovered = time.Now()
	}
}

// finish ends a drill, once.
func (d *drills) finish(of *drilling) {
	d.mu.Lock()
	ended := of.Ended.IsZero()
	if ended {
		of.Ended = time.Now()
		of.timer.Stop()
	}
	d.mu.Unlock()
	if ended && of.over != nil {
		of.over()
	}
}

// EndDrill ends a drill before its time.
func (m *Manager) EndDrill(name string) error {
	m.drills.mu.Lock()
	of := m.drills.all[name]
	m.drills.mu.Unlock()
	if of == nil {
		return fmt.Errorf("%w: %s", ErrNoDrill, name)
	}
	m.drills.finish(of)
	return nil
}

// Drill says how a drill goes, or went.
func (m *Manager) Drill(name string) (Drill, error) {
	m.drills.mu.Lock()
	defer m.drills.mu.Unlock()
	of := m.drills.all[name]
	if of == nil {
		return Drill{}, fmt.Errorf("%w: %s", ErrNoDrill, name)
	}
	report := of.Drill
	for _, w := range of.watched {
		report.Holders = append(report.Holders, *w)
	}
	slices.SortFunc(report.Holders, func(a, b DrillHolder) int { return a.Process.PID - b.Process.PID })
	return report, nil
}
