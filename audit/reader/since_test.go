package reader

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
)

func TestSinceFindsTheFirstRecordOfATimeWithoutReadingAll(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 50 << 10
	var minutes atomic.Int64
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h.opt.Now = func() time.Time { return begin.Add(time.Duration(minutes.Load()) * time.Minute) }
	l := h.start()
	for range 2000 {
		minutes.Add(1)
		h.append(l, audit.Record{Event: audit.EventBundle, Outcome: audit.Success}, audittest.Attested(1))
	}
	h.stop(l)
	fsys := os.DirFS(h.dir)
	if firsts, err := format.Segments(fsys); err != nil || firsts[0] == 0 || len(firsts) < 2 {
		t.Fatalf("segments %v, %v: want some replaced by tiles", firsts, err)
	}
	for _, at := range []int{-5, 0, 1, 700, 1500, 1990, 2000, 5000} {
		since := begin.Add(time.Duration(at) * time.Minute)
		from, err := Since(fsys, since)
		if err != nil {
			t.Fatal(err)
		}
		var want uint64
		for e, err := range Records(context.Background(), fsys, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if !e.Leaf.Time.Before(since) {
				break
			}
			want = e.Index + 1
		}
		if from > want || want-from > 1024 && at > 0 {
			t.Errorf("since minute %d: begin at record %d, the first is %d", at, from, want)
		}
	}
}
