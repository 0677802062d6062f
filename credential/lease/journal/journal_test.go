package journal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/credential"
)

// machine is a sealer that stands for the TPM of one machine.
type machine byte

func (m machine) Seal(_ context.Context, label string, secret []byte) ([]byte, error) {
	return m.gcm().Seal(nil, make([]byte, 12), secret, []byte(label)), nil
}

func (m machine) Unseal(_ context.Context, label string, blob []byte) ([]byte, error) {
	return m.gcm().Open(nil, make([]byte, 12), blob, []byte(label))
}

func (m machine) gcm() cipher.AEAD {
	block, err := aes.NewCipher(bytes.Repeat([]byte{byte(m)}, 32))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// reopen opens the journal at path for the time of the test.
func reopen(t testing.TB, path string) (*Journal, map[string]string) {
	t.Helper()
	j, states, err := Open(t.Context(), path, machine(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Close)
	return j, texts(states)
}

func texts(states map[string][]byte) map[string]string {
	out := make(map[string]string)
	for id, s := range states {
		out[id] = string(s)
	}
	return out
}

func mustPut(t testing.TB, j *Journal, id, state string) {
	t.Helper()
	if err := j.Put(id, []byte(state)); err != nil {
		t.Fatal(err)
	}
}

func TestJournalGivesBackTheLatestStates(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	for range 3 { // each opening continues where the last one stopped
		j, _ := reopen(t, path)
		mustPut(t, j, "a", `{"n":1}`)
		mustPut(t, j, "b", `{"n":1}`)
		mustPut(t, j, "a", `{"n":2}`)
		if err := j.End("b"); err != nil {
			t.Fatal(err)
		}
		j.Close()
		if err := j.Put("c", []byte(`{}`)); !errors.Is(err, credential.ErrClosed) {
			t.Errorf("put after close: %v", err)
		}
		j, got := reopen(t, path)
		if want := map[string]string{"a": `{"n":2}`}; !maps.Equal(got, want) {
			t.Errorf("states %v, want %v", got, want)
		}
		j.Close()
	}
}

func TestJournalIsForItsOwnerAndItsMachineAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	j, _ := reopen(t, path)
	mustPut(t, j, "a", `"canary-4f1b"`)
	j.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("canary")) {
		t.Error("the journal can be read without its key")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, _, err = Open(t.Context(), path, machine(2))
	if err == nil || !strings.Contains(err.Error(), "TPM") {
		t.Errorf("opened on another machine: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
		t.Error("a journal that could not be opened was changed")
	}
}

// writtenJournal makes a journal of one frame a change, and returns its bytes, the
// offsets at which frames end, and the states after each.
func writtenJournal(t *testing.T) (path string, file []byte, ends []int, states []map[string]string) {
	path = filepath.Join(t.TempDir(), "leases")
	j, _ := reopen(t, path)
	now := map[string]string{}
	note := func() {
		ends, states = append(ends, int(j.file.size)), append(states, maps.Clone(now))
	}
	note()
	for i := range 6 {
		id := fmt.Sprintf("lease%d", i%3)
		now[id] = fmt.Sprintf(`{"n":%d}`, i)
		mustPut(t, j, id, now[id])
		note()
	}
	delete(now, "lease0")
	if err := j.End("lease0"); err != nil {
		t.Fatal(err)
	}
	note()
	j.Close()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, file, ends, states
}

// loadBytes reads a journal's bytes as they might be found after a crash.
func loadBytes(t *testing.T, file []byte) (map[string]string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "leases")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	j := &Journal{path: path, live: make(map[string][]byte)}
	err := j.load(t.Context(), machine(1))
	return texts(j.live), err
}

func TestJournalCutAnywhereKeepsWhatWasConfirmed(t *testing.T) {
	t.Parallel()
	_, file, ends, states := writtenJournal(t)
	for length := range len(file) + 1 {
		got, err := loadBytes(t, file[:length])
		if length < ends[0] {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("cut to %d bytes, within the head: %v", length, err)
			}
			continue
		}
		whole := 0
		for i, end := range ends {
			if end <= length {
				whole = i
			}
		}
		if err != nil || !maps.Equal(got, states[whole]) {
			t.Fatalf("cut to %d bytes: %v, %v; want %v", length, got, err, states[whole])
		}
	}
}

func TestJournalDamagedBeforeItsEndIsRefused(t *testing.T) {
	t.Parallel()
	_, file, ends, states := writtenJournal(t)
	last := ends[len(ends)-2]
	for at := range file {
		damaged := slices.Clone(file)
		damaged[at] ^= 0x20
		got, err := loadBytes(t, damaged)
		if at >= last {
			// As a torn write, of which nobody was told that it is durable.
			if err == nil && !maps.Equal(got, states[len(states)-2]) {
				t.Fatalf("byte %d of the last frame changed: %v", at, got)
			}
			continue
		}
		// A change in the head may also show as a key that does not open.
		if err == nil {
			t.Fatalf("byte %d changed, and the journal was read as %v", at, got)
		}
	}
}

