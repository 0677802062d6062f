package node

import (
	"bytes"
	"testing"
)

// A sealed blob comes from a file that others may have changed.
func FuzzBoundHeader(f *testing.F) {
	f.Add([]byte("\x02\x00\x31" + `{"authority":"","key":{"public":"","private":""}}`))
	f.Add([]byte{sealBoundVersion, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, text, err := readBoundHeader(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, text) || len(text) > 3+maxBoundHeader || len(h.Authority) > maxBoundHeader {
			t.Errorf("header of %d bytes, of %d", len(text), len(b))
		}
		if _, err := sealWith(make([]byte, sealKeyLen), "label", text, nil); err != nil {
			t.Error(err)
		}
	})
}
