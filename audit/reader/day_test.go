package reader

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/writer"
)

// A leased credential's records, as the daemon writes them: the request ID only
// where a caller asked, the lease in all.
type leased struct {
	h          *host
	l          *writer.Log
	id         string
	credential audit.Credential
}

func (h *host) lease(l *writer.Log, id, name, revocation string, ttl time.Duration) leased {
	now := h.now().Truncate(time.Second)
	c := audit.Credential{
		Lease: id, Name: name, Kind: "kind-of-" + name, Upstream: name + ".example.org", Handle: "handle-" + id,
		NotBefore: now, NotAfter: now.Add(ttl), TTL: ttl, Revocation: revocation,
	}
	return leased{h, l, id, c}
}

func (x leased) record(e audit.Event, o audit.Outcome, reason string) audit.Record {
	r := audittest.Attested(9)
	r.Event, r.Outcome, r.Reason, r.RequestID = e, o, reason, ""
	c := x.credential
	r.Credential = &c
	switch e {
	case audit.EventLeaseIntent, audit.EventLeaseGrant, audit.EventLeaseRenew:
		r.RequestID = "request-" + x.id
	case audit.EventLeaseRevokeIntent:
		r.RequestID = "another-request-" + x.id
	default:
		r.Workload = nil // the daemon by itself
	}
	return r
}

func (x leased) grant() leased {
	x.h.append(x.l, x.record(audit.EventLeaseIntent, audit.Success, ""))
	x.h.append(x.l, x.record(audit.EventLeaseGrant, audit.Success, ""))
	return x
}

// end ends the lease, with what is known of its use before.
func (x leased) end(e audit.Event, o audit.Outcome, reason string) {
	use := x.record(audit.EventUse, audit.Success, "")
	use.Use = &audit.Use{Source: "unknown"}
	x.h.append(x.l, use, x.record(e, o, reason))
}

// now is the time of the host's log.
func (h *host) now() time.Time {
	if h.opt.Now != nil {
		return h.opt.Now()
	}
	return time.Now()
}

