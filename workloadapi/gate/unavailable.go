package gate

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// ServeUnavailable answers every call to l with codes.Unavailable, which clients take
// for a reason to ask again, until the context ends: for a daemon that can't serve yet.
// Nobody is identified, since nobody is given anything. It closes l.
func ServeUnavailable(ctx context.Context, l *net.UnixListener, why string) error {
	const connections, message = 64, 16 << 10
	s := grpc.NewServer(
		grpc.MaxConcurrentStreams(1), grpc.ConnectionTimeout(5*time.Second), grpc.MaxRecvMsgSize(message), grpc.MaxHeaderListSize(message),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Second, MaxConnectionAge: 5 * time.Second, MaxConnectionAgeGrace: time.Second}),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Unavailable, why) }))
	defer context.AfterFunc(ctx, s.Stop)()
	if err := s.Serve(netutil.LimitListener(l, connections)); err != nil && ctx.Err() == nil {
		return fmt.Errorf("refusing calls on %s: %w", l.Addr(), err)
	}
	return nil
}
