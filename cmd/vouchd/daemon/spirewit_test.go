package daemon_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// A witWatcher is sent the WIT-SVIDs that a stream brings.
type witWatcher chan []*witsvid.SVID

func (w witWatcher) OnWITSVIDsUpdate(got []*witsvid.SVID) { w <- got }
func (w witWatcher) OnWITSVIDsWatchError(error)           {}

func TestWITSVIDsOfASPIREServerReachTheStockClientWithTheirKeys(t *testing.T) {
	t.Parallel()
	s, partner := spiretest.New(t, "example.org"), spiretest.New(t, "partner.example")
	s.RotateWIT()
	partner.RotateWIT()
	s.Federated["partner.example"] = partner.Bundle()
	first := s.Entry("/first", self())
	first.FederatesWith = []string{"partner.example"}
	s.Add(first)
	s.Add(s.Entry("/second", self()))
	h := joined(t, s)
	h.Start()
	client, err := spiffe.New(t.Context(), spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	must(t, err)
	defer client.Close()

	var svids []*witsvid.SVID
	daemontest.Eventually(t, "both entries are served", func() bool {
		svids, err = client.FetchWITSVIDs(t.Context(), "")
		return err == nil && len(svids) == 2
	})
	var bundles *witbundle.Set
	daemontest.Eventually(t, "the partner's keys are served", func() bool {
		bundles, err = client.FetchWITBundles(t.Context())
		return err == nil && bundles.Len() == 2
	})
	if b, err := bundles.GetWITBundleForTrustDomain(partner.TrustDomain); err != nil || len(b.WITAuthorities()) != 1 {
		t.Errorf("the partner's keys: %v, %v", b, err)
	}
	for _, svid := range svids {
		token := svid.Marshal()
		if valid, err := witsvid.ParseAndValidate(token, bundles); err != nil || valid.ID != svid.ID {
			t.Errorf("%s: %v, %v", svid.ID, valid, err)
		}
	}
	if one, err := client.FetchWITSVIDs(t.Context(), "spiffe://example.org/second"); err != nil || len(one) != 1 || one[0].ID.Path() != "/second" {
		t.Errorf("asked for one: %v, %v", one, err)
	}
	if other, err := client.FetchWITSVIDs(t.Context(), "spiffe://example.org/third"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("asked for somebody else's: %v, %v", other, err)
	}

	updates := make(witWatcher, 100)
	go client.WatchWITSVIDs(t.Context(), updates, "spiffe://example.org/second")
	before := <-updates
	s.RotateWIT()
	s.Taint()
	for got := range updates {
		if len(got) != 1 || got[0].ID != before[0].ID {
			t.Fatalf("the stream brings %v", got)
		}
		if got[0].KeyID != before[0].KeyID {
			break
		}
	}

	h.Stop()
	h.VerifyLog()
	seen := make(map[spiffeid.ID]bool)
	for _, r := range h.Records(string(audit.EventWITSVID), audit.Success) {
		seen[spiffeid.RequireFromString(r.SPIFFEID)] = true
		if r.SVID.Kind != "wit" || r.SVID.Signing == "" || r.SVID.KeyID == "" || len(r.SVID.SHA256) != 64 {
			t.Errorf("record %d: %+v", r.Index, r.SVID)
		}
	}
	if len(seen) != 2 {
		t.Errorf("recorded hand-outs are of %v", seen)
	}
	if out := h.OK("log", "verify", "--trace"); !strings.Contains(out, "SPIRE server's authority (record") || strings.Contains(out, "node key <- AK") {
		t.Errorf("the trace\n%s", out)
	}
}

func TestWITSVIDsOfAServerThatSignsNoneAreUnimplemented(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", self()))
	h := joined(t, s)
	h.Start()
	daemontest.Eventually(t, "the entry is served", func() bool { _, err := h.Fetch(); return err == nil })
	client, err := spiffe.New(t.Context(), spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	must(t, err)
	defer client.Close()
	if got, err := client.FetchWITSVIDs(t.Context(), ""); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "wit-svid") {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := client.FetchWITBundles(t.Context()); status.Code(err) != codes.Unimplemented {
		t.Errorf("%v, %v", got, err)
	}
}
