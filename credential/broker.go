package credential

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/secret"
)

// Brokers are the kinds of source there are, by the name that definitions use.
type Brokers map[string]Opener

// An Opener checks a definition's settings, given as the section of the broker's
// name, and returns the broker for that definition. It must not ask anything
// of the upstream: definitions are checked where it cannot be reached.
// Problems with the settings come as [config.Errors].
type Opener func(d *Definition, settings config.Section) (Broker, error)

// A Broker obtains and ends the credentials of one definition. Its methods are
// safe for concurrent use. Errors wrap [ErrUpstream] or [ErrRefused], and hold
// no secret.
type Broker interface {
	Traits() Traits

	// Plan chooses the handle by which the credential can be found upstream later. It
	// is made durable before Issue. Plan may request from the upstream only what ends
	// on its own within a minute if the plan is lost.
	Plan(ctx context.Context, r Request) (Plan, error)

	// Issue obtains the credential. After an error, or none because the daemon
	// died, Recover is called with the plan's handle. An error that wraps ErrRefused
	// says that the upstream issued nothing that outlives Recover.
	Issue(ctx context.Context, r Request, p Plan) (Issued, error)

	// Renew lets the credential live for ttl from now, and returns when the upstream
	// ends it on its own; zero if it never does.
	Renew(ctx context.Context, h Handle, ttl time.Duration) (notAfter time.Time, err error)

	// Revoke ends an issued credential, and returns nil once the upstream has
	// confirmed it. An answer that a credential still alive could get too, such as
	// a refusal of the daemon's own login or of a proxy on the way, confirms
	// nothing and is an error: the caller tries again until the credential has
	// expired. It is called again after an error and, across a restart, possibly
	// after success.
	Revoke(ctx context.Context, h Handle) (Use, error)

	// Recover finds out what became of a plan whose Issue gave no answer, and
	// ends it. It returns nil once the upstream holds nothing under the handle
	// and never will, though the request may still be on its way there. What
	// confirms that is as strict as in Revoke.
	Recover(ctx context.Context, h Handle) error
}

// A Reopener is a broker whose value outlives the lease, and may be replaced while
// that lasts.
type Reopener interface {
	// Current returns the handle's name of the value that there is now.
	Current() (string, error)
	// Reopen returns that value again, for a holder with a lease.
	Reopen(ctx context.Context, by spiffeid.ID) ([]Field, string, error)
}

// Traits are what a broker is and can do. They do not change.
type Traits struct {
	Upstream   string // where its credentials are for, without secrets; to show, not to parse
	Secret     string // the secret sealed to this machine that it uses; empty for none
	SSHCA      string // the SSH CA whose key certifies its credentials; empty for none
	Revocation Revocation
	Renews     bool
	// ChoosesTTL is true if the upstream, and not the caller, may choose the
	// lifetime. Expires is then what the upstream said.
	ChoosesTTL bool
	// PresentsJWT is true if it may present JWT-SVIDs of the holder, and JWTAlgorithm is
	// what they are to be signed with; empty: the holder's own.
	PresentsJWT  bool
	JWTAlgorithm string
	// ProxyOnly is true if no workload may be given the value.
	ProxyOnly bool
	// Nothing is true if there is no credential: calls are judged, recorded and made
	// without one.
	Nothing bool
}

// A Request is what one lease is asked for.
type Request struct {
	LeaseID   string
	RequestID string // by which the log refers to it; not secret
	Holder    Holder
	Params    map[string]string // every declared parameter
	TTL       time.Duration
}

// Tag is ten characters (A-Z, 2-7) that tell this lease from others in places
// that anybody may read. Its ID, by which its holder ends it, does not follow
// from them.
func (r Request) Tag() string {
	sum := sha256.Sum256([]byte("vouchd lease tag\x00" + r.LeaseID))
	return base32.StdEncoding.EncodeToString(sum[:])[:10]
}

// A Handle finds a credential upstream.
type Handle struct {
	Name string       // printable; recorded in the log
	Data secret.Bytes // what else the broker needs; kept encrypted, at most 32 KiB
}

// A Plan is a handle, and what happens if it is forgotten.
type Plan struct {
	Handle Handle
	// NotAfter is when whatever Issue obtains will have ended on its own, should its
	// answer be lost; zero if it never does.
	NotAfter time.Time
}

// Issued is a credential as the upstream gave it.
type Issued struct {
	Fields   []Field
	Handle   *Handle   // replaces the plan's; nil keeps it
	NotAfter time.Time // when the upstream itself ends it, sessions and all; zero if it never does
	Scope    []string  // what it entitles to, in the upstream's words
	Audience []string
}

// A Field is one named value of a credential, such as its password.
type Field = secret.Field

// Use is what an upstream could tell about the use of a credential. The zero
// value means that it is unknown.
type Use struct {
	First, Last time.Time // as far as is known
	Count       int       // uses, such as sessions, at least
	Known       bool      // the upstream could say; then a Count of 0 means none
}
