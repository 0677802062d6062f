package reader

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
)

func TestArchiveVerifiesAlone(t *testing.T) {
	t.Parallel()
	h := longLog(t, 3000)
	firsts, err := format.Segments(os.DirFS(h.dir))
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
		if slices.Contains(found(r, Note), "tiles-not-checked") {
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
			h.append(l, audittest.Attested(1), audittest.Attested(2))
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
			h.append(l, audittest.Attested(1), audittest.Attested(2))
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
		{"a FIFO", []tar.Header{{Typeflag: tar.TypeFifo, Name: "log/wal/00000000000000000000.wal"}}},
		{"two logs", []tar.Header{{Typeflag: tar.TypeReg, Name: "a/checkpoint"}, {Typeflag: tar.TypeReg, Name: "b/checkpoint"}}},
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

func TestRecordsRemovedByHandAreMissed(t *testing.T) {
	t.Parallel()
	m := longLog(t, 2000).image()
	for _, level := range []int{0, format.EntriesLevel} {
		delete(m, format.TilePath(format.FullTile(level, 0)))
	}
	r := verifyImage(t, m, withTPM())
	if got := found(r, Failure); !slices.Contains(got, "records-missing") {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
	o := withTPM()
	o.From = 256
	if r := verifyImage(t, m, o); !r.OK {
		t.Errorf("known to begin later: %s", r.Verdict)
	}
}
