// Package credentialapi leases credentials to attested processes: over gRPC, on the socket of
// the SPIFFE Workload API and to the same callers (CredentialAPI v1), and to systemd for the
// units that it starts (LoadCredential=).
//
// The gate decides who asks, and the lease engine runs the life of a lease. This package is
// what lies between them: which credential of which entry a caller means, what its lease ends
// with ([Pins]), and how the log records it ([Recorder]).
//
// A source may take a while, in which the process could become another program. A caller
// therefore proves its presence before the source is asked, and is attested once more before
// it is answered.
package credentialapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// Options are what the API answers with. All are required.
type Options struct {
	Gate      *gate.Gate
	Attester  *process.Attester // of the invocations of units
	Authority identity.Issuer
	Leases    *lease.Manager
	Pins      *Pins  // the same that the manager finds processes with
	Sockets   string // directory below which databases have theirs
}

// An API leases credentials. Its methods are safe for concurrent use.
type API struct {
	credentialv1.UnimplementedCredentialAPIServer

	gate      *gate.Gate
	attester  *process.Attester
	authority identity.Issuer
	leases    *lease.Manager
	pins      *Pins
	sockets   string
}

// New returns the API.
func New(o Options) *API {
	return &API{gate: o.Gate, attester: o.Attester, authority: o.Authority, leases: o.Leases, pins: o.Pins, sockets: o.Sockets}
}

// Register has the API answer over gRPC.
func (a *API) Register(s grpc.ServiceRegistrar) { credentialv1.RegisterCredentialAPIServer(s, a) }

// ListCredentials returns the credentials that the caller's entries name.
func (a *API) ListCredentials(ctx context.Context, _ *credentialv1.ListCredentialsRequest) (*credentialv1.ListCredentialsResponse, error) {
	c, err := a.gate.AdmitRPC(ctx, audit.EventWorkload)
	if err != nil {
		return nil, a.status(err)
	}
	resp, err := gate.Answer(ctx, c, func(context.Context, *gate.Caller) (*credentialv1.ListCredentialsResponse, []audit.Record, error) {
		return &credentialv1.ListCredentialsResponse{Credentials: granted(a.leases, a.sockets, c)}, []audit.Record{c.Describe(audit.EventWorkload)}, nil
	})
	if err != nil {
		return nil, a.status(err)
	}
	return resp, nil
}

// GrantCredential leases a credential.
func (a *API) GrantCredential(ctx context.Context, req *credentialv1.GrantCredentialRequest) (resp *credentialv1.GrantCredentialResponse, err error) {
	r, err := a.begin(ctx, req)
	if err != nil {
		return nil, a.status(err)
	}
	err = gate.Obtain(ctx, r.caller, gate.Slow[*credential.Grant]{
		Get:     func(ctx context.Context, hand func(*credential.Grant) error) error { return a.grant(ctx, r, hand) },
		Still:   r.still,
		Deliver: func(g *credential.Grant) error { resp = grantMessage(g); return nil },
		Event:   audit.EventLeaseGrant,
	})
	if err != nil {
		return nil, a.status(err)
	}
	return resp, nil
}

func (a *API) grant(ctx context.Context, r *request, hand func(*credential.Grant) error) error {
	g, err := a.leases.Grant(ctx, r.holder, r.ask)
	if err != nil {
		return err
	}
	if err := hand(g); err != nil {
		g.Wipe()
		if !g.Reused {
			a.leases.Abandon(g.Lease.ID, "its holder did not get it: "+err.Error())
		}
		return err
	}
	return nil
}

