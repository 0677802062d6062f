package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
)

// An answer is one message of a stream, complete in itself (Workload API
// §4.3), with the records of what it hands out.
type answer[M any] struct {
	message *M
	records []audit.Record
	renew   time.Time // when the next is due if nothing changes; zero: never
}

// follow answers a stream: at once, and then whenever what the caller is
// entitled to changes, the bundle changes, or the answer is due for renewal.
// Before every answer the caller is attested anew. The stream ends when the
// process exits or is entitled to nothing any more.
func follow[M any](s *Server, stream grpc.ServerStreamingServer[M], event audit.Event, build func(context.Context, *caller) (*answer[M], error)) error {
	s.streams.Add(1)
	defer s.streams.Add(-1)
	var held *holding
	var files fileWatch
	defer files.close()
	for {
		next, err := aside(func() (*holding, error) { return advance(s, stream, event, held, build) })
		if err != nil {
			return err
		}
		held = next
		if err := s.wait(stream.Context(), held, &files); err != nil {
			return s.end(stream.Context(), held.caller, err)
		}
	}
}

// aside calls f on a goroutine of its own. Attesting and signing need a deep
// stack, which would stay with the stream's own goroutine while it waits, for
// hours and a thousand times.
func aside[T any](f func() (T, error)) (v T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err = f()
	}()
	<-done
	return v, err
}

// advance attests the caller, and sends it the next message if what it holds is
// not what it is entitled to any more.
func advance[M any](s *Server, stream grpc.ServerStreamingServer[M], event audit.Event, held *holding, build func(context.Context, *caller) (*answer[M], error)) (*holding, error) {
	ctx := stream.Context()
	next := &holding{grantsChanged: s.grantsChanged(), bundleChanged: s.o.Authority.Changed()}
	c, err := newCaller(ctx)
	if err != nil {
		return nil, s.toStatus(err, "")
	}
	if err := s.attest(ctx, c); err != nil {
		if held != nil && errors.Is(err, errNoIdentity) {
			c.lost = held.caller.entries
			err = fmt.Errorf("%w: %w: %s", errLost, err, s.whyLost(c))
		}
		return nil, s.refuse(ctx, c, refusalEvent(event, held), err)
	}
	next.caller, next.sequence = c, s.o.Authority.Bundle().Sequence
	if held.stillHolds(next) {
		next.renew = held.renew
		return next, nil
	}
	a, err := build(ctx, c)
	if err == nil {
		err = s.prove(ctx, c)
	}
	if err != nil {
		return nil, s.refuse(ctx, c, refusalEvent(event, held), err)
	}
	if err := s.record(ctx, a.records); err != nil {
		return nil, s.toStatus(err, c.requestID)
	}
	next.renew = a.renew
	return next, stream.Send(a.message)
}

// maxWhy bounds the entries and the gaps that a record tells of.
const maxWhy = 3

// whyLost says what the caller lacks for each identity that it had.
func (s *Server) whyLost(c *caller) string {
	var why []string
	have := s.selectors(c.process)
	for _, e := range c.lost[:min(len(c.lost), maxWhy)] {
		if missing := have.Missing(e.Selectors); len(missing) > 0 {
			why = append(why, fmt.Sprintf("it lacks %s for %s", strings.Join(missing.Strings(), " and "), e.ID))
		} else {
			why = append(why, fmt.Sprintf("the entry for %s is not in force any more", e.ID))
		}
	}
	for _, gap := range c.process.Gaps[:min(len(c.process.Gaps), maxWhy)] {
		why = append(why, gap.Error())
	}
	return strings.Join(why, "; ")
}

// refusalEvent tells a request that was never answered from a stream that is
// cut off.
func refusalEvent(event audit.Event, held *holding) audit.Event {
	if held == nil {
		return event
	}
	return audit.EventStreamEnd
}

// A holding is what a stream was last sent, and what would make it old.
type holding struct {
	caller        *caller
	sequence      uint64 // of the bundle
	renew         time.Time
	grantsChanged <-chan struct{}
	bundleChanged <-chan struct{}
}

