package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
)

// FetchX509SVID streams an X509-SVID for each of the caller's identities, the
// default one first (Workload API §5.2.1, §8), and renews them at half-life.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return follow(s, stream, audit.EventX509SVID, s.x509SVIDs)
}

func (s *Server) x509SVIDs(ctx context.Context, c *caller) (*answer[workload.X509SVIDResponse], error) {
	bundle := s.o.Authority.Bundle().X509
	a := &answer[workload.X509SVIDResponse]{message: new(workload.X509SVIDResponse)}
	hints := make(map[string]bool)
	for _, e := range c.entries {
		svid, err := s.o.Authority.IssueX509(ctx, e.ID, e.X509TTL)
		if err != nil {
			return nil, err
		}
		a.message.Svids = append(a.message.Svids, &workload.X509SVID{
			SpiffeId:    e.ID.String(),
			X509Svid:    svid.Chain,
			X509SvidKey: svid.PrivateKey.Reveal(),
			Bundle:      bundle,
			Hint:        uniqueHint(hints, e.Hint),
		})
		r := c.recordFor(audit.EventX509SVID, e)
		r.SVID = x509Record(svid)
		a.records = append(a.records, r)
		if due := renewAt(time.Now(), svid.NotAfter); a.renew.IsZero() || due.Before(a.renew) {
			a.renew = due
		}
	}
	return a, nil
}

func x509Record(svid *identity.X509SVID) *audit.SVID {
	digest := sha256.Sum256(svid.Leaf)
	return &audit.SVID{
		Kind: "x509", ID: svid.Serial, SHA256: hex.EncodeToString(digest[:]), KeyID: svid.IssuerID,
		NotBefore: svid.NotBefore, NotAfter: svid.NotAfter,
	}
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

// FetchX509Bundles streams the trust bundle to who has an identity in it.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return follow(s, stream, audit.EventBundle, func(_ context.Context, c *caller) (*answer[workload.X509BundlesResponse], error) {
		if len(s.o.Authority.Bundle().X509) == 0 {
			return nil, identity.ErrNoAuthority // an empty bundle would say that nobody is to be trusted
		}
		return &answer[workload.X509BundlesResponse]{
			message: &workload.X509BundlesResponse{Bundles: s.bundles(s.o.Authority.Bundle().X509)},
			records: []audit.Record{c.record(audit.EventBundle)},
		}, nil
	})
}

// bundles is keyed by the trust domain's ID (Workload API §5.2.2, §6.2.2).
func (s *Server) bundles(bundle []byte) map[string][]byte {
	return map[string][]byte{s.o.Authority.TrustDomain().IDString(): bundle}
}
