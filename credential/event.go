package credential

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// An Event is one step of a lease. A grant is two, an intent before the
// upstream is asked and a grant before the reply: a crash in between shows. Only these fields are recorded; none is a secret.
type Event struct {
	Kind      EventKind
	Outcome   Outcome
	Reason    string        // why, for everything but success
	RequestID string        // ties the events of one request together
	Duration  time.Duration // of the step

	Identity spiffeid.ID
	Process  Process
	Asker    *Asker // as the request had it; nil for what the daemon does on its own

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

// Exposure is where a value will be once it is delivered, as the caller says.
type Exposure string

// From least to most exposed. Empty means that the caller did not say.
const (
	InMemory      Exposure = "memory"
	InFile        Exposure = "file"
	InEnvironment Exposure = "environment"
)
