package inventory

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"
)

// random is a value that no list has.
func random(t testing.TB, n int) string {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return strings.NewReplacer("+", "a", "/", "b").Replace(base64.RawStdEncoding.EncodeToString(b))[:n]
}

func read(t testing.TB, path, data string) []Finding {
	t.Helper()
	kind, ok := KindOf(path)
	if !ok {
		t.Fatalf("%s has no kind", path)
	}
	found, err := ReadFile(kind, path, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Leased {
			continue
		}
		if f.End > f.Start && data[f.Start:f.End] != string(f.Value.Reveal()) && !strings.ContainsRune(data[f.Start:f.End], '\\') {
			t.Errorf("%s: bytes %d to %d are not the value", f.Item, f.Start, f.End)
		}
		if f.Replace == "" {
			t.Errorf("%s: nothing says what replaces it", f.Item)
		}
	}
	return found
}

func items(found []Finding) (list []string) {
	for _, f := range found {
		item := f.Item
		if f.Leased {
			item += " (leased)"
		}
		list = append(list, item)
	}
	return list
}
