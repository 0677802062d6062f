package history

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/writer"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

const agent = "spiffe://example.org/agent/research"

// A told history is given records.
type told struct {
	*History
	n uint64
}

func newTold(alive func(Process) bool) *told {
	return &told{History: New(Options{From: noon.Add(-24 * time.Hour), Alive: alive})}
}

func (h *told) take(at time.Time, rs ...audit.Record) {
	for _, r := range rs {
		l := audit.Leaf{Index: h.n, Time: at, BootID: "boot", Record: r}
		if r.Event == audit.EventAnchor {
			l.Log = &audit.LogEvent{Size: h.n}
		}
		h.Take(&l)
		h.n++
	}
}

// hour is the last one.
var hour = Window{Until: noon, Step: time.Minute, Steps: 60}

func process(pid int) *audit.Workload {
	return &audit.Workload{PID: pid, StartTime: uint64(pid), Path: "/bin/agent"}
}

func call(e audit.Event, o audit.Outcome, request string) audit.Record {
	return audit.Record{Event: e, Outcome: o, RequestID: request, SPIFFEID: agent, Workload: process(7), Duration: time.Second, Reason: "why",
		Credential: &audit.Credential{Name: "openai"}, Call: &audit.Call{Door: "loopback", Method: "POST", Path: "/v1", Status: 200, Sent: 10, Received: 30, WithinTTL: true}}
}

func TestWhatWasDoneCountsInItsMinute(t *testing.T) {
	t.Parallel()
	h := newTold(nil)
	day := audittest.Day(noon, 1, "1")
	h.take(noon.Add(-30*time.Minute), day...)
	bad := call(audit.EventCallEnd, audit.Success, "3")
	bad.Call.Status, bad.Call.Count, bad.Call.Rows = 500, 5, 2
	h.take(noon.Add(-10*time.Minute), call(audit.EventCall, audit.Success, "1"), call(audit.EventCallEnd, audit.Success, "1"), call(audit.EventCall, audit.Denied, "2"), bad)
	h.take(noon.Add(-2*time.Hour), call(audit.EventCallEnd, audit.Success, "4")) // before the hour; the clock was set back
	v := h.View(hour, "")
	want := Sum{SVIDs: 1, Leases: 10, Calls: 6, Bad: 5, Refused: 4, Failed: 1, Sent: 20, Received: 60, Rows: 2, Took: 2 * time.Second}
	if v.Total != want {
		t.Errorf("in all\n%+v, want\n%+v", v.Total, want)
	}
	if v.Series[30].Leases != 10 || v.Series[50].Calls != 6 || v.Series[50].Leases != 0 {
		t.Errorf("at half past %+v, ten to %+v", v.Series[30], v.Series[50])
	}
	a := v.Agents[agent]
	if a == nil || a.Done[50] != 6 || a.Credentials["openai"].Calls != 6 || a.Credentials["openai"].Refused != 1 || a.Credentials["postgres"].Leases != 3 {
		t.Errorf("the agent: %+v", a)
	}
	if none := v.Agents[""]; none == nil || none.Refused != 1 {
		t.Errorf("without an identity: %+v", none)
	}
	if one := h.View(hour, "spiffe://example.org/nobody"); one.Total != (Sum{}) || len(one.Agents) != len(v.Agents) {
		t.Errorf("of nobody: %+v", one.Total)
	}
	if n := h.View(Window{Until: noon, Step: time.Hour, Steps: 24}, agent).Total.Calls; n != 7 {
		t.Errorf("in a day there were %d calls", n)
	}
}

func TestRefusalsAreNewestFirstAndBounded(t *testing.T) {
	t.Parallel()
	h := newTold(func(p Process) bool { return p.PID == 7 })
	for range maxRefusals + 5 {
		h.take(noon.Add(-time.Minute), call(audit.EventCall, audit.Denied, "x"))
	}
	v := h.View(hour, "")
	if len(v.Refusals) != maxRefusals || v.Refusals[0].Index != maxRefusals+4 || !v.Refusals[0].Process.Running || v.Refusals[maxLooked].Process.Running {
		t.Errorf("%d, the first %+v", len(v.Refusals), v.Refusals[0])
	}
	if r := v.Refusals[0]; r.Call != "POST /v1" || r.Credential != "openai" || r.Reason != "why" || r.SPIFFEID != agent {
		t.Errorf("%+v", r)
	}
	if v.Total.Refused != maxRefusals+5 {
		t.Errorf("counted %d", v.Total.Refused)
	}
	if older := h.View(Window{Until: noon.Add(-time.Hour), Step: time.Minute, Steps: 60}, ""); len(older.Refusals) != 0 {
		t.Errorf("an hour before there were %d", len(older.Refusals))
	}
}

func TestACallIsUnderWayUntilItsOutcome(t *testing.T) {
	t.Parallel()
	h := newTold(nil)
	under := func() (n int) { return len(h.View(hour, "").Under) }
	h.take(noon, call(audit.EventCall, audit.Success, "1"), call(audit.EventCall, audit.Success, "2"), call(audit.EventCall, audit.Denied, "3"))
	if n := under(); n != 2 {
		t.Errorf("%d under way", n)
	}
	h.take(noon, call(audit.EventCallEnd, audit.Success, "1"))
	if n := under(); n != 1 {
		t.Errorf("%d under way once one has ended", n)
	}
	h.take(noon, audit.Record{Event: audit.EventStart, Outcome: audit.Success})
	if n := under(); n != 0 {
		t.Errorf("%d under way in a daemon that has just started", n)
	}
	for i := range maxUnder + 10 {
		h.take(noon, call(audit.EventCall, audit.Success, fmt.Sprint("r", i)))
	}
	if n := under(); n != maxUnder {
		t.Errorf("%d under way, of which at most %d are known of", n, maxUnder)
	}
}

