package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

const (
	maxAskedParameters = 32
	maxLeaseIDLen      = 64 // bytes
)

// A credentialAPI answers beside the SPIFFE service, on the same socket and to
// the same callers.
type credentialAPI struct {
	credentialv1.UnimplementedCredentialAPIServer
	s *Server
}

// ListCredentials tells the caller what its entries name.
func (a *credentialAPI) ListCredentials(ctx context.Context, _ *credentialv1.ListCredentialsRequest) (*credentialv1.ListCredentialsResponse, error) {
	c, err := a.s.present(ctx, audit.EventWorkload)
	if err != nil {
		return nil, err
	}
	if err := a.s.o.Log.Append(ctx, c.record(audit.EventWorkload)); err != nil {
		return nil, a.s.toStatus(err, c.requestID)
	}
	return &credentialv1.ListCredentialsResponse{Credentials: a.s.granted(c)}, nil
}

// GrantCredential leases a credential. The upstream may take a while, in which
// the process could become another program: so the caller proves its presence
// before the upstream is asked, and is attested once more before it is
// answered.
func (a *credentialAPI) GrantCredential(ctx context.Context, req *credentialv1.GrantCredentialRequest) (*credentialv1.GrantCredentialResponse, error) {
	l, err := a.s.beginLease(ctx, req)
	if err != nil {
		return nil, err
	}
	g, err := a.s.o.Credentials.Grant(ctx, l.holder, l.ask)
	if err != nil {
		return nil, a.s.toStatus(err, l.caller.requestID)
	}
	if err := a.s.confirm(ctx, l); err != nil {
		g.Wipe()
		a.s.o.Credentials.Abandon(g.Lease.ID, "its holder did not get it: "+err.Error())
		return nil, a.s.refuse(ctx, l.caller, audit.EventLeaseGrant, err)
	}
	return grantMessage(g), nil
}

