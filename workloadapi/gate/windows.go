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

// A process that asks for the same again and again is given what it got just
// before, and one record says how often. Every SVID is in the log all the same,
// and every answer goes through all of the gate.
const (
	repeatsPerSecond = 1
	repeatBurst      = 30
	maxWindow        = 5 * time.Second
)

// A Repeat says what makes two answers to one process the same.
type Repeat struct {
	Of  string        // what is asked for, such as the audience; with the event and the entries it is the whole
	For time.Duration // how long an answer may be given again; at most 5 s
}

// windows are what processes got last.
type windows struct {
	mu   sync.Mutex // guards the windows
	open map[windowKey]*window
}

type windowKey struct {
	kind    string // of the answer
	pid     int
	start   uint64
	event   audit.Event
	of      string
	granted string
}

// A window is one answer, and what came of it since.
type window struct {
	asked  *rate.Limiter
	answer any // nil: none that may be given again
	count  int // how often it was
	close  *time.Timer
}

// AnswerAgain is [Answer], but that a process which asks too often for the same
// gets what it got before: nothing that it does not have, and no record of its
// own.
func AnswerAgain[T any](ctx context.Context, c *Caller, same Repeat, build func(context.Context, *Caller) (T, []audit.Record, error)) (answer T, err error) {
	w := &c.gate.windows
	key := keyOf(c, same, fmt.Sprintf("%T", answer))
	if old, ok := w.again(key); ok {
		if err := c.prove(ctx); err != nil {
			return answer, c.Refuse(ctx, c.request.Event, err)
		}
		c.gate.recorder.limited.repeats.Add(1)
		return old.(T), nil
	}
	answer, err = Answer(ctx, c, build)
	if err == nil {
		w.keep(key, answer, min(same.For, maxWindow), func(count int) {
			r := c.DescribeAs(audit.EventWorkload, c.Entries[0])
			r.Duration = 0
			r.Reason = fmt.Sprintf("asked too often: what %s handed out was given to the same process %d more times", c.RequestID, count)
			if err := c.gate.recorder.Record(context.WithoutCancel(ctx), r); err != nil {
				c.gate.logger.Error("recording repeated answers", "request", c.RequestID, "err", err)
			}
		})
	}
	return answer, err
}

// keyOf names the process, and everything that the answer depends on.
func keyOf(c *Caller, same Repeat, kind string) windowKey {
	var granted strings.Builder
	for _, e := range c.Entries {
		fmt.Fprintf(&granted, "%s %s %s %q\n", e.ID, e.X509TTL, e.JWTTTL, e.Hint)
	}
	return windowKey{kind, c.Process.PID, c.Process.StartTime, c.request.Event, same.Of, granted.String()}
}

// again counts a request, and returns the last answer if this is one too many.
func (w *windows) again(key windowKey) (answer any, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = make(map[windowKey]*window)
	}
	of := w.open[key]
	if of == nil {
		of = keep(w.open, key, &window{asked: rate.NewLimiter(repeatsPerSecond, repeatBurst)}, func(o *window) bool {
			return o.answer == nil && o.asked.Tokens() >= repeatBurst
		})
	}
	if of.asked.Allow() || of.answer == nil {
		return nil, false
	}
	of.count++
	return of.answer, true
}

// keep holds an answer for a while, and then tells how often it was given again.
func (w *windows) keep(key windowKey, answer any, d time.Duration, tell func(count int)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	of := w.open[key]
	if of == nil || of.answer != nil || d <= 0 || of.asked.Tokens() >= 1 {
		return // it was forgotten, is held already, or is not asked for too often
	}
	of.answer = answer
	of.close = time.AfterFunc(d, func() {
		w.mu.Lock()
		count := of.count
		of.answer, of.count = nil, 0
		w.mu.Unlock()
		if count > 0 {
			tell(count)
		}
	})
}
