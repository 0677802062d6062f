package writer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/reader"
)

func TestRestoringAnOlderStateDirectoryLeavesAGapInTheCounter(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	old := h.image()
	for range 2 { // a run or two that shall be forgotten
		l := h.start()
		h.append(l, audittest.Attested(1))
		h.stop(l)
	}
	h.put(old)
	l := h.start()
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Failure); !slices.Equal(got, []string{"counter-gap"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestTPMThatFailsForAWhileLeavesNoGap(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	h.tpm.Fail = errors.New("TPM_RC_RETRY")
	if err := l.Anchor(context.Background()); err == nil {
		t.Fatal("anchored with a failing TPM")
	}
	if l.Status().AnchorErr == nil {
		t.Error("the status does not say that anchoring failed")
	}
	h.tpm.Fail = nil
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Warning); !r.OK || !slices.Equal(got, []string{"anchor-failed"}) {
		t.Errorf("%s: warnings %v", r.Verdict, got)
	}
}

// Root has the log's key, so an announcement must not excuse a missing anchor.
func TestForgedAnnouncementsDoNotExcuseRemovedAnchors(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	old := h.image()
	l := h.start()
	h.append(l, audittest.Attested(1)) // what shall be forgotten
	h.stop(l)
	h.put(old)
	l, err := Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := l.append(context.Background(), []audit.Record{{Event: audit.EventAnchorIntent, Outcome: audit.Success}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	h.append(l, audit.Record{Event: audit.EventStart, Outcome: audit.Success})
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Failure); !slices.Equal(got, []string{"counter-gap"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestAnchorInOneStepLeavesAGapWhenItIsLost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.TPM = audittest.OneStepTPM{Anchorer: h.tpm}
	l := h.start()
	h.append(l, audittest.Attested(1))
	h.tpm.Fail = errors.New("TPM_RC_RETRY")
	if err := l.Anchor(context.Background()); err == nil {
		t.Fatal("anchored with a failing TPM")
	}
	h.tpm.Fail = nil
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Failure); !slices.Equal(got, []string{"counter-gap"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestCrashBetweenAnchorAndCountIsAWarning(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	before := h.tpm.Counter
	h.anchor(l)
	h.tpm.Counter = before // the count that never was
	h.crash(l)
	h.stop(h.start())
	r := h.verify(withTPM())
	if got := found(r, reader.Warning); !r.OK || !slices.Equal(got, []string{"unclean-stop", "anchor-not-final"}) {
		t.Errorf("%s: warnings %v", r.Verdict, got)
	}
}

func TestRecordsAfterTheLastAnchorAreNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	h.crash(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Failure); !slices.Equal(got, []string{"open-end", "end-not-anchored"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
	r = h.verify(reader.VerifyOptions{TPM: &audittest.Verifier{}, Live: true})
	if got := found(r, reader.Note); !r.OK || !slices.Equal(got, []string{"open-end", "end-not-anchored"}) {
		t.Errorf("live: %s: notes %v", r.Verdict, got)
	}
}

func TestLogThatWasCutBackRefusesToStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	old := h.image()[format.SegmentName(0)].Data
	h.stop(h.start())
	m := h.image()
	m[format.SegmentName(0)].Data = old
	h.put(m)
	l, err := Open(h.dir, h.opt)
	if err == nil {
		l.Close(context.Background())
		t.Fatal("opened a log whose end was removed")
	}
	if !strings.Contains(err.Error(), "its end was removed") {
		t.Error(err)
	}
}
