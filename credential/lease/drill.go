package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
)

// A Drill is a credential that is withheld for a while on purpose, to see what those who use
// it do. A daemon that starts anew has ended it.
type Drill struct {
	Credential string
	Identity   spiffeid.ID // zero: everybody
	Began      time.Time
	Until      time.Time
	Ended      time.Time // zero: it is going on
	Leases     int       // that were revoked

	Interrupted bool   // by an end of the daemon, which has forgotten what its users did
	Unconfirmed string // why not all of their upstreams have confirmed it; empty: they have
	Holders     []DrillHolder
}

// A DrillHolder is a process that had a lease when the drill began, or those of an identity
// that had none and have asked since.
type DrillHolder struct {
	Identity   spiffeid.ID
	Process    credential.Process    // of those, the last
	Held       bool                  // a lease, as the drill began
	Value      bool                  // it was given the value itself, whose use is not seen here
	Revocation credential.Revocation // what the upstream can do about that
	Asks       int                   // for a lease, refused
	Calls      int                   // or connections with a handle from before, refused
	First      time.Time             // of those that were refused
	Last       time.Time
	Shortest   time.Duration // between two that were refused; 0: there were not two
	Exited     time.Time     // the process, or what the lease was bound to; zero: it goes on
	Recovered  time.Time     // something was granted or called again, after the end
}

// DrillSteps make a drill durable. They are called one at a time.
type DrillSteps struct {
	Begin func(Drill) error // before it takes effect; an error keeps it from that
	End   func(Drill)       // before the credential is granted again, which nothing keeps from happening
}

// drillReason is why leases end at the beginning of a drill, as their holders are told.
const drillReason = "revoked by an administrator"

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

// drills are those that go on, and those that have ended lately. Their mu may be taken while
// the book's is held, and not the other way.
type drills struct {
	*engine
	processes Processes

	changing sync.Mutex // held from before a step is durable to its effect

	mu  sync.Mutex // guards the fields below
	all map[string]*drilling
}

type drilling struct {
	Drill
	watched map[seatKey]*DrillHolder
	pulled  []*lease
	timer   *time.Timer
	steps   DrillSteps
}

// BeginDrill revokes the leases of a credential, of everybody or of one identity, and refuses
// it until EndDrill or the deadline. Nobody holding it is an error, unless anyway.
func (m *Manager) BeginDrill(ctx context.Context, name string, id spiffeid.ID, length time.Duration, anyway bool, steps DrillSteps) error {
	def, ok := m.Definitions().Get(name)
	if !ok {
		return fmt.Errorf("%w: %s; add it to the credentials directory", credential.ErrUndefined, name)
	}
	if length < time.Second || length > MaxDrill {
		return fmt.Errorf("a drill lasts from a second to %v, not %v", MaxDrill, length)
	}
	where := credential.Where{Credential: name, Identity: id}
	of := &drilling{Drill: Drill{Credential: name, Identity: id}, watched: make(map[seatKey]*DrillHolder), steps: steps}
	held := slices.DeleteFunc(m.Leases(), func(l credential.Lease) bool { return !where.Chooses(&l) })
	ends := make(map[*DrillHolder]<-chan struct{})
	for _, l := range held {
		if w := of.hold(l, def); w != nil {
			if end, alive, err := m.drills.processes.Find(l.Process, l.Bind); err == nil && alive && end != nil {
				ends[w] = end
			}
		}
	}
	if err := m.drills.begin(of, length, len(held) > 0 || anyway); err != nil {
		return err
	}
	for w, end := range ends {
		m.drills.await(w, end)
	}
	if err := m.pull(ctx, where, of); err != nil {
		m.drills.mu.Lock()
		of.Unconfirmed = clip(err.Error(), maxReason)
		m.drills.mu.Unlock()
	}
	return nil
}

// begin has a drill refuse, once that is durable, if it may.
func (d *drills) begin(of *drilling, length time.Duration, may bool) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	now := time.Now()
	d.mu.Lock()
	for name, other := range d.all {
		if !other.Ended.IsZero() && now.Sub(other.Ended) > drillKept {
			delete(d.all, name)
		}
	}
	going := d.all[of.Credential]
	d.mu.Unlock()
	if going != nil && going.Ended.IsZero() {
		return fmt.Errorf("%w: %s, until %s", ErrDrilling, of.Credential, going.Until.Format(time.RFC3339))
	}
	if !may {
		return fmt.Errorf("%w: %s; start what uses it, or give --anyway to see who asks for it meanwhile", ErrNoHolders, of.Credential)
	}
	of.Began, of.Until = now, now.Add(length)
	if err := of.steps.Begin(of.Drill); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	of.timer = time.AfterFunc(time.Until(of.Until), func() {
		if d.ctx.Err() == nil {
			d.finish(of)
		}
	})
	d.all[of.Credential] = of
	return nil
}

