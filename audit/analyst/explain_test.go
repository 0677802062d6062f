package analyst

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/writer"
)

// servedLog is a log with one hand-out of each kind.
func servedLog(t *testing.T) (*host, *writer.Log) {
	h := newHost(t)
	l := h.start()
	now := time.Now().Truncate(time.Second)
	h.append(l, audit.Record{Event: audit.EventNode, Outcome: audit.Success, Node: &audit.Node{PCRSHA256: "aabb", Resets: 4}})
	h.append(l, audit.Record{Event: audit.EventJWTKey, Outcome: audit.Success, Key: &audit.Key{KeyID: "kid-1", PublicKey: []byte{1}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour)}})
	h.append(l, audittest.Attested(7)) // r-7
	jwt := audittest.Attested(7)
	jwt.Event = audit.EventJWTSVID
	jwt.SVID = &audit.SVID{Kind: "jwt", ID: "j-1", KeyID: "kid-1", Audience: []string{"db"}, NotBefore: now, NotAfter: now.Add(5 * time.Minute)}
	h.append(l, jwt)
	lease := audittest.Attested(8)
	lease.Event = audit.EventLeaseIntent
	lease.Credential = &audit.Credential{Name: "warehouse", Kind: "vault", Lease: "ab12", ScopeAsked: "read"}
	h.append(l, lease)
	lease.Event = audit.EventLeaseGrant
	lease.Credential = &audit.Credential{Name: "warehouse", Kind: "vault", Lease: "ab12", ScopeGranted: "read write", TTL: 5 * time.Minute}
	h.append(l, lease)
	return h, l
}

func TestExplainFollowsTheWholeChain(t *testing.T) {
	t.Parallel()
	h, l := servedLog(t)
	h.append(l, audit.Record{Event: audit.EventUse, Outcome: audit.Success, SPIFFEID: "spiffe://example.org/agent/research", Credential: &audit.Credential{Name: "warehouse", Lease: "ab12"},
		Use: &audit.Use{First: time.Now(), Last: time.Now(), Count: 3, WithinTTL: true, Source: "proxy"}})
	h.append(l, audit.Record{Event: audit.EventLeaseEnd, Outcome: audit.Expired, Credential: &audit.Credential{Name: "warehouse", Lease: "ab12"}})
	h.stop(l)
	for _, tt := range []struct {
		event audit.Event
		want  []string
	}{
		{audit.EventJWTSVID, []string{"machine", "boot", "authority", "process", "before", "decision", "anchor"}},
		{audit.EventLeaseGrant, []string{"machine", "boot", "process", "before", "decision", "after", "after", "anchor"}},
	} {
		var index uint64
		for e, err := range reader.Records(context.Background(), os.DirFS(h.dir), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Leaf.Event == tt.event {
				index = e.Index
			}
		}
		x, err := Explain(context.Background(), os.DirFS(h.dir), index, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range x.Steps {
			got = append(got, s.Name)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: steps %v, want %v", tt.event, got, tt.want)
		}
		var text bytes.Buffer
		if err := x.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"research-agent.service", "entries.d/research.yaml:2", "AK", "aabb"} {
			if tt.event == audit.EventJWTSVID && !strings.Contains(text.String(), want) {
				t.Errorf("the text does not say %s:\n%s", want, text.String())
			}
		}
		if _, err := json.Marshal(x); err != nil {
			t.Error(err)
		}
	}
}

func TestExplainLeadsFromAnSVIDToTheSPIREServerThatSignedIt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	h.append(l,
		audit.Record{Event: audit.EventSPIREAttest, Outcome: audit.Success, SPIRE: &audit.SPIRE{Server: "spire.example.org:8081", Agent: "spiffe://example.org/spire/agent/x", Attestor: "x509pop"}},
		audit.Record{Event: audit.EventSPIREAuthority, Outcome: audit.Success, Key: &audit.Key{KeyID: "aa", NotAfter: end}, SPIRE: &audit.SPIRE{TrustDomain: "example.org"}},
		audit.Record{Event: audit.EventSPIREBundle, Outcome: audit.Success, SPIRE: &audit.SPIRE{TrustDomain: "example.org", Sequence: 1, Authorities: []string{"aa"}}})
	for _, name := range []string{"s1", "s2"} {
		h.append(l, audit.Record{Event: audit.EventSPIRESign, Outcome: audit.Success, SPIFFEID: "spiffe://example.org/agent/research",
			SPIRE: &audit.SPIRE{Signing: name, Entry: "entry-" + name, Revision: 3}, SVID: &audit.SVID{Kind: "x509", KeyID: "aa", SHA256: name, NotAfter: end}})
	}
	svid := audittest.Attested(7)
	svid.Event, svid.SPIFFEID = audit.EventX509SVID, "spiffe://example.org/agent/research"
	svid.SVID = &audit.SVID{Kind: "x509", ID: "0a", KeyID: "aa", SHA256: "s1", NotAfter: end, Signing: "s1", Offline: true}
	h.append(l, svid)
	h.stop(l)
	var index uint64
	for e, err := range reader.Records(context.Background(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Leaf.Event == audit.EventX509SVID {
			index = e.Index
		}
	}
	x, err := Explain(context.Background(), os.DirFS(h.dir), index, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := x.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"key aa, which signed it", "agent spiffe://example.org/spire/agent/x of SPIRE server spire.example.org:8081", "signed it for entry entry-s1, revision 3", "while the SPIRE server was away"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not say %q:\n%s", want, text.String())
		}
	}
}

