package credential

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/secret"
)

// A lease is a Lease at work. Its fields are guarded by the manager's mu, but
// for those that never change.
type lease struct {
	Lease
	handle   Handle
	notAfter time.Time // when the upstream ends it by itself; zero if never
	issued   bool      // the upstream gave it, and the plan became a credential
	use      Use       // as far as an earlier attempt to revoke could tell

	source *Definition // by which it is ended; nil if none is left
	due    time.Duration
	slot   int // in the schedule; -1 outside
	watch  *watch

	// busy is set while the holder's request is at the upstream. End cancels
	// that, and whoever was busy goes on with the end.
	busy   bool
	cancel context.CancelFunc // of what the request does; nil if not busy
	ending bool
	queued bool          // for, or in the hands of, a worker
	gone   chan struct{} // closed when nothing is left of it; made on demand
}

// kept is a lease in the journal.
type kept struct {
	Credential string     `json:"credential"`
	Broker     string     `json:"broker"`
	Upstream   string     `json:"upstream"`
	Handle     string     `json:"handle"`
	Data       []byte     `json:"data,omitempty"`
	Identity   string     `json:"identity"`
	Process    process    `json:"process"`
	Bind       Bind       `json:"bind"`
	Revocation Revocation `json:"revocation"`
	State      State      `json:"state"`
	Granted    time.Time  `json:"granted"`
	Expires    time.Time  `json:"expires"`
	Latest     time.Time  `json:"latest"`
	NotAfter   time.Time  `json:"not_after,omitzero"`
	Issued     bool       `json:"issued,omitempty"`
	Renewable  bool       `json:"renewable,omitempty"`
	Reason     string     `json:"reason,omitempty"`
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
		Renewable:  l.Renewable,
		Reason:     l.Reason,
	})
	if err != nil {
		panic(err) // no field can fail to encode
	}
	return b
}

// decodeLease reads what encode wrote.
func decodeLease(id string, b []byte) (*lease, error) {
	var s kept
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w: lease %s: %w", ErrDamaged, id, err)
	}
	identity, err := spiffeid.FromString(s.Identity)
	if err != nil {
		return nil, fmt.Errorf("%w: lease %s: %w", ErrDamaged, id, err)
	}
	return &lease{
		Lease: Lease{
			ID:         id,
			Credential: s.Credential,
			Broker:     s.Broker,
			Upstream:   s.Upstream,
			Handle:     s.Handle,
			Identity:   identity,
			Process:    Process(s.Process),
			Bind:       s.Bind,
			Revocation: s.Revocation,
			State:      s.State,
			Granted:    s.Granted,
			Expires:    s.Expires,
			Latest:     s.Latest,
			Renewable:  s.Renewable,
			Reason:     s.Reason,
		},
		handle:   Handle{Name: s.Handle, Data: secret.Of(s.Data)},
		notAfter: s.NotAfter,
		issued:   s.Issued,
		slot:     -1,
	}, nil
}
