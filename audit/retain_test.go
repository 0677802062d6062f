package audit

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"
)

func TestOldestRecordsGoWhenTheLogIsLarge(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes, h.opt.MaxBytes = 100<<10, 3<<20
	for range 3 {
		l := h.start()
		for end := l.Status().Size + 1500; l.Status().Size < end; {
			h.append(l, slices.Repeat([]Record{attested(1)}, 10)...)
			if size, err := diskBytes(os.DirFS(h.dir), "."); err != nil || size > h.opt.MaxBytes {
				t.Fatalf("the log takes %d bytes of %d (%v)", size, h.opt.MaxBytes, err)
			}
		}
		h.stop(l)
	}
	r := h.verify(withTPM())
	if !r.OK || r.First == 0 || r.Events[EventPrune] == 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
	if got := r.found(Warning); !slices.Contains(got, "records-pruned") {
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
			if r, err := Verify(context.Background(), m, withTPM()); err == nil && r.OK {
				t.Errorf("%s: byte %d of %d flipped, and %s", name, i, len(f.Data), r.Verdict)
			}
			f.Data[i] ^= 4
		}
	}
	// And it proves: the records that are there, not those that went.
	if _, err := Prove(context.Background(), m, r.First, h.vkey()); err != nil {
		t.Error(err)
	}
	if _, err := Prove(context.Background(), m, r.First-1, h.vkey()); err == nil {
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
	h.append(l, Record{Event: EventStop, Outcome: Success})
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	first, _, err := bundles(os.DirFS(h.dir))
	firsts, segErr := segmentsOf(os.DirFS(h.dir))
	if err != nil || segErr != nil || first == 0 || uint64(first)*tileWidth > firsts[0] {
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
	if !r.OK || slices.Contains(r.found(Note), "tiles-not-checked") {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

func TestRecordsRemovedByHandAreMissed(t *testing.T) {
	t.Parallel()
	m := longLog(t, 2000).image()
	for _, level := range []int{0, entriesLevel} {
		delete(m, tilePath(fullTile(level, 0)))
	}
	r := verifyImage(t, m, withTPM())
	if got := r.found(Failure); !slices.Contains(got, "records-missing") {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
	o := withTPM()
	o.From = 256
	if r := verifyImage(t, m, o); !r.OK {
		t.Errorf("known to begin later: %s", r.Verdict)
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
		err = l.Append(ctx, slices.Repeat([]Record{attested(1)}, MaxAppend)...)
		return err != nil
	})
	if !errors.Is(err, ErrFull) || !errors.Is(err, ErrUnwritable) || !errors.Is(l.Status().Err, ErrFull) {
		t.Errorf("a full log: %v; the status says %v", err, l.Status().Err)
	}
	if !warned {
		t.Error("it was full without a warning before")
	}
	for _, e := range []Event{EventLeaseRevokeIntent, EventLeaseRevoke, EventIssuingCA, EventAdmin} {
		if err := l.Append(ctx, Record{Event: e, Outcome: Failed}); err != nil {
			t.Errorf("%s in a full log: %v", e, err)
		}
	}
	h.stop(l)
	for range 3 { // a daemon can start, and refuses
		l = h.start()
		waitFor(t, "what is left of the room is taken", func() bool { return errors.Is(l.Append(ctx, attested(1)), ErrFull) })
		for _, e := range []Event{EventWorkload, EventX509SVID, EventLeaseIntent} {
			if err := l.Append(ctx, Record{Event: e, Outcome: Success}); !errors.Is(err, ErrFull) {
				t.Errorf("%s in a full log: %v", e, err)
			}
		}
		if size, err := diskBytes(os.DirFS(h.dir), "."); err != nil || size > h.opt.MaxBytes {
			t.Errorf("the log takes %d bytes of %d (%v)", size, h.opt.MaxBytes, err)
		}
		h.stop(l)
	}
	l = h.start()
	waitFor(t, "what is left of the room is taken", func() bool { return errors.Is(l.Append(ctx, attested(1)), ErrFull) })
	later.Store(int64(2 * time.Hour))
	waitFor(t, "the oldest records make room", func() bool { return l.Append(ctx, attested(1)) == nil })
	if st := l.Status(); st.Err != nil || st.FullSoon {
		t.Errorf("%+v", st)
	}
	h.stop(l)
	if r := h.verify(withTPM()); !r.OK || r.First == 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

func TestArchiveVerifiesAlone(t *testing.T) {
	t.Parallel()
	h := longLog(t, 3000)
	firsts, err := segmentsOf(os.DirFS(h.dir))
	if err != nil || firsts[0] < 700 {
		t.Fatalf("segments %v, %v", firsts, err)
	}
	for _, from := range []uint64{0, 700, 1 << 40} {
		var b bytes.Buffer
		if err := Archive(context.Background(), os.DirFS(h.dir), &b, from); err != nil {
			t.Fatal(err)
		}
		fsys, err := ReadArchive(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if err := fstest.TestFS(fsys, "checkpoint"); err != nil {
			t.Error(err)
		}
		from = min(from, firsts[0]) // segments are never left out
		o := withTPM()
		o.From = from
		r := verifyImage(t, fsys, o)
		if slices.Contains(r.found(Note), "tiles-not-checked") {
			t.Errorf("from %d: %+v", from, r.Findings)
		}
		if !r.OK || r.First != from&^255 || r.Size != h.verify(withTPM()).Size {
			t.Errorf("from %d: %s, first %d %+v", from, r.Verdict, r.First, r.Findings)
		}
	}
}

func TestArchiveOfALogInUseVerifies(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 50 << 10
	l := h.start()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for l.Status().Size < 4000 {
			h.append(l, attested(1), attested(2))
		}
	}()
	archives := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		var b bytes.Buffer
		if err := Archive(context.Background(), os.DirFS(h.dir), &b, 0); err != nil {
			t.Fatal(err)
		}
		fsys, err := ReadArchive(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		o := withTPM()
		o.Live = true
		if r := verifyImage(t, fsys, o); !r.OK {
			t.Fatalf("%s %+v", r.Verdict, r.Findings)
		}
		archives++
	}
	h.stop(l)
	t.Logf("%d archives", archives)
}

func TestLogInUseVerifies(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 50 << 10
	l := h.start()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for l.Status().Size < 4000 {
			h.append(l, attested(1), attested(2))
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		o := withTPM()
		o.Live = true
		if r := h.verify(o); !r.OK {
			t.Fatalf("%s %+v", r.Verdict, r.Findings)
		}
	}
	h.stop(l)
}

func TestHostileArchiveIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		headers []tar.Header
	}{
		{"a path that leads out", []tar.Header{{Typeflag: tar.TypeReg, Name: "../wal/0"}}},
		{"an absolute path", []tar.Header{{Typeflag: tar.TypeReg, Name: "/checkpoint"}}},
		{"a symlink", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "checkpoint", Linkname: "/etc/shadow"}}},
		{"a file twice", []tar.Header{{Typeflag: tar.TypeReg, Name: "checkpoint"}, {Typeflag: tar.TypeReg, Name: "checkpoint"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for i := range tt.headers {
				if err := w.WriteHeader(&tt.headers[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadArchive(bytes.NewReader(b.Bytes()), int64(b.Len())); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := ReadArchive(bytes.NewReader(make([]byte, 700)), 700); err == nil {
		t.Error("accepted the half of a block")
	}
}
