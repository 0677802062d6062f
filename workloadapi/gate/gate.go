package gate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
)

// Options are what a gate decides with. All are required.
type Options struct {
	Attester *process.Attester
	Recorder *Recorder
	Logger   *slog.Logger
	Contact  string // whom those are told to ask who are refused
}

// A Gate decides who gets something. Its methods are safe for concurrent use.
type Gate struct {
	*Rules
	Streams *Streams
	Contact string // whom those are told to ask who are refused

	attester *process.Attester
	recorder *Recorder
	logger   *slog.Logger
	turns    turns
	windows  windows
}

// New returns a gate without registration entries, which refuses everybody.
func New(o Options) *Gate {
	return &Gate{Rules: newRules(), Streams: newStreams(), Contact: o.Contact, attester: o.Attester, recorder: o.Recorder, logger: o.Logger}
}

// A Peer is a process that asks, as known to the front that accepted its
// connection. [Conn] is one over gRPC.
type Peer interface {
	// Process returns the pinned process.
	Process() *process.Peer
	// Attest returns the facts by which the peer is entitled. The error wraps
	// [ErrAttestation] if they could not all be established; those that could are
	// returned with it.
	Attest(context.Context, *process.Attester) (*process.Attested, error)
	// Challenge asks the process to show that it is at the connection now;
	// wait is called at most once and returns nil when it has.
	Challenge() (wait func(context.Context) error, err error)
}

// An Observer is a [Peer] that looks itself whether what was attested of the process is
// so still, as [process.Attester.Unchanged] does.
type Observer interface {
	Unchanged(*process.Attester, *process.Attested) error
}

// A Request is what a front knows about a caller.
type Request struct {
	Peer  Peer
	Event audit.Event // under which a refusal is recorded

	// Had is what the peer was entitled to at its last answer, on a stream.
	Had []identity.Entry
	// Counts distinguishes the entries that count from those that only match; nil:
	// all count.
	Counts func(identity.Entry) bool
	// Lacks says more of a peer that is entitled to nothing; nil: there is no
	// more to say.
	Lacks func(*process.Attested) string
	// Unit and Credential are what a refusal is about, where the peer says so.
	Unit, Credential string
	// Call is what the peer wants called in its stead. Calls are as many as a process
	// makes: only their share of the log bounds them.
	Call *audit.Call
}

// Begin returns a caller about whom only the connecting process is known, and who can
// only be refused.
func (g *Gate) Begin(r Request) *Caller {
	return &Caller{RequestID: rand.Text(), Arrived: time.Now(), gate: g, request: r}
}

// Admit establishes what the peer is and what it is entitled to. The caller then
// has a challenge to answer, while the front makes what it is to get. An error
// is a refusal, and recorded.
func (g *Gate) Admit(ctx context.Context, r Request) (*Caller, error) {
	c := g.Begin(r)
	if err := c.admit(ctx); err != nil {
		return nil, c.Refuse(ctx, r.Event, err)
	}
	return c, nil
}

// AdmitRPC is Admit for a request over gRPC.
func (g *Gate) AdmitRPC(ctx context.Context, event audit.Event) (*Caller, error) {
	conn, err := ConnOf(ctx)
	if err != nil {
		return nil, err
	}
	return g.Admit(ctx, Request{Peer: conn, Event: event})
}

// maxIdentities keeps an answer within the 4 MiB that gRPC clients take.
const maxIdentities = 1500

func (c *Caller) admit(ctx context.Context) (err error) {
	g, r := c.gate, &c.request
	done, err := g.turns.take(ctx, g.recorder.persons.of(r.Peer.Process().UID()))
	if err != nil {
		if errors.Is(err, ErrBusy) {
			g.recorder.limited.busy.Add(1)
		}
		return err
	}
	c.Process, err = r.Peer.Attest(ctx, g.attester)
	if done(); err != nil {
		return err
	}
	if err := g.Refusal(); err != nil {
		return err
	}
	if c.Entries, err = g.Entitled(c.Process, r.Counts); err != nil {
		return explain(c, err)
	}
	if len(c.Entries) > maxIdentities {
		return fmt.Errorf("%d entries match, but an answer holds at most %d", len(c.Entries), maxIdentities)
	}
	if c.present, err = r.Peer.Challenge(); err != nil {
		return fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	return nil
}

// explain says more of why no entry entitles the caller.
func explain(c *Caller, err error) error {
	r := &c.request
	if why := c.gate.HeldBack(); why != "" && errors.Is(err, ErrNoIdentity) {
		err = fmt.Errorf("%w: %w: %s", err, ErrHeldBack, why)
	}
	switch {
	case !errors.Is(err, ErrNoIdentity):
		return err
	case len(r.Had) > 0:
		c.lost = r.Had
		return fmt.Errorf("%w: %w: %s", ErrLost, err, whyLost(c.gate.Rules, c.Process, r.Had))
	case r.Lacks != nil:
		return fmt.Errorf("%w: %s", err, r.Lacks(c.Process))
	}
	return err
}

// maxWhy bounds the entries and the gaps that a record mentions.
const maxWhy = 3

// whyLost says what a process lacks for each identity that it had.
func whyLost(r *Rules, p *process.Attested, had []identity.Entry) string {
	var why []string
	have := r.Selectors(p)
	for _, e := range had[:min(len(had), maxWhy)] {
		if missing := have.Missing(e.Selectors); len(missing) > 0 {
			why = append(why, fmt.Sprintf("it lacks %s for %s", strings.Join(missing.Strings(), " and "), e.ID))
		} else {
			why = append(why, fmt.Sprintf("the entry for %s is no longer in force", e.ID))
		}
	}
	for _, gap := range p.Gaps[:min(len(p.Gaps), maxWhy)] {
		why = append(why, gap.Error())
	}
	return strings.Join(why, "; ")
}
