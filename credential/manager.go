package credential

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
)

// A Config is what a Manager works with. Every field but Now is needed.
type Config struct {
	Journal     string // path of the lease journal, in the daemon's locked state directory
	Sealer      Sealer
	Recorder    Recorder
	Processes   Processes
	Definitions *Definitions
	Log         *slog.Logger
	Now         func() time.Time // the wall clock; nil for the machine's
}

// A Manager grants leases and ends them. It is safe for concurrent use.
type Manager struct {
	recorder  Recorder
	processes Processes
	log       *slog.Logger
	now       func() time.Time
	started   time.Time // for the monotonic clock
	journal   *journal
	idKey     []byte

	ctx    context.Context // ends when the manager closes
	cancel context.CancelFunc
	wake   chan struct{} // the schedule has an earlier first lease
	work   sync.WaitGroup

	mu       sync.Mutex // guards the fields below, and those of each lease
	closed   bool
	defs     *Definitions
	leases   map[string]*lease
	usage    map[quota]*usage
	watches  map[watchKey]*watch
	queues   map[*Definition]*queue
	schedule schedule
}

// quota is what limits are counted by.
type quota struct {
	identity   spiffeid.ID
	credential string
}

// usage counts against limits. There are no more of them than entries grant.
type usage struct {
	leases int // that have not ended
	grants *rate.Limiter
	rate   Rate // that grants was made for
}

// Open opens the journal and goes on with what is in it: plans whose outcome is
// unknown, leases whose holder is gone or whose time is over, and ends that were
// not confirmed are taken up at once, in the background.
func Open(ctx context.Context, c Config) (*Manager, error) {
	m := &Manager{
		recorder:  c.Recorder,
		processes: c.Processes,
		log:       c.Log,
		now:       c.Now,
		started:   time.Now(),
		wake:      make(chan struct{}, 1),
		defs:      c.Definitions,
		leases:    make(map[string]*lease),
		usage:     make(map[quota]*usage),
		watches:   make(map[watchKey]*watch),
		queues:    make(map[*Definition]*queue),
	}
	if m.now == nil {
		m.now = time.Now
	}
	journal, states, err := openJournal(ctx, c.Journal, c.Sealer)
	if err != nil {
		return nil, err
	}
	m.journal = journal
	m.idKey, err = hkdf.Key(sha256.New, journal.key[:], nil, "vouchd lease id", sha256.Size)
	if err != nil {
		journal.close()
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.recover(states); err != nil {
		m.cancel()
		journal.close()
		return nil, err
	}
	m.work.Go(m.keepTime)
	return m, nil
}

// Close stops the manager. Leases stay as they are: those that nobody holds any
// more are ended at the next start. To end them now, call RevokeWhere before.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.work.Wait()
	m.journal.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.defs.close()
	for _, l := range m.leases {
		if l.source != nil {
			l.source.close()
		}
	}
}

// Err returns why nothing can be granted any more, if the journal has failed.
// What is there is still ended.
func (m *Manager) Err() error {
	if err := m.journal.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Definitions returns the definitions in force.
func (m *Manager) Definitions() *Definitions {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.defs
}

// List returns those of the granted credentials that are defined, by name.
func (m *Manager) List(granted []string) []*Definition {
	defs := m.Definitions()
	var list []*Definition
	for _, name := range granted {
		if d, ok := defs.Get(name); ok {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b *Definition) int { return cmp.Compare(a.Name, b.Name) })
	return slices.Compact(list)
}

// Leases returns every lease that has not ended, the oldest first.
func (m *Manager) Leases() []Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Lease, 0, len(m.leases))
	for _, l := range m.leases {
		list = append(list, l.Lease)
	}
	slices.SortFunc(list, func(a, b Lease) int {
		return cmp.Or(a.Granted.Compare(b.Granted), strings.Compare(a.ID, b.ID))
	})
	return list
}

// Lease returns a lease that has not ended.
func (m *Manager) Lease(id string) (Lease, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.leases[id]; l != nil {
		return l.Lease, true
	}
	return Lease{}, false
}

