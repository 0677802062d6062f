package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/postgres"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// busyDefinition is one login of the database, without limits.
func busyDefinition(b *testing.B, h *host) string {
	b.Helper()
	pg, err := leasetest.Database()
	must(b, err)
	must(b, os.WriteFile(h.Path("password"), []byte("the-daemons-own\n"), 0o600))
	return fmt.Sprintf(`  - name: tides
    broker: postgres
    max_ttl: 1h
    limits: {rate: 100000/1s, concurrent: 100000}
    postgres: {host: %s, port: %d, database: postgres, user: vouchd, password_file: %s, grants: ["GRANT SELECT ON public.tides TO {{role}}"]}
`, pg.SocketDir, pg.Port, h.Path("password"))
}

func percentiles(b *testing.B, name string, took []time.Duration) (p50 time.Duration) {
	b.Helper()
	slices.Sort(took)
	p50 = took[len(took)/2]
	b.ReportMetric(float64(p50.Microseconds())/1000, name+"p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, name+"p99-ms")
	return p50
}

// BenchmarkGrantThroughTheDaemon leases a login of PostgreSQL over the agent
// socket, and in turn asks the server for one as the daemon does, but directly.
func BenchmarkGrantThroughTheDaemon(b *testing.B) {
	h := newHost(b)
	definition := busyDefinition(b, h)
	h.Grants(definition, "tides")
	h.StartProcess()
	broker := credentialtest.Broker(b, "postgres", postgres.Open, "credentials:\n"+definition)
	client, err := client.New("unix://" + h.Path("agent.sock"))
	must(b, err)
	defer client.Close()
	ctx := context.Background()
	var direct, daemon []time.Duration
	for b.Loop() {
		began := time.Now()
		r := credential.Request{LeaseID: fmt.Sprintf("DIRECT%d", len(direct)), Holder: credential.Holder{ID: spiffeid.RequireFromString(agentID)}, Params: map[string]string{}, TTL: 5 * time.Minute}
		p, err := broker.Plan(ctx, r)
		must(b, err)
		_, err = broker.Issue(ctx, r, p)
		must(b, err)
		direct = append(direct, time.Since(began))
		_, err = broker.Revoke(ctx, p.Handle)
		must(b, err)

		began = time.Now()
		lease, _, err := client.Grant(ctx, &credentialv1.GrantCredentialRequest{Name: "tides"})
		must(b, err)
		daemon = append(daemon, time.Since(began))
		must(b, client.Revoke(ctx, lease.Id))
	}
	added := percentiles(b, "daemon-", daemon) - percentiles(b, "direct-", direct)
	b.ReportMetric(float64(added.Microseconds())/1000, "added-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRevokeAfterExit is from the kill of an agent to the end of a session
// that was opened with its login.
func BenchmarkRevokeAfterExit(b *testing.B) {
	h := newHost(b)
	h.Grants(busyDefinition(b, h), "tides")
	h.StartProcess()
	pg, err := leasetest.Database()
	must(b, err)
	var took []time.Duration
	for b.Loop() {
		a := leasetest.StartAgent(b, h.Host)
		session, err := pg.Login(context.Background(), a.Username, a.Password, "postgres")
		must(b, err)
		began := time.Now()
		must(b, a.Cmd.Process.Kill())
		if _, err := session.WaitForNotification(context.Background()); err == nil {
			b.Fatal("a notification nobody sent")
		}
		took = append(took, time.Since(began))
		a.Cmd.Wait()
	}
	percentiles(b, "", took)
	b.ReportMetric(0, "ns/op")
}

// BenchmarkTenThousandLiveLeases is what the daemon takes with 10,000 leases of
// one process: its resident memory, and the time of a start that takes them up.
func BenchmarkTenThousandLiveLeases(b *testing.B) {
	const n = 10_000
	h := newHost(b)
	u := leasetest.NewUpstream(b, h.Host, leasetest.OpenAI)
	u.Lifetime = time.Hour
	h.Grants(fmt.Sprintf(`  - name: model
    broker: federation
    max_ttl: 1h
    limits: {rate: 100000/1s, concurrent: 100000}
    federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1", endpoint: %q, ca_file: %q, identity_provider_id: idp_1, service_account_id: sa_1}
`, u.URL+"/oauth/token", u.CAFile), "model")
	h.StartProcess()
	client, err := client.New("unix://" + h.Path("agent.sock"))
	must(b, err)
	defer client.Close()
	_, _, err = client.Grant(context.Background(), &credentialv1.GrantCredentialRequest{Name: "model"})
	must(b, err)
	before := h.Resident()
	var group errgroup.Group
	group.SetLimit(16)
	for range n - 1 {
		group.Go(func() error {
			_, _, err := client.Grant(context.Background(), &credentialv1.GrantCredentialRequest{Name: "model"})
			return err
		})
	}
	must(b, group.Wait())
	added := h.Resident() - before
	var took []time.Duration
	for b.Loop() {
		h.Stop()
		began := time.Now()
		h.StartProcess()
		took = append(took, time.Since(began))
	}
	leases, err := h.Admin().Leases(context.Background())
	must(b, err)
	if len(leases) != n {
		b.Fatalf("%d leases after the restart, want %d", len(leases), n)
	}
	b.ReportMetric(float64(added)/(1<<20), "added-MB")
	b.ReportMetric(float64(h.Resident())/(1<<20), "restarted-MB")
	percentiles(b, "start-", took)
	b.ReportMetric(0, "ns/op")
}
