package analyst

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/writer"
)

// ten is when the analyst's hour begins.
var ten = time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)

// A leased credential's records go to a log.
type leased struct {
	h *host
	l *writer.Log
	audittest.Lease
}

func (h *host) lease(l *writer.Log, id, name, revocation string, ttl time.Duration) leased {
	return leased{h, l, audittest.NewLease(h.opt.Now(), id, name, revocation, ttl)}
}

func (x leased) grant() leased {
	x.h.append(x.l, x.Grant()...)
	return x
}

// hourLog is a log whose clock the test sets.
func hourLog(t *testing.T) (h *host, l *writer.Log, now *time.Time) {
	h = newHost(t)
	now = new(time.Time)
	*now = ten.Add(-time.Hour)
	h.opt.Now = func() time.Time { return *now }
	return h, h.start(), now
}

// end ends the lease after it was used so.
func (x leased) end(u audit.Use, e audit.Event, o audit.Outcome, reason string) {
	x.h.append(x.l, x.End(u, e, o, reason)...)
}

func seen(n uint64, first, last time.Time) audit.Use {
	return audit.Use{First: first, Last: last, Count: n, WithinTTL: true, Source: "upstream"}
}

func (h *host) summarise(q Query) *Usage {
	h.t.Helper()
	u, err := Summarise(context.Background(), os.DirFS(h.dir), q)
	if err != nil {
		h.t.Fatal(err)
	}
	return u
}

// credentials returns what the one identity of a usage did with each credential.
func credentials(t *testing.T, u *Usage) map[string]*CredentialUsage {
	t.Helper()
	if len(u.Identities) != 1 {
		t.Fatalf("%d identities", len(u.Identities))
	}
	all := make(map[string]*CredentialUsage)
	for _, c := range u.Identities[0].Credentials {
		all[c.Name] = c
	}
	return all
}