func TestJournalOfRearrangedFramesIsRefused(t *testing.T) {
	t.Parallel()
	_, file, ends, _ := writtenJournal(t)
	_, other, otherEnds, _ := writtenJournal(t)
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for name, b := range map[string][]byte{
		"a frame left out":                 join(file[:ends[1]], file[ends[2]:]),
		"two frames changed round":         join(file[:ends[1]], file[ends[2]:ends[3]], file[ends[1]:ends[2]], file[ends[3]:]),
		"a frame twice":                    join(file[:ends[2]], file[ends[1]:]),
		"a frame of another file":          join(file[:ends[1]], other[otherEnds[1]:otherEnds[2]], file[ends[2]:]),
		"nothing":                          nil,
		"another program's file":           []byte(strings.Repeat("x", 1000)),
		"zeros":                            make([]byte, 1000),
		"a later version":                  append([]byte("vouchd leases 2\n"), file[len(magic):]...),
		"a zeroed frame and another after": join(file[:ends[1]], make([]byte, ends[2]-ends[1]), file[ends[2]:]),
	} {
		if got, err := loadBytes(t, b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A crash may leave the length of a write on the disk, and not its bytes.
func TestJournalThatEndsInZerosIsTorn(t *testing.T) {
	t.Parallel()
	_, file, ends, states := writtenJournal(t)
	got, err := loadBytes(t, append(slices.Clone(file[:ends[3]]), make([]byte, 300)...))
	if err != nil || !maps.Equal(got, states[3]) {
		t.Errorf("%v, %v; want %v", got, err, states[3])
	}
}

func TestJournalIsRewrittenBeforeItGrows(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	j, _ := reopen(t, path)
	long := `"` + strings.Repeat("x", 8<<10) + `"`
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			for range 100 {
				if err := j.Put(fmt.Sprint(i), []byte(long)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	j.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2*compactAbove {
		t.Errorf("%d bytes for 8 leases of 8 KiB", info.Size())
	}
	if _, got := reopen(t, path); len(got) != 8 || got["7"] != long {
		t.Errorf("%d leases after rewriting, want 8", len(got))
	}
}

func TestJournalGoesOnInItsFileIfRewritingFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	j, _ := reopen(t, path)
	obstacle := filepath.Join(filepath.Dir(path), ".leases.new")
	if err := os.MkdirAll(filepath.Join(obstacle, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := `"` + strings.Repeat("x", 64<<10) + `"`
	for range 40 {
		mustPut(t, j, "a", long)
	}
	if err := os.RemoveAll(obstacle); err != nil {
		t.Fatal(err)
	}
	grown := j.file.size
	for range 100 {
		mustPut(t, j, "a", long)
	}
	j.Close()
	if info, err := os.Stat(path); err != nil || grown < 2*compactAbove || info.Size() > grown {
		t.Errorf("%d bytes when it could not be rewritten, then %d", grown, info.Size())
	}
	if _, got := reopen(t, path); got["a"] != long {
		t.Error("the lease is not what was confirmed")
	}
}

func TestJournalStopsForGoodAfterAWriteThatFailed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	j, _ := reopen(t, path)
	mustPut(t, j, "a", `1`)
	good := j.file.f
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	j.file.f = full
	if err := j.Put("b", []byte(`1`)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("on a full disk: %v", err)
	}
	j.file.f = good
	if err := j.Put("c", []byte(`1`)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a later change was taken: %v", err)
	}
	j.Close()
	if _, got := reopen(t, path); len(got) != 1 {
		t.Errorf("after starting again: %v, want the one that was confirmed", got)
	}
}

func TestJournalLeftHalfRewrittenIsThatFromBefore(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	j, _ := reopen(t, path)
	mustPut(t, j, "a", `1`)
	j.Close()
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".leases.new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, got := reopen(t, path); len(got) != 1 {
		t.Errorf("%v, want the lease from before", got)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("%d files are left, want the journal alone", len(files))
	}
}

// The seed is a journal of format 1, written once: it must stay readable.
func FuzzJournal(f *testing.F) {
	good, err := os.ReadFile("testdata/journal")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := loadBytes(t, b)
		if bytes.Equal(b, good) && (err != nil || got["a"] != "1") {
			t.Errorf("the journal of before is read as %v, %v", got, err)
		}
		if err == nil && len(got) > 0 && !bytes.HasPrefix(b, good) {
			t.Errorf("read %v from what this machine never wrote", got)
		}
	})
}