// LeaseHash returns what events call a lease by: a keyed hash, so that the log
// does not tell which leases a workload's own records speak of to anyone but
// the daemon.
func (m *Manager) LeaseHash(id string) string {
	mac := hmac.New(sha256.New, m.idKey)
	mac.Write([]byte(id))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Revoke ends a lease of the holder, and returns once the upstream has
// confirmed it (or cannot do more than let it expire), or ctx ends.
func (m *Manager) Revoke(ctx context.Context, h Holder, id string) error {
	m.mu.Lock()
	l := m.leases[id]
	if l == nil || !h.holds(&l.Lease) {
		m.mu.Unlock()
		return fmt.Errorf("revoking lease %.64q: %w", id, ErrNoLease)
	}
	m.end(l, "revoked by its holder")
	ends := []ending{{l.Handle, l.Upstream, l.goneChannel()}}
	m.mu.Unlock()
	return m.await(ctx, ends)
}

// Where chooses leases by what is set; what is not set does not matter. With
// nothing set it chooses none.
type Where struct {
	All        bool
	Lease      string
	Identity   spiffeid.ID
	Credential string
}

func (w Where) chooses(l *Lease) bool {
	if w == (Where{}) {
		return false
	}
	return w.All || (w.Lease == "" || w.Lease == l.ID) &&
		(w.Identity.IsZero() || w.Identity == l.Identity) &&
		(w.Credential == "" || w.Credential == l.Credential)
}

// RevokeWhere ends leases, returns how many, and waits as Revoke does.
func (m *Manager) RevokeWhere(ctx context.Context, w Where, reason string) (int, error) {
	m.mu.Lock()
	var ends []ending
	for _, l := range m.leases {
		if w.chooses(&l.Lease) {
			m.end(l, clip(reason, maxReason))
			ends = append(ends, ending{l.Handle, l.Upstream, l.goneChannel()})
		}
	}
	m.mu.Unlock()
	return len(ends), m.await(ctx, ends)
}

// ending is a lease whose end was begun.
type ending struct {
	handle, upstream string
	gone             <-chan struct{}
}

// await waits until leases have ended, or only expire any more.
func (m *Manager) await(ctx context.Context, ends []ending) error {
	for _, e := range ends {
		select {
		case <-e.gone:
		case <-ctx.Done():
			return fmt.Errorf("revoking %s at %s is not confirmed yet and goes on: %w", e.handle, e.upstream, ctx.Err())
		case <-m.ctx.Done():
			return ErrClosed
		}
	}
	return nil
}

// goneChannel returns a channel that is closed when nothing is left of the lease
// that could be ended. The manager's mu is held.
func (l *lease) goneChannel() <-chan struct{} {
	if l.gone == nil {
		l.gone = make(chan struct{})
	}
	return l.gone
}

// tellGone closes what goneChannel gave out. The manager's mu is held.
func (l *lease) tellGone() {
	if l.gone != nil {
		close(l.gone)
		l.gone = nil
	}
}

// record makes an event durable, with what is known of the lease.
func (m *Manager) record(ctx context.Context, e Event) error {
	// The caller's leaving must not leave a step out of the log.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	e.Reason = clip(e.Reason, maxReason)
	e.ScopeAsked, e.ScopeGranted = bound(e.ScopeAsked), bound(e.ScopeGranted)
	if err := m.recorder.Record(ctx, e); err != nil {
		return fmt.Errorf("%w: %s of %s for %s: %w", ErrUnrecorded, e.Kind, e.Credential, e.Identity, err)
	}
	return nil
}

// recordTimeout bounds how long a step waits for the log.
const recordTimeout = 10 * time.Second

// event returns an event about a lease. The manager's mu is held, or the lease
// is busy in the caller's hands.
func (m *Manager) event(kind EventKind, l *lease) Event {
	return Event{
		Kind:       kind,
		Outcome:    Success,
		Identity:   l.Identity,
		Process:    l.Process,
		Lease:      m.LeaseHash(l.ID),
		Credential: l.Credential,
		Broker:     l.Broker,
		Upstream:   l.Upstream,
		Handle:     l.Handle,
		Revocation: l.Revocation,
		NotAfter:   l.Expires,
	}
}

// put writes a lease's state down.
func (m *Manager) put(id string, state []byte) error {
	if err := m.journal.put(id, state); err != nil {
		return fmt.Errorf("%w: %w", ErrUnrecorded, err)
	}
	return nil
}

// both makes a state and an event durable side by side: neither means anything
// without the other, and a step needs both.
func (m *Manager) both(ctx context.Context, id string, state []byte, e Event) error {
	put := make(chan error, 1)
	go func() { put <- m.put(id, state) }()
	err := m.record(ctx, e)
	return errors.Join(<-put, err)
}

// clock is monotonic.
func (m *Manager) clock() time.Duration { return time.Since(m.started) }
