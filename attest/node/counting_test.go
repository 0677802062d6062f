package node

import (
	"testing"

	"github.com/vouchd/vouchd/attest/appraisal"
)

func TestCountingGoesOneUpFromWhatWasCertified(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	if err := n.Count(t.Context()); err == nil {
		t.Error("counted before anything was certified")
	}
	logKey := newLogKey(t)
	s, err := n.Statement(t.Context(), logKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := appraisal.VerifyStatement(s, logKey)
	if err != nil {
		t.Fatal(err)
	}
	certified := func(digest byte) uint64 {
		t.Helper()
		a, err := n.Certify(t.Context(), [32]byte{digest})
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Anchor(a, [32]byte{digest})
		if err != nil {
			t.Fatal(err)
		}
		return f.Counter
	}
	first := certified(1)
	if again := certified(2); first != v.Counter || again != first {
		t.Errorf("certifying counts: %d, %d, then %d", v.Counter, first, again)
	}
	for range 3 { // as when the answer is lost and the TPM is asked again
		if err := n.Count(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	real.Restart()
	if next := certified(3); next != first+1 {
		t.Errorf("counted from %d to %d", first, next)
	}
}
