package witness

import (
	"fmt"
	"testing"
)

// A witness's word on its last size is read as it is written, or not at all.
func FuzzConflict(f *testing.F) {
	f.Add("text/x.tlog.size", []byte("20852163\n"))
	f.Add("text/x.tlog.size", []byte("0\n"))
	f.Add("text/x.tlog.size", []byte("007\n"))
	f.Add("text/html", []byte("1\n"))
	f.Fuzz(func(t *testing.T, kind string, answer []byte) {
		size, err := conflict(kind, answer)
		if err == nil && (size >= 1<<47 || fmt.Sprintf("%d\n", size) != string(answer)) {
			t.Errorf("%q is %d", answer, size)
		}
	})
}
