package gate

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
)

// Why a caller gets nothing.
var (
	ErrStopping        = errors.New("stopping")
	ErrNode            = errors.New("this host may not issue")
	ErrNoIdentity      = errors.New("no entry matches")
	ErrDisabled        = errors.New("the identity is disabled by an administrator")
	ErrHeldBack        = errors.New("newer entries are not in force")
	ErrLost            = errors.New("no longer entitled")
	ErrNotEntitled     = errors.New("the requested SPIFFE ID is not the caller's")
	ErrAttestation     = errors.New("attesting the caller")
	ErrTooManyRefusals = errors.New("too many refusals")
)

// A requestError is an error with the ID under which the log has it.
type requestError struct {
	id  string
	err error
}

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

// Fail returns an error with which the caller's request ends; nil stays nil.
func (c *Caller) Fail(err error) error {
	if err == nil || errors.As(err, new(*requestError)) {
		return err
	}
	return &requestError{c.RequestID, err}
}

// A Meaning is the status code of an error, and the text for the caller. An empty
// text stands for the error's own.
type Meaning struct {
	Err  error
	Code codes.Code
	Text string
}

// meanings has those of the gate, the first that fits counts (Workload Endpoint
// §6).
var meanings = []Meaning{
	{ErrStopping, codes.Unavailable, "the daemon is stopping"},
	{ErrTooManyRefusals, codes.Unavailable, "too many refused requests; wait a moment"},
	{ErrTooOften, codes.ResourceExhausted, ""},
	{ErrBusy, codes.ResourceExhausted, ""},
	{ErrShare, codes.ResourceExhausted, ""},
	{ErrNode, codes.PermissionDenied, ""},
	{ErrLost, codes.PermissionDenied, "no identity issued any longer: the process is not what its entry names, or the entry has gone"},
	{ErrHeldBack, codes.PermissionDenied, "no identity issued; there are newer entries with an error in them, which are not in force"},
	{ErrNoIdentity, codes.PermissionDenied, "no identity issued"},
	{ErrDisabled, codes.PermissionDenied, "the identity is disabled"},
	{ErrNotEntitled, codes.PermissionDenied, "not entitled to the requested SPIFFE ID"},
	{ErrAttestation, codes.PermissionDenied, "the caller could not be attested"},
	{process.ErrPeerGone, codes.PermissionDenied, "the caller could not be attested"},
	{audit.ErrUnwritable, codes.Unavailable, "the attestation log cannot be written"},
	{identity.ErrNoAuthority, codes.Unavailable, "the authority has no valid key"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "the request took too long"},
	{context.Canceled, codes.Canceled, "the request was cancelled"},
}

// Status returns what a gRPC caller is told about an error: if it is a status, that;
// otherwise what the gate or, failing that, the front takes it to mean. It names the
// record in which an administrator finds the full reason.
func (g *Gate) Status(err error, front ...Meaning) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	m, ok := meaningOf(err, meanings)
	if !ok {
		m, ok = meaningOf(err, front)
	}
	if !ok {
		m = Meaning{Code: codes.Internal, Text: "the daemon could not answer"}
		g.logger.Error("answering a request", "request", RequestOf(err), "err", err)
	}
	return g.StatusOf(m, err)
}

// StatusOf returns the status of an error that means m.
func (g *Gate) StatusOf(m Meaning, err error) error {
	text := m.Text
	if text == "" {
		text = brief(err)
	}
	if m.Code == codes.PermissionDenied || m.Code == codes.FailedPrecondition {
		text += "; ask " + g.Contact
	}
	return status.Errorf(m.Code, "%s (request %s)", text, RequestOf(err))
}

// RequestOf returns the ID of the request that an error ended, if any.
func RequestOf(err error) string {
	if of := (*requestError)(nil); errors.As(err, &of) {
		return of.id
	}
	return ""
}

func meaningOf(err error, known []Meaning) (Meaning, bool) {
	i := slices.IndexFunc(known, func(m Meaning) bool { return errors.Is(err, m.Err) })
	if i < 0 {
		return Meaning{}, false
	}
	return known[i], true
}

// brief is an error's text where a caller may read it: which rules failed is no
// secret, the host's administrator may be who reads it, and a status has to stay
// short.
func brief(err error) string {
	const most = 400 // bytes
	text := err.Error()
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
