package redact

import (
	"io"
	"maps"
	"strings"
	"testing"
)

func TestFindTellsWhereEachShapeIs(t *testing.T) {
	t.Parallel()
	stripe, github := "sk_live_"+strings.Repeat("a1B", 8), "ghp_"+strings.Repeat("a1B2", 9)
	text := "x=" + stripe + "\n" + github + " sk_live_vouch" + strings.Repeat("a1B", 8) + " sk_live_short"
	found := Find([]byte(text))
	if len(found) != 2 || text[found[0].Start:found[0].End] != stripe || text[found[1].Start:found[1].End] != github || found[0].Shape != "stripe-key" || found[1].Shape != "github-token" {
		t.Errorf("found %v", found)
	}
	if Find(nil) != nil {
		t.Error("something is in nothing")
	}
}

func FuzzFindAgreesWithTheWriter(f *testing.F) {
	f.Add([]byte("a sk_live_0123456789abcdefghij, eyJhbGciOiJFUzI1NiJ9.eyJhbGciOiJFUzI1NiJ9.eyJhbGciOiJFUzI1NiJ9"))
	f.Fuzz(func(t *testing.T, text []byte) {
		counts := make(map[string]int)
		for _, one := range Find(text) {
			counts[one.Shape]++
		}
		w := Shapes(io.Discard, true)
		w.Write(text)
		w.Close()
		if want := w.Counts(); !maps.Equal(counts, want) {
			t.Errorf("found %v, and the writer %v", counts, want)
		}
	})
}