// day is what a daemon records from a start to a stop in which nothing is wrong.
func (h *host) day(version string, run int) {
	l := h.start()
	id := func(name string) string { return fmt.Sprintf("%s-%d", name, run) }
	now := h.now().Truncate(time.Second)
	key := id("kid")
	h.append(l, audit.Record{Event: audit.EventNode, Outcome: audit.Success, Node: &audit.Node{PCRSHA256: "aabb", Resets: h.tpm.Resets}})
	h.append(l, audit.Record{Event: audit.EventJWTKey, Outcome: audit.Success, Key: &audit.Key{KeyID: key, PublicKey: []byte{1}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour)}})
	h.append(l, audit.Record{Event: audit.EventReload, Outcome: audit.Success, Config: &audit.Config{Entries: 3, SHA256: "aa", Version: version}})
	h.append(l, audit.Record{Event: audit.EventReload, Outcome: audit.Failed, Reason: "entries.d/a.yaml:3: no selectors"})
	h.append(l, audit.Record{Event: audit.EventReload, Outcome: audit.Success, Config: &audit.Config{Entries: 4, SHA256: "ab", Version: version}})
	jwt := audittest.Attested(9)
	jwt.Event, jwt.SVID = audit.EventJWTSVID, &audit.SVID{Kind: "jwt", ID: id("j"), KeyID: key, Audience: []string{"db"}, NotBefore: now, NotAfter: now.Add(5 * time.Minute)}
	h.append(l, audittest.Attested(9), jwt)

	// Each way in which the lease of a broker ends.
	ended := h.lease(l, id("process"), "postgres", "hard", time.Hour).grant()
	ended.end(audit.EventLeaseRevoke, audit.Success, "process ended")
	ended = h.lease(l, id("expired"), "postgres", "hard", time.Minute).grant()
	renewed := ended
	renewed.credential.NotAfter = now.Add(2 * time.Minute)
	h.append(l, renewed.record(audit.EventLeaseRenew, audit.Success, ""))
	renewed.end(audit.EventLeaseRevoke, audit.Success, "expired")
	ended = h.lease(l, id("holder"), "vault", "hard", time.Hour).grant()
	h.append(l, ended.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	ended.end(audit.EventLeaseRevoke, audit.Success, "ended by its holder")
	ended = h.lease(l, id("retried"), "vault", "hard", time.Hour).grant()
	h.append(l, ended.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	h.append(l, ended.record(audit.EventLeaseRevoke, audit.Failed, "the source answers 503"))
	ended.end(audit.EventLeaseRevoke, audit.Success, "ended by its holder")
	ended = h.lease(l, id("grant-wide"), "oauth", "grant-wide", time.Hour).grant()
	h.append(l, audit.Record{Event: audit.EventAdmin, Outcome: audit.Success, Reason: "revoke leases of credential oauth", Workload: &audit.Workload{PID: 1}})
	ended.end(audit.EventLeaseRevoke, audit.Success, "revoked by an administrator (user 0)")
	ended = h.lease(l, id("clock"), "aws", "expiry-only", time.Minute).grant()
	h.append(l, ended.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	ended.end(audit.EventLeaseEnd, audit.Expired, "ended by its holder")
	ended = h.lease(l, id("static"), "static", "none", time.Minute).grant()
	ended.end(audit.EventLeaseEnd, audit.Expired, "expired")
	ended = h.lease(l, id("static-returned"), "static", "none", time.Minute).grant()
	h.append(l, ended.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	ended.end(audit.EventLeaseEnd, audit.Expired, "ended by its holder")

	// What is refused, and what a source does not give.
	h.append(l, audit.Record{Event: audit.EventWorkload, Outcome: audit.Denied, Reason: "no entry matches", Workload: &audit.Workload{PID: 3, UID: 7}})
	refused := h.lease(l, "", "oauth", "", 0)
	h.append(l, refused.record(audit.EventLeaseIntent, audit.Denied, "not granted"))
	h.append(l, refused.record(audit.EventLeaseRevokeIntent, audit.Denied, "no such lease"))
	h.append(l, h.lease(l, id("down"), "vault", "hard", time.Hour).record(audit.EventLeaseIntent, audit.Success, ""))
	h.append(l, h.lease(l, id("down"), "vault", "hard", time.Hour).record(audit.EventLeaseGrant, audit.Failed, "the source answers 503"))

	// Leases that outlast the day: held, and given up where only the clock ends them.
	h.lease(l, id("held"), "postgres", "hard", 48*time.Hour).grant()
	ended = h.lease(l, id("given-up"), "aws", "expiry-only", 48*time.Hour).grant()
	h.append(l, ended.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	h.stop(l)
}

func TestNormalDayIsSilent(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 8 << 10 // several a day
	h.day("0.1.0", 1)
	h.tpm.Resets++
	h.day("0.1.1", 2) // after an upgrade and a boot
	r := h.verify(withTPM())
	for _, f := range r.Findings {
		if f.Severity != Note {
			t.Errorf("%s: %+v", f.Name, f)
		}
	}
	if !r.OK || r.Segments < 2 && r.Events[audit.EventSegment] < 2 {
		t.Errorf("%s; %d segments", r.Verdict, r.Events[audit.EventSegment])
	}
	u, err := Summarise(context.Background(), os.DirFS(h.dir), Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range u.Identities {
		if len(id.Anomalies) > 0 {
			t.Errorf("%s: anomalies %q", id.SPIFFEID, id.Anomalies)
		}
	}
}

func TestOrphansAreSortedAndNoneIsLeftOutOfTheReport(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	const over, living = 60, 40
	for i := range over {
		h.append(l, h.lease(l, fmt.Sprintf("over-%d", i), "postgres", "hard", -time.Hour).record(audit.EventLeaseIntent, audit.Success, ""))
	}
	for i := range living {
		h.append(l, h.lease(l, fmt.Sprintf("living-%d", i), "postgres", "hard", time.Hour).record(audit.EventLeaseIntent, audit.Success, ""))
	}
	h.stop(l)
	var before string
	for range 3 {
		r := h.verify(withTPM())
		var at []uint64
		for _, f := range r.Findings {
			if f.Name == "orphaned-intent" {
				at = append(at, *f.Index)
			}
		}
		if len(at) != over+living || !slices.IsSorted(at[:living]) || !slices.IsSorted(at[living:]) || at[0] < at[living] {
			t.Fatalf("orphans at %v, want the %d whose credential may still work first", at, living)
		}
		j, err := json.Marshal(r)
		if err != nil || strings.Count(string(j), "orphaned-intent") != over+living {
			t.Errorf("JSON has %d orphans: %v", strings.Count(string(j), "orphaned-intent"), err)
		}
		if before != "" && before != string(j) {
			t.Error("two verifications of one log tell differently")
		}
		before = string(j)
		var text strings.Builder
		if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "80 more findings of orphaned-intent are left out; --output json has them") {
			t.Errorf("%v:\n%s", err, text.String())
		}
	}
}

func TestRevocationThatStayedWithoutConfirmationIsTold(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	x := h.lease(l, "1", "postgres", "hard", time.Hour).grant()
	h.append(l, x.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	h.append(l, x.record(audit.EventLeaseRevoke, audit.Failed, "the role owns tables"))
	// The source's clock was to end this one an hour ago, and no record says that it did.
	overdue := h.lease(l, "2", "aws", "expiry-only", -time.Hour).grant()
	h.append(l, overdue.record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, Warning); !slices.Equal(got, []string{"orphaned-intent", "orphaned-intent"}) || !strings.Contains(r.Findings[0].Message, "failed") {
		t.Errorf("warnings %v: %+v", got, r.Findings)
	}
}

func TestCrashThatTheNextStartRepairedIsNoOrphan(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	x := h.lease(l, "1", "postgres", "hard", time.Hour)
	h.append(l, x.record(audit.EventLeaseIntent, audit.Success, ""))
	x.end(audit.EventLeaseRevoke, audit.Success, "vouchd stopped before the upstream had answered")
	h.stop(l)
	if r := h.verify(withTPM()); len(found(r, Warning)) > 0 {
		t.Errorf("%+v", r.Findings)
	}
}