// pull revokes the leases that a drill withholds, and waits as [Manager.RevokeWhere] does.
func (m *Manager) pull(ctx context.Context, where credential.Where, of *drilling) error {
	b := m.engine.book
	b.mu.Lock()
	chosen := b.choose(where)
	m.drills.mu.Lock()
	of.Leases = len(chosen)
	for _, l := range chosen {
		b.free(l)
		if !l.ending() {
			l.pulled = true
			of.pulled = append(of.pulled, l)
		}
	}
	m.drills.mu.Unlock()
	ended := m.engine.ends.beginAll(chosen, drillReason)
	b.mu.Unlock()
	return m.engine.ends.wait(ctx, ended)
}

// cut has leases that drills pulled be revoked for good, and returns how many of them had
// ended. The book's mu is held.
func (d *drills) cut(w credential.Where, reason string) (gone int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, of := range d.all {
		for _, l := range of.pulled {
			if !l.pulled || !w.Chooses(&l.Lease) {
				continue
			}
			l.pulled, l.Reason = false, reason
			if d.book.leases[l.ID] == nil {
				gone++
			}
		}
	}
	return gone
}

// await notes when a holder's process ends.
func (d *drills) await(w *DrillHolder, end <-chan struct{}) {
	d.work.Go(func() {
		late := time.NewTimer(MaxDrill + drillKept)
		defer late.Stop()
		select {
		case <-end:
			d.mu.Lock()
			defer d.mu.Unlock()
			w.Exited = time.Now()
		case <-late.C:
		case <-d.ctx.Done():
		}
	})
}

// hold has the holder of a lease watched, and returns it if it was not yet and there are not
// too many.
func (of *drilling) hold(l credential.Lease, def *credential.Definition) *DrillHolder {
	key := keyOf(l.Identity, of.Credential, credential.BindProcess, l.Process)
	if of.watched[key] != nil || len(of.watched) >= maxDrillHolders {
		return nil
	}
	w := &DrillHolder{
		Identity: l.Identity, Process: l.Process, Held: true, Revocation: l.Revocation,
		Value: def.Proxy == nil && def.Database == nil || def.Deliver == credential.DeliverBoth,
	}
	of.watched[key] = w
	return w
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
	return fmt.Errorf("%w: %s: withheld until %s", credential.ErrDrill, name, of.Until.UTC().Format("15:04:05 MST"))
}

// served notes that a holder got something, which after a drill is its recovery.
func (d *drills) served(h credential.Holder, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.all[name]
	if of == nil || of.Ended.IsZero() || !of.Identity.IsZero() && of.Identity != h.ID {
		return
	}
	if w := of.asker(h.ID, h.Process); w != nil && w.Recovered.IsZero() {
		w.Recovered = time.Now()
	}
}

// finish ends a drill, once that is durable.
func (d *drills) finish(of *drilling) {
	d.changing.Lock()
	defer d.changing.Unlock()
	d.mu.Lock()
	now := of.Drill
	d.mu.Unlock()
	if !now.Ended.IsZero() {
		return
	}
	of.steps.End(now)
	d.mu.Lock()
	defer d.mu.Unlock()
	of.Ended = time.Now()
	of.timer.Stop()
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

// RememberDrill has a drill told of that went on as the daemon ended, and so is over.
func (m *Manager) RememberDrill(of Drill) {
	m.drills.mu.Lock()
	defer m.drills.mu.Unlock()
	of.Ended, of.Interrupted = time.Now(), true
	m.drills.all[of.Credential] = &drilling{Drill: of, watched: make(map[seatKey]*DrillHolder)}
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

// Drills returns those that go on, by name.
func (m *Manager) Drills() (going []Drill) {
	m.drills.mu.Lock()
	defer m.drills.mu.Unlock()
	for _, of := range m.drills.all {
		if of.Ended.IsZero() {
			going = append(going, of.Drill)
		}
	}
	slices.SortFunc(going, func(a, b Drill) int { return strings.Compare(a.Credential, b.Credential) })
	return going
}
