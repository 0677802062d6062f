package credentialapi

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

const (
	maxAskedParameters = 32
	maxLeaseIDLen      = 64 // bytes
)

// checkGrant bounds a request, and returns the identity it is for, if it says.
func checkGrant(req *credentialv1.GrantCredentialRequest) (spiffeid.ID, error) {
	if _, ok := exposures[req.Exposure]; !ok {
		return spiffeid.ID{}, status.Error(codes.InvalidArgument, "exposure is not known")
	}
	if req.Name == "" {
		return spiffeid.ID{}, status.Error(codes.InvalidArgument, "name is missing")
	}
	if len(req.Parameters) > maxAskedParameters {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "%d parameters are more than %d", len(req.Parameters), maxAskedParameters)
	}
	if err := checkSeconds(req.TtlSeconds); err != nil {
		return spiffeid.ID{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return gate.ParseID(req.SpiffeId)
}

func checkSeconds(n int64) error {
	if most := int64(365 * 24 * time.Hour / time.Second); n < 0 || n > most {
		return fmt.Errorf("ttl_seconds is %d; want 0 to %d", n, most)
	}
	return nil
}

func checkLeaseID(id string) error {
	if id == "" || len(id) > maxLeaseIDLen {
		return fmt.Errorf("lease_id has %d bytes; want 1 to %d", len(id), maxLeaseIDLen)
	}
	return nil
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

func leaseMessage(l credential.Lease) *credentialv1.Lease {
	return &credentialv1.Lease{
		Id:         l.ID,
		Credential: l.Credential,
		SpiffeId:   l.Identity.String(),
		ExpiresAt:  l.Expires.Unix(),
		LatestAt:   l.Latest.Unix(),
		Renewable:  l.Renewable,
		Bind:       binds[l.Bind],
		Revocation: revocations[l.Revocation],
	}
}

func definitionMessage(d *credential.Definition, ids []string, sockets string) *credentialv1.Credential {
	m := &credentialv1.Credential{
		Name:          d.Name,
		Description:   d.Description,
		TtlSeconds:    int64(d.TTL / time.Second),
		MaxTtlSeconds: int64(d.MaxTTL / time.Second),
		Renewable:     d.Renewable,
		Bind:          binds[d.Bind],
		Revocation:    revocations[d.Traits.Revocation],
		SpiffeIds:     ids,
	}
	for _, p := range d.Parameters {
		of := &credentialv1.Parameter{Name: p.Name, OneOf: p.OneOf, Required: p.Default == ""}
		if p.Pattern != nil {
			of.Pattern = p.Pattern.String()
		}
		m.Parameters = append(m.Parameters, of)
	}
	if p := d.Proxy; p != nil {
		m.Proxy = &credentialv1.Proxy{Upstream: p.Upstream, Hosts: p.Hosts, MainOnly: p.MainOnly, Values: d.Deliver == credential.DeliverBoth, Passthrough: p.Passthrough}
		for _, v := range p.Environment {
			m.Proxy.Environment = append(m.Proxy.Environment, &credentialv1.Variable{Name: v.Name, Value: v.Value})
		}
	}
	if of := d.Database; of != nil {
		m.Proxy = &credentialv1.Proxy{Upstream: of.Upstream, MainOnly: of.MainOnly, Values: d.Deliver == credential.DeliverBoth}
		m.Proxy.Socket = database.SocketOf(sockets, of.Protocol, d.Name)
		for _, v := range of.Filled(m.Proxy.Socket) {
			m.Proxy.Environment = append(m.Proxy.Environment, &credentialv1.Variable{Name: v.Name, Value: v.Value})
		}
		for _, v := range of.Addressed() {
			m.Proxy.Addressed = append(m.Proxy.Addressed, &credentialv1.Variable{Name: v.Name, Value: v.Value})
		}
	}
	for _, o := range d.For {
		m.Targets = append(m.Targets, &credentialv1.Target{Tool: o.Tool, Location: o.Location, Username: o.Username})
	}
	return m
}

// The words of the API.
var (
	exposures = map[credentialv1.Exposure]credential.Exposure{
		credentialv1.Exposure_EXPOSURE_UNSPECIFIED: "",
		credentialv1.Exposure_EXPOSURE_MEMORY:      credential.InMemory,
		credentialv1.Exposure_EXPOSURE_FILE:        credential.InFile,
		credentialv1.Exposure_EXPOSURE_ENVIRONMENT: credential.InEnvironment,
	}
	binds = map[credential.Bind]credentialv1.Bind{
		credential.BindProcess: credentialv1.Bind_BIND_PROCESS,
		credential.BindUnit:    credentialv1.Bind_BIND_UNIT,
		credential.BindLease:   credentialv1.Bind_BIND_LEASE,
	}
	revocations = map[credential.Revocation]credentialv1.Revocation{
		credential.Hard:       credentialv1.Revocation_REVOCATION_HARD,
		credential.GrantWide:  credentialv1.Revocation_REVOCATION_GRANT_WIDE,
		credential.ExpiryOnly: credentialv1.Revocation_REVOCATION_EXPIRY_ONLY,

		credential.Unrevocable: credentialv1.Revocation_REVOCATION_NONE,
	}
)
