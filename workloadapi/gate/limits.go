package gate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/vouchd/vouchd/identity"
)

// Errors for callers that ask for more than their share.
var (
	ErrTooOften = errors.New("too many answers under this identity")
	ErrShare    = errors.New("the identity's share of the attestation log is used up")
	ErrBusy     = errors.New("too many of this user's requests are being attested")
)

// Limited counts what was held back, since the start, by the limit that did.
type Limited struct {
	Connections uint64 // refused, because there were as many as are allowed
	Strangers   uint64 // connections closed, whose process was entitled to nothing
	Refusals    uint64 // that were counted, not recorded one by one
	TooOften    uint64 // answers refused, because their identity had too many
	Share       uint64 // answers refused, because their identity's share of the log is used up
	Busy        uint64 // requests refused, because too many of their user were being attested
	Repeats     uint64 // answers that were what the process had got just before
}

// counters are what Limited is read from.
type counters struct {
	connections, strangers, refusals, tooOften, share, busy, repeats atomic.Uint64
}

func (c *counters) read() Limited {
	return Limited{
		Connections: c.connections.Load(), Strangers: c.strangers.Load(), Refusals: c.refusals.Load(),
		TooOften: c.tooOften.Load(), Share: c.share.Load(), Busy: c.busy.Load(), Repeats: c.repeats.Load(),
	}
}

// Limited returns what the limits have held back since the start.
func (g *Gate) Limited() Limited { return g.recorder.limited.read() }

// maxKept bounds what is remembered of people, identities or processes that ask.
const maxKept = 4096

// keep adds an element to a map that is bounded; where it is full, those that
// idle reports go first, and else all.
func keep[K comparable, V any](m map[K]V, k K, v V, idle func(V) bool) V {
	if len(m) >= maxKept {
		for other, of := range m {
			if idle(of) {
				delete(m, other)
			}
		}
		if len(m) >= maxKept {
			clear(m)
		}
	}
	m[k] = v
	return v
}

// turnsEach is how many requests of one person are attested at a time. Slow hashing
// and slow file systems then hold up nobody else.
const (
	turnsEach = 32
	turnTime  = 5 * time.Second // that one more waits for its turn
)

// turns has each person's requests wait for one another.
type turns struct {
	mu     sync.Mutex // guards people
	people map[uint32]*turn
}

type turn struct {
	*semaphore.Weighted
	users int // that wait for it or have it
}

// take returns once there is a turn for the person, and what gives it back; it
// returns [ErrBusy] when none comes free.
func (t *turns) take(ctx context.Context, person uint32) (done func(), err error) {
	t.mu.Lock()
	if t.people == nil {
		t.people = make(map[uint32]*turn)
	}
	of := t.people[person]
	if of == nil {
		of = &turn{Weighted: semaphore.NewWeighted(turnsEach)}
		t.people[person] = of
	}
	of.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if of.users--; of.users == 0 {
			delete(t.people, person)
		}
	}
	wait, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	if err := of.Acquire(wait, 1); err != nil {
		leave()
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %d, and they take long; try again", ErrBusy, turnsEach)
		}
		return nil, err
	}
	return func() { of.Release(1); leave() }, nil
}

// How many answers all processes of one identity may get: enough for a machine
// that starts a thousand of them, and no flood.
const (
	answersPerSecond = 20
	answerBurst      = 1000
)

// A Share says how large the log may become and how long its records stay, by
// which each identity has a share of it. Zero bytes have no shares.
type Share struct {
	Bytes int64
	Keep  time.Duration
}

// shares is how many identities may each use their share of the log to its end.
const shares = 16

// recordLen is about what one record takes in the log, in bytes, with its
// checkpoint and its part of the tiles.
const recordLen = 2048

// each returns the bound of one identity's records: a burst, and how many a
// second refill it.
func (s Share) each() *rate.Limiter {
	if s.Bytes == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	records := max(512, s.Bytes/shares/recordLen)
	return rate.NewLimiter(rate.Limit(float64(records)/max(s.Keep, time.Hour).Seconds()), int(records))
}

// A spending is what one identity has taken.
type spending struct {
	answers *rate.Limiter
	records *rate.Limiter
}

// A ledger bounds how often identities are answered, and how much of the log they
// use. The log's shares apply once it is half full: until then, anyone may use what
// others do not need.
type ledger struct {
	share  Share
	scarce func() bool // whether the log is half full
	now    func() time.Time

	mu         sync.Mutex // guards identities
	identities map[string]*spending
}

// spend takes an answer with one record each from the identities, and returns
// [ErrTooOften] or [ErrShare] if one has none left. Calls are no answers.
func (l *ledger) spend(entries []identity.Entry, call bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, scarce := l.now(), l.scarce()
	for _, e := range entries {
		id := e.ID.String()
		s := l.identities[id]
		if s == nil {
			s = keep(l.identities, id, &spending{rate.NewLimiter(answersPerSecond, answerBurst), l.share.each()}, func(s *spending) bool {
				return s.answers.TokensAt(now) >= answerBurst && s.records.TokensAt(now) >= float64(s.records.Burst())
			})
		}
		if !call && !s.answers.AllowN(now, 1) {
			return fmt.Errorf("%w: %s; at most %d a second over time, try again in a second", ErrTooOften, e.ID, answersPerSecond)
		}
		// The share is counted before it binds, or the log's first half would
		// be free.
		if !s.records.AllowN(now, 1) && scarce {
			return fmt.Errorf("%w: %s; the log is more than half full: raise log.max_mib, or have it ask less often", ErrShare, e.ID)
		}
	}
	return nil
}

// spend takes an answer from the identities of the caller.
func (g *Gate) spend(c *Caller) error {
	err := g.recorder.ledger.spend(c.Entries, c.request.Call != nil)
	switch {
	case errors.Is(err, ErrTooOften):
		g.recorder.limited.tooOften.Add(1)
	case errors.Is(err, ErrShare):
		g.recorder.limited.share.Add(1)
	}
	return err
}
