package workloadapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// fixed is the floor: a bare gRPC server on a Unix socket that attests nothing
// and answers a fixed message of the same size, after a durable write of a
// record's size if it has a file for it.
type fixed struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	x509 *workload.X509SVIDResponse
	jwt  *workload.JWTSVIDResponse
	file *os.File // nil: write nothing
}

func (f *fixed) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := f.write(); err != nil {
		return err
	}
	if err := stream.Send(f.x509); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (f *fixed) FetchJWTSVID(context.Context, *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	return f.jwt, f.write()
}

func (f *fixed) write() error {
	if f.file == nil {
		return nil
	}
	if _, err := f.file.Write(make([]byte, 1400)); err != nil {
		return err
	}
	return fdatasync(f.file)
}

// serveFixed serves answers of the size that the stack gives from a socket,
// and from another one with a durable write before each.
func serveFixed(b *testing.B, s *stack) (socket, writing string) {
	b.Helper()
	f := new(fixed)
	withConn(b, s.Socket, func(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
		stream, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			return err
		}
		if f.x509, err = stream.Recv(); err != nil {
			return err
		}
		f.jwt, err = c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
		return err
	})
	file, err := os.Create(filepath.Join(s.Dir, "floor"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	socket, writing = filepath.Join(s.Dir, "floor.sock"), filepath.Join(s.Dir, "writing.sock")
	f.serve(b, socket)
	(&fixed{x509: f.x509, jwt: f.jwt, file: file}).serve(b, writing)
	return socket, writing
}

func (f *fixed) serve(b *testing.B, socket string) {
	b.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	g := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(g, f)
	go g.Serve(l)
	b.Cleanup(g.Stop)
}

// withConn calls f over a new connection.
func withConn(tb testing.TB, socket string, f func(context.Context, workload.SpiffeWorkloadAPIClient) error) {
	cc, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Error(err)
		return
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), securityHeader, "true"), 30*time.Second)
	defer cancel()
	if err := f(ctx, workload.NewSpiffeWorkloadAPIClient(cc)); err != nil {
		tb.Error(err)
	}
}

func fetchX509(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
	stream, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func fetchJWT(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
	_, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
	return err
}

// BenchmarkFetch is one fetch over a new connection each, by 1, 16 and 64
// clients, beside the floor and the floor that writes.
func BenchmarkFetch(b *testing.B) {
	s := startStack(b, gatetest.Entry("/agent", os.Getuid()))
	floor, writing := serveFixed(b, s)
	for _, call := range []struct {
		name string
		do   func(context.Context, workload.SpiffeWorkloadAPIClient) error
	}{{"x509", fetchX509}, {"jwt", fetchJWT}} {
		for _, clients := range []int{1, 16, 64} {
			for _, on := range []struct{ name, socket string }{{"floor", floor}, {"writing", writing}, {"vouchd", s.Socket}} {
				b.Run(fmt.Sprintf("%s/clients=%d/%s", call.name, clients, on.name), func(b *testing.B) {
					concurrently(b, clients, func() { withConn(b, on.socket, call.do) })
				})
			}
		}
	}
}

// concurrently spreads b.N calls over workers.
func concurrently(b *testing.B, workers int, call func()) {
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan struct{})
	for range workers {
		go func() {
			for left.Add(-1) >= 0 {
				call()
			}
			done <- struct{}{}
		}()
	}
	for range workers {
		<-done
	}
}

// BenchmarkDurableWrite is the other part of the floor: one write of a record's
// size and one fdatasync.
func BenchmarkDurableWrite(b *testing.B) {
	file, err := os.Create(filepath.Join(b.TempDir(), "durable"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	f := &fixed{file: file}
	for b.Loop() {
		if err := f.write(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkThousandIdentities is one fetch by a caller that a thousand entries
// match.
func BenchmarkThousandIdentities(b *testing.B) {
	var entries strings.Builder
	for i := range 1000 {
		entries.WriteString(gatetest.Entry(fmt.Sprintf("/agent/%d", i), os.Getuid()))
	}
	s := startStack(b, entries.String())
	for b.Loop() {
		withConn(b, s.Socket, fetchX509)
	}
}

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
