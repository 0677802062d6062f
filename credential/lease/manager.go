// Package lease is the engine that grants leases of credentials, renews them and ends
// them.
//
// The daemon holds the means to obtain a credential, and a workload gets a short-lived one
// of its own for as long as it runs. A lease is written down before the upstream is asked,
// with a handle by which it can be found there, and every later step is written down before
// it is taken: whatever crashes, the next start finds what may exist upstream and ends it.
// Nothing is handed out that was not durably recorded first. What can happen to a lease, and
// what must be durable for it, is one table: life.
//
// Its parts share one mutex, that of the book, which is never held while waiting for the
// journal, the log or an upstream. grants and renewals act for a holder's request and own
// its lease until it is over; ends owns a lease from the moment its end begins; the
// schedule, the holders and the recovery only say that it begins.
//
// Out of reach: if the journal is replaced with an older copy, it forgets the leases granted
// since; the attestation log still has them.
package lease

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease/journal"
)

// A Recorder keeps what happened to leases. When Record returns nil, the event
// is durable.
type Recorder interface {
	Record(ctx context.Context, e credential.Event) error
}

// Processes finds what leases are bound to again after a restart.
type Processes interface {
	// Find returns a channel that is closed when the process (or for
	// [credential.BindUnit] the unit's invocation) ends. It returns false only
	// if that is known to have ended already, as after a reboot.
	Find(p credential.Process, b credential.Bind) (end <-chan struct{}, alive bool, err error)
}

// A Config is what a Manager works with. Every field but Now is needed.
type Config struct {
	Journal     string // path of the lease journal, in the daemon's locked state directory
	Sealer      credential.Sealer
	Recorder    Recorder
	Processes   Processes
	Definitions *credential.Definitions
	Log         *slog.Logger
	Now         func() time.Time // the wall clock; nil for the machine's
}

// A Manager grants leases and ends them. It is safe for concurrent use.
type Manager struct {
	engine   *engine
	grants   *grants
	renewals *renewals
	calls    *calls
	drills   *drills
	cancel   context.CancelFunc // of the engine's ctx
}

// engine is the parts that work on leases. None changes once it is open; what
// they keep is guarded by the book's mu.
type engine struct {
	book     *book
	records  *records
	clock    clock
	schedule *schedule
	holders  *holders
	ends     *ends
	log      *slog.Logger
	ctx      context.Context // ends when the manager closes
	work     *sync.WaitGroup // what has to end before it is closed
}

// Open opens the journal and continues with what is in it: plans whose outcome
// is unknown, leases whose holder is gone or whose time is over, and ends that
// were not confirmed are taken up at once, in the background.
func Open(ctx context.Context, c Config) (*Manager, error) {
	j, states, err := journal.Open(ctx, c.Journal, c.Sealer)
	if err != nil {
		return nil, err
	}
	idKey, err := j.Derive("vouchd lease id")
	if err != nil {
		j.Close()
		return nil, err
	}
	handleKey, err := j.Derive("vouchd call handle")
	if err != nil {
		j.Close()
		return nil, err
	}
	m := newManager(c, &records{journal: j, recorder: c.Recorder, idKey: idKey, log: c.Log})
	m.calls.handleKey = handleKey
	if err := (recovery{m.engine, c.Processes}).all(states); err != nil {
		m.cancel()
		j.Close()
		return nil, err
	}
	e := m.engine
	e.work.Go(func() { timekeeper{e.book, e.schedule, e.ends}.keep(e.ctx) })
	return m, nil
}

