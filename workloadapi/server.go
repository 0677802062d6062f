// Package workloadapi is the daemon's sockets: the SPIFFE Workload API and the
// credential API for agents, and an API for administrators.
//
// Here the others meet. A request is accepted, its sender pinned and attested
// (attest/process), its registration entries found and its SVIDs issued
// (identity) or its credentials leased (credential), the decision recorded (audit), and only then answered. Nothing a
// caller sends identifies it, and nothing is remembered of a caller from one
// answer to the next but which process it is.
package workloadapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

const (
	maxRequestLen = 64 << 10 // bytes of one request; a JWT-SVID to validate is the largest
	maxHeaderLen  = 16 << 10 // bytes of one request's metadata
	maxStreams    = 100      // at a time on one connection
	bufferLen     = 2 << 10  // bytes, for reading and for writing, of each connection
	proofTimeout  = 5 * time.Second
	settleTime    = time.Second // after which a stream is taken for one that lasts
	recheckEvery  = time.Minute // a stream's process is attested again
)

// Options are what a server serves with. All are required but Credentials and
// Holders, without which there is no credential API.
type Options struct {
	Attester  *process.Attester
	Watcher   *process.Watcher // of the files that attestations rest on
	Authority *identity.Authority
	Log       *audit.Log
	Logger    *slog.Logger

	Credentials *credential.Manager
	Holders     *Holders // the same that the manager finds processes with
}

// A Server answers on the agent socket. Its methods are safe for concurrent
// use.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer // answers Unimplemented for WIT-SVIDs (Workload API §7)

	o        Options
	refusals *refusals
	entries  atomic.Pointer[identity.Entries]
	node     atomic.Pointer[nodeState]
	disabled atomic.Pointer[map[string]Disabled] // by SPIFFE ID; never nil
	streams  atomic.Int64                        // open
	stopping chan struct{}                       // closed when Serve is to end

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed and replaced when entries or the node change
}

// New returns a server with no registration entries, which refuses everybody.
func New(o Options) *Server {
	s := &Server{
		o:        o,
		refusals: newRefusals(),
		stopping: make(chan struct{}),
		changed:  make(chan struct{}),
	}
	s.entries.Store(new(identity.Entries))
	s.node.Store(new(nodeState))
	s.disabled.Store(new(map[string]Disabled))
	return s
}

// SetEntries replaces the registration entries in force. Open streams whose
// identities they change are sent the new ones, or ended.
func (s *Server) SetEntries(es *identity.Entries) {
	s.entries.Store(es)
	s.tellChanged()
}

// Entries returns the registration entries in force.
func (s *Server) Entries() []identity.Entry { return s.entries.Load().All() }

func (s *Server) tellChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Wants reports whether any entry in force wants a selector of this kind, as
// [identity.Entries.Wants] does.
func (s *Server) Wants(kind string) bool { return s.entries.Load().Wants(kind) }

// grantsChanged returns a channel that is closed at the next SetEntries or
// SetNode. Take it before reading either, so as to miss nothing.
func (s *Server) grantsChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Serve answers on l until the context ends, then ends the streams, lets calls
// in progress finish, and closes l. It may be called once.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	g := grpc.NewServer(
		grpc.Creds(gate.NewTransport()),
		grpc.UnaryInterceptor(unarySecurityHeader),
		grpc.StreamInterceptor(streamSecurityHeader),
		grpc.MaxRecvMsgSize(maxRequestLen),
		grpc.MaxHeaderListSize(maxHeaderLen),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(bufferLen),
		grpc.WriteBufferSize(bufferLen),
		grpc.StaticStreamWindowSize(maxRequestLen),
		grpc.StaticConnWindowSize(2*maxRequestLen),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(g, s)
	if s.o.Credentials != nil {
		credentialv1.RegisterCredentialAPIServer(g, &credentialAPI{s: s})
	}
	reflection.Register(g) // Workload Endpoint §7

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		close(s.stopping)
		hurry := time.AfterFunc(3*time.Second, g.Stop)
		defer hurry.Stop()
		g.GracefulStop()
	}()
	err := g.Serve(l)
	if ctx.Err() == nil {
		return err
	}
	<-stopped
	return nil
}

// The security header keeps a browser or a proxy from being talked into a
// request (Workload Endpoint §3). Reflection needs none: it tells no secret.
const (
	securityHeader    = "workload.spiffe.io"
	reflectionService = "/grpc.reflection."
)

func unarySecurityHeader(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkSecurityHeader(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func streamSecurityHeader(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkSecurityHeader(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

func checkSecurityHeader(ctx context.Context, method string) error {
	if len(method) > len(reflectionService) && method[:len(reflectionService)] == reflectionService {
		return nil
	}
	if v := metadata.ValueFromIncomingContext(ctx, securityHeader); len(v) == 1 && v[0] == "true" {
		return nil
	}
	return status.Error(codes.InvalidArgument, "the request lacks the metadata workload.spiffe.io: true")
}

// toStatus is the only place where an error becomes a status code (Workload
// Endpoint §6). What an unprivileged caller is told names the record in which
// an administrator finds the whole reason.
func (s *Server) toStatus(err error, requestID string) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code, text := codes.Internal, "the daemon could not answer"
	aboutLease, leaseText, isAboutLease := credentialStatus(err)
	switch {
	case errors.Is(err, errStopping):
		code, text = codes.Unavailable, "the daemon is stopping"
	case errors.Is(err, errTooManyRefusals):
		code, text = codes.Unavailable, "too many refused requests from this user; wait a moment"
	case errors.Is(err, errNode):
		code, text = codes.PermissionDenied, nodeRefusal(err)
	case errors.Is(err, errLost):
		code, text = codes.PermissionDenied, "no identity issued any longer: the process is not what its entry names, or the entry has gone"
	case errors.Is(err, errNoIdentity):
		code, text = codes.PermissionDenied, "no identity issued"
	case errors.Is(err, errDisabled):
		code, text = codes.PermissionDenied, "the identity is disabled"
	case errors.Is(err, errNoUnit):
		code, text = codes.FailedPrecondition, err.Error()
	case errors.Is(err, errNotEntitled):
		code, text = codes.PermissionDenied, "not entitled to the requested SPIFFE ID"
	case errors.Is(err, errAttestation), errors.Is(err, process.ErrPeerGone):
		code, text = codes.PermissionDenied, "the caller could not be attested"
	case errors.Is(err, audit.ErrUnwritable):
		code, text = codes.Unavailable, "the attestation log cannot be written"
	case errors.Is(err, identity.ErrNoAuthority):
		code, text = codes.Unavailable, "the authority has no valid key"
	case errors.Is(err, context.DeadlineExceeded):
		code, text = codes.DeadlineExceeded, "the request took too long"
	case errors.Is(err, context.Canceled):
		code, text = codes.Canceled, "the request was cancelled"
	case isAboutLease:
		code, text = aboutLease, leaseText
	}
	if code == codes.Internal {
		s.o.Logger.Error("answering a request", "request", requestID, "err", err)
	}
	return status.Errorf(code, "%s (request %s)", text, requestID)
}

var (
	errStopping        = errors.New("stopping")
	errNode            = errors.New("this host may not issue")
	errNoIdentity      = errors.New("no entry matches")
	errDisabled        = errors.New("the identity is disabled by an administrator")
	errLost            = errors.New("no longer entitled")
	errNotEntitled     = errors.New("the requested SPIFFE ID is not the caller's")
	errAttestation     = errors.New("attesting the caller")
	errTooManyRefusals = errors.New("too many refusals")
)
