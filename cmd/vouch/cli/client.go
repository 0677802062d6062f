package cli

import (
	"cmp"
	"os"

	admin "github.com/vouchd/vouchd/workloadapi/admin/client"
	credentials "github.com/vouchd/vouchd/workloadapi/credentialapi/client"
)

// DefaultEndpoint is where the packages put the agent socket.
const DefaultEndpoint = "unix:///run/vouchd/agent.sock"

// An Admin asks the daemon on its administrators' socket.
type Admin = admin.Client

// Secrets is the part of an [Admin] that seals secrets.
type Secrets = admin.Secrets

// Credentials asks the daemon for credentials on its agent socket.
type Credentials = credentials.Client

// What a call that failed may mean.
var (
	ErrNoLease = credentials.ErrNoLease // nothing is left of the lease
	ErrDenied  = credentials.ErrDenied  // this process has no identity
)

// NewAdmin returns a client of the daemon behind a socket.
func NewAdmin(socket string) *Admin { return admin.New(socket) }

// Admin returns a client of the daemon that the configuration names.
func (o *Options) Admin() (*Admin, error) {
	c, err := o.Load()
	if err != nil {
		return nil, err
	}
	return NewAdmin(c.AdminSocket), nil
}

// Endpoint is the agent socket that a flag names, or the environment, or the
// packages'.
func Endpoint(flag string) string {
	return cmp.Or(flag, os.Getenv("SPIFFE_ENDPOINT_SOCKET"), DefaultEndpoint)
}

// NewCredentials returns a client of the agent socket that a flag names, or the
// environment.
func NewCredentials(flag string) (*Credentials, error) {
	c, err := credentials.New(Endpoint(flag))
	if err != nil {
		return nil, Usage(err)
	}
	return c, nil
}

// PreferJWT has JWT-SVIDs signed with an algorithm where their entry says none.
var PreferJWT = credentials.PreferJWT

// MayTryAgain reports whether a call that failed may succeed later.
func MayTryAgain(err error) bool { return credentials.MayTryAgain(err) }

// Words returns what an error of a call says, without the wrapping of gRPC.
func Words(err error) string { return credentials.Words(err) }
