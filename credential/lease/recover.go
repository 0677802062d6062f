package lease

import (
	"fmt"

	"github.com/vouchd/vouchd/credential"
)

// A recovery continues, at the start, with what the journal holds from before.
// The book's mu is held throughout.
type recovery struct {
	*engine
	processes Processes
}

func (r recovery) all(states map[string][]byte) error {
	r.book.mu.Lock()
	defer r.book.mu.Unlock()
	for id, b := range states {
		l, err := decode(id, b)
		if err != nil {
			return err
		}
		r.book.adopt(l)
		r.book.enter(l)
	}
	for _, l := range r.book.leases {
		if err := r.resume(l); err != nil {
			return err
		}
	}
	return nil
}

// resume continues with a lease where the daemon stopped.
func (r recovery) resume(l *lease) error {
	switch l.stage {
	case planned:
		// The request that it was for is over, however that went.
		return r.ends.letGo(l, "vouchd stopped before the upstream had answered")
	case active:
	default:
		r.ends.begin(l, l.Reason)
		return nil
	}
	left := l.Expires.Sub(r.clock.now())
	switch {
	case l.source == nil:
		r.ends.begin(l, "credential is no longer defined")
	case l.purpose == forConnection:
		r.ends.begin(l, "vouchd stopped, and the connection with it")
	case left <= 0:
		r.ends.begin(l, "expired")
	case l.Bind == credential.BindLease || r.rewatch(l):
		// Should the clock have been set back, the lease still has no more
		// than what it was granted with.
		r.schedule.in(l, min(left, l.Latest.Sub(l.Granted)))
	}
	return nil
}

// rewatch watches the process or unit of a lease again. It ends the lease, and
// returns false, if that is gone or cannot be told to be there.
func (r recovery) rewatch(l *lease) bool {
	end, alive, err := r.processes.Find(l.Process, l.Bind)
	switch {
	case err != nil:
		r.ends.begin(l, clip(fmt.Sprintf("looking for its %s: %v", l.Bind, err), maxReason))
		return false
	case !alive:
		r.ends.begin(l, fmt.Sprintf("%s ended while vouchd was not running", l.Bind))
		return false
	}
	r.holders.watch(l, end)
	return true
}
