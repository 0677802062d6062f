package workloadapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// FetchJWTSVID issues a JWT-SVID for each of the caller's identities, or for
// the one it asks for (Workload API §6.2.1).
func (a *API) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := gate.CheckAudience(req.Audience); err != nil {
		return nil, err
	}
	want, err := gate.ParseID(req.SpiffeId)
	if err != nil {
		return nil, err
	}
	algorithm, err := a.preferred(ctx)
	if err != nil {
		return nil, err
	}
	c, err := a.gate.AdmitRPC(ctx, audit.EventJWTSVID)
	if err != nil {
		return nil, a.gate.Status(err)
	}
	again := gate.Repeat{
		Of:  fmt.Sprintf("%q for %q with %s", want, req.Audience, algorithm),
		For: shortest(c.Entries, func(e identity.Entry) time.Duration { return e.JWTTTL }) / 10,
	}
	resp, err := gate.AnswerAgain(ctx, c, again, func(ctx context.Context, c *gate.Caller) (*workload.JWTSVIDResponse, []audit.Record, error) {
		return a.jwtSVIDs(ctx, c, req.Audience, want, algorithm)
	})
	if err != nil {
		return nil, a.gate.Status(err)
	}
	return resp, nil
}

// algorithmHeader is metadata by which a client that knows its relying party prefers an
// algorithm, which the standard's request has no place for.
const algorithmHeader = "vouchd-jwt-algorithm"

// preferred returns the algorithm for entries that say none; empty for the authority's
// first, also where it has no keys of what is preferred.
func (a *API) preferred(ctx context.Context) (string, error) {
	switch v := metadata.ValueFromIncomingContext(ctx, algorithmHeader); {
	case len(v) == 0:
		return "", nil
	case len(v) > 1 || v[0] != identity.ES256 && v[0] != identity.RS256:
		return "", status.Errorf(codes.InvalidArgument, "%s %.40q is not one of %s and %s", algorithmHeader, v, identity.ES256, identity.RS256)
	case a.authority.Signs(v[0]):
		return v[0], nil
	}
	return "", nil
}

func (a *API) jwtSVIDs(ctx context.Context, c *gate.Caller, audience []string, want spiffeid.ID, algorithm string) (*workload.JWTSVIDResponse, []audit.Record, error) {
	entries, err := entitled(c, want)
	if err != nil {
		return nil, nil, err
	}
	resp := new(workload.JWTSVIDResponse)
	var records []audit.Record
	hints := make(map[string]bool)
	for _, e := range entries {
		svid, err := a.authority.IssueJWT(ctx, e, audience, identity.With{Algorithm: cmp.Or(e.JWTAlgorithm, algorithm)})
		if err != nil {
			return nil, nil, err
		}
		resp.Svids = append(resp.Svids, &workload.JWTSVID{
			SpiffeId: e.ID.String(),
			Svid:     svid.Token,
			Hint:     uniqueHint(hints, e.Hint),
		})
		records = append(records, c.DescribeJWT(e, svid))
	}
	return resp, records, nil
}

// entitled returns the caller's entries, or the one for the ID that it asks for.
func entitled(c *gate.Caller, want spiffeid.ID) ([]identity.Entry, error) {
	if want.IsZero() {
		return c.Entries, nil
	}
	entries := slices.DeleteFunc(slices.Clone(c.Entries), func(e identity.Entry) bool { return e.ID != want })
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: %s", gate.ErrNotEntitled, want)
	}
	return entries, nil
}

// FetchJWTBundles streams the JWT bundle to who has an identity in it, and those of the
// trust domains that it federates with.
func (a *API) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return follow(a, stream, request{event: audit.EventBundle, part: keys}, func(_ context.Context, c *gate.Caller, t trust) (*message[workload.JWTBundlesResponse], []audit.Record, error) {
		return &message[workload.JWTBundlesResponse]{
			content: &workload.JWTBundlesResponse{Bundles: keys.all(t, a.authority.TrustDomain())},
		}, []audit.Record{c.Describe(audit.EventBundle)}, nil
	})
}

// ValidateJWTSVID validates a token in full with the bundle of its own trust
// domain and returns its claims (Workload API §6.2.3, §6.3). One of another trust domain
// is good for those alone who federate with that.
func (a *API) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := gate.CheckAudience([]string{req.Audience}); err != nil {
		return nil, err
	}
	if req.Svid == "" {
		return nil, status.Error(codes.InvalidArgument, "svid is missing")
	}
	c, err := a.gate.AdmitRPC(ctx, audit.EventJWTValidated)
	if err != nil {
		return nil, a.gate.Status(err)
	}
	v, err := gate.Answer(ctx, c, func(_ context.Context, c *gate.Caller) (*validated, []audit.Record, error) {
		v, r := a.validate(c, req)
		return v, []audit.Record{r}, nil
	})
	if err != nil {
		return nil, a.gate.Status(err)
	}
	if v.invalid != nil {
		return nil, status.Error(codes.InvalidArgument, v.invalid.Error())
	}
	claims, err := structpb.NewStruct(v.claims)
	if err != nil {
		return nil, a.gate.Status(fmt.Errorf("encoding claims: %w", err))
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: v.id.String(), Claims: claims}, nil
}

// validated is what a token says, or why it counts for nothing.
type validated struct {
	id      spiffeid.ID
	claims  map[string]any
	invalid error
}

func (a *API) validate(c *gate.Caller, req *workload.ValidateJWTSVIDRequest) (*validated, audit.Record) {
	r := c.Describe(audit.EventJWTValidated)
	digest := sha256.Sum256([]byte(req.Svid))
	r.SVID = &audit.SVID{Kind: "jwt", SHA256: hex.EncodeToString(digest[:]), Audience: []string{req.Audience}}
	svid, err := a.authority.Bundle().ValidateJWT(req.Svid, req.Audience, a.trustOf(c.Entries).jwt()...)
	if err != nil {
		r.Outcome, r.Reason = audit.Denied, err.Error()
		return &validated{invalid: err}, r
	}
	r.SPIFFEID = svid.ID.String()
	return &validated{id: svid.ID, claims: svid.Claims}, r
}
