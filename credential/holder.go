package credential

import (
	"context"
	"crypto/tls"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/secret"
)

// A Holder is the attested process that leases, for the time of one request.
type Holder struct {
	ID      spiffeid.ID
	Process Process
	// Exit is closed when the process ends, and Stop when its unit does; nil for a
	// process in no unit. Both must come from what was attested (a pidfd), since a
	// number may have been reused for another process since.
	Exit, Stop <-chan struct{}
	Identity   Identity
}

// An Identity authenticates to an upstream as the workload.
type Identity interface {
	// JWT returns a JWT-SVID of the holder.
	JWT(ctx context.Context, r JWTRequest) (secret.Bytes, error)
	// X509 returns an X509-SVID of the holder with its key. Its common name
	// stands for the SPIFFE ID, for an upstream that goes by that.
	X509(ctx context.Context) (tls.Certificate, error)
}

// A JWTRequest says which JWT-SVID an upstream takes.
type JWTRequest struct {
	Audience  string
	Algorithm string // such as [config.RS256]; empty: the holder's own
	Claim     string // one more, for an upstream that takes what it has to know from the token alone
	Value     any    // of the claim
}

// A Process says which process a lease is bound to, well enough to know it again
// after the daemon restarts. It is comparable.
type Process struct {
	PID        int
	StartTime  uint64 // clock ticks since boot, /proc/PID/stat field 22
	BootID     string // /proc/sys/kernel/random/boot_id
	Unit       string // system unit, if any
	Invocation string // of the unit: systemd's InvocationID, if any
}

// End returns the channel that is closed when what a lease is bound to ends; nil
// for nothing.
func (h Holder) End(b Bind) <-chan struct{} {
	switch b {
	case BindProcess:
		return h.Exit
	case BindUnit:
		return h.Stop
	}
	return nil
}

// Holds reports whether a lease is the holder's to renew and revoke: the same
// identity, and the very process or unit that it is bound to.
func (h Holder) Holds(l *Lease) bool {
	if h.ID != l.Identity {
		return false
	}
	switch l.Bind {
	case BindProcess:
		p, q := h.Process, l.Process
		return p.PID == q.PID && p.StartTime == q.StartTime && p.BootID == q.BootID
	case BindUnit:
		p, q := h.Process, l.Process
		return p.Unit == q.Unit && p.Invocation == q.Invocation && p.BootID == q.BootID
	}
	return true
}
