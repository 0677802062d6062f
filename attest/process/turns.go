package process

import (
	"context"
	"sync"
)

// maxTurns bounds the attestations for one user that are made at a time.
const maxTurns = 32

// turns hands out turns to users, as many at a time to each.
type turns struct {
	mu    sync.Mutex // guards users and what it holds
	users map[uint32]*userTurns
}

type userTurns struct {
	slots chan struct{}
	using int // who has a turn or waits for one
}

// take waits for a turn of the user. Unless it returns an error, give is to be
// called afterwards.
func (t *turns) take(ctx context.Context, uid uint32) error {
	t.mu.Lock()
	if t.users == nil {
		t.users = make(map[uint32]*userTurns)
	}
	u := t.users[uid]
	if u == nil {
		u = &userTurns{slots: make(chan struct{}, maxTurns)}
		t.users[uid] = u
	}
	u.using++
	t.mu.Unlock()
	select {
	case u.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		t.leave(uid)
		return context.Cause(ctx)
	}
}

func (t *turns) give(uid uint32) {
	t.mu.Lock()
	u := t.users[uid]
	t.mu.Unlock()
	<-u.slots
	t.leave(uid)
}

func (t *turns) leave(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users[uid].using--; t.users[uid].using == 0 {
		delete(t.users, uid)
	}
}
