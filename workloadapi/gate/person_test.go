package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func accounts(name string) (uint32, bool) {
	uid, ok := map[string]uint32{"alice": 1000, "bob": 1001}[name]
	return uid, ok
}

func TestASubordinateIDCountsForItsOwner(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "subuid")
	text := "alice:100000:65536\nalice:300000:10\nbob:165536:65536\n1002:231072:65536\nnobody-here:500000:100\n" +
		"broken\nalice:x:1\nalice:1:\nbob:0:0\nbob:4294967290:4294967295\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := newPersons(path)
	p.lookup = accounts
	for uid, want := range map[uint32]uint32{
		0: 0, 1000: 1000, 99999: 99999, 100000: 1000, 165535: 1000, 300009: 1000, 300010: 300010,
		165536: 1001, 231071: 1001, 231072: 1002, 500000: 500000, 500099: 500000, 500100: 500100,
		4294967289: 4294967289, 4294967295: 1001,
	} {
		if got := p.of(uid); got != want {
			t.Errorf("user %d counts for %d, want %d", uid, got, want)
		}
	}
}

func TestSubordinateIDsAreReadAnewWhenTheirFileChanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "subuid")
	p := newPersons(path)
	p.lookup = accounts
	if got := p.of(100000); got != 100000 {
		t.Errorf("without a file: %d", got)
	}
	if err := os.WriteFile(path, []byte("alice:100000:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := p.of(100000); got != 1000 {
		t.Errorf("with a file: %d", got)
	}
	if err := os.WriteFile(path, []byte("bob:100000:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if got := p.of(100000); got != 1001 {
		t.Errorf("with another file: %d", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := p.of(100000); got != 100000 {
		t.Errorf("without the file again: %d", got)
	}
}

func FuzzSubordinates(f *testing.F) {
	f.Add("alice:100000:65536\nbob:100001:5\n", uint32(100003))
	f.Add("a:4294967295:4294967295\n:::\n", uint32(0))
	f.Fuzz(func(t *testing.T, text string, uid uint32) {
		ranges := parseSubordinates([]byte(text), accounts)
		for i, r := range ranges {
			if r.first > r.last || i > 0 && r.first <= ranges[i-1].last {
				t.Fatalf("ranges %v are not in order and apart", ranges)
			}
		}
		if len(ranges) > strings.Count(text, "\n")+1 {
			t.Fatalf("%d ranges of %q", len(ranges), text)
		}
	})
}
