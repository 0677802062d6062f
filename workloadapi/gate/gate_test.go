package gate_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// A self is this process as a peer.
type self struct {
	pinned  *process.Peer
	present func() error // nil: it is
}

func (s *self) Process() *process.Peer { return s.pinned }

func (s *self) Attest(ctx context.Context, a *process.Attester) (*process.Attested, error) {
	return a.Attest(ctx, s.pinned)
}

func (s *self) Challenge() (func(context.Context) error, error) {
	return func(context.Context) error {
		if s.present == nil {
			return nil
		}
		return s.present()
	}, nil
}

func newSelf(t *testing.T) *self {
	t.Helper()
	p, err := process.Pin(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &self{pinned: p}
}

func TestAnswerIsHandedOutAfterProofAndRecordAlone(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, gatetest.Entry("/agent", os.Getuid()))
	absent, refused := errors.New("it does not answer"), errors.New("it asks for what is not its own")
	for _, tt := range []struct {
		name    string
		present error
		records bool
		err     error
		want    string // in the record of a refusal; empty: it is answered
	}{
		{"present", nil, true, nil, ""},
		{"absent", absent, true, nil, absent.Error()},
		{"asking for another's", nil, true, refused, refused.Error()},
		{"given what is not recorded", nil, false, nil, "without a record"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer := newSelf(t)
			peer.present = func() error { return tt.present }
			c, err := s.Gate.Admit(t.Context(), gate.Request{Peer: peer, Event: audit.EventWorkload})
			if err != nil {
				t.Fatal(err)
			}
			before := len(s.Records(audit.EventWorkload))
			got, err := gate.Answer(t.Context(), c, func(_ context.Context, c *gate.Caller) (string, []audit.Record, error) {
				if !tt.records {
					return "value", nil, tt.err
				}
				return "value", []audit.Record{c.Describe(audit.EventWorkload)}, tt.err
			})
			r := s.Records(audit.EventWorkload)[before:]
			switch {
			case len(r) != 1:
				t.Errorf("%d records, want 1", len(r))
			case tt.want == "" && (err != nil || got != "value" || r[0].Outcome != audit.Success):
				t.Errorf("got %q, %v and the record %+v", got, err, r[0])
			case tt.want != "" && (err == nil || got != "" || r[0].Outcome != audit.Denied || !strings.Contains(r[0].Reason, tt.want)):
				t.Errorf("got %q, %v and the record %+v, want a refusal: %s", got, err, r[0], tt.want)
			}
		})
	}
}

func TestCallerThatHasNotProvenItsPresenceIsNotRecordedAsAnswered(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, gatetest.Entry("/agent", os.Getuid()))
	c, err := s.Gate.Admit(t.Context(), gate.Request{Peer: newSelf(t), Event: audit.EventWorkload})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Record(t.Context(), c.Describe(audit.EventWorkload)); err == nil || len(s.Records(audit.EventWorkload)) != 0 {
		t.Errorf("recorded before the proof: %v", err)
	}
}

func TestWhatTookAWhileIsDeliveredToWhoIsStillEntitled(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, "")
	for _, tt := range []struct {
		name      string
		meanwhile func(*self)
		want      string // in the record of the refusal; empty: it is delivered
	}{
		{"nothing happens", func(*self) {}, ""},
		{"its entry goes", func(*self) { s.SetEntries("") }, "no entry matches"},
		{"the machine fails its appraisal", func(*self) { s.Gate.SetNode(nil, errors.New("PCR 7 differs")) }, "PCR 7 differs"},
		{"its identity is disabled", func(*self) { s.Gate.SetDisabled([]gate.Disabled{{SPIFFEID: "spiffe://example.org/agent"}}) }, "disabled"},
		{"it leaves its connection to another", func(p *self) { p.present = func() error { return errors.New("another answers") } }, "another answers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.SetEntries(gatetest.Entry("/agent", os.Getuid()))
			s.Gate.SetNode(nil, nil)
			s.Gate.SetDisabled(nil)
			peer := newSelf(t)
			c, err := s.Gate.Admit(t.Context(), gate.Request{Peer: peer, Event: audit.EventLeaseIntent})
			if err != nil {
				t.Fatal(err)
			}
			before := len(s.Records(audit.EventLeaseGrant))
			var got string
			err = gate.Obtain(t.Context(), c, gate.Slow[string]{
				Get:     func(_ context.Context, hand func(string) error) error { tt.meanwhile(peer); return hand("value") },
				Still:   func(*gate.Caller) error { return nil },
				Deliver: func(v string) error { got = v; return nil },
				Event:   audit.EventLeaseGrant,
			})
			r := s.Records(audit.EventLeaseGrant)[before:]
			if tt.want == "" {
				if err != nil || got != "value" || len(r) != 0 {
					t.Errorf("got %q, %v and records %+v", got, err, r)
				}
				return
			}
			if err == nil || got != "" || len(r) != 1 || r[0].Outcome != audit.Denied || !strings.Contains(r[0].Reason, tt.want) {
				t.Errorf("got %q, %v and records %+v, want a refusal: %s", got, err, r, tt.want)
			}
		})
	}
}

// Whichever front refuses, the bound of a user is one.
func TestRefusalsOfOneUserAreBoundedWhicheverFrontRefuses(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, "")
	flood := func() (described int, err error) {
		for range gatetest.Flood {
			if err = s.Recorder.Refuse(t.Context(), uint32(os.Getuid()), func() audit.Record {
				described++
				return audit.Record{Event: audit.EventRun, Outcome: audit.Denied, Reason: "no"}
			}); err != nil {
				break
			}
		}
		return described, err
	}
	if n, err := flood(); !errors.Is(err, gate.ErrTooManyRefusals) {
		t.Fatalf("%d refusals in a row were all recorded: %v", n, err)
	}
	var err error
	for range 100 { // the bound recovers with time, of which a busy machine takes much
		c := s.Gate.Begin(gate.Request{Peer: newSelf(t), Event: audit.EventWorkload})
		if err = c.Refuse(t.Context(), audit.EventWorkload, gate.ErrNoIdentity); errors.Is(err, gate.ErrTooManyRefusals) {
			return
		}
		if _, err := flood(); !errors.Is(err, gate.ErrTooManyRefusals) {
			t.Fatal(err)
		}
	}
	t.Errorf("the gate refuses with %v", err)
}

func TestAcceptServesSoManyAtATimeAndWaitsForThem(t *testing.T) {
	t.Parallel()
	l, err := gate.ListenAt(filepath.Join(t.TempDir(), "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	serving, finish := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- gate.Accept(ctx, l, 2, nil, func(*net.UnixConn) { serving <- struct{}{}; <-finish })
	}()
	for range 3 {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	<-serving
	<-serving
	select {
	case <-serving:
		t.Error("a third is served beside two")
	default:
	}
	finish <- struct{}{}
	<-serving
	cancel()
	select {
	case err := <-done:
		t.Fatalf("Accept returns %v while two are served", err)
	default:
	}
	close(finish)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
