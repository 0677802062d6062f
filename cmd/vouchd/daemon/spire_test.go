package daemon_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// joined returns a host that is about to join a server by a token.
func joined(t *testing.T, s *spiretest.Server) *host {
	t.Helper()
	h := newHost(t)
	must(t, os.WriteFile(h.Path("token"), []byte(s.Token()), 0o600))
	h.Configure(fmt.Sprintf("authority:\n  mode: spire\n  spire: {server: %q, bundle_file: %s, attestor: join_token, token_file: %s}\n", s.Address, s.BundleFile, h.Path("token")))
	return h
}

// self is a selector that this process has.
func self() string { return fmt.Sprintf("unix:uid:%d", os.Getuid()) }

func TestAHostOfASPIREServerServesItsEntriesAndGoesOnWithoutIt(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	h := joined(t, s)
	h.Start()
	if _, err := os.Stat(h.Path("token")); err == nil {
		daemontest.Eventually(t, "the token is gone", func() bool { _, err := os.Stat(h.Path("token")); return os.IsNotExist(err) })
	}
	if id, err := h.Fetch(); err == nil {
		t.Errorf("without an entry it is issued %s", id)
	}
	id := s.Add(s.Entry("/agent", self()))
	daemontest.Eventually(t, "the entry is served", func() bool { id, err := h.Fetch(); return err == nil && id == "spiffe://example.org/agent" })
	must(t, os.MkdirAll(h.Path("credentials.d"), 0o755))
	must(t, os.MkdirAll(h.Path("grants.d"), 0o755))
	h.VouchReads([]byte("value"), "secret", "seal", "key")
	h.Write("credentials.d/a.yaml", "credentials:\n  - {name: key, broker: static, ttl: 1m, max_ttl: 1h, static: {secret: key}}\n")
	h.Write("grants.d/a.yaml", "grants:\n  - {spiffe_id: \"spiffe://example.org/agent\", credentials: [key]}\n")
	daemontest.Eventually(t, "the credential is granted here", func() bool {
		out := h.OK("entry", "list", "--output", "json")
		return strings.Contains(out, "entry "+id+" of the SPIRE server") && strings.Contains(out, `"key"`)
	})
	if out := h.OK("status"); !strings.Contains(out, s.Address+", online since ") || !strings.Contains(out, "/spire/agent/join_token/") || !strings.Contains(out, "without it") {
		t.Errorf("status\n%s", out)
	}

	updates := &watcher{got: make(chan *spiffe.X509Context, 100), failed: make(chan error, 100)}
	go spiffe.WatchX509Context(t.Context(), updates, spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	if got := <-updates.got; len(got.SVIDs) != 1 {
		t.Fatalf("the stream has %d SVIDs", len(got.SVIDs))
	}
	s.Add(s.Entry("/second", self()))
	for got := range updates.got {
		if len(got.SVIDs) == 2 {
			b, err := got.Bundles.GetX509BundleForTrustDomain(s.TrustDomain)
			must(t, err)
			for _, svid := range got.SVIDs {
				if _, _, err := x509svid.Verify(svid.Certificates, b); err != nil {
					t.Errorf("%s: %v", svid.ID, err)
				}
			}
			break
		}
	}

	s.Stop()
	h.Stop()
	h.VerifyLog()
	h.Start()
	if id, err := h.Fetch(); err != nil || !strings.HasPrefix(id, "spiffe://example.org/") {
		t.Errorf("after a restart without the server: %s, %v", id, err)
	}
	daemontest.Eventually(t, "status says that it is away", func() bool {
		p := h.Problems()
		return len(p) == 1 && strings.Contains(p[0], "SPIRE server "+s.Address+" has not answered since ") && strings.Contains(p[0], "are served until ")
	})
	offline := false
	for _, r := range h.Records(string(audit.EventX509SVID), audit.Success) {
		offline = offline || r.SVID.Offline
		if r.SVID.Signing == "" {
			t.Errorf("record %d does not say what the server signed", r.Index)
		}
	}
	if !offline {
		t.Error("no hand-out is recorded as one without the server")
	}

	s.Start()
	daemontest.Eventually(t, "it is back", func() bool { return len(h.Problems()) == 0 })
	s.Ban()
	daemontest.Eventually(t, "it is cut off", func() bool { _, err := h.Fetch(); return err != nil })
	if p := h.Problems(); len(p) != 1 || !strings.Contains(p[0], "has banned this host") {
		t.Errorf("problems %q", p)
	}
	h.Stop()
	h.VerifyLog()
	for _, want := range []audit.Event{audit.EventSPIREAttest, audit.EventSPIREAuthority, audit.EventSPIREBundle, audit.EventSPIREEntries, audit.EventSPIRESign, audit.EventSPIREOnline} {
		if len(h.Records(string(want), audit.Success)) == 0 {
			t.Errorf("no record %s", want)
		}
	}
	if out := h.OK("log", "verify"); !strings.Contains(out, "The log holds") {
		t.Errorf("log verify\n%s", out)
	}
}

// A watcher is sent what a stream brings.
type watcher struct {
	got    chan *spiffe.X509Context
	failed chan error
}

func (w *watcher) OnX509ContextUpdate(c *spiffe.X509Context) { w.got <- c }
func (w *watcher) OnX509ContextWatchError(err error) {
	select {
	case w.failed <- err:
	case <-time.After(time.Second):
	}
}
