package reader

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/state"
)

// manyCheckpoints is a segment, frame by frame, with a checkpoint for each of more
// records than are checked together.
func manyCheckpoints(t *testing.T) (list [][]byte, checkpoints []int) {
	t.Helper()
	h := newHost(t)
	h.opt.SegmentBytes = 1 << 30
	l := h.start()
	for range checkpointsPerChunk + 50 {
		h.append(l, audittest.Attested(1))
	}
	h.stop(l)
	list = frames(t, h.image()[format.SegmentName(0)].Data)
	for i, f := range list {
		if f[0] == format.KindCheckpoint {
			checkpoints = append(checkpoints, i)
		}
	}
	return list, checkpoints
}

// changed replaces a checkpoint, under a good checksum.
func changed(list [][]byte, at int, change func(signed []byte) []byte) [][]byte {
	list = slices.Clone(list)
	list[at] = state.AppendFrame(nil, format.KindCheckpoint, change(bytes.Clone(list[at][state.FrameHead:])))
	return list
}

// TestNoCheckpointSaysWhatTheLastOneOfItsChunkDoesNot: wherever it stands, a checkpoint
// of another tree, size or log fails, though only the last of a chunk is checked with
// the key.
func TestNoCheckpointSaysWhatTheLastOneOfItsChunkDoesNot(t *testing.T) {
	t.Parallel()
	list, at := manyCheckpoints(t)
	if r := verifyImage(t, oneSegment(slices.Concat(list...)), withTPM()); !r.OK {
		t.Fatal(r.Verdict)
	}
	line := func(n int, with string) func([]byte) []byte {
		return func(signed []byte) []byte {
			lines := strings.Split(string(signed), "\n")
			lines[n] = with
			return []byte(strings.Join(lines, "\n"))
		}
	}
	last := checkpointsPerChunk - 1
	for _, which := range []int{5, last - 1, last, last + 1, len(at) - 1} {
		for name, tt := range map[string]struct {
			change func([]byte) []byte
			want   string
		}{
			"another root":   {line(2, base64.StdEncoding.EncodeToString(make([]byte, 32))), ""},
			"another size":   {line(1, "7"), ""},
			"another origin": {line(0, "other.example.org/log"), "checkpoint-signature"},
			"no signature":   {func(signed []byte) []byte { return signed[:bytes.Index(signed, []byte("\n\n"))+2] }, "checkpoint-signature"},
		} {
			r := verifyImage(t, oneSegment(slices.Concat(changed(list, at[which], tt.change)...)), withTPM())
			got := found(r, Failure)
			if r.OK || tt.want != "" && !slices.Contains(got, tt.want) || !slices.Contains(got, "checkpoint-signature") && !slices.Contains(got, "tree-mismatch") {
				t.Errorf("checkpoint %d with %s: %s, failures %v", which, name, r.Verdict, got)
			}
		}
	}
}

// TestTheLastSignatureOfAChunkIsChecked, and where it does not hold each before it.
func TestTheLastSignatureOfAChunkIsChecked(t *testing.T) {
	t.Parallel()
	list, at := manyCheckpoints(t)
	forge := func(signed []byte) []byte { // a signature of the right form
		i := bytes.LastIndexByte(signed, ' ') + 1
		sig, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(signed[i:])))
		if err != nil {
			t.Fatal(err)
		}
		sig[10] ^= 1
		return append(append(signed[:i:i], base64.StdEncoding.EncodeToString(sig)...), '\n')
	}
	for _, which := range []int{checkpointsPerChunk - 1, len(at) - 1} {
		r := verifyImage(t, oneSegment(slices.Concat(changed(list, at[which], forge)...)), withTPM())
		if got := found(r, Failure); r.OK || !slices.Contains(got, "checkpoint-signature") {
			t.Errorf("checkpoint %d: %s, failures %v", which, r.Verdict, got)
		}
	}
	both := changed(changed(list, at[7], forge), at[checkpointsPerChunk-1], forge)
	r := verifyImage(t, oneSegment(slices.Concat(both...)), withTPM())
	if got := found(r, Failure); len(got) != 2 {
		t.Errorf("two of one chunk: failures %v %+v", got, r.Findings)
	}
}
