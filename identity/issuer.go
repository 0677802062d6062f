package identity

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// An Issuer answers for the trust domain on this host: an [Authority], or the agent of a
// SPIRE server. Its methods are safe for concurrent use.
type Issuer interface {
	TrustDomain() spiffeid.TrustDomain
	Bundle() *Bundle
	// Changed returns a channel that is closed when the bundle is next replaced. Take it
	// before Bundle, so as to miss nothing.
	Changed() <-chan struct{}
	// IssueX509 returns an X509-SVID of an entry. An error that wraps [ErrNoAuthority] says
	// that none can be had now.
	IssueX509(ctx context.Context, e Entry) (*X509SVID, error)
	// IssueJWT returns a JWT-SVID of an entry for an audience, which must not be empty
	// (JWT-SVID §3.2). Its errors are those of IssueX509.
	IssueJWT(ctx context.Context, e Entry, audience []string, with With) (*JWTSVID, error)
	// IssueWIT returns a WIT-SVID of an entry, and the key that it is bound to. Its errors
	// are those of IssueX509. Where the bundle has no WIT keys, it has none to give.
	IssueWIT(ctx context.Context, e Entry) (*WITSVID, error)
	// Signs reports whether JWT-SVIDs are signed with an algorithm.
	Signs(algorithm string) bool
}

// A Server says how a SPIRE server's SVID came about. The zero value is that of an SVID
// which this host issued itself.
type Server struct {
	Signing string // names the record of the signing
	Offline bool   // the server was away when the SVID was handed out
}
