package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vouchd/vouchd/attest/process"
)

// attestedFor is how long what was attested of a process counts for its next requests.
// Before each of them is answered, the gate looks whether the process is still the same
// program, under the same credentials, in the same place.
const attestedFor = time.Second

// sightings are what processes were attested as. The methods are safe for concurrent use.
type sightings struct {
	mu sync.Mutex // guards the field below
	of map[sighted]sighting
}

// sighted names a process.
type sighted struct {
	pid   int
	start uint64
}

type sighting struct {
	as *process.Attested
	at time.Time
}

// maxSightings bounds what is remembered.
const maxSightings = 4096

// attest returns what a process is.
func (s *sightings) attest(ctx context.Context, a *process.Attester, p *process.Peer) (*process.Attested, error) {
	start, err := p.StartTime()
	if err != nil {
		return nil, err
	}
	key, now := sighted{p.PID(), start}, time.Now()
	s.mu.Lock()
	last, ok := s.of[key]
	s.mu.Unlock()
	if ok && now.Sub(last.at) < attestedFor {
		return last.as, p.Alive()
	}
	at, err := a.Attest(ctx, p)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil || len(s.of) >= maxSightings {
		s.of = make(map[sighted]sighting)
	}
	s.of[key] = sighting{at, now}
	return at, nil
}

// forgetAt forgets all at each change of the rules, which may want to know more of a
// process, until the context ends.
func (s *sightings) forgetAt(ctx context.Context, changed func() <-chan struct{}) {
	for {
		select {
		case <-changed():
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		s.of = nil
		s.mu.Unlock()
	}
}

// looks lets requests of one process share a look at it. One that has begun is for those
// who came before it; who comes later waits for the next.
type looks struct {
	mu sync.Mutex // guards the field below
	at map[*process.Attested]*look
}

// A look is under way, or the next of one that is.
type look struct {
	done chan struct{}
	err  error // once done
	next *look // for those who came too late; guarded by looks.mu
}

// unchanged is [process.Attester.Unchanged], shared.
func (l *looks) unchanged(a *process.Attester, p *process.Peer, at *process.Attested) error {
	l.mu.Lock()
	if l.at == nil {
		l.at = make(map[*process.Attested]*look)
	}
	running := l.at[at]
	if running == nil {
		mine := &look{done: make(chan struct{})}
		l.at[at] = mine
		l.mu.Unlock()
		l.have(mine, a, p, at)
		return mine.err
	}
	next := running.next
	if next == nil {
		next = &look{done: make(chan struct{})}
		running.next = next
	}
	l.mu.Unlock()
	<-next.done
	if errors.Is(next.err, process.ErrPeerGone) {
		return a.Unchanged(p, at) // it may be the other's connection alone that has gone
	}
	return next.err
}

// have looks, and then once more for those who came meanwhile.
func (l *looks) have(now *look, a *process.Attester, p *process.Peer, at *process.Attested) {
	now.err = a.Unchanged(p, at)
	l.mu.Lock()
	next := now.next
	if next == nil {
		delete(l.at, at)
	} else {
		l.at[at] = next
	}
	l.mu.Unlock()
	close(now.done)
	if next != nil {
		go l.have(next, a, p, at)
	}
}
