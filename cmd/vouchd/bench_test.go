package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// BenchmarkStart is from starting the process, with existing keys, to a served
// socket.
func BenchmarkStart(b *testing.B) {
	h := newHost(b)
	h.StartProcess()
	h.Stop()
	for b.Loop() {
		h.StartProcess()
		b.StopTimer()
		h.Stop()
		b.StartTimer()
	}
}

// BenchmarkResident is the daemon's resident memory: idle, with a thousand
// entries, and with a thousand open streams on a connection each.
func BenchmarkResident(b *testing.B) {
	for _, tt := range []struct {
		name             string
		entries, streams int
	}{
		{"idle", 1, 0},
		{"entries=1000", 1000, 0},
		{"streams=1000", 1, 1000},
	} {
		b.Run(tt.name, func(b *testing.B) {
			h := newHost(b)
			h.Write("entries.d/test.yaml", daemontest.EntriesFor(tt.entries))
			h.StartProcess()
			for range tt.streams {
				openStream(b, h)
			}
			for b.Loop() {
			}
			b.ReportMetric(float64(h.Resident())/(1<<20), "MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkChangeToUpdate is from the replacing of a file of entries to the
// arrival of the update on the last of a thousand streams that it concerns, and
// to that on the one stream it concerns while a thousand others stay open.
func BenchmarkChangeToUpdate(b *testing.B) {
	b.Run("concerned=1000", func(b *testing.B) {
		h := newHost(b)
		changes := 0
		change := func() {
			changes++
			h.Write("entries.d/test.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/all\", selectors: [\"unix:uid:%d\"], hint: h%d}\n", os.Getuid(), changes))
		}
		change()
		h.StartProcess()
		var streams []*stream
		for range 1000 {
			streams = append(streams, openStream(b, h))
		}
		measureChange(b, change, func() {
			for _, s := range streams {
				s.next(b)
			}
		})
	})
	b.Run("concerned=1", func(b *testing.B) {
		h := newHost(b)
		h.Write("entries.d/test.yaml", daemontest.EntriesFor(1))
		h.StartProcess()
		for range 1000 {
			openStream(b, h)
		}
		// A process of another group, which follows its own entry.
		changes := 0
		change := func() {
			changes++
			h.Write("entries.d/one.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/one/%d\", selectors: [\"unix:gid:65534\"]}\n", changes))
		}
		change()
		messages := followAs(b, h, 65534)
		messages()
		measureChange(b, change, messages)
	})
}

func measureChange(b *testing.B, change, arrived func()) {
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		change()
		arrived()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}

type stream struct {
	grpc.ServerStreamingClient[workload.X509SVIDResponse]
}

func (s *stream) next(tb testing.TB) {
	tb.Helper()
	if _, err := s.Recv(); err != nil {
		tb.Fatal(err)
	}
}

// openStream opens a stream on a connection of its own and reads its first
// message.
func openStream(tb testing.TB, h *host) *stream {
	tb.Helper()
	cc, err := grpc.NewClient("unix://"+h.Path("agent.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(tb, err)
	tb.Cleanup(func() { cc.Close() })
	ctx := metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true")
	x, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	must(tb, err)
	s := &stream{x}
	s.next(tb)
	return s
}

// followAs has a process of another group follow its X509-SVIDs, and returns a
// function that waits for its next message.
func followAs(tb testing.TB, h *host, gid uint32) (next func()) {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), followSocket+"="+h.Path("agent.sock"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(os.Getuid()), Gid: gid}}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(tb, err)
	must(tb, cmd.Start())
	tb.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	messages := bufio.NewReader(out)
	return func() {
		tb.Helper()
		_, err := messages.ReadString('\n')
		must(tb, err)
	}
}

// follow is what such a process does: a line for each message.
func follow(socket string) error {
	ctx := context.Background()
	return spiffe.WatchX509Context(ctx, watcher{}, spiffe.WithAddr("unix://"+socket))
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(c *spiffe.X509Context) { fmt.Println(c.DefaultSVID().ID) }
func (watcher) OnX509ContextWatchError(error)             {}
