package gate

import (
	"sync"
	"time"
)

// later does things after a while, or when it is closed: sums of what was counted
// reach the log before that ends.
type later struct {
	mu     sync.Mutex // guards the fields below
	closed bool
	due    map[*time.Timer]func()
	work   sync.WaitGroup
}

// do calls f once, after d or at the end, whichever comes first.
func (l *later) do(d time.Duration, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.work.Go(f)
		return
	}
	if l.due == nil {
		l.due = make(map[*time.Timer]func())
	}
	l.work.Add(1)
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		l.mu.Lock()
		f := l.due[t]
		delete(l.due, t)
		l.mu.Unlock()
		if f != nil {
			defer l.work.Done()
			f()
		}
	})
	l.due[t] = f
}

// close does what is due yet, and returns once all is done.
func (l *later) close() {
	l.mu.Lock()
	l.closed = true
	due := l.due
	l.due = nil
	l.mu.Unlock()
	for t, f := range due {
		t.Stop()
		f()
		l.work.Done()
	}
	l.work.Wait()
}
