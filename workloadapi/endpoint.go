package workloadapi

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/workloadapi/gate"
)

const (
	maxRequestLen = 64 << 10 // bytes of one request; a JWT-SVID to validate is the largest
	maxHeaderLen  = 16 << 10 // bytes of one request's metadata
	maxStreams    = 100      // at a time on one connection
	bufferLen     = 2 << 10  // bytes, for reading and for writing, of each connection
)

// A Front answers on the agent socket.
type Front interface{ Register(grpc.ServiceRegistrar) }

// Serve answers on l, a listener of the gate's, until the context ends. Then it
// ends the gate's streams, lets calls in progress finish, and closes l.
func Serve(ctx context.Context, l *net.UnixListener, g *gate.Gate, fronts ...Front) error {
	s := grpc.NewServer(
		grpc.Creds(g.NewTransport()),
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
	for _, f := range fronts {
		f.Register(s)
	}
	reflection.Register(s) // Workload Endpoint §7

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		g.Streams.Stop()
		hurry := time.AfterFunc(3*time.Second, s.Stop)
		defer hurry.Stop()
		s.GracefulStop()
	}()
	err := s.Serve(l)
	if ctx.Err() == nil {
		return err
	}
	<-stopped
	return nil
}

// The security header keeps a browser or a proxy from being tricked into a request
// (Workload Endpoint §3). Reflection and health checks need none: they reveal no secret.
const securityHeader = "workload.spiffe.io"

var withoutHeader = []string{"/grpc.reflection.", "/grpc.health."}

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
	if slices.ContainsFunc(withoutHeader, func(service string) bool { return strings.HasPrefix(method, service) }) {
		return nil
	}
	if v := metadata.ValueFromIncomingContext(ctx, securityHeader); len(v) == 1 && v[0] == "true" {
		return nil
	}
	return status.Error(codes.InvalidArgument, "the request lacks the metadata workload.spiffe.io: true")
}