func newManager(c Config, r *records) *Manager {
	clk := clock{now: c.Now, started: time.Now()}
	if clk.now == nil {
		clk.now = time.Now
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &engine{
		book:     newBook(c.Definitions),
		records:  r,
		clock:    clk,
		schedule: &schedule{clock: clk, wake: make(chan struct{}, 1)},
		log:      c.Log,
		ctx:      ctx,
		work:     new(sync.WaitGroup),
	}
	e.ends = &ends{engine: e, queues: make(map[*credential.Definition]*queue)}
	e.holders = &holders{book: e.book, watches: make(map[watchKey]*watch), ended: e.ends.begin, ctx: ctx, work: e.work}
	d := &drills{engine: e, processes: c.Processes, all: make(map[string]*drilling)}
	g := &grants{e, d}
	return &Manager{
		engine: e, grants: g, renewals: &renewals{e}, calls: &calls{engine: e, grants: g, seats: make(map[seatKey]*seat)}, drills: d, cancel: cancel,
	}
}

// Close stops the manager. Leases are left as they are: those whose holders are gone by the
// next start are ended then. To end them now, call RevokeWhere first.
func (m *Manager) Close() {
	m.engine.book.close(func() {
		m.cancel()
		m.engine.work.Wait()
		m.engine.records.journal.Close()
	})
}

// Err returns why nothing can be granted, if the journal has failed. What is
// there is still ended.
func (m *Manager) Err() error { return m.engine.records.journal.Err() }

// Grant leases a credential to the holder. When it returns a Grant, the lease
// and its record are durable. If ctx ends first, whatever came of it is ended.
// A caller whose reply does not get through should revoke the lease.
//
// Of a credential that is delivered by the proxy, the holder gets a handle in place of
// the value; it may have the lease already.
func (m *Manager) Grant(ctx context.Context, h credential.Holder, a credential.Ask) (*credential.Grant, error) {
	g, err := m.grant(ctx, h, a)
	if err == nil {
		m.drills.served(h, a.Name)
	}
	return g, err
}

func (m *Manager) grant(ctx context.Context, h credential.Holder, a credential.Ask) (*credential.Grant, error) {
	if d, ok := m.Definitions().Get(a.Name); ok && (d.Proxy != nil || d.Database != nil) {
		return m.calls.grant(ctx, h, a, d)
	}
	return m.grants.grant(ctx, h, a)
}

// Call returns what the holder's next call with a proxied credential is made with. It
// grants a lease where the holder has none, or an expired one; after one that was
// revoked, the error is [credential.ErrRevoked], until the holder asks for another.
func (m *Manager) Call(ctx context.Context, h credential.Holder, a credential.Ask) (*Call, error) {
	return m.drilled(ctx, h, a, m.calls.call)
}

// drilled makes a call or connection, unless a drill withholds the credential.
func (m *Manager) drilled(ctx context.Context, h credential.Holder, a credential.Ask, make func(context.Context, credential.Holder, credential.Ask) (*Call, error)) (*Call, error) {
	if err := m.drills.refuses(h, a.Name, false); err != nil {
		return nil, err
	}
	c, err := make(ctx, h, a)
	if err == nil {
		m.drills.served(h, a.Name)
	}
	return c, err
}

// IsHandle reports whether a handle is that of a credential, given to the process.
func (m *Manager) IsHandle(handle, credential string, p credential.Process) bool {
	return m.calls.isHandle(handle, credential, p)
}

// Renew lets a lease of the holder live longer: for a TTL from now, or its
// definition's if that is 0, and never beyond its latest end.
func (m *Manager) Renew(ctx context.Context, h credential.Holder, r credential.Renewal) (credential.Lease, error) {
	return m.renewals.renew(ctx, h, r)
}

// Revoke ends a lease of the holder, and returns once the upstream has confirmed it (or can
// only let it expire), or ctx ends. The asker is in the records of the end; nil if there is
// none to name.
func (m *Manager) Revoke(ctx context.Context, h credential.Holder, id string, asker *credential.Asker) error {
	b := m.engine.book
	b.mu.Lock()
	l := b.leases[id]
	if l == nil || !h.Holds(&l.Lease) {
		b.mu.Unlock()
		return fmt.Errorf("revoking lease %.64q: %w", id, credential.ErrNoLease)
	}
	if !l.ending() {
		l.asker = asker
	}
	ended := m.engine.ends.beginAll([]*lease{l}, "revoked by its holder")
	b.mu.Unlock()
	return m.engine.ends.wait(ctx, ended)
}

// Await returns why a lease of the holder ends, once that begins, and whether it
// is because it expired.
func (m *Manager) Await(ctx context.Context, h credential.Holder, id string) (reason string, expired bool, err error) {
	b := m.engine.book
	b.mu.Lock()
	l := b.leases[id]
	if l == nil || !h.Holds(&l.Lease) {
		b.mu.Unlock()
		return "", false, fmt.Errorf("awaiting the end of lease %.64q: %w", id, credential.ErrNoLease)
	}
	over := l.overChannel()
	if l.ending() {
		defer b.mu.Unlock()
		return l.Reason, strings.HasPrefix(l.Reason, "expired"), nil
	}
	b.mu.Unlock()
	select {
	case <-over:
	case <-ctx.Done():
		return "", false, ctx.Err()
	case <-m.engine.ctx.Done():
		return "", false, credential.ErrClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.Reason, strings.HasPrefix(l.Reason, "expired"), nil
}

// RevokeWhere ends leases, returns how many, and waits as Revoke does. They no
// longer count against the limits of their identities, however long their end takes.
// Leases that a drill pulled are among them: none follows on those when it is over.
func (m *Manager) RevokeWhere(ctx context.Context, w credential.Where, reason string) (int, error) {
	b := m.engine.book
	b.mu.Lock()
	chosen := b.choose(w)
	for _, l := range chosen {
		b.free(l)
	}
	ended := m.engine.ends.beginAll(chosen, clip(reason, maxReason))
	gone := m.drills.cut(w, clip(reason, maxReason))
	b.mu.Unlock()
	return len(ended) + gone, m.engine.ends.wait(ctx, ended)
}

// Abandon ends a lease without waiting for it, if it has not ended yet.
func (m *Manager) Abandon(id, reason string) {
	m.engine.book.mu.Lock()
	defer m.engine.book.mu.Unlock()
	if l := m.engine.book.leases[id]; l != nil {
		m.engine.ends.begin(l, reason)
	}
}

// Definitions returns the definitions in force.
func (m *Manager) Definitions() *credential.Definitions { return m.engine.book.definitions() }

// SetDefinitions puts other definitions into force. Leases of credentials that
// are no longer defined are ended; the others stay, and are ended by the
// definition that granted them.
func (m *Manager) SetDefinitions(defs *credential.Definitions) {
	b := m.engine.book
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.defs
	b.defs = defs
	for _, l := range b.leases {
		if l.source == nil {
			if b.adopt(l); l.source != nil {
				m.engine.ends.begin(l, l.Reason)
			}
			continue
		}
		if _, ok := defs.Get(l.Credential); !ok {
			m.engine.ends.begin(l, "credential was removed from the configuration")
		}
	}
	for _, d := range old.All() {
		b.retire(d)
	}
}

// List returns those of the granted credentials that are defined, by name.
func (m *Manager) List(granted []string) []*credential.Definition {
	defs := m.Definitions()
	var list []*credential.Definition
	for _, name := range granted {
		if d, ok := defs.Get(name); ok {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b *credential.Definition) int { return cmp.Compare(a.Name, b.Name) })
	return slices.Compact(list)
}

// Leases returns every lease that has not ended, the oldest first.
func (m *Manager) Leases() []credential.Lease {
	b := m.engine.book
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]credential.Lease, 0, len(b.leases))
	for _, l := range b.leases {
		list = append(list, l.Lease)
	}
	slices.SortFunc(list, func(a, b credential.Lease) int {
		return cmp.Or(a.Granted.Compare(b.Granted), strings.Compare(a.ID, b.ID))
	})
	return list
}

// Lease returns a lease that has not ended.
func (m *Manager) Lease(id string) (credential.Lease, bool) {
	m.engine.book.mu.Lock()
	defer m.engine.book.mu.Unlock()
	if l := m.engine.book.leases[id]; l != nil {
		return l.Lease, true
	}
	return credential.Lease{}, false
}

// LeaseHash returns how events refer to a lease: by a keyed hash, so that only the daemon
// can tell from the log which leases a workload's own records mean.
func (m *Manager) LeaseHash(id string) string { return m.engine.records.hash(id) }
