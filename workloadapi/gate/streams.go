package gate

import (
	"sync"
	"sync/atomic"
)

// Streams are the answers that last: how many there are, and whether they are to
// end. The methods are safe for concurrent use.
type Streams struct {
	open     atomic.Int64
	once     sync.Once
	stopping chan struct{}
}

func newStreams() *Streams { return &Streams{stopping: make(chan struct{})} }

// Begin counts a stream until ended is called.
func (s *Streams) Begin() (ended func()) {
	s.open.Add(1)
	return func() { s.open.Add(-1) }
}

// Open returns how many there are.
func (s *Streams) Open() int64 { return s.open.Load() }

// Stop has them end.
func (s *Streams) Stop() { s.once.Do(func() { close(s.stopping) }) }

// Stopping returns a channel that is closed when they are to end.
func (s *Streams) Stopping() <-chan struct{} { return s.stopping }

// Err returns [ErrStopping] when they are to end, and nil before.
func (s *Streams) Err() error {
	select {
	case <-s.stopping:
		return ErrStopping
	default:
		return nil
	}
}
