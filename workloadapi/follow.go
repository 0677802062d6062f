package workloadapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A message is one of a stream, complete in itself (Workload API §4.3).
type message[M any] struct {
	content *M
	renew   time.Time // when the next is due if nothing changes; zero: never
}

// A builder makes the next message for a caller, with the records of what it
// hands out.
type builder[M any] func(context.Context, *gate.Caller, trust) (*message[M], []audit.Record, error)

const (
	settleTime   = time.Second // after which a stream is taken for one that lasts
	recheckEvery = time.Minute // a stream's process is attested again
)

// A request is what a stream is asked for.
type request struct {
	event audit.Event // of what it hands out
	part  part        // of the bundles, which it sends again when that changes
	id    spiffeid.ID // the one identity that is wanted; zero: all of the caller's
}

// follow answers a stream: at once, and then whenever the caller's entitlement or its part
// of the bundle changes, or the message is due for renewal. Before every message the caller is
// attested again. The stream ends when the process exits or is no longer entitled to
// anything.
func follow[M any](a *API, stream grpc.ServerStreamingServer[M], req request, build builder[M]) error {
	defer a.gate.Streams.Begin()()
	conn, err := gate.ConnOf(stream.Context())
	if err != nil {
		return a.gate.Status(err)
	}
	var last *sent
	var files fileWatch
	defer files.close()
	for {
		next, err := aside(func() (*sent, error) { return advance(a, conn, stream, req, last, build) })
		if err != nil {
			return a.gate.Status(err)
		}
		last = next
		if err := a.wait(stream.Context(), conn, last, req.part, &files); err != nil {
			return a.gate.Status(end(stream.Context(), conn, last.caller, err))
		}
	}
}

// aside calls f on a separate goroutine. Attesting and signing need a deep stack, which
// would otherwise stay with the stream's own goroutine while it waits, for hours and a
// thousand times over.
func aside[T any](f func() (T, error)) (v T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err = f()
	}()
	<-done
	return v, err
}

// advance attests the caller, and sends it the next message unless the last one
// still is what it is entitled to.
func advance[M any](a *API, conn *gate.Conn, stream grpc.ServerStreamingServer[M], req request, last *sent, build builder[M]) (*sent, error) {
	ctx := stream.Context()
	next := &sent{rulesChanged: a.gate.Changed(), bundleChanged: a.authority.Changed(), foreignChanged: a.foreignChanged()}
	r := gate.Request{Peer: conn, Event: req.event}
	if last != nil { // a refusal now cuts a stream off
		r.Event, r.Had = audit.EventStreamEnd, last.caller.Entries
	}
	c, err := a.gate.Admit(ctx, r)
	if err != nil {
		return nil, err
	}
	t := a.trustOf(c.Entries)
	next.caller, next.bundle = c, req.part.digest(t)
	if last.stillHolds(next) {
		next.renew = last.renew
		return next, nil
	}
	again := gate.Repeat{Of: fmt.Sprintf("%s %x", req.id, next.bundle), For: shortest(c.Entries, func(e identity.Entry) time.Duration { return e.X509TTL }) / 10}
	if last != nil {
		again.For = 0 // what was sent last is old
	} else if err := stream.SetHeader(t.header()); err != nil {
		return nil, err
	}
	m, err := gate.AnswerAgain(ctx, c, again, func(ctx context.Context, c *gate.Caller) (*message[M], []audit.Record, error) {
		return build(ctx, c, t)
	})
	if err != nil {
		return nil, err
	}
	next.renew = m.renew
	return next, stream.Send(m.content)
}

// shortest returns the shortest of the entries' lives.
func shortest(entries []identity.Entry, life func(identity.Entry) time.Duration) time.Duration {
	d := life(entries[0])
	for _, e := range entries[1:] {
		d = min(d, life(e))
	}
	return d
}

// sent is what a stream was last sent, and what would make it old.
type sent struct {
	caller         *gate.Caller
	bundle         [sha256.Size]byte // of the stream's part of all bundles
	renew          time.Time
	rulesChanged   <-chan struct{}
	bundleChanged  <-chan struct{}
	foreignChanged <-chan struct{}
}

