package workloadapi

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
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
	return requestedID(req.SpiffeId)
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

// credentialStatus says what a caller is told about a lease: what it chose
// wrongly in full, and of the upstream only whether trying again may help.
func credentialStatus(err error) (code codes.Code, text string, ok bool) {
	for _, known := range []struct {
		err  error
		code codes.Code
		text string // empty: the error's own, which is written for the caller
	}{
		{credential.ErrNotGranted, codes.PermissionDenied, "the caller is not granted this credential"},
		{credential.ErrUndefined, codes.FailedPrecondition, ""},
		{credential.ErrParameter, codes.InvalidArgument, ""},
		{credential.ErrTTL, codes.InvalidArgument, ""},
		{credential.ErrLimit, codes.ResourceExhausted, ""},
		{credential.ErrHours, codes.FailedPrecondition, ""},
		{credential.ErrProxyOnly, codes.FailedPrecondition, ""},
		{credential.ErrNoLease, codes.NotFound, "the caller has no such lease"},
		{credential.ErrNotRenewable, codes.FailedPrecondition, ""},
		{credential.ErrUnrecorded, codes.Unavailable, "the lease could not be recorded"},
		{credential.ErrHolderGone, codes.Aborted, "the lease ended before it was handed out"},
		{credential.ErrRefused, codes.FailedPrecondition, "the source of the credential refused"},
		{credential.ErrUpstream, codes.Unavailable, "the source of the credential cannot be reached, or gave no answer that makes sense"},
		{credential.ErrClosed, codes.Unavailable, "the daemon is stopping"},
	} {
		if errors.Is(err, known.err) {
			text := known.text
			if text == "" {
				text = nodeRefusal(err)
			}
			return known.code, text, true
		}
	}
	return 0, "", false
}
