package reader

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
)

// day is a run of the daemon in which nothing is wrong.
func (h *host) day(version string, run int) {
	l := h.start()
	for _, r := range audittest.Day(time.Now(), run, version) {
		h.append(l, r)
	}
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
}

func TestOrphansAreSortedAndNoneIsLeftOutOfTheReport(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	const over, living = 60, 40
	for i := range over {
		h.append(l, audittest.NewLease(time.Now(), fmt.Sprintf("over-%d", i), "postgres", "hard", -time.Hour).Record(audit.EventLeaseIntent, audit.Success, ""))
	}
	for i := range living {
		h.append(l, audittest.NewLease(time.Now(), fmt.Sprintf("living-%d", i), "postgres", "hard", time.Hour).Record(audit.EventLeaseIntent, audit.Success, ""))
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
	x := audittest.NewLease(time.Now(), "1", "postgres", "hard", time.Hour)
	h.append(l, x.Grant()...)
	h.append(l, x.Record(audit.EventLeaseRevokeIntent, audit.Success, ""))
	h.append(l, x.Record(audit.EventLeaseRevoke, audit.Failed, "the role owns tables"))
	// The source's clock was to end this one an hour ago, and no record says that it did.
	overdue := audittest.NewLease(time.Now(), "2", "aws", "expiry-only", -time.Hour)
	h.append(l, overdue.Grant()...)
	h.append(l, overdue.Record(audit.EventLeaseRevokeIntent, audit.Success, ""))
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
	x := audittest.NewLease(time.Now(), "1", "postgres", "hard", time.Hour)
	h.append(l, x.Record(audit.EventLeaseIntent, audit.Success, ""))
	h.append(l, x.End(audittest.Unseen, audit.EventLeaseRevoke, audit.Success, "vouchd stopped before the upstream had answered")...)
	h.stop(l)
	if r := h.verify(withTPM()); len(found(r, Warning)) > 0 {
		t.Errorf("%+v", r.Findings)
	}
}
