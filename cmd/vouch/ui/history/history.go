// Package history keeps what a page shows of a log: who got, used and was refused what, in
// minutes, and what is going on at its end.
//
// It reads the log once, and from then on what is appended, so that showing it costs the
// same however long the log is. What it keeps is bounded; the oldest goes first. It checks no
// proofs.
package history

import (
	"context"
	"io/fs"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/audit/reader"
)

// Options are what a history is of.
type Options struct {
	From  time.Time            // records from before are not read
	Alive func(p Process) bool // whether a process still runs; nil: nobody can tell
}

// A History is what a log has told so far. Its methods are safe for concurrent use.
type History struct {
	opt Options

	mu        sync.Mutex // guards the fields below
	names     *names
	minutes   minutes
	refusals  []Refusal // the oldest first
	under     map[string]*Call
	processes processes
	summary   *analyst.Summary
	state     State
}

// A State says how far a log has been read, and how it is.
type State struct {
	Read     uint64    // records
	Next     uint64    // index of the next record
	CaughtUp bool      // with the log's end, at least once
	Begins   time.Time // what is from before is not kept
	Last     time.Time // when the last record was made
	Err      error     // why reading goes no further, for now

	Anchor   time.Time // when the TPM last bound the log
	Anchored uint64    // records that it bound
	Unbound  string    // why it could not, if the last attempt failed
}

// New returns a history that knows nothing yet.
func New(o Options) *History {
	return &History{
		opt: o, names: newNames(), under: make(map[string]*Call),
		processes: processes{alive: o.Alive, of: make(map[int]*Process)},
		summary:   analyst.NewSummary(analyst.Query{From: o.From}),
		state:     State{Begins: o.From},
	}
}

const (
	lookEvery  = time.Second     // for new records
	tryAgainIn = 3 * time.Second // after an error
)

// Follow reads the log until the context ends. A log that cannot be read is tried again, and
// opened anew for that: it may have been moved away.
func (h *History) Follow(ctx context.Context, open func() (fsys fs.FS, done func() error, err error)) {
	for ctx.Err() == nil {
		err := h.follow(ctx, open)
		h.mu.Lock()
		h.state.Err = err
		h.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(tryAgainIn):
		}
	}
}

func (h *History) follow(ctx context.Context, open func() (fs.FS, func() error, error)) error {
	fsys, done, err := open()
	if err != nil {
		return err
	}
	defer done()
	from := h.State().Next
	if from == 0 {
		if from, err = reader.Since(fsys, h.opt.From); err != nil {
			return err
		}
	}
	for {
		for e, err := range reader.Records(ctx, fsys, from) {
			if err != nil {
				return err
			}
			h.Take(&e.Leaf)
			from = e.Index + 1
		}
		h.End()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
	}
}

// End notes that the log's end was reached.
func (h *History) End() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.CaughtUp, h.state.Err = true, nil
}

// State returns how far the log has been read.
func (h *History) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// Take takes the next record.
func (h *History) Take(l *audit.Leaf) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Read++
	h.state.Next, h.state.Last = l.Index+1, l.Time
	h.summary.Take(l)
	switch l.Event {
	case audit.EventStart:
		clear(h.under) // what an earlier daemon was about is cut off
	case audit.EventAnchor:
		h.anchor(l)
	}
	if l.Time.Before(h.opt.From) {
		return
	}
	if dropped := h.minutes.take(h.names, l); !dropped.IsZero() {
		h.state.Begins = dropped
	}
	h.calls(l)
	h.processes.take(l)
	if refused(l) {
		h.refuse(l)
	}
}

func (h *History) anchor(l *audit.Leaf) {
	if l.Outcome != audit.Success || l.Log == nil {
		h.state.Unbound = analyst.Reason(l)
		return
	}
	h.state.Anchor, h.state.Anchored, h.state.Unbound = l.Time, l.Log.Size, ""
}
