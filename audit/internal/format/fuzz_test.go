package format

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func FuzzFrames(f *testing.F) {
	segment, err := os.ReadFile(filepath.Join("..", "..", "reader", "testdata", "v1.wal"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(segment)
	f.Add(AppendFrame(nil, KindLeaf, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewFrameReader(bytes.NewReader(data))
		var again []byte
		for {
			kind, payload, err := r.Next()
			if err != nil {
				break
			}
			again = AppendFrame(again, kind, payload)
		}
		if !bytes.HasPrefix(data, again) || int64(len(again)) != r.Off {
			t.Errorf("read %x, which is not what was there", again)
		}
		if at := FindCheckpoint(data); at >= 0 {
			kind, _, err := NewFrameReader(bytes.NewReader(data[at:])).Next()
			if err != nil || kind != KindCheckpoint {
				t.Errorf("found a checkpoint at %d, where reading says %q, %v", at, kind, err)
			}
		}
	})
}
