// Package client leases credentials from the daemon, to the process that it is
// used in.
//
// It imports gRPC and the generated messages, and nothing of the daemon: an
// agent that uses it links neither the attestation log nor a lease engine.
package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// A Client leases credentials to this process. Its methods are safe
// for concurrent use.
type Client struct {
	endpoint string
	conn     *grpc.ClientConn
	api      credentialv1.CredentialAPIClient
}

// New returns a client of the agent socket at an address in the
// form of SPIFFE_ENDPOINT_SOCKET, unix:///path. It connects at the first call.
func New(endpoint string) (*Client, error) {
	if err := checkEndpoint(endpoint); err != nil {
		return nil, fmt.Errorf("agent socket %q: %w", endpoint, err)
	}
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel vouches for both ends
		grpc.WithUnaryInterceptor(sendSecurityHeader),
	)
	if err != nil {
		return nil, fmt.Errorf("agent socket %q: %w", endpoint, err)
	}
	return &Client{endpoint, conn, credentialv1.NewCredentialAPIClient(conn)}, nil
}

// checkEndpoint refuses what is not the address of a Unix socket (Workload
// Endpoint §4).
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return err
	case u.Scheme != "unix" || u.Opaque != "" || u.User != nil || u.Host == "" && u.Path == "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("not the address of a Unix socket; write it as unix:///path")
	}
	return nil
}

// PreferJWT is for clients of the SPIFFE Workload API that know their relying party:
// JWT-SVIDs are signed with an algorithm, such as RS256, where the entry says none and the
// daemon has keys of it.
func PreferJWT(algorithm string) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return call(metadata.AppendToOutgoingContext(ctx, "vouchd-jwt-algorithm", algorithm), method, req, reply, cc, opts...)
	})
}

// securityHeader is demanded of every request (Workload Endpoint §3).
const securityHeader = "workload.spiffe.io"

func sendSecurityHeader(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return call(metadata.AppendToOutgoingContext(ctx, securityHeader, "true"), method, req, reply, cc, opts...)
}

// Close ends the connection. Leases stay as they are.
func (c *Client) Close() error { return c.conn.Close() }

// List returns what this process may ask for, by name.
func (c *Client) List(ctx context.Context) ([]*credentialv1.Credential, error) {
	resp, err := c.api.ListCredentials(ctx, &credentialv1.ListCredentialsRequest{})
	if err != nil {
		return nil, c.explain(ctx, "listing credentials", err)
	}
	return resp.Credentials, nil
}

// Grant leases a credential to this process. The values are the caller's to
// wipe.
func (c *Client) Grant(ctx context.Context, req *credentialv1.GrantCredentialRequest) (*credentialv1.Lease, []secret.Field, error) {
	resp, err := c.api.GrantCredential(ctx, req)
	if err != nil {
		return nil, nil, c.explain(ctx, "leasing "+req.Name, err)
	}
	if resp.Lease == nil {
		return nil, nil, fmt.Errorf("leasing %s: the daemon's answer has no lease", req.Name)
	}
	return resp.Lease, fieldsOf(resp), nil
}

func fieldsOf(resp *credentialv1.GrantCredentialResponse) (fields []secret.Field) {
	for _, f := range resp.Fields {
		fields = append(fields, secret.Field{Name: f.Name, Value: secret.Of(f.Value), Public: f.Public})
	}
	return fields
}

// Watch leases a credential and gives each lease to take, the next one before
// the last expires, until ctx ends, take returns an error or there is no next. It
// returns why; see [MayTryAgain].
func (c *Client) Watch(ctx context.Context, req *credentialv1.GrantCredentialRequest, take func(*credentialv1.Lease, []secret.Field) error) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, securityHeader, "true"))
	defer cancel()
	stream, err := c.api.WatchCredential(ctx, req)
	for err == nil {
		var resp *credentialv1.GrantCredentialResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		if err := take(resp.Lease, fieldsOf(resp)); err != nil {
			return err
		}
	}
	return c.explain(ctx, "watching "+req.Name, err)
}

// Renew lets a lease of this process live for ttl from now, or what its
// definition says if that is 0.
func (c *Client) Renew(ctx context.Context, leaseID string, ttl time.Duration) (*credentialv1.Lease, error) {
	resp, err := c.api.RenewLease(ctx, &credentialv1.RenewLeaseRequest{LeaseId: leaseID, TtlSeconds: int64(ttl / time.Second)})
	if err != nil {
		return nil, c.explain(ctx, "renewing a lease", err)
	}
	return resp.Lease, nil
}

// Revoke ends a lease of this process, and returns once the source has
// confirmed it or can do no more than let the credential expire. The error wraps
// [ErrNoLease] if nothing is left of it.
func (c *Client) Revoke(ctx context.Context, leaseID string) error {
	if _, err := c.api.RevokeLease(ctx, &credentialv1.RevokeLeaseRequest{LeaseId: leaseID}); err != nil {
		return c.explain(ctx, "revoking a lease", err)
	}
	return nil
}

// AwaitEnd returns why a lease of this process ends, once that begins, and whether
// it is because it expired. The error wraps [ErrNoLease] if nothing is left of it.
func (c *Client) AwaitEnd(ctx context.Context, leaseID string) (reason string, expired bool, err error) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, securityHeader, "true"))
	defer cancel()
	stream, err := c.api.AwaitEnd(ctx, &credentialv1.AwaitEndRequest{LeaseId: leaseID})
	if err == nil {
		var resp *credentialv1.AwaitEndResponse
		if resp, err = stream.Recv(); err == nil {
			return resp.Reason, resp.Expired, nil
		}
	}
	return "", false, c.explain(ctx, "awaiting the end of a lease", err)
}

// What a caller can tell apart, beside [MayTryAgain].
var (
	// ErrNoLease means that nothing is left of a lease.
	ErrNoLease = errors.New("there is no such lease")
	// ErrDenied means that this process is not entitled to it.
	ErrDenied = errors.New("this process is not entitled to it")
)

// MayTryAgain reports whether an error of this client, or of one of the SPIFFE
// Workload API, means that the daemon or the source of the credential cannot
// answer now, that a limit is reached, or that the lease was revoked: asking
// again may help.
func MayTryAgain(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	}
	return false
}

// A callError is an answer that is none, in the daemon's words.
type callError struct{ *status.Status }

func (e callError) Error() string              { return e.Message() }
func (e callError) GRPCStatus() *status.Status { return e.Status }
func (e callError) Is(target error) bool {
	return target == ErrNoLease && e.Code() == codes.NotFound || target == ErrDenied && e.Code() == codes.PermissionDenied
}

// explain says what was tried in the place of gRPC's wrapping.
func (c *Client) explain(ctx context.Context, what string, err error) error {
	s := status.Convert(err)
	if (s.Code() == codes.Canceled || s.Code() == codes.DeadlineExceeded) && timeIsUp(ctx) {
		s = status.New(codes.DeadlineExceeded, noAnswer)
	}
	return fmt.Errorf("%s from the daemon on %s: %w", what, c.endpoint, callError{s})
}

// noAnswer is for an agent and whoever runs it.
const noAnswer = "no answer in time; ask this host's administrator, who finds why with: vouch doctor"

// timeIsUp reports whether a call ended because of its deadline. The daemon knows
// it too, and it is chance which end gives up first.
func timeIsUp(ctx context.Context) bool {
	const sooner = 100 * time.Millisecond
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < sooner
}
