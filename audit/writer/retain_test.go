package writer

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/reader"
)

func TestOldestRecordsGoWhenTheLogIsLarge(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes, h.opt.MaxBytes = 100<<10, 3<<20
	for range 3 {
		l := h.start()
		for end := l.Status().Size + 1500; l.Status().Size < end; {
			h.append(l, slices.Repeat([]audit.Record{audittest.Attested(1)}, 10)...)
			if size, err := diskBytes(os.DirFS(h.dir), "."); err != nil || size > h.opt.MaxBytes {
				t.Fatalf("the log takes %d bytes of %d (%v)", size, h.opt.MaxBytes, err)
			}
		}
		h.stop(l)
	}
	r := h.verify(withTPM())
	if !r.OK || r.First == 0 || r.Events[audit.EventPrune] == 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
	if got := found(r, reader.Warning); !slices.Contains(got, "records-pruned") {
		t.Errorf("warnings %v", got)
	}
	tried := 0
	// What stays is still held against the whole tree, byte by byte.
	m := h.image()
	for _, name := range slices.Sorted(maps.Keys(m)) {
		f := m[name]
		if tried++; tried%7 != 0 {
			continue
		}
		for _, i := range []int{0, len(f.Data) / 2, len(f.Data) - 1} {
			f.Data[i] ^= 4
			if r, err := reader.Verify(context.Background(), m, withTPM()); err == nil && r.OK {
				t.Errorf("%s: byte %d of %d flipped, and %s", name, i, len(f.Data), r.Verdict)
			}
			f.Data[i] ^= 4
		}
	}
	// And it proves: the records that are there, not those that went.
	if _, err := reader.Prove(context.Background(), m, r.First, h.vkey()); err != nil {
		t.Error(err)
	}
	if _, err := reader.Prove(context.Background(), m, r.First-1, h.vkey()); err == nil {
		t.Error("proved a record that is gone")
	}
}

// Retention goes as far as the segments and no further: the log goes on after it.
func TestRetentionLeavesWhatTheSegmentsNeed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 50 << 10
	for range 3 {
		l := h.start()
		h.fill(l, l.Status().Size+700)
		h.stop(l)
	}
	h.opt.MaxBytes = 1 // all that may go
	l, err := Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "retention", func() bool { return l.Status().DiskBytes > 0 })
	if err := l.Status().TileErr; err != nil {
		t.Error(err)
	}
	h.append(l, audit.Record{Event: audit.EventStop, Outcome: audit.Success})
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	first, _, err := format.Bundles(os.DirFS(h.dir))
	firsts, segErr := format.Segments(os.DirFS(h.dir))
	if err != nil || segErr != nil || first == 0 || uint64(first)*format.TileWidth > firsts[0] {
		t.Errorf("bundles begin with %d, segments with record %d", first, firsts[0])
	}
	h.opt.MaxBytes = 0
	l = h.start()
	h.fill(l, l.Status().Size+300)
	h.stop(l)
	if err := l.Status().TileErr; err != nil {
		t.Error(err)
	}
	r := h.verify(withTPM())
	if !r.OK || slices.Contains(found(r, reader.Note), "tiles-not-checked") {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

func TestFullLogRefusesHandOutsUntilRecordsAreOldEnough(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes, h.opt.MaxBytes, h.opt.KeepFor = 200<<10, 10<<20, time.Hour
	h.opt.AnchorEvery, h.opt.RetryEvery = time.Millisecond, time.Millisecond
	var later atomic.Int64
	h.opt.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	ctx := context.Background()
	l := h.start()
	warned := false
	var err error
	waitFor(t, "filling the log", func() bool {
		warned = warned || l.Status().FullSoon
		err = l.Append(ctx, slices.Repeat([]audit.Record{audittest.Attested(1)}, audit.MaxAppend)...)
		return err != nil
	})
	if !errors.Is(err, audit.ErrFull) || !errors.Is(err, audit.ErrUnwritable) || !errors.Is(l.Status().Err, audit.ErrFull) {
		t.Errorf("a full log: %v; the status says %v", err, l.Status().Err)
	}
	if !warned {
		t.Error("it was full without a warning before")
	}
	for _, e := range []audit.Event{audit.EventLeaseRevokeIntent, audit.EventLeaseRevoke, audit.EventIssuingCA, audit.EventAdmin} {
		if err := l.Append(ctx, audit.Record{Event: e, Outcome: audit.Failed}); err != nil {
			t.Errorf("%s in a full log: %v", e, err)
		}
	}
	h.stop(l)
	for range 3 { // a daemon can start, and refuses
		l = h.start()
		waitFor(t, "what is left of the room is taken", func() bool { return errors.Is(l.Append(ctx, audittest.Attested(1)), audit.ErrFull) })
		for _, e := range []audit.Event{audit.EventWorkload, audit.EventX509SVID, audit.EventLeaseIntent} {
			if err := l.Append(ctx, audit.Record{Event: e, Outcome: audit.Success}); !errors.Is(err, audit.ErrFull) {
				t.Errorf("%s in a full log: %v", e, err)
			}
		}
		if size, err := diskBytes(os.DirFS(h.dir), "."); err != nil || size > h.opt.MaxBytes {
			t.Errorf("the log takes %d bytes of %d (%v)", size, h.opt.MaxBytes, err)
		}
		h.stop(l)
	}
	l = h.start()
	waitFor(t, "what is left of the room is taken", func() bool { return errors.Is(l.Append(ctx, audittest.Attested(1)), audit.ErrFull) })
	later.Store(int64(2 * time.Hour))
	waitFor(t, "the oldest records make room", func() bool { return l.Append(ctx, audittest.Attested(1)) == nil })
	if st := l.Status(); st.Err != nil || st.FullSoon {
		t.Errorf("%+v", st)
	}
	h.stop(l)
	if r := h.verify(withTPM()); !r.OK || r.First == 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}
