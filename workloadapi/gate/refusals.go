package gate

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Refusals are records too, and a record costs a write to disk. A person whose
// processes are refused again and again is therefore told to wait, at no cost,
// and one record a minute counts what was left out. All refusals together, of
// however many people, have a rate and a share of the log; but a first one of
// each person in a minute is always recorded.
const (
	refusalsPerSecond    = 1
	refusalBurst         = 100
	allRefusalsPerSecond = 20
	allRefusalBurst      = 2000
	sumEvery             = time.Minute
)

type refusals struct {
	share  *rate.Limiter
	scarce func() bool // whether the log is half full, and the share counts

	mu     sync.Mutex // guards the fields below
	all    *rate.Limiter
	people map[uint32]*refused
}

type refused struct {
	limit      *rate.Limiter
	recorded   time.Time // the last one
	suppressed int
}

func newRefusals(share Share, scarce func() bool) *refusals {
	return &refusals{
		share: share.each(), scarce: scarce,
		all: rate.NewLimiter(allRefusalsPerSecond, allRefusalBurst), people: make(map[uint32]*refused),
	}
}

// allow reports whether a refusal of this person may be recorded now, and
// otherwise whether it is the first that is only counted: what becomes of the
// count, take says.
func (r *refusals) allow(person uint32) (ok, first bool) {
	now, scarce := time.Now(), r.scarce()
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.people[person]
	if of == nil {
		of = keep(r.people, person, &refused{limit: rate.NewLimiter(refusalsPerSecond, refusalBurst)}, func(o *refused) bool {
			return o.suppressed == 0 && o.limit.TokensAt(now) >= refusalBurst
		})
	}
	mine := of.limit.AllowN(now, 1)
	room := r.share.AllowN(now, 1) || !scarce
	if mine && r.all.AllowN(now, 1) && room || now.Sub(of.recorded) >= sumEvery {
		of.recorded = now
		return true, false
	}
	of.suppressed++
	return false, of.suppressed == 1
}

// take returns how many refusals of a person were only counted, and resets the count.
func (r *refusals) take(person uint32) (suppressed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if of := r.people[person]; of != nil {
		suppressed, of.suppressed = of.suppressed, 0
	}
	return suppressed
}
