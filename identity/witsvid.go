package identity

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/secret"
)

// A WITSVID is a token that is of use only with the key that it names (WIT-SVID §5). The
// standard is incubating.
type WITSVID struct {
	ID         spiffeid.ID
	Token      string       // JWS compact serialisation
	PrivateKey secret.Bytes // a JWK (RFC 7517)
	KeyID      string       // of the authority that signed it
	IssuedAt   time.Time
	ExpiresAt  time.Time
	Server     Server
}

// String keeps the token out of logs and errors.
func (s *WITSVID) String() string { return fmt.Sprintf("WIT-SVID for %s", s.ID) }

// IssueWIT implements [Issuer]: a host with authority of its own signs none.
func (a *Authority) IssueWIT(_ context.Context, e Entry) (*WITSVID, error) {
	return nil, fmt.Errorf("%w: WIT-SVIDs, such as one of %s, are signed by SPIRE servers alone", ErrNoAuthority, e.ID)
}
