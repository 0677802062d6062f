package lease

import (
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/vouchd/vouchd/credential"
)

// A book is the leases that have not ended, and what they count against. Its mu
// is the one mutex of the engine: what the schedule, the watches and the ends
// keep, and the fields of every lease, are guarded by it too. It is never held
// while the journal, the log or an upstream is waited for.
type book struct {
	mu     sync.Mutex // guards the fields below
	closed bool
	defs   *credential.Definitions // in force
	leases map[string]*lease       // by ID
	usage  map[quota]*usage
	held   map[*credential.Definition]int // leases that a definition is to end
}

// quota is what limits are counted by.
type quota struct {
	identity   spiffeid.ID
	credential string
}

// usage counts against limits. There are no more of them than entries grant.
type usage struct {
	leases int // that count: see uncount
	others int // that have not ended, and do not count
	grants *rate.Limiter
	rate   credential.Rate // that grants was made for
}

func newBook(defs *credential.Definitions) *book {
	return &book{
		defs:   defs,
		leases: make(map[string]*lease),
		usage:  make(map[quota]*usage),
		held:   make(map[*credential.Definition]int),
	}
}

// definitions returns those in force.
func (b *book) definitions() *credential.Definitions {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.defs
}

// reserve enters a lease, unless it is withheld, if its identity's limits allow one more.
func (b *book) reserve(l *lease, now time.Time, withheld func() error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return credential.ErrClosed
	}
	if err := withheld(); err != nil {
		return err
	}
	d, u := l.source, b.usageOf(l)
	if u.leases >= d.Limits.Concurrent {
		return fmt.Errorf("%w: %s has %d leases of %s, and may have %d; revoke one, or wait", credential.ErrLimit, l.Identity, u.leases, d.Name, d.Limits.Concurrent)
	}
	if u.others >= maxOthers {
		return fmt.Errorf("%w: %s has %d leases of %s that are ending or wait for their expiry; wait, or have an administrator run vouch lease revoke --identity %s", credential.ErrLimit, l.Identity, u.others, d.Name, l.Identity)
	}
	if u.rate != d.Limits.Rate {
		r := d.Limits.Rate
		u.rate, u.grants = r, rate.NewLimiter(rate.Limit(float64(r.N)/r.Per.Seconds()), r.N)
	}
	if !u.grants.AllowN(now, 1) {
		return fmt.Errorf("%w: %s may be granted %s %s; wait", credential.ErrLimit, l.Identity, d.Name, d.Limits.Rate)
	}
	b.enter(l)
	b.held[d]++
	return nil
}

// maxOthers bounds the leases of one credential that an identity does not hold
// and that are not gone.
const maxOthers = 10_000

// enter counts a lease. The book's mu is held.
func (b *book) enter(l *lease) {
	b.usageOf(l).leases++
	l.counts = counted
	b.leases[l.ID] = l
}

// uncount takes a lease off its identity's limit: nobody holds it, and the
// identity can do nothing about its end. The book's mu is held.
func (b *book) uncount(l *lease) {
	if u := b.usageOf(l); l.counts == counted {
		l.counts = other
		u.leases--
		u.others++
	}
}

// free takes a lease off every limit, as an administrator wants it. The book's mu
// is held.
func (b *book) free(l *lease) {
	b.uncount(l)
	if l.counts == other {
		l.counts = freed
		b.usageOf(l).others--
	}
}

// usageOf returns the count that a lease belongs to. The book's mu is held.
func (b *book) usageOf(l *lease) *usage {
	key := quota{l.Identity, l.Credential}
	u := b.usage[key]
	if u == nil {
		u = &usage{}
		b.usage[key] = u
	}
	return u
}

// adopt finds the definition that can end a lease. A definition that now names another
// upstream cannot. The book's mu is held.
func (b *book) adopt(l *lease) {
	d, ok := b.defs.Get(l.Credential)
	if ok && d.Broker == l.Broker && d.Traits.Upstream == l.Upstream {
		l.source = d
		b.held[d]++
	}
}

// remove strikes a lease out. The book's mu is held.
func (b *book) remove(l *lease) {
	delete(b.leases, l.ID)
	b.free(l)
	if l.source != nil {
		b.held[l.source]--
		b.retire(l.source)
	}
}

// retire closes the broker of a definition that is no longer in force, after
// its last lease. The book's mu is held.
func (b *book) retire(d *credential.Definition) {
	if b.held[d] > 0 {
		return
	}
	delete(b.held, d)
	if current, ok := b.defs.Get(d.Name); !ok || current != d {
		d.Close()
	}
}

// choose returns the leases that where chooses. The book's mu is held.
func (b *book) choose(w credential.Where) (chosen []*lease) {
	for _, l := range b.leases {
		if w.Chooses(&l.Lease) {
			chosen = append(chosen, l)
		}
	}
	return chosen
}

// close stops grants and ends, and lets go of the brokers once work has ended.
func (b *book) close(work func()) {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	work()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.defs.Close()
	for d := range b.held {
		d.Close()
	}
}