func TestReportTellsOfAnHourWhatWasUsedInIt(t *testing.T) {
	t.Parallel()
	h, l, now := hourLog(t)
	*now = ten.Add(-50 * time.Minute)
	over := h.lease(l, "over", "over-before", "hard", time.Hour).grant()
	over.end(seen(1, *now, *now), audit.EventLeaseRevoke, audit.Success, "process ended")
	*now = ten.Add(-10 * time.Minute)
	before := h.lease(l, "before", "granted-before", "hard", 2*time.Hour).grant()
	idle := h.lease(l, "idle", "idle-before", "hard", 2*time.Hour).grant()
	*now = ten.Add(5 * time.Minute)
	never := h.lease(l, "never", "never-used", "hard", time.Hour).grant()
	inside := h.lease(l, "inside", "inside", "expiry-only", time.Hour).grant()
	unseen := h.lease(l, "unseen", "unseen", "none", time.Hour).grant()
	h.lease(l, "held", "held", "hard", 3*time.Hour).grant()
	h.append(l, h.lease(l, "", "refused", "", 0).Record(audit.EventLeaseIntent, audit.Denied, "not granted"))
	*now = ten.Add(90 * time.Minute) // what became of them is recorded later
	before.end(seen(7, ten.Add(10*time.Minute), ten.Add(80*time.Minute)), audit.EventLeaseRevoke, audit.Success, "process ended")
	idle.end(seen(2, ten.Add(61*time.Minute), ten.Add(62*time.Minute)), audit.EventLeaseRevoke, audit.Success, "process ended")
	never.end(audit.Use{Source: "upstream"}, audit.EventLeaseRevoke, audit.Success, "expired")
	inside.end(seen(3, ten.Add(6*time.Minute), ten.Add(9*time.Minute)), audit.EventLeaseEnd, audit.Expired, "ended by its holder")
	unseen.end(audittest.Unseen, audit.EventLeaseEnd, audit.Expired, "expired")
	h.lease(l, "later", "granted-later", "hard", time.Hour).grant()
	h.stop(l)

	got := make(map[string]string)
	for name, c := range credentials(t, h.summarise(Query{From: ten, Until: ten.Add(time.Hour)})) {
		got[name] = fmt.Sprintf("granted %d, earlier %d, denied %d, uses %d part %t, unseen %d, never %d, ended %v, held %d",
			c.Grants, c.Earlier, c.Denied, c.Uses, c.UsesInPart, c.Unseen, c.NeverUsed, c.Ended, c.Held)
	}
	want := map[string]string{
		"granted-before": "granted 0, earlier 1, denied 0, uses 7 part true, unseen 0, never 0, ended map[], held 0",
		"idle-before":    "granted 0, earlier 1, denied 0, uses 0 part false, unseen 0, never 0, ended map[], held 0",
		"never-used":     "granted 1, earlier 0, denied 0, uses 0 part false, unseen 0, never 1, ended map[expired:1], held 0",
		"inside":         "granted 1, earlier 0, denied 0, uses 3 part false, unseen 0, never 0, ended map[released:1], held 0",
		"unseen":         "granted 1, earlier 0, denied 0, uses 0 part false, unseen 1, never 0, ended map[expired:1], held 0",
		"held":           "granted 1, earlier 0, denied 0, uses 0 part false, unseen 0, never 0, ended map[], held 1",
		"refused":        "granted 0, earlier 0, denied 1, uses 0 part false, unseen 0, never 0, ended map[], held 0",
	}
	for name := range got {
		if got[name] != want[name] {
			t.Errorf("%s:\n  %s, want\n  %s", name, got[name], want[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d credentials, want %d", len(got), len(want))
	}

	one := credentials(t, h.summarise(Query{From: ten, Until: ten.Add(time.Hour), Credential: "never-used"}))
	if len(one) != 1 || len(one["never-used"].Unused) != 1 || one["never-used"].Unused[0].Handle != "handle-never" {
		t.Errorf("by credential: %+v", one)
	}
	if none := h.summarise(Query{SPIFFEID: "spiffe://example.org/nobody"}); len(none.Identities) != 0 {
		t.Errorf("by another identity: %+v", none.Identities)
	}
	if denied := credentials(t, h.summarise(Query{Outcome: "denied"})); len(denied) != 1 || denied["refused"].Denied != 1 {
		t.Errorf("by outcome: %+v", denied)
	}
}

func TestGrantsCountAsServed(t *testing.T) {
	t.Parallel()
	h, l, _ := hourLog(t)
	for i := range 13 {
		h.lease(l, fmt.Sprint(i), "warehouse", "hard", time.Hour).grant()
	}
	h.append(l, h.lease(l, "", "warehouse", "", 0).Record(audit.EventLeaseIntent, audit.Denied, "not granted"))
	h.stop(l)
	id := h.summarise(Query{}).Identities[0]
	if id.Granted != 13 || id.Denied != 1 || len(id.Anomalies) > 0 {
		t.Errorf("granted %d, denied %d, anomalies %q", id.Granted, id.Denied, id.Anomalies)
	}
}

func TestReportNamesWhatStandsOut(t *testing.T) {
	t.Parallel()
	h, l, now := hourLog(t)
	for i := range 75 { // in two minutes
		*now = now.Add(1500 * time.Millisecond)
		h.lease(l, fmt.Sprintf("many-%d", i), "busy", "hard", time.Hour).grant()
	}
	for i := range 3 { // each used for a moment of an hour
		x := h.lease(l, fmt.Sprintf("long-%d", i), "long", "hard", time.Hour).grant()
		used := *now
		*now = now.Add(time.Hour)
		x.end(seen(1, used, used.Add(time.Minute)), audit.EventLeaseRevoke, audit.Success, "expired")
	}
	h.stop(l)
	all := strings.Join(h.summarise(Query{}).Identities[0].Anomalies, "\n")
	for _, want := range []string{"busy was granted 39 times within a minute", "long is leased for 1h0m0s and is last used 1m0s after the grant"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
}

func TestLeasesOfOneScopeAreOneScope(t *testing.T) {
	t.Parallel()
	h, l, _ := hourLog(t)
	for i := range 5 {
		x := h.lease(l, fmt.Sprint(i), "warehouse", "hard", time.Hour)
		x.Credential.ScopeGranted = "GRANT SELECT ON tides TO " + x.Credential.Handle
		x.grant()
	}
	h.stop(l)
	if got := credentials(t, h.summarise(Query{}))["warehouse"].Scopes; !slices.Equal(got, []string{"GRANT SELECT ON tides TO {handle}"}) {
		t.Errorf("scopes %q", got)
	}
}

func TestReportTellsWhatChangedInTheBootState(t *testing.T) {
	t.Parallel()
	h, l, now := hourLog(t)
	state := func(pcr string, resets uint32, o audit.Outcome, reason string) {
		*now = now.Add(40 * time.Minute)
		h.append(l, audit.Record{Event: audit.EventNode, Outcome: o, Reason: reason, Node: &audit.Node{PCRSHA256: pcr, Resets: resets}})
	}
	state("aa", 4, audit.Success, "") // 9:40
	state("aa", 4, audit.Success, "") // 10:20, as before
	state("bb", 5, audit.Denied, "PCR 7 differs")
	h.stop(l)
	u := h.summarise(Query{From: ten, Until: ten.Add(90 * time.Minute)})
	if len(u.Boot) != 2 || u.Boot[0].PCRSHA256 != "aa" || len(u.Boot[0].Changed) > 0 ||
		!slices.Equal(u.Boot[1].Changed, []string{"PCRs aa -> bb", "reset count 4 -> 5", "no longer satisfies its policy"}) || u.Boot[1].Reason != "PCR 7 differs" {
		t.Errorf("%+v", u.Boot)
	}
	if u = h.summarise(Query{From: ten, Until: ten.Add(50 * time.Minute)}); len(u.Boot) != 1 {
		t.Errorf("an hour without a change: %+v", u.Boot)
	}
}

func TestOneWordForEachEndOfALease(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		event   audit.Event
		outcome audit.Outcome
		reason  string
		word    End
		says    string
	}{
		{audit.EventLeaseRevoke, audit.Success, "process ended", EndRevoked, "process ended"},
		{audit.EventLeaseRevoke, audit.Success, "revoked by an administrator (user 0)", EndRevoked, "revoked by an administrator (user 0)"},
		{audit.EventLeaseRevoke, audit.Success, "expired", EndExpired, "expired"},
		{audit.EventLeaseRevoke, audit.Failed, "the source answers 503", EndUnconfirmed, "the source answers 503"},
		{audit.EventLeaseEnd, audit.Expired, "expired", EndExpired, "expired"},
		{audit.EventLeaseEnd, audit.Expired, "expired; the clock was set forward", EndExpired, "expired; the clock was set forward"},
		{audit.EventLeaseEnd, audit.Expired, "revoked by its holder", EndReleased, "ended by its holder"},
		{audit.EventLeaseEnd, audit.Expired, "unit ended", EndReleased, "unit ended"},
		{audit.EventLeaseGrant, audit.Success, "", "", ""},
	} {
		l := audit.Leaf{Record: audit.Record{Event: tt.event, Outcome: tt.outcome, Reason: tt.reason}}
		if got, says := Ending(&l), Reason(&l); got != tt.word || says != tt.says {
			t.Errorf("%s %s (%s) is %q (%s), want %q (%s)", tt.event, tt.outcome, tt.reason, got, says, tt.word, tt.says)
		}
	}
}

// TestNothingSaysTheYearOne reads a log of records that say no more than they must.
func TestNothingSaysTheYearOne(t *testing.T) {
	t.Parallel()
	h, l, _ := hourLog(t)
	for _, e := range []audit.Event{audit.EventX509SVID, audit.EventLeaseGrant, audit.EventUse, audit.EventLeaseEnd, audit.EventSecretSeal, audit.EventNode} {
		h.append(l, audit.Record{
			Event: e, Outcome: audit.Success, RequestID: "r", SPIFFEID: "spiffe://example.org/a", SVID: &audit.SVID{ID: "1"},
			Credential: &audit.Credential{Name: "c", Lease: "1"}, Use: &audit.Use{Count: 1}, Node: &audit.Node{}, Key: &audit.Key{KeyID: "k"},
		})
	}
	h.stop(l)
	var text bytes.Buffer
	for index := range l.Status().Size {
		x, err := Explain(context.Background(), os.DirFS(h.dir), index, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.WriteText(&text); err != nil {
			t.Fatal(err)
		}
	}
	u := h.summarise(Query{})
	if err := u.WriteText(&text, time.UTC); err != nil {
		t.Fatal(err)
	}
	if err := u.WriteCSV(&text); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(&text).Encode(u); err != nil {
		t.Fatal(err)
	}
	empty, err := reader.Verify(context.Background(), fstest.MapFS{"wal/00000000000000000000.wal": {}}, reader.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := empty.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), "0001-01-01") {
		t.Errorf("it does:\n%s", text.String())
	}
}

func TestReportIsATableForSpreadsheets(t *testing.T) {
	t.Parallel()
	h, l, _ := hourLog(t)
	x := h.lease(l, "1", "warehouse", "hard", time.Hour)
	x.Credential.ScopeGranted = "=cmd|' /C calc'!A0"
	x.grant()
	jwt := audittest.Attested(9)
	jwt.Event = audit.EventJWTSVID
	h.append(l, jwt)
	h.stop(l)
	var text bytes.Buffer
	if err := h.summarise(Query{}).WriteCSV(&text); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&text).ReadAll()
	if err != nil || len(rows) != 3 || rows[1][1] != "jwt_svid" || rows[2][1] != "credential warehouse" || rows[2][2] != "1" {
		t.Fatalf("%v: %q", err, rows)
	}
	if scope := rows[2][len(rows[2])-1]; !strings.HasPrefix(scope, "'=") {
		t.Errorf("a spreadsheet would run %q", scope)
	}
}

func TestNothingStandsOutOnANormalDay(t *testing.T) {
	t.Parallel()
	h, l, _ := hourLog(t)
	for run, version := range []string{"0.1.0", "0.1.1"} {
		for _, r := range audittest.Day(h.opt.Now(), run, version) {
			h.append(l, r)
		}
	}
	h.stop(l)
	for _, id := range h.summarise(Query{}).Identities {
		if len(id.Anomalies) > 0 {
			t.Errorf("%s: %q", id.SPIFFEID, id.Anomalies)
		}
	}
}

// TestASummaryMayBeAskedAsItGrows: what it says in between changes nothing of what it says
// in the end.
func TestASummaryMayBeAskedAsItGrows(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	for run := range 3 {
		h.append(l, audittest.Day(time.Now(), run, "1")...)
	}
	h.stop(l)
	q := Query{From: time.Now().Add(-time.Hour)}
	grown := NewSummary(q)
	for e, err := range reader.Records(t.Context(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		grown.Take(&e.Leaf)
		grown.Usage()
	}
	want, err := json.Marshal(h.summarise(q))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := json.Marshal(grown.Usage()); err != nil || string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s (%v)", got, want, err)
	}
}
