package gate

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Refusals are records too, and a record costs a write to disk. A user whose
// processes are refused again and again is therefore told to wait, at no cost,
// and the next record counts what was left out.
const (
	refusalsPerSecond = 20
	refusalBurst      = 100
	maxRefusedUsers   = 4096
)

type refusals struct {
	mu    sync.Mutex // guards users
	users map[uint32]*refusedUser
}

type refusedUser struct {
	limit      *rate.Limiter
	suppressed int
}

func newRefusals() *refusals { return &refusals{users: make(map[uint32]*refusedUser)} }

// allow reports whether a refusal of this user may be recorded now, and how
// many were not since the last one that was.
func (r *refusals) allow(uid uint32) (suppressed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.users[uid]
	if u == nil {
		if len(r.users) >= maxRefusedUsers {
			r.forget()
		}
		u = &refusedUser{limit: rate.NewLimiter(refusalsPerSecond, refusalBurst)}
		r.users[uid] = u
	}
	if !u.limit.Allow() {
		u.suppressed++
		return 0, false
	}
	suppressed, u.suppressed = u.suppressed, 0
	return suppressed, true
}

// forget drops the users whose limit has recovered, or all where none has.
func (r *refusals) forget() {
	now := time.Now()
	for uid, u := range r.users {
		if u.limit.TokensAt(now) >= refusalBurst {
			delete(r.users, uid)
		}
	}
	if len(r.users) >= maxRefusedUsers {
		clear(r.users)
	}
}
