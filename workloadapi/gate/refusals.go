package gate

import (
	"sync"

	"golang.org/x/time/rate"
)

// Refusals are records too, and a record costs a write to disk. A user whose
// processes are refused again and again is therefore told to wait, at no cost,
// and the next record counts what was left out.
const (
	refusalsPerSecond = 1
	refusalBurst      = 100
)

// All refusals together, of however many people, leave the log to those who get
// something.
const (
	allRefusalsPerSecond = 20
	allRefusalBurst      = 2000
)

type refusals struct {
	mu     sync.Mutex // guards the fields below
	all    *rate.Limiter
	people map[uint32]*refused
}

type refused struct {
	limit      *rate.Limiter
	suppressed int
}

func newRefusals() *refusals {
	return &refusals{all: rate.NewLimiter(allRefusalsPerSecond, allRefusalBurst), people: make(map[uint32]*refused)}
}

// allow reports whether a refusal of this person may be recorded now, and how
// many were not since the last one that was.
func (r *refusals) allow(person uint32) (suppressed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.people[person]
	if of == nil {
		of = keep(r.people, person, &refused{limit: rate.NewLimiter(refusalsPerSecond, refusalBurst)}, func(o *refused) bool {
			return o.suppressed == 0 && o.limit.Tokens() >= refusalBurst
		})
	}
	if !of.limit.Allow() || !r.all.Allow() {
		of.suppressed++
		return 0, false
	}
	suppressed, of.suppressed = of.suppressed, 0
	return suppressed, true
}
