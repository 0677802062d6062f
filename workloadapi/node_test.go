package workloadapi

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// refusedBy reports whether an error is what a host tells that may not issue.
func refusedBy(err error, reason string) bool {
	return status.Code(err) == codes.PermissionDenied && strings.Contains(err.Error(), reason)
}

func TestARefusedNodeAnswersNothingAndGoesOnAfterwards(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client, ctx := s.raw(t, securityHeader, "true")
	token, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
	if err != nil {
		t.Fatal(err)
	}
	type received interface{ RecvMsg(any) error }
	open := func(stream received, err error, m any) received {
		t.Helper()
		if err == nil {
			err = stream.RecvMsg(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	svids, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	streams := map[string]received{"X509-SVIDs": open(svids, err, new(workload.X509SVIDResponse))}
	bundles, err := client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	streams["X.509 bundles"] = open(bundles, err, new(workload.X509BundlesResponse))
	keys, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	streams["JWT bundles"] = open(keys, err, new(workload.JWTBundlesResponse))

	s.Gate.SetNode(nil, errors.New("PCR 7 is another"))
	for name, stream := range streams {
		if err := stream.RecvMsg(new(workload.X509SVIDResponse)); !refusedBy(err, "PCR 7 is another") {
			t.Errorf("the stream of %s goes on with %v", name, err)
		}
	}
	_, err = client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
	if !refusedBy(err, "PCR 7 is another") {
		t.Errorf("fetching a JWT-SVID: %v", err)
	}
	_, err = client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "api", Svid: token.Svids[0].Svid})
	if !refusedBy(err, "PCR 7 is another") {
		t.Errorf("validating a JWT-SVID: %v", err)
	}
	for event, want := range map[audit.Event]int{audit.EventStreamEnd: len(streams), audit.EventJWTValidated: 1} {
		records := s.Records(event)
		if len(records) != want {
			t.Errorf("%d records of %s, want %d", len(records), event, want)
		}
		for _, r := range records {
			if r.Outcome != audit.Denied || !strings.Contains(r.Reason, "PCR 7 is another") || r.Workload.PID != os.Getpid() {
				t.Errorf("a record of %s: %+v", event, r)
			}
		}
	}

	s.Gate.SetNode(nil, nil)
	if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}}); err != nil {
		t.Errorf("once the node passes again: %v", err)
	}
}

func TestEveryStreamOfManyIsToldWhyItEnds(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	var streams []grpc.ServerStreamingClient[workload.X509SVIDResponse]
	for range gatetest.Flood {
		stream, _ := s.open(t)
		streams = append(streams, stream)
	}
	s.Gate.SetNode(nil, errors.New("PCR 7 is another"))
	for _, stream := range streams {
		if _, err := stream.Recv(); !refusedBy(err, "PCR 7 is another") {
			t.Fatalf("a stream ends with %v", err)
		}
	}
}

func TestAnEntrysNodeSelectorsHoldAsLongAsTheNodeHasThem(t *testing.T) {
	t.Parallel()
	secure, err := attest.ParseSelector("tpm:secureboot:on")
	if err != nil {
		t.Fatal(err)
	}
	s := startStack(t, fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/secure\", selectors: [\"unix:uid:%d\", \"%s\"]}\n", os.Getuid(), secure))
	client, ctx := s.raw(t, securityHeader, "true")
	fetch := func() error {
		_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
		return err
	}
	if err := fetch(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("before anything is known of the node: %v", err)
	}
	s.Gate.SetNode(attest.Selectors{secure}, nil)
	if err := fetch(); err != nil {
		t.Errorf("with Secure Boot: %v", err)
	}
	stream, _ := s.open(t)
	s.Gate.SetNode(nil, nil)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without Secure Boot any more the stream goes on with %v", err)
	}
}
