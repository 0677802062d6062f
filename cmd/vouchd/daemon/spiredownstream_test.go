package daemon_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

func TestAHostThatIsADownstreamCAIssuesWhatTheServerAuthorizedOnceThatIsAway(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	h := newHost(t)
	must(t, os.WriteFile(h.Path("token"), []byte(s.Token()), 0o600))
	h.Configure(fmt.Sprintf("authority:\n  mode: spire\n  spire: {server: %q, bundle_file: %s, attestor: join_token, token_file: %s, downstream: true, max_stale: 24h}\n", s.Address, s.BundleFile, h.Path("token")))
	e := s.Entry("/agent", self())
	e.X509SvidTtl = 20
	s.Add(e)
	h.Start()
	daemontest.Eventually(t, "it says what it lacks", func() bool {
		p := h.Problems()
		return len(p) == 1 && strings.Contains(p[0], "spire-server entry create -downstream")
	})
	ca := s.Entry("/ca", self())
	ca.Downstream = true
	id := s.Add(ca)
	daemontest.Eventually(t, "it is a CA", func() bool { return len(h.Problems()) == 0 })
	out := h.OK("status")
	if !strings.Contains(out, "whoever has this machine's root can be anybody in the trust domain") || !strings.Contains(out, id) || !strings.Contains(out, "own CA") {
		t.Errorf("status does not say what that means:\n%s", out)
	}
	fetch := func() *spiffe.X509Context {
		got, err := spiffe.FetchX509Context(t.Context(), spiffe.WithAddr("unix://"+h.Path("agent.sock")))
		must(t, err)
		return got
	}
	if got := fetch(); len(got.SVIDs) != 1 || len(got.SVIDs[0].Certificates) != 1 {
		t.Errorf("while the server answers, it has not signed what is served: %d SVIDs", len(got.SVIDs))
	}
	s.Stop()
	bundle, err := x509bundle.Parse(s.TrustDomain, s.PEM())
	must(t, err)
	daemontest.Eventually(t, "the host signs itself", func() bool {
		got, err := spiffe.FetchX509Context(t.Context(), spiffe.WithAddr("unix://"+h.Path("agent.sock")))
		if err != nil || len(got.SVIDs[0].Certificates) != 3 {
			return false
		}
		for _, svid := range got.SVIDs {
			if id, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil || id.Path() != "/agent" {
				t.Errorf("it verifies as %v, %v", id, err)
			}
		}
		return true
	})
	h.Stop()
	h.Start()
	if got := fetch(); len(got.SVIDs[0].Certificates) != 3 || got.SVIDs[0].Certificates[0].NotAfter.After(time.Now().Add(time.Minute)) {
		t.Errorf("after a restart without the server: %d certificates, until %v", len(got.SVIDs[0].Certificates), got.SVIDs[0].Certificates[0].NotAfter)
	}
	h.Stop()
	h.VerifyLog()
	if len(h.Records(string(audit.EventUpstream), audit.Success)) == 0 {
		t.Error("the CA is not recorded")
	}
}
