package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
)

// A Caller is a process attested for one answer.
type Caller struct {
	RequestID string
	Arrived   time.Time
	Process   *process.Attested // nil if it could not be attested
	Entries   []identity.Entry  // what it is entitled to; never empty once admitted

	gate    *Gate
	request Request
	lost    []identity.Entry // what it was entitled to, and is no longer
	as      identity.Entry   // under which it asks, once that is known
	present func(context.Context) error
	proven  bool
}

const proofTimeout = 5 * time.Second

// Prove returns once the process that was attested has shown, after it was
// attested, that it is the one which speaks on the connection. An error is a
// refusal, and recorded.
func (c *Caller) Prove(ctx context.Context) error {
	if c.proven {
		return nil
	}
	err := c.gate.spend(c)
	if err == nil {
		err = c.prove(ctx)
	}
	if err != nil {
		return c.Refuse(ctx, c.request.Event, err)
	}
	return nil
}

// prove is the last check before the record and the answer, so the rules are
// looked at again.
func (c *Caller) prove(ctx context.Context) error {
	if c.proven {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	if err := c.present(ctx); err != nil {
		return fmt.Errorf("%w: proving its presence: %w", ErrAttestation, err)
	}
	// It may have become another program since, which then answered.
	if err := c.unchanged(); err != nil {
		return fmt.Errorf("%w: observing it again: %w", ErrAttestation, err)
	}
	if err := c.gate.cutOff(c.Entries); err != nil {
		return err
	}
	if err := c.gate.Refusal(); err != nil {
		return err
	}
	if conn, ok := c.request.Peer.(*Conn); ok {
		conn.conn.place.know()
	}
	c.proven = true
	return nil
}

func (c *Caller) unchanged() error {
	if o, ok := c.request.Peer.(Observer); ok {
		return o.Unchanged(c.gate.attester, c.Process)
	}
	return c.gate.attester.Unchanged(c.Peer(), c.Process)
}

// Answer returns what build makes for an admitted caller. While it is made the
// challenge travels; it is returned once the caller has proven its presence and
// the records that build returns are durable. An error of build, or a proof that
// fails, is a refusal, and recorded.
func Answer[T any](ctx context.Context, c *Caller, build func(context.Context, *Caller) (T, []audit.Record, error)) (answer T, err error) {
	if err := c.gate.spend(c); err != nil {
		return answer, c.Refuse(ctx, c.request.Event, err)
	}
	made, records, err := build(ctx, c)
	if err == nil && len(records) == 0 {
		err = errors.New("an answer without a record")
	}
	if err == nil {
		err = c.prove(ctx)
	}
	if err != nil {
		return answer, c.Refuse(ctx, c.request.Event, err)
	}
	if err := c.Record(ctx, records...); err != nil {
		return answer, err
	}
	return made, nil
}

// A Slow is something that takes a while to get, in which a caller may become
// another program.
type Slow[T any] struct {
	// Get records what it does, and passes what it gets to hand: once or, for a
	// stream, repeatedly. If hand returns an error, nothing was handed out.
	Get func(ctx context.Context, hand func(T) error) error
	// Still returns an error if a caller, attested again, may no longer have it.
	Still func(now *Caller) error
	// Deliver sends it.
	Deliver func(T) error
	// Event is under which it is recorded that it was not delivered.
	Event audit.Event
}

// Obtain gets something slow for a caller that has proven its presence, and
// attests it again before each delivery. Its error is a refusal, which is
// recorded, or Get's.
func Obtain[T any](ctx context.Context, c *Caller, s Slow[T]) error {
	if err := c.Prove(ctx); err != nil {
		return err
	}
	var refused error
	err := s.Get(ctx, func(v T) error {
		if refused = c.Again(ctx, s.Still); refused != nil {
			return refused
		}
		return s.Deliver(v)
	})
	if refused != nil {
		return c.Refuse(ctx, s.Event, refused)
	}
	return c.Fail(err)
}

// Again attests the caller once more and has it prove its presence again. It returns
// an error, which is not recorded, unless it is the same process and still returns nil.
func (c *Caller) Again(ctx context.Context, still func(now *Caller) error) error {
	now := &Caller{RequestID: c.RequestID, Arrived: c.Arrived, gate: c.gate, request: c.request}
	if err := now.admit(ctx); err != nil {
		return err
	}
	if err := now.prove(ctx); err != nil {
		return err
	}
	if now.Process.StartTime != c.Process.StartTime {
		return fmt.Errorf("%w: it has become another process", ErrAttestation)
	}
	return still(now)
}

// As notes the entry under which the caller asks, for the record should it be refused.
func (c *Caller) As(e identity.Entry) { c.as = e }

// EntryOf returns the caller's entry for an identity. All entries of one identity
// name the same credentials.
func (c *Caller) EntryOf(id spiffeid.ID) (identity.Entry, bool) {
	for _, e := range c.Entries {
		if e.ID == id {
			return e, true
		}
	}
	return identity.Entry{}, false
}

// Peer returns the process that asks.
func (c *Caller) Peer() *process.Peer { return c.request.Peer.Process() }
