package view

import (
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A DrillRequest says what to withhold, from whom and for how long.
type DrillRequest struct {
	Credential string
	Identity   spiffeid.ID   // zero: everybody
	For        time.Duration // at most an hour
	Anyway     bool          // although nobody holds a lease of it
}

// Query encodes a request.
func (r DrillRequest) Query() url.Values {
	q := url.Values{"credential": {r.Credential}, "for": {r.For.String()}}
	if !r.Identity.IsZero() {
		q.Set("identity", r.Identity.String())
	}
	if r.Anyway {
		q.Set("anyway", "true")
	}
	return q
}

// A Drill is a credential that is withheld on purpose, and what its users do.
type Drill struct {
	Credential string    `json:"credential"`
	Identity   string    `json:"identity,omitempty"` // missing: everybody's
	Began      time.Time `json:"began"`
	Until      time.Time `json:"until"`
	Ended      time.Time `json:"ended,omitzero"` // missing: it is going on
	Leases     int       `json:"leases"`         // that were revoked

	Interrupted bool   `json:"interrupted,omitempty"` // by an end of the daemon, which has forgotten what its users did
	Unconfirmed string `json:"unconfirmed,omitempty"` // why not all of their upstreams have confirmed it

	Holders []DrillHolder `json:"holders"`
}

// A DrillHolder is a process that had a lease when the drill began, or those of an identity
// that had none and have asked since.
type DrillHolder struct {
	SPIFFEID   string    `json:"spiffe_id"`
	PID        int       `json:"pid"` // of those, the last
	Unit       string    `json:"unit,omitempty"`
	Held       bool      `json:"held"`                 // a lease, as the drill began
	Value      bool      `json:"value,omitempty"`      // it was given the value itself, whose use is not seen here
	Revocation string    `json:"revocation,omitempty"` // what the upstream can do about that, as in leases
	Asks       int       `json:"asks"`                 // for a lease, refused
	Calls      int       `json:"calls"`                // or connections with a handle from before, refused
	First      time.Time `json:"first,omitzero"`
	Last       time.Time `json:"last,omitzero"`
	ShortestMS int64     `json:"shortest_ms"` // between two that were refused
	Exited     time.Time `json:"exited,omitzero"`
	Recovered  time.Time `json:"recovered,omitzero"` // it was served again, after the end
}
