// Package none is for calls that need no credential, such as to a registry of packages:
// a definition grants their hosts and says what may be done there.
package none

import (
	"context"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
)

// A Broker issues nothing.
type Broker struct{}

// Open is the [credential.Opener]. There are no settings.
func Open(_ *credential.Definition, section config.Section) (credential.Broker, error) {
	if section.Given() {
		var problems config.Errors
		problems.Add(section.Pos, "broker none has no settings; remove the key none")
		return nil, problems.Err()
	}
	return Broker{}, nil
}

// Traits says that there is nothing.
func (Broker) Traits() credential.Traits {
	return credential.Traits{Upstream: "none", Revocation: credential.Hard, ProxyOnly: true, Nothing: true}
}

// Plan has nothing to plan.
func (Broker) Plan(context.Context, credential.Request) (credential.Plan, error) {
	return credential.Plan{}, nil
}

// Issue issues nothing.
func (Broker) Issue(context.Context, credential.Request, credential.Plan) (credential.Issued, error) {
	return credential.Issued{}, nil
}

// Renew has nothing to renew.
func (Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, credential.ErrNotRenewable
}

// Revoke has nothing to end.
func (Broker) Revoke(context.Context, credential.Handle) (credential.Use, error) {
	return credential.Use{}, nil
}

// Recover has nothing to find.
func (Broker) Recover(context.Context, credential.Handle) error { return nil }
