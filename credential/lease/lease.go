package lease

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease/journal"
	"github.com/vouchd/vouchd/secret"
)

// A lease is a [credential.Lease] at work. Its fields are guarded by the book's mu, except
// those that never change.
type lease struct {
	credential.Lease
	stage    stage // State follows it; see take
	handle   credential.Handle
	notAfter time.Time      // when the upstream ends it on its own; zero if never
	issued   bool           // the upstream gave it, and the plan became a credential
	use      credential.Use // as far as an earlier attempt to revoke could tell
	denied   bool           // the upstream said no to issuing it
	reuse    *reusable      // what a helper's next ask is answered with; nil if nothing
	counts   counts
	ended    bool // the upstream confirmed its end, and only the record is missing
	purpose  purpose

	source *credential.Definition // by which it is ended; nil if none is left
	due    time.Duration
	slot   int // in the schedule; -1 outside
	watch  *watch

	// Of a credential that calls are made with, what they carry.
	fields  []credential.Field
	over    chan struct{} // closed when its end begins; made on demand
	revoked bool          // somebody asked for its end, which no other lease is to follow
	pulled  bool          // for a drill, and by nobody else: another may follow once that is over

	// While a request of its holder is in progress, a call for its end cancels the
	// request and waits for it to let go of the lease.
	recalled bool
	cancel   context.CancelFunc // nil if there is nothing to cancel
	queued   bool               // for, or in the hands of, a worker
	asker    *credential.Asker  // who requested its end; nil if nobody did
	gone     chan struct{}      // closed when nothing is left of it; made on demand
}

// counts is what a lease counts against.
type counts uint8

const (
	freed   counts = iota // nothing
	counted               // what its identity may hold
	other                 // what may wait for its end besides
)

// goneChannel returns a channel that is closed when nothing is left of the lease
// that could be ended. The book's mu is held.
func (l *lease) goneChannel() <-chan struct{} {
	if l.gone == nil {
		l.gone = make(chan struct{})
	}
	return l.gone
}

// overChannel returns a channel that is closed when the end of the lease begins.
// The book's mu is held.
func (l *lease) overChannel() <-chan struct{} {
	if l.over == nil {
		l.over = make(chan struct{})
	}
	return l.over
}

// tellGone closes what goneChannel gave out. The book's mu is held.
func (l *lease) tellGone() {
	if l.gone != nil {
		close(l.gone)
		l.gone = nil
	}
}

// kept is a lease in the journal.
type kept struct {
	Credential string                `json:"credential"`
	Broker     string                `json:"broker"`
	Upstream   string                `json:"upstream"`
	Handle     string                `json:"handle"`
	Data       []byte                `json:"data,omitempty"`
	Identity   string                `json:"identity"`
	Process    process               `json:"process"`
	Bind       credential.Bind       `json:"bind"`
	Revocation credential.Revocation `json:"revocation"`
	State      credential.State      `json:"state"`
	Granted    time.Time             `json:"granted"`
	Expires    time.Time             `json:"expires"`
	Latest     time.Time             `json:"latest"`
	NotAfter   time.Time             `json:"not_after,omitzero"`
	Issued     bool                  `json:"issued,omitempty"`
	Purpose    purpose               `json:"purpose,omitempty"`
	Fields     []keptField           `json:"fields,omitempty"` // that calls are made with
	Renewable  bool                  `json:"renewable,omitempty"`
	Reason     string                `json:"reason,omitempty"`
}

type keptField struct {
	Name   string `json:"name"`
	Value  []byte `json:"value"`
	Public bool   `json:"public,omitempty"`
}

type process struct {
	PID        int    `json:"pid"`
	StartTime  uint64 `json:"start"`
	BootID     string `json:"boot"`
	Unit       string `json:"unit,omitempty"`
	Invocation string `json:"invocation,omitempty"`
}

// encode returns the lease as the journal holds it.
func (l *lease) encode() []byte {
	var fields []keptField
	if l.keepsFields() {
		for _, f := range l.fields {
			fields = append(fields, keptField{f.Name, f.Value.Reveal(), f.Public})
		}
	}
	b, err := json.Marshal(kept{
		Credential: l.Credential,
		Broker:     l.Broker,
		Upstream:   l.Upstream,
		Handle:     l.Handle,
		Data:       l.handle.Data.Reveal(),
		Identity:   l.Identity.String(),
		Process:    process(l.Process),
		Bind:       l.Bind,
		Revocation: l.Revocation,
		State:      l.State,
		Granted:    l.Granted,
		Expires:    l.Expires,
		Latest:     l.Latest,
		NotAfter:   l.notAfter,
		Issued:     l.issued,
		Purpose:    l.purpose,
		Fields:     fields,
		Renewable:  l.Renewable,
		Reason:     l.Reason,
	})
	if err != nil {
		panic(err) // no field can fail to encode
	}
	return b
}

// keepsFields reports whether the journal has what calls are made with: not where the
// broker can open it again.
func (l *lease) keepsFields() bool {
	if l.source == nil {
		return true
	}
	_, opens := l.source.Source().(credential.Reopener)
	return !opens
}

// cutOff reports whether somebody revoked the lease so that calls on it end for good. The
// book's mu is held.
func (l *lease) cutOff() bool { return l.revoked && !l.pulled }

// decode reads what encode wrote.
func decode(id string, b []byte) (*lease, error) {
	var s kept
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w: lease %s: %w", journal.ErrDamaged, id, err)
	}
	identity, err := spiffeid.FromString(s.Identity)
	if err != nil {
		return nil, fmt.Errorf("%w: lease %s: %w", journal.ErrDamaged, id, err)
	}
	var fields []credential.Field
	for _, f := range s.Fields {
		fields = append(fields, credential.Field{Name: f.Name, Value: secret.Of(f.Value), Public: f.Public})
	}
	return &lease{
		fields: fields,
		Lease: credential.Lease{
			ID:         id,
			Credential: s.Credential,
			Broker:     s.Broker,
			Upstream:   s.Upstream,
			Handle:     s.Handle,
			Identity:   identity,
			Process:    credential.Process(s.Process),
			Bind:       s.Bind,
			Revocation: s.Revocation,
			State:      s.State,
			Granted:    s.Granted,
			Expires:    s.Expires,
			Latest:     s.Latest,
			Renewable:  s.Renewable,
			Reason:     s.Reason,
		},
		stage:    stageOf(s.State),
		handle:   credential.Handle{Name: s.Handle, Data: secret.Of(s.Data)},
		notAfter: s.NotAfter,
		issued:   s.Issued,
		purpose:  s.Purpose,
		slot:     -1,
	}, nil
}