func TestExplainOfARecordThatIsNotThereSaysSo(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	if _, err := Explain(context.Background(), os.DirFS(h.dir), 999, time.UTC); err == nil {
		t.Error("explained record 999 of a log of a few")
	}
}

func TestReportTellsOfSecretsThatAreDueOrWerePutBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	now := time.Now().Truncate(time.Second)
	change := func(e audit.Event, name, handle string, age time.Duration) {
		h.append(l, audit.Record{Event: e, Outcome: audit.Success, Credential: &audit.Credential{
			Name: name, Kind: "sealed", Handle: handle, NotBefore: now.Add(-age), NotAfter: now.Add(90*24*time.Hour - age),
		}})
	}
	use := func(name, handle string) {
		h.append(l, audit.Record{Event: audit.EventLeaseGrant, Outcome: audit.Success, SPIFFEID: "spiffe://example.org/agent",
			Credential: &audit.Credential{Name: "of-" + name, Kind: "static", Upstream: "sealed:" + name, Handle: handle}})
	}
	change(audit.EventSecretSeal, "old", "old@1", 100*24*time.Hour)
	use("old", "old@1")
	change(audit.EventSecretSeal, "rotated", "rotated@2", 100*24*time.Hour)
	use("rotated", "rotated@2")
	change(audit.EventSecretRotate, "rotated", "rotated@3", time.Hour)
	use("rotated", "rotated@3")
	use("rotated", "rotated@2") // from an older copy of the list and the file
	change(audit.EventSecretSeal, "removed", "removed@4", time.Hour)
	change(audit.EventSecretRemove, "removed", "removed@4", time.Hour)
	use("removed", "removed@4")
	use("before", "before@1")
	h.stop(l)
	u, err := Summarise(context.Background(), os.DirFS(h.dir), Query{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, s := range u.Secrets {
		got[s.Name] = fmt.Sprintf("due %t, removed %t, rotated %d, used %d by %v, former %d", s.Due, s.Removed, s.Rotated, s.Uses, s.UsedBy, s.Former)
	}
	const by = "[spiffe://example.org/agent]"
	want := map[string]string{
		"old":     "due true, removed false, rotated 0, used 1 by " + by + ", former 0",
		"rotated": "due false, removed false, rotated 1, used 3 by " + by + ", former 1",
		"removed": "due false, removed true, rotated 0, used 1 by " + by + ", former 1",
		"before":  "due false, removed false, rotated 0, used 1 by " + by + ", former 0",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var text bytes.Buffer
	if err := u.WriteText(&text, time.UTC); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"secret old: 100 days old", "should have been rotated by", "handed out once: an older copy of it was put back", "secret before: sealed before this log begins"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, text.String())
		}
	}
}

// lease is the record of a lease's end.
func lease(name, id string) audit.Record {
	return audit.Record{
		Event: audit.EventLeaseRevoke, Outcome: audit.Success, Reason: "process ended", SPIFFEID: "spiffe://example.org/agent/research",
		Credential: &audit.Credential{Name: name, Kind: "vault", Lease: id},
	}
}

func TestUsageNamesWhatShouldBeLookedAt(t *testing.T) {
	t.Parallel()
	h, l := servedLog(t)
	other := audittest.Attested(9)
	other.Workload.SHA256 = strings.Repeat("0", 64)
	h.append(l, other)
	h.append(l, audit.Record{Event: audit.EventWorkload, Outcome: audit.Denied, Reason: "no entry matches", Workload: other.Workload})
	end := lease("warehouse", "ab12")
	unused := end
	unused.Event, unused.Use = audit.EventUse, &audit.Use{Source: "upstream"}
	h.append(l, unused, end)
	h.stop(l)
	u, err := Summarise(context.Background(), os.DirFS(h.dir), Query{})
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Identities) != 1 || u.Unmatched != 1 {
		t.Fatalf("%+v", u)
	}
	id := u.Identities[0]
	if id.JWTSVIDs != 1 || len(id.Programs) != 2 || !slices.Equal(id.Audiences, []string{"db"}) || len(id.Credentials) != 1 || id.Credentials[0].Grants != 1 {
		t.Errorf("%+v", id)
	}
	all := strings.Join(id.Anomalies, "\n")
	for _, want := range []string{"never used", "with more than was asked for", "2 different programs"} {
		if !strings.Contains(all, want) {
			t.Errorf("anomalies do not tell of %q:\n%s", want, all)
		}
	}
	if err := u.WriteText(&bytes.Buffer{}, time.UTC); err != nil {
		t.Error(err)
	}
	later, err := Summarise(context.Background(), os.DirFS(h.dir), Query{From: time.Now().Add(time.Hour)})
	if err != nil || later.Records != 0 {
		t.Errorf("since later: %+v, %v", later, err)
	}
}
