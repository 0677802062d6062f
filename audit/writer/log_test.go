package writer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/state"
)

// crash lets go of the log as a killed daemon does: without another word.
func (h *host) crash(l *Log) {
	l.closing.Store(true)
	close(l.quit)
	<-l.stopped
	l.seg.file.Close()
	l.close()
}

func TestLogVerifiesAfterCleanRun(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	for i := range 20 {
		h.append(l, audittest.Attested(i+1), audittest.Attested(i+100))
	}
	h.stop(l)
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 {
		t.Errorf("report: %s %+v", r.Verdict, r.Findings)
	}
	if r.Events[audit.EventWorkload] != 40 || r.Anchors != 2 || r.Anchored != r.Size-1 {
		t.Errorf("report %+v", r)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestLogWithoutVerifierSaysAnchorsAreNotChecked(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	r := h.verify(reader.VerifyOptions{})
	if got := found(r, reader.Note); !r.OK || !slices.Equal(got, []string{"anchors-not-checked"}) {
		t.Errorf("%s: notes %v", r.Verdict, got)
	}
}

func TestStatusNamesTheKeyOfANewLog(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l, err := Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	if st := l.Status(); st.Key != h.vkey() || st.Origin != h.opt.Origin {
		t.Errorf("%q of %q, want %q of %q", st.Key, st.Origin, h.vkey(), h.opt.Origin)
	}
	h.stop(l)
}

func TestLogGoesOnAfterRestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for i := range 3 {
		l := h.start()
		h.append(l, audittest.Attested(i))
		h.stop(l)
	}
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 || r.Events[audit.EventStart] != 3 {
		t.Errorf("report: %s %+v", r.Verdict, r.Findings)
	}
}

func TestConcurrentAppendsShareBatches(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 20 {
				h.append(l, audittest.Attested(w*100+i))
			}
		})
	}
	wg.Wait()
	h.stop(l)
	r := h.verify(withTPM())
	if !r.OK || r.Events[audit.EventWorkload] != 640 {
		t.Errorf("report: %s %+v", r.Verdict, r.Findings)
	}
	if r.Checkpoints >= 640 {
		t.Errorf("%d checkpoints for 640 concurrent records: nothing was shared", r.Checkpoints)
	}
}

func TestSegmentsFollowEachOther(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 8 << 10
	l := h.start()
	for i := range 50 {
		h.append(l, audittest.Attested(i))
	}
	h.stop(l)
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 || r.Segments < 4 {
		t.Errorf("%d segments; %s %+v", r.Segments, r.Verdict, r.Findings)
	}
	var next uint64
	for e, err := range reader.Records(context.Background(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Index != next || e.Leaf.Index != next {
			t.Fatalf("record %d (%d) where %d should be", e.Index, e.Leaf.Index, next)
		}
		next++
	}
	if next != r.Size {
		t.Errorf("read %d records of %d", next, r.Size)
	}
}

func TestUnfinishedBatchIsCutOffAndRecorded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	size := l.Status().Size
	h.crash(l)
	name := filepath.Join(h.dir, format.SegmentName(0))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	leaf := state.AppendFrame(nil, format.KindLeaf, []byte("{}"))
	if err := os.WriteFile(name, append(whole, leaf[:len(leaf)-1]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.verify(withTPM()); r.OK || !slices.Contains(found(r, reader.Failure), "torn-end") {
		t.Errorf("before: %s", r.Verdict)
	}
	l, err = Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Status().Size; got != size+1 {
		t.Errorf("%d records after recovery, want %d and one that says so", got, size)
	}
	h.append(l, audit.Record{Event: audit.EventStart, Outcome: audit.Success})
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Warning); !r.OK || !slices.Equal(got, []string{"recovered", "unclean-stop"}) {
		t.Errorf("%s: warnings %v", r.Verdict, got)
	}
}

func TestDamageInTheMiddleRefusesToStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	h.append(l, audittest.Attested(2))
	h.stop(l)
	name := filepath.Join(h.dir, format.SegmentName(0))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err = Open(h.dir, h.opt)
	if err == nil {
		l.Close(context.Background())
		t.Fatal("opened a damaged log")
	}
	if !bytes.Contains([]byte(err.Error()), []byte("is damaged at offset")) {
		t.Error(err)
	}
	again, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(again, b) {
		t.Error("the damaged log was changed")
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	if _, err := Open(h.dir, h.opt); !errors.Is(err, ErrInUse) {
		t.Errorf("second Open: %v, want ErrInUse", err)
	}
	h.stop(l)
}