// WatchCredential leases one after the other. The manager ends a lease that was
// not sent.
func (a *credentialAPI) WatchCredential(req *credentialv1.GrantCredentialRequest, stream grpc.ServerStreamingServer[credentialv1.GrantCredentialResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	l, err := a.s.beginLease(ctx, req)
	if err != nil {
		return err
	}
	a.s.streams.Add(1)
	defer a.s.streams.Add(-1)
	go func() {
		select {
		case <-a.s.stopping:
		case <-l.holder.Exit:
		case <-ctx.Done():
		}
		cancel()
	}()
	var refused error
	err = a.s.o.Credentials.Watch(ctx, l.holder, l.ask, func(g *credential.Grant) error {
		if refused = a.s.confirm(ctx, l); refused != nil {
			g.Wipe()
			return refused
		}
		return stream.Send(grantMessage(g))
	})
	if errors.Is(err, credential.ErrHolderGone) && refused == nil && ctx.Err() == nil && l.caller.conn.Process().Alive() == nil {
		// A lease that was revoked because its holder is granted it no more is
		// not worth trying again.
		refused = a.s.confirm(ctx, l)
	}
	if refused != nil {
		return a.s.refuse(ctx, l.caller, audit.EventLeaseGrant, refused)
	}
	select {
	case <-a.s.stopping:
		err = errStopping
	default:
	}
	return a.s.toStatus(err, l.caller.requestID)
}

// A leasing is one caller's request for a credential.
type leasing struct {
	caller *caller
	holder credential.Holder
	entry  identity.Entry
	ask    credential.Ask
}

// beginLease attests the caller and says what it asks for, and as whom. Errors
// are recorded and are statuses already.
func (s *Server) beginLease(ctx context.Context, req *credentialv1.GrantCredentialRequest) (*leasing, error) {
	want, err := checkGrant(req)
	if err != nil {
		return nil, err
	}
	c, err := s.present(ctx, audit.EventLeaseIntent)
	if err != nil {
		return nil, err
	}
	holder, entry, err := s.holder(ctx, c, want, req.Name)
	if err != nil {
		return nil, s.refuse(ctx, c, audit.EventLeaseIntent, err)
	}
	return &leasing{c, holder, entry, credential.Ask{
		Name:      req.Name,
		Granted:   entry.Credentials,
		Params:    req.Parameters,
		TTL:       seconds(req.TtlSeconds),
		RequestID: c.requestID,
		Exposure:  exposures[req.Exposure],
		Asker:     c.asker(entry),
	}}, nil
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
func (a *credentialAPI) RenewLease(ctx context.Context, req *credentialv1.RenewLeaseRequest) (*credentialv1.RenewLeaseResponse, error) {
	if err := errors.Join(checkLeaseID(req.LeaseId), checkSeconds(req.TtlSeconds)); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := a.s.present(ctx, audit.EventLeaseRenew)
	if err != nil {
		return nil, err
	}
	holder, entry, lease, err := a.s.holderOf(ctx, c, req.LeaseId)
	if err == nil && !slices.Contains(entry.Credentials, lease.Credential) {
		err = fmt.Errorf("%w: %q to %s; its entry must list it", credential.ErrNotGranted, lease.Credential, holder.ID)
	}
	if err != nil {
		return nil, a.s.refuse(ctx, c, audit.EventLeaseRenew, err)
	}
	renewed, err := a.s.o.Credentials.Renew(ctx, holder, req.LeaseId, seconds(req.TtlSeconds), c.requestID, c.asker(entry))
	if err != nil {
		return nil, a.s.toStatus(err, c.requestID)
	}
	return &credentialv1.RenewLeaseResponse{Lease: leaseMessage(renewed)}, nil
}

// RevokeLease ends a lease. What it was granted by may be gone by now.
func (a *credentialAPI) RevokeLease(ctx context.Context, req *credentialv1.RevokeLeaseRequest) (*credentialv1.RevokeLeaseResponse, error) {
	if err := checkLeaseID(req.LeaseId); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := a.s.present(ctx, audit.EventLeaseRevokeIntent)
	if err != nil {
		return nil, err
	}
	holder, _, lease, err := a.s.holderOf(ctx, c, req.LeaseId)
	if err != nil {
		return nil, a.s.refuse(ctx, c, audit.EventLeaseRevokeIntent, err)
	}
	r := c.record(audit.EventLeaseRevokeIntent)
	r.SPIFFEID = holder.ID.String()
	r.Credential = &audit.Credential{Lease: a.s.o.Credentials.LeaseHash(lease.ID), Name: lease.Credential, Kind: lease.Broker, Upstream: lease.Upstream, Handle: lease.Handle}
	if err := a.s.o.Log.Append(ctx, r); err != nil {
		return nil, a.s.toStatus(err, c.requestID)
	}
	ctx, cancel := context.WithTimeout(ctx, revokeWait)
	defer cancel()
	err = a.s.o.Credentials.Revoke(ctx, holder, lease.ID)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, status.Errorf(codes.DeadlineExceeded, "the source has not confirmed the end yet; that goes on (request %s)", c.requestID)
	}
	if err != nil {
		return nil, a.s.toStatus(err, c.requestID)
	}
	return &credentialv1.RevokeLeaseResponse{}, nil
}

// present attests the caller and has it prove its presence. Errors are recorded
// and are statuses already.
func (s *Server) present(ctx context.Context, event audit.Event) (*caller, error) {
	c, err := newCaller(ctx)
	if err != nil {
		return nil, s.toStatus(err, "")
	}
	if err := s.attest(ctx, c); err != nil {
		return nil, s.refuse(ctx, c, event, err)
	}
	if err := s.prove(ctx, c); err != nil {
		return nil, s.refuse(ctx, c, event, err)
	}
	return c, nil
}

// confirm attests the caller anew, and returns an error unless it still is
// granted the credential, on a machine that still may issue.
func (s *Server) confirm(ctx context.Context, l *leasing) error {
	now := &caller{requestID: l.caller.requestID, arrived: l.caller.arrived, conn: l.caller.conn}
	if err := s.attest(ctx, now); err != nil {
		return err
	}
	if err := s.prove(ctx, now); err != nil {
		return err
	}
	e, ok := now.entryOf(l.entry.ID)
	if !ok || now.process.StartTime != l.caller.process.StartTime || !slices.Contains(e.Credentials, l.ask.Name) {
		return fmt.Errorf("%w: %q to %s any more", credential.ErrNotGranted, l.ask.Name, l.entry.ID)
	}
	return nil
}

// entryOf returns the caller's entry for an identity. All entries of one identity
// name the same credentials.
func (c *caller) entryOf(id spiffeid.ID) (identity.Entry, bool) {
	for _, e := range c.entries {
		if e.ID == id {
			return e, true
		}
	}
	return identity.Entry{}, false
}

// holder returns who leases, and by which entry: the caller under the identity it
// wants, else under its first that is granted the credential, else under its
// default identity, to which it is refused.
func (s *Server) holder(ctx context.Context, c *caller, want spiffeid.ID, name string) (credential.Holder, identity.Entry, error) {
	entry := c.entries[0]
	if !want.IsZero() {
		var ok bool
		if entry, ok = c.entryOf(want); !ok {
			return credential.Holder{}, entry, fmt.Errorf("%w: %s", errNotEntitled, want)
		}
	} else if i := slices.IndexFunc(c.entries, func(e identity.Entry) bool { return slices.Contains(e.Credentials, name) }); i >= 0 {
		entry = c.entries[i]
	}
	if !slices.Contains(entry.Credentials, name) {
		// It will be refused, and is not worth a file descriptor until it exits.
		return credential.Holder{ID: entry.ID}, entry, nil
	}
	var bind credential.Bind
	if d, ok := s.o.Credentials.Definitions().Get(name); ok {
		bind = d.Bind
	}
	h, err := s.holderAs(ctx, c, entry, bind)
	return h, entry, err
}

// holderOf returns the caller as the holder of a lease. Whose lease it is, the
// manager checks once more.
func (s *Server) holderOf(ctx context.Context, c *caller, leaseID string) (credential.Holder, identity.Entry, credential.Lease, error) {
	lease, ok := s.o.Credentials.Lease(leaseID)
	entry, its := c.entryOf(lease.Identity)
	if !ok || !its {
		return credential.Holder{}, entry, lease, fmt.Errorf("lease %.64q: %w", leaseID, credential.ErrNoLease)
	}
	h, err := s.holderAs(ctx, c, entry, lease.Bind)
	return h, entry, lease, err
}

// holderAs returns the caller as the holder of a lease that ends with what bind
// says. Systemd is asked only where it says the unit.
func (s *Server) holderAs(ctx context.Context, c *caller, e identity.Entry, bind credential.Bind) (credential.Holder, error) {
	process, exit, err := s.o.Holders.hold(c.conn.Process(), c.process)
	if err != nil {
		return credential.Holder{}, fmt.Errorf("%w: %w", errAttestation, err)
	}
	h := credential.Holder{ID: e.ID, Process: process, Exit: exit, Identity: &workloadIdentity{s, c, e}}
	if bind != credential.BindUnit {
		return h, nil
	}
	if h.Process.Invocation, err = s.o.Attester.Invocation(ctx, c.conn.Process(), c.process); err == nil {
		h.Stop, err = s.o.Holders.stop(ctx, h.Process.Unit, h.Process.Invocation)
	}
	if err != nil {
		return credential.Holder{}, fmt.Errorf("%w: %w", errNoUnit, err)
	}
	return h, nil
}

// errNoUnit means that a lease would end with the caller's system unit, and the
// caller is in none whose end can be told.
var errNoUnit = errors.New("the credential is bound to the caller's system unit")

// asker lets the records of a lease tell who asked, and by which entry.
func (c *caller) asker(e identity.Entry) *audit.Workload {
	w := c.workload()
	w.Entry = e.Pos.String()
	return w
}

// granted describes what the caller may ask for.
func (s *Server) granted(c *caller) (list []*credentialv1.Credential) {
	ids := make(map[string][]string) // of each credential
	for _, e := range c.entries {
		for _, name := range e.Credentials {
			ids[name] = append(ids[name], e.ID.String())
		}
	}
	for _, d := range s.o.Credentials.List(slices.Collect(maps.Keys(ids))) {
		m := &credentialv1.Credential{
			Name:          d.Name,
			Description:   d.Description,
			TtlSeconds:    int64(d.TTL / time.Second),
			MaxTtlSeconds: int64(d.MaxTTL / time.Second),
			Renewable:     d.Renewable,
			Bind:          binds[d.Bind],
			Revocation:    revocations[d.Traits.Revocation],
			SpiffeIds:     ids[d.Name],
		}
		for _, p := range d.Parameters {
			of := &credentialv1.Parameter{Name: p.Name, OneOf: p.OneOf, Required: p.Default == ""}
			if p.Pattern != nil {
				of.Pattern = p.Pattern.String()
			}
			m.Parameters = append(m.Parameters, of)
		}
		for _, o := range d.For {
			m.Targets = append(m.Targets, &credentialv1.Target{Tool: o.Tool, Location: o.Location, Username: o.Username})
		}
		list = append(list, m)
	}
	return list
}