// stillHolds reports whether a stream that was sent h need not be sent
// anything now that its process was found entitled to next.
func (h *holding) stillHolds(next *holding) bool {
	return h != nil && h.sequence == next.sequence &&
		(h.renew.IsZero() || time.Now().Before(h.renew)) &&
		sameGrants(h.caller.entries, next.caller.entries)
}

// sameGrants reports whether two matches lead to the same SVIDs.
func sameGrants(a, b []identity.Entry) bool {
	return slices.EqualFunc(a, b, func(x, y identity.Entry) bool {
		return x.ID == y.ID && x.X509TTL == y.X509TTL && x.Hint == y.Hint
	})
}

var (
	errExited      = errors.New("the process exited")
	errClientEnded = errors.New("the client ended the stream")
)

// wait returns nil when the caller is to be attested again, and otherwise why
// the stream ends.
func (s *Server) wait(ctx context.Context, h *holding, files *fileWatch) error {
	look := recheckEvery - rand.N(recheckEvery/4)
	if files.watch == nil {
		// Most streams that end do so at once. One that lasts is attested
		// again when the watch stands, so that no change goes unseen.
		look = settleTime
	}
	if !h.renew.IsZero() {
		look = min(look, max(0, time.Until(h.renew)))
	}
	timer := time.NewTimer(look)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return errClientEnded
		case <-s.stopping:
			return errStopping
		case <-h.caller.conn.Process().Done():
			return errExited
		case <-h.bundleChanged:
			return nil
		case <-files.changed():
			return nil
		case <-timer.C:
			s.watchFiles(files, h.caller.process)
			return nil
		case <-h.grantsChanged:
			// Of a thousand streams a change usually concerns one. For the
			// others the facts they were last attested with decide that
			// there is no hurry; they are attested again at the next look.
			h.grantsChanged = s.grantsChanged()
			if s.changesGrants(h.caller) {
				return nil
			}
		}
	}
}

// A fileWatch is the watch of the files that a stream's attestation rests on.
type fileWatch struct {
	watch *process.Watch // nil: none yet
	of    *process.Attested
}

func (f *fileWatch) changed() <-chan struct{} {
	if f.watch == nil {
		return nil
	}
	return f.watch.Changed()
}

func (f *fileWatch) close() {
	if f.watch != nil {
		f.watch.Close()
	}
}

// watchFiles has the watch cover the files that this attestation rests on.
func (s *Server) watchFiles(f *fileWatch, at *process.Attested) {
	if f.watch != nil && slices.Equal(f.of.Files, at.Files) && slices.Equal(f.of.Trees, at.Trees) {
		return
	}
	watch, err := s.o.Watcher.Watch(at)
	if err != nil {
		// What is not watched is noticed when the process is attested next.
		s.o.Logger.Warn("watching what an attestation rests on", "pid", at.PID, "err", err)
	}
	f.close()
	f.watch, f.of = watch, at
}

// end closes a stream for a reason that is not a refusal.
func (s *Server) end(ctx context.Context, c *caller, cause error) error {
	switch cause {
	case errClientEnded:
		return s.toStatus(ctx.Err(), c.requestID)
	case errExited:
		// Whoever else holds the socket is told nothing more.
		defer c.conn.Close()
		r := c.record(audit.EventStreamEnd)
		r.Reason = cause.Error()
		if err := s.o.Log.Append(context.WithoutCancel(ctx), r); err != nil {
			return s.toStatus(err, c.requestID)
		}
		return s.toStatus(fmt.Errorf("%w: %w", errAttestation, cause), c.requestID)
	default:
		return s.toStatus(cause, c.requestID)
	}
}

// renewAt is the half-life of what is valid from issued to expires, and up to
// a tenth earlier, so that a host's workloads do not all come at once.
func renewAt(issued, expires time.Time) time.Time {
	life := expires.Sub(issued)
	if life < 10 {
		return expires
	}
	return issued.Add(life/2 - rand.N(life/10))
}