func TestProcessesThatRunAreTold(t *testing.T) {
	t.Parallel()
	ended := make(map[int]bool)
	h := newTold(func(p Process) bool { return !ended[p.PID] && p.BootID == "boot" })
	svid := func(pid int, id string) audit.Record {
		return audit.Record{Event: audit.EventX509SVID, Outcome: audit.Success, SPIFFEID: id, Workload: process(pid)}
	}
	denied := svid(3, agent)
	denied.Outcome = audit.Denied
	h.take(noon, svid(1, agent), svid(1, agent), svid(1, agent+"/other"), svid(2, agent), denied)
	v := h.View(hour, "")
	if len(v.Running[agent]) != 2 || len(v.Running[agent+"/other"]) != 1 || len(v.Running) != 2 {
		t.Errorf("running: %+v", v.Running)
	}
	ended[1] = true
	if v := h.View(hour, ""); len(v.Running[agent]) != 1 || v.Running[agent][0].PID != 2 {
		t.Errorf("running once one has ended: %+v", v.Running)
	}
	for pid := range maxProcesses { // those that ended make room
		ended[pid+1000] = true
		h.take(noon, svid(pid+1000, agent))
	}
	h.take(noon, svid(4, agent))
	if v := h.View(hour, ""); len(v.Running[agent]) != 2 {
		t.Errorf("running after many that ended: %d", len(v.Running[agent]))
	}
}

// TestTheOldestIsForgottenFirst: whatever a log has, what is kept of it is bounded.
func TestTheOldestIsForgottenFirst(t *testing.T) {
	t.Parallel()
	h := newTold(nil)
	const each = 1000
	from := noon.Add(-23 * time.Hour)
	for minute := range maxChunks*chunkCells/each + 20 {
		for i := range each {
			r := call(audit.EventCallEnd, audit.Success, "")
			r.SPIFFEID = fmt.Sprintf("%s/%d", agent, i)
			if minute == 0 {
				r.Credential.Name = fmt.Sprint("name-", i*30)
			}
			h.take(from.Add(time.Duration(minute)*time.Minute), r)
		}
	}
	if n := len(h.minutes.chunks); n != maxChunks {
		t.Errorf("%d chunks, want %d", n, maxChunks)
	}
	if s := h.State(); !s.Begins.After(from) || s.Begins.After(from.Add(time.Hour)) {
		t.Errorf("it begins at %v, and the log at %v", s.Begins, from)
	}
	for i := range maxNames {
		h.names.number(fmt.Sprint("more-", i))
	}
	if len(h.names.text) != maxNames || h.names.text[h.names.number("one more")] != Others || h.names.text[h.names.number(agent+"/7")] != agent+"/7" {
		t.Errorf("%d names", len(h.names.text))
	}
}

func TestAnchorsAreTold(t *testing.T) {
	t.Parallel()
	h := newTold(nil)
	h.take(noon, audit.Record{Event: audit.EventStop, Outcome: audit.Success}, audit.Record{Event: audit.EventAnchor, Outcome: audit.Success})
	h.take(noon.Add(time.Minute), audit.Record{Event: audit.EventAnchor, Outcome: audit.Failed, Reason: "the TPM does not answer"})
	if s := h.State(); !s.Anchor.Equal(noon) || s.Anchored != 1 || s.Unbound != "the TPM does not answer" || s.Next != 3 {
		t.Errorf("%+v", s)
	}
}

// TestALogIsFollowed while it grows, and opened again after an error.
func TestALogIsFollowed(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	l, err := writer.Open(dir, writer.Options{Origin: "o", Key: audittest.LogKey, TPM: audittest.NewTPM(), Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(context.Background()) })
	add := func(n int) {
		t.Helper()
		for i := range n {
			r := audittest.Attested(i)
			r.Event = audit.EventX509SVID
			if err := l.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(3)
	ctx, cancel := context.WithCancel(t.Context())
	h := New(Options{From: time.Now().Add(-time.Hour)})
	var opened atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Follow(ctx, func() (fs.FS, func() error, error) {
			if opened.Add(1) == 1 {
				return nil, nil, errors.New("not yet")
			}
			d, err := reader.OpenDir(dir)
			return d, d.Close, err
		})
	}()
	defer func() { cancel(); <-done }()
	svids := func() uint64 {
		return h.View(Window{Until: time.Now().Add(time.Minute), Step: time.Minute, Steps: 60}, "").Total.SVIDs
	}
	wait(t, "the error is told", func() bool { return h.State().Err != nil })
	wait(t, "what is there is read", func() bool { return h.State().CaughtUp && h.State().Err == nil && svids() == 3 })
	add(4)
	wait(t, "what is appended is read", func() bool { return svids() == 7 })
}

func wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}
