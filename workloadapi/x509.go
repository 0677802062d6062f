package workloadapi

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// FetchX509SVID streams an X509-SVID for each of the caller's identities, the
// default one first (Workload API §5.2.1, §8), and renews them at half-life.
func (a *API) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return follow(a, stream, request{event: audit.EventX509SVID, part: roots}, a.x509SVIDs)
}

func (a *API) x509SVIDs(ctx context.Context, c *gate.Caller, t trust) (*message[workload.X509SVIDResponse], []audit.Record, error) {
	m := &message[workload.X509SVIDResponse]{content: &workload.X509SVIDResponse{FederatedBundles: roots.federated(t)}}
	var records []audit.Record
	hints := make(map[string]bool)
	for _, e := range c.Entries {
		svid, err := a.authority.IssueX509(ctx, e)
		if err != nil {
			return nil, nil, err
		}
		m.content.Svids = append(m.content.Svids, &workload.X509SVID{
			SpiffeId:    e.ID.String(),
			X509Svid:    svid.Chain,
			X509SvidKey: svid.PrivateKey.Reveal(),
			Bundle:      t.own.X509,
			Hint:        uniqueHint(hints, e.Hint),
		})
		records = append(records, c.DescribeX509(e, svid))
		if due := renewAt(time.Now(), svid.NotAfter); m.renew.IsZero() || due.Before(m.renew) {
			m.renew = due
		}
	}
	return m, records, nil
}

// uniqueHint keeps a hint for the first identity that has it (Workload API
// §5.2.1: unique in a response).
func uniqueHint(seen map[string]bool, hint string) string {
	if seen[hint] {
		return ""
	}
	seen[hint] = true
	return hint
}

// FetchX509Bundles streams the trust bundle to who has an identity in it, and those of the
// trust domains that it federates with.
func (a *API) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return follow(a, stream, request{event: audit.EventBundle, part: roots}, func(_ context.Context, c *gate.Caller, t trust) (*message[workload.X509BundlesResponse], []audit.Record, error) {
		if len(t.own.X509) == 0 {
			return nil, nil, identity.ErrNoAuthority // an empty bundle would say that no one is to be trusted
		}
		return &message[workload.X509BundlesResponse]{
			content: &workload.X509BundlesResponse{Bundles: roots.all(t, a.authority.TrustDomain())},
		}, []audit.Record{c.Describe(audit.EventBundle)}, nil
	})
}
