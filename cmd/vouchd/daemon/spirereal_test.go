//go:build spiresuite

package daemon_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// beside starts SPIRE's own server, and two agents of it on this machine: a daemon, and
// SPIRE's own. It returns their sockets, by name.
func beside(b *testing.B) (r *spiretest.Real, sockets map[string]string) {
	b.Helper()
	bin := os.Getenv("SPIRE_BIN")
	if bin == "" {
		b.Fatal("SPIRE_BIN names no directory with spire-server and spire-agent; run make test-spire SPIRE_BIN=DIR")
	}
	r = spiretest.StartReal(b, bin, "", time.Hour)
	h := daemontest.New(b)
	must(b, os.WriteFile(h.Path("token"), []byte(r.Token()), 0o600))
	h.Configure(fmt.Sprintf("authority:\n  mode: spire\n  spire: {server: %q, bundle_file: %s, attestor: join_token, token_file: %s}\n", r.Address, r.BundleFile, h.Path("token")))
	h.Start()
	b.Cleanup(h.Stop)
	sockets = map[string]string{"vouchd": "unix://" + h.Path("agent.sock"), "spire-agent": r.Agent()}
	e := (&spiretest.Server{TrustDomain: r.TrustDomain}).Entry("/agent", self())
	r.Add(e)
	for name, socket := range sockets {
		daemontest.Eventually(b, name+" serves", func() bool {
			ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
			defer cancel()
			_, err := spiffe.FetchX509SVID(ctx, spiffe.WithAddr(socket))
			return err == nil
		})
	}
	return r, sockets
}

// Both are asked in one run on the same machine, each on one connection. The daemon gives a
// process that asks this often what it gave it just before, as SPIRE's agent gives everybody.
func BenchmarkRealFetchX509SVID(b *testing.B) {
	_, sockets := beside(b)
	for _, name := range []string{"vouchd", "spire-agent"} {
		b.Run(name, func(b *testing.B) {
			client, err := spiffe.New(b.Context(), spiffe.WithAddr(sockets[name]))
			must(b, err)
			defer client.Close()
			for b.Loop() {
				if _, err := client.FetchX509SVID(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRealEntryToStream is from an entry's being created at the server to its SVID on a
// stream that is open.
func BenchmarkRealEntryToStream(b *testing.B) {
	r, sockets := beside(b)
	arrived := make(map[string]chan time.Time)
	for name, socket := range sockets {
		updates := &watcher{got: make(chan *spiffe.X509Context, 100), failed: make(chan error, 100)}
		go spiffe.WatchX509Context(b.Context(), updates, spiffe.WithAddr(socket))
		arrived[name] = make(chan time.Time, 100)
		go func() {
			have := 0
			for c := range updates.got {
				if len(c.SVIDs) > have && have > 0 {
					arrived[name] <- time.Now()
				}
				have = len(c.SVIDs)
			}
		}()
	}
	const rounds = 5
	took := make(map[string]time.Duration)
	n := 0
	for b.Loop() {
		for range rounds {
			n++
			begun := time.Now()
			r.Add((&spiretest.Server{TrustDomain: r.TrustDomain}).Entry(fmt.Sprintf("/agent/%d", n), self()))
			for name := range sockets {
				took[name] += (<-arrived[name]).Sub(begun)
			}
		}
	}
	for name, d := range took {
		b.ReportMetric(d.Seconds()/float64(n), name+"-s")
	}
}
