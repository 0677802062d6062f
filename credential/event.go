package credential

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Recorder keeps what happened to leases. When Record returns nil, the event
// is durable.
type Recorder interface {
	Record(ctx context.Context, e Event) error
}

// An Event is one step of a lease. A grant is two, an intent before the
// upstream is asked and a grant before the reply, so that a crash in between
// shows. Only these fields are recorded; none is a secret.
type Event struct {
	Kind      EventKind
	Outcome   Outcome
	Reason    string        // why, for everything but success
	RequestID string        // ties the events of one request together
	Duration  time.Duration // of the step

	Identity spiffeid.ID
	Process  Process

	Lease        string // keyed hash of the lease's ID; empty where none was planned
	Credential   string
	Broker       string
	Upstream     string
	Handle       string // the credential's name upstream
	ScopeAsked   []string
	ScopeGranted []string
	Audience     []string
	NotBefore    time.Time
	NotAfter     time.Time
	TTL          time.Duration
	Revocation   Revocation
	Exposure     Exposure
	Use          Use

	Asker any // the [Ask]'s, nil for what happens without one; the engine does not look at it
}

// An EventKind names a step. The names are stable: they are what an auditor
// filters by.
type EventKind string

// The steps of a lease.
const (
	EventIntent EventKind = "credential.intent" // about to ask the upstream; denied if the request goes no further
	EventGrant  EventKind = "credential.grant"  // the upstream's answer, before the reply
	EventRenew  EventKind = "credential.renew"  // a later expiry, before the reply
	EventRevoke EventKind = "credential.revoke" // the end: success if confirmed, expired if by the upstream's clock, error if stuck
)

// An Outcome is how a step went.
type Outcome string

// The outcomes, as audit has them.
const (
	Success Outcome = "success" // of an intent: it is admitted, and the upstream is asked
	Denied  Outcome = "denied"
	Failed  Outcome = "error"
	RanOut  Outcome = "expired"
)

const (
	maxReason = 512  // bytes of a reason, as it is recorded
	maxScope  = 3072 // bytes of what was asked for, or granted, in one event
)

// bound keeps a list short enough for a record. What is left out is counted, and
// the digest is over the whole list.
func bound(list []string) []string {
	left := maxScope
	for i, s := range list {
		if left -= len(s); left >= 0 {
			continue
		}
		sum := sha256.Sum256([]byte(strings.Join(list, "\n")))
		return append(slices.Clone(list[:i]), fmt.Sprintf("and %d more, sha256:%x of all", len(list)-i, sum))
	}
	return list
}

// Exposure is where a value will be once it is delivered, as the caller says.
type Exposure string

// From least to most exposed. Empty means that the caller did not say.
const (
	InMemory      Exposure = "memory"
	InFile        Exposure = "file"
	InEnvironment Exposure = "environment"
)
