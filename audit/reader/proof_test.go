package reader

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit/internal/format"
)

func TestProofOfARecordIsCheckedByTheKeyAlone(t *testing.T) {
	t.Parallel()
	h := longLog(t, 2000)
	fsys := os.DirFS(h.dir)
	size := h.verify(withTPM()).Size
	for _, index := range []uint64{0, 1, 255, 256, 700, 1024, size - 1} {
		proof, err := Prove(context.Background(), fsys, index, h.vkey())
		if err != nil {
			t.Fatal(err)
		}
		e, c, err := CheckProof(proof, h.vkey())
		if err != nil || e.Index != index || e.Leaf.Index != index || c.Size != size {
			t.Errorf("record %d: entry %d under %d records, %v", index, e.Index, c.Size, err)
		}
		for i := range proof {
			if index != 256 {
				break // one record's proof in all its bytes is enough
			}
			changed := bytes.Clone(proof)
			changed[i] ^= 1
			if _, _, err := CheckProof(changed, h.vkey()); err == nil {
				t.Errorf("byte %d flipped: the proof still holds", i)
			}
		}
	}
	if _, err := Prove(context.Background(), fsys, size, h.vkey()); err == nil || !strings.Contains(err.Error(), "the published checkpoint is of") {
		t.Errorf("proving a record that is not there: %v", err)
	}
	proof, err := Prove(context.Background(), fsys, 7, h.vkey())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := CheckProof(proof, strings.Replace(h.vkey(), "vouchd", "other", 1)); err == nil {
		t.Error("the proof holds under another log's key")
	}
}

func TestProofFromTamperedTilesIsRefused(t *testing.T) {
	t.Parallel()
	h := longLog(t, 600)
	m := h.image()
	for _, name := range []string{"tile/0/001", "tile/entries/001"} {
		c := clone(m)
		c[name].Data[40] ^= 1
		if _, err := Prove(context.Background(), c, 256, h.vkey()); err == nil {
			t.Errorf("%s changed, and record 256 proved", name)
		}
	}
}

func TestConsistencyOfTwoCheckpointsIsProved(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var signed [][]byte
	for range 3 {
		l := h.start()
		h.fill(l, l.Status().Size+300)
		h.stop(l)
		b, err := os.ReadFile(filepath.Join(h.dir, format.CheckpointName))
		if err != nil {
			t.Fatal(err)
		}
		signed = append(signed, b)
	}
	size := func(i int) uint64 {
		r := verifyImage(t, h.image(), VerifyOptions{Checkpoint: signed[i]})
		if !r.OK {
			t.Fatal(r.Verdict)
		}
		c, err := format.ParseCheckpoint(string(signed[i][:bytes.Index(signed[i], []byte("\n\n"))+1]))
		if err != nil {
			t.Fatal(err)
		}
		return c.Size
	}
	proof, err := ProveConsistency(os.DirFS(h.dir), size(0), size(1), h.vkey())
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckConsistency(proof, signed[0], signed[1], h.vkey()); err != nil {
		t.Error(err)
	}
	if err := CheckConsistency(proof, signed[0], signed[2], h.vkey()); err == nil {
		t.Error("the proof holds for another checkpoint")
	}
	for i := range proof[:len(proof)-1] {
		changed := bytes.Clone(proof)
		changed[i] ^= 1
		if err := CheckConsistency(changed, signed[0], signed[1], h.vkey()); err == nil {
			t.Errorf("byte %d flipped: the proof still holds", i)
		}
	}
}

func TestForkedLogHasNoConsistencyProof(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	base := h.image()
	h.fillAndStop(400)
	forked := h.image()[format.CheckpointName].Data
	h.put(base)
	h.fillAndStop(700)
	c, err := format.ParseCheckpoint(string(forked[:bytes.Index(forked, []byte("\n\n"))+1]))
	if err != nil {
		t.Fatal(err)
	}
	now := h.image()[format.CheckpointName].Data
	n, err := format.ParseCheckpoint(string(now[:bytes.Index(now, []byte("\n\n"))+1]))
	if err != nil {
		t.Fatal(err)
	}
	proof, err := ProveConsistency(os.DirFS(h.dir), c.Size, n.Size, h.vkey())
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckConsistency(proof, forked, now, h.vkey()); err == nil || !strings.Contains(err.Error(), "forked") {
		t.Errorf("checking a fork: %v", err)
	}
}

func (h *host) fillAndStop(size uint64) {
	h.t.Helper()
	l := h.start()
	h.fill(l, size)
	h.stop(l)
}
