package credentialapi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A request is one caller's for a credential.
type request struct {
	caller *gate.Caller
	holder credential.Holder
	entry  identity.Entry
	ask    credential.Ask
}

// begin admits the caller and says what it asks for, and as whom.
func (a *API) begin(ctx context.Context, req *credentialv1.GrantCredentialRequest) (*request, error) {
	want, err := checkGrant(req)
	if err != nil {
		return nil, err
	}
	c, err := a.present(ctx, audit.EventLeaseIntent)
	if err != nil {
		return nil, err
	}
	holder, entry, err := a.holder(ctx, c, want, req.Name)
	if err != nil {
		return nil, c.Refuse(ctx, audit.EventLeaseIntent, err)
	}
	return &request{c, holder, entry, credential.Ask{
		Name:      req.Name,
		Granted:   entry.Credentials,
		Params:    req.Parameters,
		TTL:       seconds(req.TtlSeconds),
		RequestID: c.RequestID,
		Exposure:  exposures[req.Exposure],
		Asker:     asker(c, entry),
		Reuse:     req.Reuse,
	}}, nil
}

// still returns an error if the caller, attested again, is no longer granted the
// credential.
func (r *request) still(now *gate.Caller) error {
	if e, ok := now.EntryOf(r.entry.ID); !ok || !slices.Contains(e.Credentials, r.ask.Name) {
		return fmt.Errorf("%w: %q is no longer granted to %s", credential.ErrNotGranted, r.ask.Name, r.entry.ID)
	}
	return nil
}

// granting returns the caller's first entry that grants the credential, else its
// default identity's, to which it is refused.
func granting(c *gate.Caller, name string) identity.Entry {
	if i := slices.IndexFunc(c.Entries, func(e identity.Entry) bool { return slices.Contains(e.Credentials, name) }); i >= 0 {
		return c.Entries[i]
	}
	return c.Entries[0]
}

// holder returns who leases, and by which entry: the caller under the identity it
// wants, else under one that is granted the credential.
func (a *API) holder(ctx context.Context, c *gate.Caller, want spiffeid.ID, name string) (credential.Holder, identity.Entry, error) {
	entry := granting(c, name)
	if !want.IsZero() {
		var ok bool
		if entry, ok = c.EntryOf(want); !ok {
			return credential.Holder{}, entry, fmt.Errorf("%w: %s", gate.ErrNotEntitled, want)
		}
	}
	if !slices.Contains(entry.Credentials, name) {
		// It will be refused, and is not worth a file descriptor until it exits.
		return credential.Holder{ID: entry.ID}, entry, nil
	}
	var bind credential.Bind
	if d, ok := a.leases.Definitions().Get(name); ok {
		bind = d.Bind
	}
	h, err := a.Holder(ctx, c, entry, bind)
	return h, entry, err
}

// holderOf returns the caller as the holder of a lease. Whose lease it is, the
// manager checks once more.
func (a *API) holderOf(ctx context.Context, c *gate.Caller, leaseID string) (credential.Holder, identity.Entry, credential.Lease, error) {
	lease, ok := a.leases.Lease(leaseID)
	entry, its := c.EntryOf(lease.Identity)
	if !ok || !its {
		return credential.Holder{}, entry, lease, fmt.Errorf("lease %.64q: %w", leaseID, credential.ErrNoLease)
	}
	h, err := a.Holder(ctx, c, entry, lease.Bind)
	return h, entry, lease, err
}

// Holder returns the caller as the holder of a lease, under one of its entries, that ends with what bind
// says. Systemd is asked only where it says the unit.
func (a *API) Holder(ctx context.Context, c *gate.Caller, e identity.Entry, bind credential.Bind) (credential.Holder, error) {
	process, exit, err := a.pins.hold(c.Peer(), c.Process)
	if err != nil {
		return credential.Holder{}, fmt.Errorf("%w: %w", gate.ErrAttestation, err)
	}
	h := credential.Holder{ID: e.ID, Process: process, Exit: exit, Identity: &workloadIdentity{a, c, e}}
	if bind == credential.BindUnit {
		h.Process.Invocation, h.Stop, err = a.unitOf(ctx, c)
	}
	return h, err
}

// errNoUnit means that a lease would end with the caller's system unit, and the
// caller is in none whose end can be told.
var errNoUnit = errors.New("the credential is bound to the caller's system unit")

// unitOf returns the invocation of the caller's unit, and when that ends.
func (a *API) unitOf(ctx context.Context, c *gate.Caller) (invocation string, stop <-chan struct{}, err error) {
	if invocation, err = a.attester.Invocation(ctx, c.Peer(), c.Process); err == nil {
		stop, err = a.pins.stop(ctx, c.Process.Unit, invocation)
	}
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", errNoUnit, err)
	}
	return invocation, stop, nil
}

// asker lets the records of a lease tell who asked, and by which entry.
func asker(c *gate.Caller, e identity.Entry) *credential.Asker {
	return (*credential.Asker)(c.DescribeAs("", e).Workload)
}
