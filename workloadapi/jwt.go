package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
)

const (
	maxAudiences   = 16
	maxAudienceLen = 512 // bytes of one
)

// FetchJWTSVID issues a JWT-SVID for each of the caller's identities, or for
// the one it asks for (Workload API §6.2.1).
func (s *Server) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := checkAudience(req.Audience); err != nil {
		return nil, err
	}
	want, err := requestedID(req.SpiffeId)
	if err != nil {
		return nil, err
	}
	c, err := newCaller(ctx)
	if err != nil {
		return nil, s.toStatus(err, "")
	}
	resp, records, err := s.jwtSVIDs(ctx, c, req.Audience, want)
	if err != nil {
		return nil, s.refuse(ctx, c, audit.EventJWTSVID, err)
	}
	if err := s.record(ctx, records); err != nil {
		return nil, s.toStatus(err, c.requestID)
	}
	return resp, nil
}

func (s *Server) jwtSVIDs(ctx context.Context, c *caller, audience []string, want spiffeid.ID) (*workload.JWTSVIDResponse, []audit.Record, error) {
	if err := s.attest(ctx, c); err != nil {
		return nil, nil, err
	}
	entries := slices.Clone(c.entries)
	if !want.IsZero() {
		entries = slices.DeleteFunc(entries, func(e identity.Entry) bool { return e.ID != want })
		if len(entries) == 0 {
			return nil, nil, fmt.Errorf("%w: %s", errNotEntitled, want)
		}
	}
	resp := new(workload.JWTSVIDResponse)
	var records []audit.Record
	hints := make(map[string]bool)
	for _, e := range entries {
		svid, err := s.o.Authority.IssueJWT(ctx, e.ID, e.JWTTTL, audience)
		if err != nil {
			return nil, nil, err
		}
		resp.Svids = append(resp.Svids, &workload.JWTSVID{
			SpiffeId: e.ID.String(),
			Svid:     svid.Token,
			Hint:     uniqueHint(hints, e.Hint),
		})
		r := c.recordFor(audit.EventJWTSVID, e)
		r.SVID = jwtRecord(svid)
		records = append(records, r)
	}
	return resp, records, s.prove(ctx, c)
}

func jwtRecord(svid *identity.JWTSVID) *audit.SVID {
	digest := sha256.Sum256([]byte(svid.Token))
	return &audit.SVID{
		Kind: "jwt", ID: svid.JTI, SHA256: hex.EncodeToString(digest[:]), KeyID: svid.KeyID,
		Audience: svid.Audience, NotBefore: svid.IssuedAt, NotAfter: svid.ExpiresAt,
	}
}

// FetchJWTBundles streams the JWT bundle to who has an identity in it.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return follow(s, stream, audit.EventBundle, func(_ context.Context, c *caller) (*answer[workload.JWTBundlesResponse], error) {
		return &answer[workload.JWTBundlesResponse]{
			message: &workload.JWTBundlesResponse{Bundles: s.bundles(s.o.Authority.Bundle().JWKS)},
			records: []audit.Record{c.record(audit.EventBundle)},
		}, nil
	})
}

// ValidateJWTSVID validates a token in full with the bundle of its own trust
// domain and returns its claims (Workload API §6.2.3, §6.3).
func (s *Server) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := checkAudience([]string{req.Audience}); err != nil {
		return nil, err
	}
	if req.Svid == "" {
		return nil, status.Error(codes.InvalidArgument, "svid is missing")
	}
	c, err := newCaller(ctx)
	if err != nil {
		return nil, s.toStatus(err, "")
	}
	if err := s.attest(ctx, c); err != nil {
		return nil, s.refuse(ctx, c, audit.EventJWTValidated, err)
	}
	if err := s.prove(ctx, c); err != nil {
		return nil, s.refuse(ctx, c, audit.EventJWTValidated, err)
	}
	return s.validateJWT(ctx, c, req)
}

func (s *Server) validateJWT(ctx context.Context, c *caller, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	r := c.record(audit.EventJWTValidated)
	digest := sha256.Sum256([]byte(req.Svid))
	r.SVID = &audit.SVID{Kind: "jwt", SHA256: hex.EncodeToString(digest[:]), Audience: []string{req.Audience}}
	svid, invalid := s.o.Authority.ValidateJWT(req.Svid, req.Audience)
	if invalid != nil {
		r.Outcome, r.Reason = audit.Denied, invalid.Error()
	} else {
		r.SPIFFEID = svid.ID.String()
	}
	if err := s.o.Log.Append(ctx, r); err != nil {
		return nil, s.toStatus(err, c.requestID)
	}
	if invalid != nil {
		return nil, status.Error(codes.InvalidArgument, invalid.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, s.toStatus(fmt.Errorf("encoding claims: %w", err), c.requestID)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

// checkAudience refuses an audience that names nobody (Workload API §4.5:
// mandatory fields; JWT-SVID §3.2).
func checkAudience(audience []string) error {
	if len(audience) == 0 {
		return status.Error(codes.InvalidArgument, "audience is missing")
	}
	if len(audience) > maxAudiences {
		return status.Errorf(codes.InvalidArgument, "%d audiences are more than %d", len(audience), maxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudienceLen {
			return status.Errorf(codes.InvalidArgument, "an audience has %d bytes; 1 to %d are allowed", len(a), maxAudienceLen)
		}
	}
	return nil
}

// requestedID parses the SPIFFE ID a caller asks for; unset is the zero ID.
func requestedID(s string) (spiffeid.ID, error) {
	if s == "" {
		return spiffeid.ID{}, nil
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
	}
	return id, nil
}
