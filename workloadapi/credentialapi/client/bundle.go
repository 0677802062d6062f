package client

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// sequenceHeader numbers the bundle that a stream's first message has. Of the standard's
// messages none does.
const sequenceHeader = "vouchd-bundle-sequence"

// A Bundle is a trust domain's bundle as this process is given it.
type Bundle struct {
	Sequence uint64 // of this host's own trust domain; 0: of another, or of an agent that does not say
	X509     []byte // root certificates, DER, concatenated
	JWKS     []byte // RFC 7517
}

// Bundle returns the bundle of a trust domain, of which own says whether it is this host's:
// roots and keys of one moment. It has no roots, or no keys, where there are none.
func (c *Client) Bundle(ctx context.Context, trustDomain string, own bool) (Bundle, error) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, securityHeader, "true"))
	defer cancel()
	api, id := workload.NewSpiffeWorkloadAPIClient(c.conn), "spiffe://"+trustDomain
	const attempts = 5 // keys rotate between two calls once in hours
	for range attempts {
		roots, before, err := first(api.FetchX509Bundles(ctx, &workload.X509BundlesRequest{}))
		if err != nil {
			return Bundle{}, c.explain(ctx, "fetching X.509 bundles", err)
		}
		keys, sequence, err := first(api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{}))
		if err != nil {
			return Bundle{}, c.explain(ctx, "fetching JWT bundles", err)
		}
		if before != sequence {
			continue
		}
		b := Bundle{sequence, roots.Bundles[id], keys.Bundles[id]}
		if !own {
			b.Sequence = 0
		}
		if b.X509 == nil && b.JWKS == nil {
			return Bundle{}, fmt.Errorf("fetching the bundle of %s: this process is not given it: %w", trustDomain, ErrDenied)
		}
		return b, nil
	}
	return Bundle{}, fmt.Errorf("fetching the bundle of %s: it changed %d times meanwhile", trustDomain, attempts)
}

// first returns a stream's first message, and the number of the bundle in it.
func first[M any](stream grpc.ServerStreamingClient[M], err error) (*M, uint64, error) {
	if err != nil {
		return nil, 0, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, 0, err
	}
	header, err := stream.Header()
	if err != nil {
		return nil, 0, err
	}
	if v := header.Get(sequenceHeader); len(v) == 1 {
		sequence, err := strconv.ParseUint(v[0], 10, 64)
		return m, sequence, err
	}
	return m, 0, nil
}