// WatchCredential leases one after the other.
func (a *API) WatchCredential(req *credentialv1.GrantCredentialRequest, stream grpc.ServerStreamingServer[credentialv1.GrantCredentialResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	r, err := a.begin(ctx, req)
	if err != nil {
		return a.status(err)
	}
	r.ask.Reuse = false // the next lease is to be another
	defer a.gate.Streams.Begin()()
	go func() {
		select {
		case <-a.gate.Streams.Stopping():
		case <-r.holder.Exit:
		case <-ctx.Done():
		}
		cancel()
	}()
	err = gate.Obtain(ctx, r.caller, gate.Slow[*credential.Grant]{
		Get:     func(ctx context.Context, hand func(*credential.Grant) error) error { return a.watch(ctx, r, hand) },
		Still:   r.still,
		Deliver: func(g *credential.Grant) error { return stream.Send(grantMessage(g)) },
		Event:   audit.EventLeaseGrant,
	})
	if errors.Is(err, credential.ErrHolderGone) && ctx.Err() == nil && r.caller.Peer().Alive() == nil {
		// A lease that was revoked because its holder is no longer granted it is
		// not worth trying again.
		if lost := r.caller.Again(ctx, r.still); lost != nil {
			err = r.caller.Refuse(ctx, audit.EventLeaseGrant, lost)
		}
	}
	return a.status(err)
}

// watch hands one grant after the other. The manager ends a lease that was not
// delivered.
func (a *API) watch(ctx context.Context, r *request, hand func(*credential.Grant) error) error {
	var refused error
	// Attested again before the next is asked for, with an SVID of the caller's.
	still := func() error { refused = r.caller.Again(ctx, r.still); return refused }
	err := a.leases.Watch(ctx, r.holder, r.ask, still, func(g *credential.Grant) error {
		if refused = hand(g); refused != nil {
			g.Wipe()
		}
		return refused
	})
	if stopping := a.gate.Streams.Err(); stopping != nil && refused == nil {
		return stopping
	}
	return err
}

// grantMessage hands the values on: from here they are the reply's.
func grantMessage(g *credential.Grant) *credentialv1.GrantCredentialResponse {
	resp := &credentialv1.GrantCredentialResponse{Lease: leaseMessage(g.Lease)}
	for _, f := range g.Fields {
		resp.Fields = append(resp.Fields, &credentialv1.Field{Name: f.Name, Value: f.Value.Reveal(), Public: f.Public})
	}
	return resp
}

// RenewLease moves a lease's expiry, if the caller's entries still name its
// credential.
func (a *API) RenewLease(ctx context.Context, req *credentialv1.RenewLeaseRequest) (*credentialv1.RenewLeaseResponse, error) {
	if err := errors.Join(checkLeaseID(req.LeaseId), checkSeconds(req.TtlSeconds)); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := a.present(ctx, audit.EventLeaseRenew)
	if err != nil {
		return nil, a.status(err)
	}
	holder, entry, lease, err := a.holderOf(ctx, c, req.LeaseId)
	if err == nil && !slices.Contains(entry.Credentials, lease.Credential) {
		err = fmt.Errorf("%w: %q to %s; its entry must list it", credential.ErrNotGranted, lease.Credential, holder.ID)
	}
	if err != nil {
		return nil, a.status(c.Refuse(ctx, audit.EventLeaseRenew, err))
	}
	renewed, err := a.leases.Renew(ctx, holder, credential.Renewal{
		Lease: req.LeaseId, TTL: seconds(req.TtlSeconds), RequestID: c.RequestID, Asker: asker(c, entry),
	})
	if err != nil {
		return nil, a.status(c.Fail(err))
	}
	return &credentialv1.RenewLeaseResponse{Lease: leaseMessage(renewed)}, nil
}

// revokeWait is how long a caller waits for a source to confirm an end, which happens
// either way.
const revokeWait = 20 * time.Second

// RevokeLease ends a lease, even if the caller's entry no longer grants the credential.
func (a *API) RevokeLease(ctx context.Context, req *credentialv1.RevokeLeaseRequest) (*credentialv1.RevokeLeaseResponse, error) {
	if err := checkLeaseID(req.LeaseId); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := a.present(ctx, audit.EventLeaseRevokeIntent)
	if err != nil {
		return nil, a.status(err)
	}
	holder, entry, lease, err := a.holderOf(ctx, c, req.LeaseId)
	if err != nil {
		return nil, a.status(c.Refuse(ctx, audit.EventLeaseRevokeIntent, err))
	}
	r := c.Describe(audit.EventLeaseRevokeIntent)
	r.SPIFFEID = holder.ID.String()
	// When it ends anyway tells a reader that does not see the end yet whether it is overdue.
	r.Credential = &audit.Credential{
		Lease: a.leases.LeaseHash(lease.ID), Name: lease.Credential, Kind: lease.Broker, Upstream: lease.Upstream, Handle: lease.Handle,
		NotAfter: lease.Expires, Revocation: string(lease.Revocation),
	}
	if err := c.Record(ctx, r); err != nil {
		return nil, a.status(err)
	}
	ctx, cancel := context.WithTimeout(ctx, revokeWait)
	defer cancel()
	err = a.leases.Revoke(ctx, holder, lease.ID, asker(c, entry))
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, status.Errorf(codes.DeadlineExceeded, "the source has not confirmed the end yet; the daemon keeps trying (request %s)", c.RequestID)
	}
	if err != nil {
		return nil, a.status(c.Fail(err))
	}
	return &credentialv1.RevokeLeaseResponse{}, nil
}

// AwaitEnd tells when the end of a lease begins.
func (a *API) AwaitEnd(req *credentialv1.AwaitEndRequest, stream grpc.ServerStreamingServer[credentialv1.AwaitEndResponse]) error {
	if err := checkLeaseID(req.LeaseId); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	c, err := a.present(ctx, audit.EventLeaseRevokeIntent)
	if err != nil {
		return a.status(err)
	}
	holder, _, lease, err := a.holderOf(ctx, c, req.LeaseId)
	if err != nil {
		return a.status(c.Refuse(ctx, audit.EventLeaseRevokeIntent, err))
	}
	defer a.gate.Streams.Begin()()
	go func() {
		select {
		case <-a.gate.Streams.Stopping():
		case <-holder.Exit:
		case <-ctx.Done():
		}
		cancel()
	}()
	reason, expired, err := a.leases.Await(ctx, holder, lease.ID)
	if stopping := a.gate.Streams.Err(); stopping != nil {
		err = stopping
	}
	if err != nil {
		return a.status(err)
	}
	return stream.Send(&credentialv1.AwaitEndResponse{Expired: expired, Reason: reason})
}

// present returns a caller that has proven its presence.
func (a *API) present(ctx context.Context, event audit.Event) (*gate.Caller, error) {
	c, err := a.gate.AdmitRPC(ctx, event)
	if err != nil {
		return nil, err
	}
	return c, c.Prove(ctx)
}

// granted describes what the caller may ask for.
func granted(leases *lease.Manager, sockets string, c *gate.Caller) (list []*credentialv1.Credential) {
	ids := make(map[string][]string) // of each credential
	for _, e := range c.Entries {
		for _, name := range e.Credentials {
			ids[name] = append(ids[name], e.ID.String())
		}
	}
	for _, d := range leases.List(slices.Collect(maps.Keys(ids))) {
		list = append(list, definitionMessage(d, ids[d.Name], sockets))
	}
	return list
}
