//go:build spiresuite

package daemon_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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

func TestRealServerAdmitsAHostByItsTPMAndRefusesItOnceItsStateIsAnother(t *testing.T) {
	t.Parallel()
	plugin, policy := filepath.Join(t.TempDir(), "vouchd-spire"), filepath.Join(t.TempDir(), "policy.yaml")
	if out, err := exec.Command("go", "build", "-o", plugin, "github.com/vouchd/vouchd/cmd/vouchd-spire").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := newHost(t)
	h.Start()
	good := h.OK("node", "policy", "learn")
	h.Stop()
	another := regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllStringFunc(good, func(digest string) string { return strings.Repeat("0", len(digest)) })
	admit := func(text string) { must(t, os.WriteFile(policy, []byte(text), 0o644)) }
	admit(another)
	s := spiretest.StartReal(t, os.Getenv("SPIRE_BIN"), "", 20*time.Second, fmt.Sprintf(`
	NodeAttestor "vouchd" { plugin_cmd = %q plugin_data { policy_file = %q policy_name = "prod" } }
	CredentialComposer "vouchd" { plugin_cmd = %[1]q plugin_data {} }`, plugin, policy))
	s.Alias("vouchd:policy:prod")
	s.Add((&spiretest.Server{TrustDomain: s.TrustDomain}).Entry("/agent", self()))
	h.Configure(fmt.Sprintf("authority:\n  mode: spire\n  spire: {server: %q, bundle_file: %s, attestor: vouchd}\n", s.Address, s.BundleFile))
	h.Start()
	refused := func() bool {
		p := h.Problems()
		return len(p) == 1 && strings.Contains(p[0], "has refused this host") && strings.Contains(p[0], "does not satisfy the policy")
	}
	daemontest.Eventually(t, "a machine that the policy does not know is refused", refused)
	admit(good)
	daemontest.Eventually(t, "it is admitted and served", func() bool { _, err := h.Fetch(); return err == nil })
	if out := h.OK("status"); !strings.Contains(out, "spiffe://example.org/spire/agent/vouchd/") {
		t.Errorf("status\n%s", out)
	}
	admit(another)
	daemontest.Eventually(t, "in another state it is refused, once its SVID is over", refused)
	if id, err := h.Fetch(); err == nil {
		t.Errorf("it is still served as %s", id)
	}
	h.Stop()
	h.VerifyLog()
}

func TestRealServerMakesAHostADownstreamCA(t *testing.T) {
	t.Parallel()
	s := spiretest.StartReal(t, os.Getenv("SPIRE_BIN"), "", time.Hour)
	h := newHost(t)
	must(t, os.WriteFile(h.Path("token"), []byte(s.Token()), 0o600))
	h.Configure(fmt.Sprintf("authority:\n  mode: spire\n  spire: {server: %q, bundle_file: %s, attestor: join_token, token_file: %s, downstream: true, max_stale: 24h}\n", s.Address, s.BundleFile, h.Path("token")))
	of := &spiretest.Server{TrustDomain: s.TrustDomain}
	e := of.Entry("/agent", self())
	e.X509SvidTtl = 30
	s.Add(e)
	ca := of.Entry("/ca", self())
	ca.Downstream = true
	s.Add(ca)
	h.Start()
	daemontest.Eventually(t, "it is a CA", func() bool {
		out, _, _ := h.Vouch("status")
		return strings.Contains(out, "can be anybody in the trust domain")
	})
	s.Stop()
	daemontest.Eventually(t, "the host signs itself", func() bool {
		got, err := spiffe.FetchX509Context(t.Context(), spiffe.WithAddr("unix://"+h.Path("agent.sock")))
		return err == nil && len(got.SVIDs[0].Certificates) == 3
	})
	h.Stop()
	h.VerifyLog()
}
