package workloadapi

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// FetchWITSVID streams a WIT-SVID and its key for each of the caller's identities, or for the
// one it asks for, and renews them at half-life. Where nobody signs any, it is not
// implemented (Workload API §7, incubating).
func (a *API) FetchWITSVID(req *workload.WITSVIDRequest, stream grpc.ServerStreamingServer[workload.WITSVIDResponse]) error {
	if err := a.signsWIT(); err != nil {
		return err
	}
	want, err := gate.ParseID(req.SpiffeId)
	if err != nil {
		return err
	}
	return follow(a, stream, request{audit.EventWITSVID, proofKeys, want}, func(ctx context.Context, c *gate.Caller, _ trust) (*message[workload.WITSVIDResponse], []audit.Record, error) {
		return a.witSVIDs(ctx, c, want)
	})
}

func (a *API) signsWIT() error {
	// Clients do not ask again after this code, so it must not be that of a host whose
	// server has yet to be heard.
	if b := a.authority.Bundle(); b.WITKeys == nil && len(b.X509) > 0 {
		return status.Error(codes.Unimplemented, "nobody signs WIT-SVIDs here: that takes a SPIRE server with its feature flag wit-svid")
	}
	return nil
}

func (a *API) witSVIDs(ctx context.Context, c *gate.Caller, want spiffeid.ID) (*message[workload.WITSVIDResponse], []audit.Record, error) {
	entries, err := entitled(c, want)
	if err != nil {
		return nil, nil, err
	}
	m := &message[workload.WITSVIDResponse]{content: new(workload.WITSVIDResponse)}
	var records []audit.Record
	hints := make(map[string]bool)
	for _, e := range entries {
		svid, err := a.authority.IssueWIT(ctx, e)
		if err != nil {
			return nil, nil, err
		}
		m.content.Svids = append(m.content.Svids, &workload.WITSVID{
			SpiffeId:   e.ID.String(),
			WitSvid:    svid.Token,
			WitSvidKey: string(svid.PrivateKey.Reveal()),
			Hint:       uniqueHint(hints, e.Hint),
		})
		records = append(records, c.DescribeWIT(e, svid))
		if due := renewAt(time.Now(), svid.ExpiresAt); m.renew.IsZero() || due.Before(m.renew) {
			m.renew = due
		}
	}
	return m, records, nil
}

// FetchWITBundles streams the keys that verify WIT-SVIDs to who has an identity in the trust
// domain, and those of the trust domains that it federates with.
func (a *API) FetchWITBundles(_ *workload.WITBundlesRequest, stream grpc.ServerStreamingServer[workload.WITBundlesResponse]) error {
	if err := a.signsWIT(); err != nil {
		return err
	}
	return follow(a, stream, request{event: audit.EventBundle, part: proofKeys}, func(_ context.Context, c *gate.Caller, t trust) (*message[workload.WITBundlesResponse], []audit.Record, error) {
		if t.own.WITKeys == nil {
			return nil, nil, identity.ErrNoAuthority
		}
		m := &message[workload.WITBundlesResponse]{content: &workload.WITBundlesResponse{Bundles: make(map[string]string)}}
		for td, keys := range proofKeys.all(t, a.authority.TrustDomain()) {
			m.content.Bundles[td] = string(keys)
		}
		return m, []audit.Record{c.Describe(audit.EventBundle)}, nil
	})
}
