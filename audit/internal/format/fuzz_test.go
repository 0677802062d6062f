package format

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/vouchd/vouchd/state"
)

func FuzzFrames(f *testing.F) {
	segment, err := os.ReadFile(filepath.Join("..", "..", "reader", "testdata", "v1.wal"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(segment)
	f.Add(state.AppendFrame(nil, KindLeaf, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := Frames(bytes.NewReader(data), 0)
		var again []byte
		for {
			kind, payload, err := r.Next()
			if err != nil {
				break
			}
			again = state.AppendFrame(again, kind, payload)
		}
		if !bytes.HasPrefix(data, again) || int64(len(again)) != r.Offset() {
			t.Errorf("read %x, which is not what was there", again)
		}
		if at := FindCheckpoint(data); at >= 0 {
			kind, _, err := Frames(bytes.NewReader(data[at:]), 0).Next()
			if err != nil || kind != KindCheckpoint {
				t.Errorf("found a checkpoint at %d, where reading says %q, %v", at, kind, err)
			}
		}
	})
}
