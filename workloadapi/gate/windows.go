package gate

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/vouchd/vouchd/audit"
)

// A process that asks for the same thing repeatedly gets what it got just before, and
// one record says how often. Every SVID is still in the log, and every answer passes
// the whole gate.
const (
	repeatsPerSecond = 1
	repeatBurst      = 30
	maxWindow        = 5 * time.Second
)

// A Repeat says what makes two answers to one process the same.
type Repeat struct {
	Of  string        // what is asked for, such as the audience; with the event and the entries it is the whole
	For time.Duration // how long an answer may be given again; at most 5 s, and never past the end of its SVIDs
}

// maxHeld bounds the answers of one process that may be given again.
const maxHeld = 16

// windows are what processes got last.
type windows struct {
	mu    sync.Mutex // guards the askers
	known map[windowKey]*asker
}

// windowKey names a process, and what it is entitled to.
type windowKey struct {
	pid     int
	start   uint64
	event   audit.Event
	granted string
}

// An asker is a process, how often it asks, and what it got.
type asker struct {
	asked *rate.Limiter
	held  map[string]*held // by what was asked for
}

// held is an answer that may be given again, and how often it was.
type held struct {
	answer any
	until  time.Time
	count  int
}

// AnswerAgain is [Answer], but that a process which asks too often for the same
// gets what it got before: nothing that it does not have, and no record of its
// own.
func AnswerAgain[T any](ctx context.Context, c *Caller, same Repeat, build func(context.Context, *Caller) (T, []audit.Record, error)) (answer T, err error) {
	w, key := &c.gate.windows, keyOf(c)
	if c.gate.recorder.log.Status().Err != nil {
		return Answer(ctx, c, build) // which says so: how often it was given again could not be recorded
	}
	if old, ok := w.again(key, same.Of); ok {
		if again, ok := old.(T); ok {
			if err := c.prove(ctx); err != nil {
				return answer, c.Refuse(ctx, c.request.Event, err)
			}
			c.gate.recorder.limited.repeats.Add(1)
			return again, nil
		}
	}
	until := time.Now().Add(min(same.For, maxWindow))
	answer, err = Answer(ctx, c, func(ctx context.Context, c *Caller) (T, []audit.Record, error) {
		answer, records, err := build(ctx, c)
		for _, r := range records {
			if r.SVID != nil && r.SVID.NotAfter.Before(until) {
				until = r.SVID.NotAfter
			}
		}
		return answer, records, err
	})
	if err != nil || !w.keep(key, same.Of, answer, until) {
		return answer, err
	}
	c.gate.recorder.later.do(time.Until(until), func() {
		n := w.release(key, same.Of)
		if n == 0 {
			return
		}
		r := c.DescribeAs(audit.EventWorkload, c.Entries[0])
		r.Duration = 0
		r.Reason = fmt.Sprintf("asked too often: what request %s handed out was given to the same process %d more times", c.RequestID, n)
		if err := c.gate.recorder.Record(context.WithoutCancel(ctx), r); err != nil {
			c.gate.logger.Error("recording repeated answers", "request", c.RequestID, "err", err)
		}
	})
	return answer, nil
}

func keyOf(c *Caller) windowKey {
	var granted strings.Builder
	for _, e := range c.Entries {
		fmt.Fprintf(&granted, "%s %s %s %s %q %q %q %q %d\n", e.ID, e.X509TTL, e.JWTTTL, e.JWTAlgorithm, e.Names, e.Hint, e.FederatesWith, e.Server, e.Revision)
	}
	return windowKey{c.Process.PID, c.Process.StartTime, c.request.Event, granted.String()}
}

// again counts a request, and returns the last answer to it if this is one too
// many.
func (w *windows) again(key windowKey, of string) (answer any, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known == nil {
		w.known = make(map[windowKey]*asker)
	}
	by := w.known[key]
	if by == nil {
		by = keep(w.known, key, &asker{rate.NewLimiter(repeatsPerSecond, repeatBurst), make(map[string]*held)}, func(o *asker) bool {
			return len(o.held) == 0 && o.asked.Tokens() >= repeatBurst
		})
	}
	if by.asked.Allow() {
		return nil, false
	}
	h := by.held[of]
	if h == nil || !time.Now().Before(h.until) {
		return nil, false
	}
	h.count++
	return h.answer, true
}

// keep holds an answer to a process that asks too often, until it is released; it is
// given again before until.
func (w *windows) keep(key windowKey, of string, answer any, until time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	by := w.known[key]
	if by == nil || by.held[of] != nil || len(by.held) >= maxHeld || by.asked.Tokens() >= 1 {
		return false
	}
	by.held[of] = &held{answer: answer, until: until}
	return true
}

// release lets go of an answer, and returns how often it was given again.
func (w *windows) release(key windowKey, of string) (count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	by := w.known[key]
	if by == nil || by.held[of] == nil {
		return 0
	}
	count = by.held[of].count
	delete(by.held, of)
	return count
}
