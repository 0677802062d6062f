package workloadapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A caller is a process attested for one answer.
type caller struct {
	requestID string
	arrived   time.Time
	conn      *gate.Conn
	process   *process.Attested // nil if it could not be attested
	entries   []identity.Entry  // what it is entitled to; never empty
	lost      []identity.Entry  // what it was entitled to, and is no longer
	present   func(context.Context) error
}

// newCaller returns a caller of whom nothing is known but the connection.
func newCaller(ctx context.Context) (*caller, error) {
	conn, err := gate.ConnOf(ctx)
	if err != nil {
		return nil, err
	}
	return &caller{requestID: rand.Text(), arrived: time.Now(), conn: conn}, nil
}

// attest establishes what the caller is and what it is entitled to. On success
// a challenge to the process is under way, whose answer [Server.prove] awaits:
// the SVIDs are signed meanwhile.
func (s *Server) attest(ctx context.Context, c *caller) error {
	var err error
	if c.process, err = s.o.Attester.Attest(ctx, c.conn.Process()); err != nil {
		return fmt.Errorf("%w: %w", errAttestation, err)
	}
	if err := s.refusal(); err != nil {
		return err
	}
	var disabled []identity.Entry
	c.entries, disabled = s.entitled(c.process)
	switch {
	case len(c.entries) == 0 && len(disabled) > 0:
		return fmt.Errorf("%w: %s", errDisabled, disabled[0].ID)
	case len(c.entries) == 0:
		return errNoIdentity
	}
	if len(c.entries) > maxIdentities {
		return fmt.Errorf("%d entries match, more than one answer holds (%d)", len(c.entries), maxIdentities)
	}
	if c.present, err = c.conn.Challenge(); err != nil {
		return fmt.Errorf("%w: %w", errAttestation, err)
	}
	return nil
}

// match returns the entries by which a process is entitled, as matching does.
func (s *Server) match(p *process.Attested) []identity.Entry {
	entries, _ := s.entitled(p)
	return entries
}

// matching returns the entries that a process matches, one for each SPIFFE ID,
// the default identity first (Workload API §8).
func (s *Server) matching(p *process.Attested) []identity.Entry {
	seen := make(map[spiffeid.ID]bool)
	return slices.DeleteFunc(s.entries.Load().Match(s.selectors(p)), func(e identity.Entry) bool {
		again := seen[e.ID]
		seen[e.ID] = true
		return again
	})
}

// maxIdentities keeps an answer within the 4 MiB that gRPC clients take.
const maxIdentities = 1500

// prove returns once the process that was attested has shown, after it was
// attested, that it is the one which speaks on the connection. It is the last
// check before the record and the answer, so the node is looked at again, and
// what an administrator has cut off.
func (s *Server) prove(ctx context.Context, c *caller) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	if err := c.present(ctx); err != nil {
		return fmt.Errorf("%w: proving its presence: %w", errAttestation, err)
	}
	if err := s.cutOff(c); err != nil {
		return err
	}
	return s.refusal()
}

// refuse records why the caller gets nothing and returns what to tell it.
func (s *Server) refuse(ctx context.Context, c *caller, event audit.Event, cause error) error {
	if ctx.Err() != nil && errors.Is(cause, ctx.Err()) {
		return s.toStatus(cause, c.requestID) // it went away; nothing was decided
	}
	r := c.record(event)
	r.Outcome, r.Reason = audit.Denied, cause.Error()
	if len(c.lost) > 0 {
		r.SPIFFEID, r.Workload.Entry = c.lost[0].ID.String(), c.lost[0].Pos.String()
	}
	if errors.Is(cause, audit.ErrUnwritable) || errors.Is(cause, identity.ErrNoAuthority) {
		r.Outcome = audit.Failed
	}
	suppressed, ok := s.refusals.allow(c.conn.Process().UID())
	if !ok && errors.Is(cause, errNode) {
		return s.toStatus(cause, c.requestID) // of a thousand streams that end at once all are told why
	}
	if !ok {
		return s.toStatus(errTooManyRefusals, c.requestID)
	}
	if suppressed > 0 {
		r.Reason = fmt.Sprintf("%s (and %d refusals of this user since the last record)", r.Reason, suppressed)
	}
	if err := s.o.Log.Append(ctx, r); err != nil {
		return s.toStatus(err, c.requestID)
	}
	return s.toStatus(cause, c.requestID)
}

// record appends all records, in as many batches as the log wants. If one
// fails, the log may tell of more than was handed out, never of less.
func (s *Server) record(ctx context.Context, records []audit.Record) error {
	for batch := range slices.Chunk(records, audit.MaxAppend) {
		if err := s.o.Log.Append(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// record begins a record about the caller.
func (c *caller) record(event audit.Event) audit.Record {
	return audit.Record{
		Event:     event,
		RequestID: c.requestID,
		Outcome:   audit.Success,
		Duration:  time.Since(c.arrived),
		Workload:  c.workload(),
	}
}

func (c *caller) workload() *audit.Workload {
	p := c.process
	if p == nil {
		pinned := c.conn.Process()
		return &audit.Workload{PID: pinned.PID(), UID: pinned.UID(), GID: pinned.GID()}
	}
	return workloadOf(p)
}

func workloadOf(p *process.Attested) *audit.Workload {
	return &audit.Workload{
		PID: p.PID, StartTime: p.StartTime, UID: p.UID, GID: p.GID,
		Path: p.Path, SHA256: p.SHA256, Device: p.Device, Inode: p.Inode,
		Cgroup: p.Cgroup, Unit: p.Unit, Selectors: p.Selectors.Strings(),
	}
}

// recordFor begins a record about an SVID for one of the caller's entries.
func (c *caller) recordFor(event audit.Event, e identity.Entry) audit.Record {
	r := c.record(event)
	r.SPIFFEID = e.ID.String()
	r.Workload.Entry = e.Pos.String()
	return r
}
