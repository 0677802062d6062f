package credentialapi

import (
	"errors"

	"google.golang.org/grpc/codes"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// meanings are what a caller is told about a lease: its own mistakes in full, and about the
// upstream only whether retrying may help.
var meanings = []gate.Meaning{
	{Err: credential.ErrNotGranted, Code: codes.PermissionDenied, Text: "the caller is not granted this credential"},
	{Err: credential.ErrUndefined, Code: codes.FailedPrecondition},
	{Err: credential.ErrParameter, Code: codes.InvalidArgument},
	{Err: credential.ErrTTL, Code: codes.InvalidArgument},
	{Err: credential.ErrLimit, Code: codes.ResourceExhausted},
	{Err: credential.ErrHours, Code: codes.FailedPrecondition},
	{Err: credential.ErrProxyOnly, Code: codes.FailedPrecondition},
	{Err: credential.ErrDrill, Code: codes.FailedPrecondition, Text: credential.WithheldText},
	{Err: credential.ErrRevoked, Code: codes.FailedPrecondition},
	{Err: credential.ErrNoLease, Code: codes.NotFound, Text: "the caller has no such lease"},
	{Err: credential.ErrNotRenewable, Code: codes.FailedPrecondition},
	{Err: credential.ErrUnrecorded, Code: codes.Unavailable, Text: "the lease could not be recorded"},
	{Err: credential.ErrHolderGone, Code: codes.Aborted, Text: "the lease ended before it was handed out"},
	{Err: credential.ErrRefused, Code: codes.FailedPrecondition, Text: "the source of the credential refused"},
	{Err: credential.ErrUpstream, Code: codes.Unavailable, Text: "the source of the credential cannot be reached, or gave no answer that makes sense"},
	{Err: credential.ErrClosed, Code: codes.Unavailable, Text: "the daemon is stopping"},
}

// status returns the error for the caller.
func (a *API) status(err error) error {
	if errors.Is(err, errNoUnit) { // whatever systemd says about it
		return a.gate.StatusOf(gate.Meaning{Code: codes.FailedPrecondition}, err)
	}
	return a.gate.Status(err, meanings...)
}
