package lease

import (
	"context"
	"sync"

	"github.com/vouchd/vouchd/credential"
)

// holders watches for the end of the processes and units that leases are bound
// to, each once for all its leases. The book's mu guards it.
type holders struct {
	book    *book
	watches map[watchKey]*watch
	ended   func(l *lease, reason string) // the book's mu is held
	ctx     context.Context               // ends when the engine closes
	work    *sync.WaitGroup
}

// A watch waits for the end of one process or unit.
type watch struct {
	key    watchKey
	leases map[*lease]struct{}
	stop   chan struct{}
}

type watchKey struct {
	bind    credential.Bind
	process credential.Process
}

// watch ends the lease when end is closed.
func (h *holders) watch(l *lease, end <-chan struct{}) {
	if l.Bind == credential.BindLease || end == nil {
		return
	}
	key := watchKey{l.Bind, l.Process}
	if key.bind == credential.BindUnit {
		key.process.PID, key.process.StartTime = 0, 0
	}
	w := h.watches[key]
	if w == nil {
		w = &watch{key: key, leases: make(map[*lease]struct{}, 1), stop: make(chan struct{})}
		h.watches[key] = w
		h.work.Go(func() { h.await(w, end) })
	}
	w.leases[l] = struct{}{}
	l.watch = w
}

func (h *holders) await(w *watch, end <-chan struct{}) {
	select {
	case <-end:
	case <-w.stop:
		return
	case <-h.ctx.Done():
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	if h.watches[w.key] == w {
		delete(h.watches, w.key)
	}
	for l := range w.leases {
		h.ended(l, string(w.key.bind)+" ended")
	}
}

// leave stops watching for a lease that is gone.
func (h *holders) leave(l *lease) {
	w := l.watch
	if w == nil {
		return
	}
	l.watch = nil
	delete(w.leases, l)
	if len(w.leases) == 0 && h.watches[w.key] == w {
		delete(h.watches, w.key)
		close(w.stop)
	}
}
