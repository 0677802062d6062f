// Package credential says what a leased credential for a system outside SPIFFE is: the
// definition that entries grant, the broker that obtains and ends it, the lease of one
// holder, and the events that the log records about it.
//
// A broker is a package of its own that implements [Broker], and a line in the table of
// package brokers; nothing here knows their names. Package lease grants and ends what is
// defined.
//
// Out of reach: once a workload has read a value, it can copy it or pass it on until the
// lease ends. What ending a lease achieves depends on the upstream; each broker states it
// as its [Revocation].
package credential

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What a caller can tell apart about a lease. The message says what to do.
var (
	// ErrNotGranted means that the identity's entries do not name the credential.
	ErrNotGranted = errors.New("credential is not granted")
	// ErrUndefined means that an entry grants what no definition defines.
	ErrUndefined = errors.New("credential is not defined")
	// ErrParameter means a parameter that is missing, unknown or not allowed.
	ErrParameter = errors.New("parameter is not allowed")
	// ErrTTL means a lifetime that is not positive or above the maximum.
	ErrTTL = errors.New("ttl is not allowed")
	// ErrLimit means that the identity has asked too often, or holds too many.
	ErrLimit = errors.New("limit is reached")
	// ErrHours means that the credential is not granted at this hour.
	ErrHours = errors.New("outside the allowed hours")
	// ErrNoLease means that there is no such lease, or that it is not the caller's.
	ErrNoLease = errors.New("no such lease")
	// ErrNotRenewable means that the lease stays at the end it has.
	ErrNotRenewable = errors.New("lease is not renewable")
	// ErrHolderGone means that the process or unit ended, or the lease was
	// revoked, before the answer was there.
	ErrHolderGone = errors.New("holder is gone")
	// ErrUnrecorded means that a step could not be made durable, so it was not
	// taken, or was taken back.
	ErrUnrecorded = errors.New("cannot be recorded")
	// ErrUpstream means that the upstream could not be reached, or gave an
	// answer that makes no sense. Trying again may help.
	ErrUpstream = errors.New("upstream is unavailable")
	// ErrRefused means that the upstream understood, and said no.
	ErrRefused = errors.New("upstream refused")
	// ErrOnlyExpires is a broker's answer about a credential that it cannot find
	// upstream and that expires on its own. The lease waits for that.
	ErrOnlyExpires = errors.New("credential can only expire")
	// ErrProxyOnly means that the value is never given to a workload.
	ErrProxyOnly = errors.New("credential is proxy-only")
	// ErrRevoked means that calls of this holder were cut off: its lease was
	// revoked, which ends what would follow on it.
	ErrRevoked = errors.New("lease was revoked")
	// ErrDrill is ErrRevoked during a drill. Its text is for the log: a holder is told
	// what it would be in an incident, [WithheldText].
	ErrDrill = fmt.Errorf("%w for a drill", ErrRevoked)
	// ErrClosed means that the daemon is stopping.
	ErrClosed = errors.New("credential manager is closed")
)

// WithheldText is what holders are told for [ErrDrill].
const WithheldText = "lease was revoked by an administrator"

// A Lease is one grant of a credential to one identity.
type Lease struct {
	ID         string // unguessable; the log has a keyed hash of it
	Credential string
	Broker     string
	Upstream   string // where the credential is for
	Handle     string // its name there, such as a role's
	Identity   spiffeid.ID
	Process    Process
	Bind       Bind
	Revocation Revocation
	State      State
	Granted    time.Time
	Expires    time.Time // when it ends if nothing ends it earlier
	Latest     time.Time // no renewal moves Expires beyond this
	Renewable  bool
	Reason     string // why it is ending or stuck; empty while it is active
	Attempts   int    // at revoking it, that failed
	Failure    string // why the last of them did
}

// A State is how far along its life a lease is.
type State string

// Planned → active → revoking → revoked, expired or stuck. A lease leaves the
// journal in the states revoked and expired only.
const (
	Planned  State = "planned"  // written down; the upstream may or may not have been asked
	Active   State = "active"   // handed out
	Revoking State = "revoking" // being ended, retried until confirmed or provably expired
	Revoked  State = "revoked"  // the upstream confirmed its end
	Expired  State = "expired"  // the upstream ended it by its own clock
	Stuck    State = "stuck"    // not ended in spite of many attempts; retried slowly, and needs an administrator
)

// Bind is what a lease ends with, besides its own expiry.
type Bind string

// The binds a definition can choose.
const (
	BindProcess Bind = "process" // the process that asked
	BindUnit    Bind = "unit"    // the system unit of the process that asked
	BindLease   Bind = "lease"   // nothing but expiry and revocation
)

// Revocation is what an upstream can do about a credential before it expires.
type Revocation string

// From strongest to weakest.
const (
	Hard       Revocation = "hard"        // the credential and all sessions opened with it end
	GrantWide  Revocation = "grant-wide"  // it ends, and so does everything else issued by the same grant
	ExpiryOnly Revocation = "expiry-only" // nothing: it works until it expires
	// Unrevocable is for what does not expire either: it works until it is
	// rotated where it comes from. The lease's end is this daemon's alone.
	Unrevocable Revocation = "none"
)
