package credentialapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// entryGranting is an entry of this user's processes that grants credentials.
func entryGranting(names string) string {
	return fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [%s]}\n", os.Getuid(), names)
}

// credentials is a bare client, and a context with the security header.
func (s *stack) credentials() (credentialv1.CredentialAPIClient, context.Context) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	s.T.Cleanup(cancel)
	return credentialv1.NewCredentialAPIClient(s.Dial()), gatetest.WithHeader(ctx)
}

func TestListIsOfWhatEntriesName(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("tides, nothing")+
		fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/other\", selectors: [\"unix:uid:%d\"], credentials: [winds]}\n", os.Getuid()+1))
	api, ctx := s.credentials()
	got, err := api.ListCredentials(ctx, &credentialv1.ListCredentialsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Credentials) != 1 || got.Credentials[0].Name != "tides" || len(got.Credentials[0].SpiffeIds) != 1 ||
		got.Credentials[0].Bind != credentialv1.Bind_BIND_PROCESS || got.Credentials[0].Revocation != credentialv1.Revocation_REVOCATION_HARD ||
		got.Credentials[0].Parameters[0].OneOf[1] != "waves" {
		t.Errorf("the caller may ask for %v", got.Credentials)
	}
}

func TestCredentialRequestsAreRefused(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("tides, nothing"))
	api, ctx := s.credentials()
	many := make(map[string]string)
	for i := range maxAskedParameters + 1 {
		many[fmt.Sprint(i)] = "x"
	}
	for _, tt := range []struct {
		name   string
		ask    *credentialv1.GrantCredentialRequest
		want   codes.Code
		record string // in the reason of the last intent; empty: nothing is recorded
	}{
		{"without a name", &credentialv1.GrantCredentialRequest{}, codes.InvalidArgument, ""},
		{"for too long", &credentialv1.GrantCredentialRequest{Name: "tides", TtlSeconds: 1 << 60}, codes.InvalidArgument, ""},
		{"for less than no time", &credentialv1.GrantCredentialRequest{Name: "tides", TtlSeconds: -1}, codes.InvalidArgument, ""},
		{"with too many parameters", &credentialv1.GrantCredentialRequest{Name: "tides", Parameters: many}, codes.InvalidArgument, ""},
		{"with an unknown exposure", &credentialv1.GrantCredentialRequest{Name: "tides", Exposure: 99}, codes.InvalidArgument, ""},
		{"for what is no SPIFFE ID", &credentialv1.GrantCredentialRequest{Name: "tides", SpiffeId: "nobody"}, codes.InvalidArgument, ""},
		{"for another's SPIFFE ID", &credentialv1.GrantCredentialRequest{Name: "tides", SpiffeId: "spiffe://example.org/other"}, codes.PermissionDenied, "spiffe://example.org/other"},
		{"for what the entry does not name", &credentialv1.GrantCredentialRequest{Name: "winds"}, codes.PermissionDenied, `"winds" to spiffe://example.org/agent`},
		{"for what exists nowhere", &credentialv1.GrantCredentialRequest{Name: "moons"}, codes.PermissionDenied, `"moons" to spiffe://example.org/agent`},
		{"for what is not defined", &credentialv1.GrantCredentialRequest{Name: "nothing"}, codes.FailedPrecondition, "not defined: nothing"},
		{"outside a parameter's list", &credentialv1.GrantCredentialRequest{Name: "tides", Parameters: map[string]string{"table": "pg_authid"}}, codes.InvalidArgument, "not one of tides, waves"},
		{"above the maximum", &credentialv1.GrantCredentialRequest{Name: "tides", TtlSeconds: 3600}, codes.InvalidArgument, "above the 5m"},
		{"while the upstream is down", &credentialv1.GrantCredentialRequest{Name: "tides"}, codes.Unavailable, ""},
	} {
		before := len(s.Records(audit.EventLeaseIntent))
		_, err := api.GrantCredential(ctx, tt.ask)
		if status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if tt.record == "" {
			continue
		}
		rs := s.Records(audit.EventLeaseIntent)
		if len(rs) != before+1 || rs[before].Outcome != audit.Denied || !strings.Contains(rs[before].Reason, audit.Escape(tt.record)) || rs[before].Workload.PID != os.Getpid() {
			t.Errorf("%s: the log says %+v", tt.name, rs[before:])
		}
	}
}

func TestCredentialsNeedTheSecurityHeader(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("tides"))
	_, err := credentialv1.NewCredentialAPIClient(s.Dial()).ListCredentials(t.Context(), &credentialv1.ListCredentialsRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the header: %v", err)
	}
}

func TestNodeThatFailsItsAppraisalGrantsNothing(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("tides"))
	api, ctx := s.credentials()
	s.Gate.SetNode(nil, errors.New("PCR 7 differs"))
	for name, err := range map[string]error{
		"list":  second(api.ListCredentials(ctx, &credentialv1.ListCredentialsRequest{})),
		"grant": second(api.GrantCredential(ctx, &credentialv1.GrantCredentialRequest{Name: "tides"})),
		"renew": second(api.RenewLease(ctx, &credentialv1.RenewLeaseRequest{LeaseId: "x"})),
	} {
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "PCR 7 differs") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if rs := s.Records(audit.EventLeaseIntent); len(rs) != 1 || rs[0].Outcome != audit.Denied || !strings.Contains(rs[0].Reason, "PCR 7 differs") {
		t.Errorf("the log says %+v", rs)
	}
}

func second[T any](_ T, err error) error { return err }

func TestLeasesOfOthersAreNotFound(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("tides"))
	api, ctx := s.credentials()
	if _, err := api.RenewLease(ctx, &credentialv1.RenewLeaseRequest{LeaseId: "GUESSED"}); status.Code(err) != codes.NotFound {
		t.Errorf("renewing: %v", err)
	}
	if _, err := api.RevokeLease(ctx, &credentialv1.RevokeLeaseRequest{LeaseId: "GUESSED"}); status.Code(err) != codes.NotFound {
		t.Errorf("revoking: %v", err)
	}
	if _, err := api.RevokeLease(ctx, &credentialv1.RevokeLeaseRequest{LeaseId: strings.Repeat("x", 65)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an ID of any length: %v", err)
	}
	if rs := s.Records(audit.EventLeaseRevokeIntent); len(rs) != 1 || rs[0].Outcome != audit.Denied {
		t.Errorf("the log says %+v", rs)
	}
}

func TestRefusalsOfCredentialsAreBounded(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("tides"))
	api, ctx := s.credentials()
	for range 2 * gatetest.Flood {
		if _, err := api.GrantCredential(ctx, &credentialv1.GrantCredentialRequest{Name: "winds"}); status.Code(err) == codes.Unavailable {
			return
		}
	}
	t.Errorf("%d refusals in a row were all recorded", 2*gatetest.Flood)
}

func TestCredentialBoundToAUnitIsRefusedOutsideOne(t *testing.T) {
	t.Parallel()
	s := startStack(t, entryGranting("currents"))
	api, ctx := s.credentials()
	_, err := api.GrantCredential(ctx, &credentialv1.GrantCredentialRequest{Name: "currents"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "bound to the caller's system unit") {
		t.Errorf("got %v", err)
	}
	if refused := s.Records(audit.EventLeaseIntent); len(refused) != 1 || refused[0].Outcome != audit.Denied {
		t.Errorf("records %+v", refused)
	}
}