// stillHolds reports whether a stream need not be sent anything now that its
// process was found entitled to next.
func (s *sent) stillHolds(next *sent) bool {
	return s != nil && s.bundle == next.bundle &&
		(s.renew.IsZero() || time.Now().Before(s.renew)) &&
		sameGrants(s.caller.Entries, next.caller.Entries)
}

// sameGrants reports whether two matches lead to the same SVIDs.
func sameGrants(a, b []identity.Entry) bool {
	return slices.EqualFunc(a, b, func(x, y identity.Entry) bool {
		return x.ID == y.ID && x.X509TTL == y.X509TTL && x.Hint == y.Hint && x.Server == y.Server && x.Revision == y.Revision &&
			x.Names.Common == y.Names.Common && slices.Equal(x.Names.DNS, y.Names.DNS) &&
			slices.Equal(x.FederatesWith, y.FederatesWith)
	})
}

var (
	errExited      = errors.New("the process exited")
	errClientEnded = errors.New("the client ended the stream")
)

// wait returns nil when the caller is to be attested again, and otherwise why
// the stream ends.
func (a *API) wait(ctx context.Context, conn *gate.Conn, last *sent, of part, files *fileWatch) error {
	look := recheckEvery - rand.N(recheckEvery/4)
	if files.watch == nil {
		// Most streams that end do so at once. One that lasts is attested again once the
		// watch is set up, so no change goes unseen.
		look = settleTime
	}
	if !last.renew.IsZero() {
		look = min(look, max(0, time.Until(last.renew)))
	}
	timer := time.NewTimer(look)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return errClientEnded
		case <-a.gate.Streams.Stopping():
			return gate.ErrStopping
		case <-conn.Process().Done():
			return errExited
		case <-last.bundleChanged:
			return nil
		case <-files.changed():
			return nil
		case <-timer.C:
			a.watchFiles(files, last.caller.Process)
			return nil
		case <-last.foreignChanged:
			// Most streams are not given the bundle that changed.
			last.foreignChanged = a.foreignChanged()
			if of.digest(a.trustOf(last.caller.Entries)) != last.bundle {
				return nil
			}
		case <-last.rulesChanged:
			// Of a thousand streams a change usually concerns one. For the
			// others the facts they were last attested with decide that
			// there is no hurry; they are attested again at the next look.
			last.rulesChanged = a.gate.Changed()
			if a.changesGrants(last.caller) {
				return nil
			}
		}
	}
}

// changesGrants reports whether the rules now mean something else for a process
// than what it was granted.
func (a *API) changesGrants(c *gate.Caller) bool {
	if a.gate.Refusal() != nil {
		return true
	}
	entries, _ := a.gate.Entitled(c.Process, nil)
	return !sameGrants(c.Entries, entries)
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
func (a *API) watchFiles(f *fileWatch, at *process.Attested) {
	if f.watch != nil && slices.Equal(f.of.Files, at.Files) && slices.Equal(f.of.Trees, at.Trees) {
		return
	}
	watch, err := a.watcher.Watch(at)
	if err != nil {
		// What is not watched is noticed when the process is attested next.
		a.logger.Warn("watching what an attestation rests on", "pid", at.PID, "err", err)
	}
	f.close()
	f.watch, f.of = watch, at
}

// end says why a stream ends for a reason that is not a refusal.
func end(ctx context.Context, conn *gate.Conn, c *gate.Caller, cause error) error {
	switch cause {
	case errClientEnded:
		return c.Fail(ctx.Err())
	case errExited:
		defer conn.Close() // anyone else who holds the socket gets nothing more
		if err := c.End(ctx, cause.Error()); err != nil {
			return err
		}
		return c.Fail(fmt.Errorf("%w: %w", gate.ErrAttestation, cause))
	default:
		return c.Fail(cause)
	}
}

// renewAt is the half-life of what is valid from issued to expires, and up to
// a tenth earlier, so a host's workloads do not all come at once.
func renewAt(issued, expires time.Time) time.Time {
	life := expires.Sub(issued)
	if life < 10 {
		return expires
	}
	return issued.Add(life/2 - rand.N(life/10))
}
