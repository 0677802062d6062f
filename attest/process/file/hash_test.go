package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// identity returns the file's identity once a further change would show in it.
func identity(t testing.TB, path string) ID {
	t.Helper()
	var id ID
	eventually(t, "the file has settled", func() bool {
		var err error
		id, err = IDOf(unix.AT_FDCWD, path, 0)
		must(t, err)
		return settled(id.ctime, time.Now())
	})
	return id
}

func file(t testing.TB, contents string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(contents), 0o644))
	return path
}

// large returns a file whose blocks are all there, of a size that takes a while.
func large(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "4GB")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 4<<30); err != nil {
		t.Skip(err)
	}
	return path
}

func opener(path string, opened *atomic.Int32) func() (int, error) {
	return func() (int, error) {
		opened.Add(1)
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
}

func TestFileIsHashedOnceForAllWhoAsk(t *testing.T) {
	t.Parallel()
	path := file(t, strings.Repeat("x", 8<<20))
	id := identity(t, path)
	want := sha256Of(t, path)
	h := NewHasher(1<<30, time.Minute, 10)
	var opened atomic.Int32
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if sum, err := h.sum(t.Context(), 0, id, opener(path, &opened)); sum != want || err != nil {
				t.Errorf("got %s, %v; want %s", sum, err, want)
			}
		})
	}
	wg.Wait()
	if n := opened.Load(); n != 1 {
		t.Errorf("the file was opened %d times, want once", n)
	}
}

func TestChangedFileIsHashedAnew(t *testing.T) {
	t.Parallel()
	path := file(t, "before")
	h := NewHasher(1<<30, time.Minute, 10)
	var opened atomic.Int32
	if _, err := h.sum(t.Context(), 0, identity(t, path), opener(path, &opened)); err != nil {
		t.Fatal(err)
	}
	// Same size, same times as far as the owner can set them.
	info, err := os.Stat(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte("after!"), 0o644))
	must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	if sum, err := h.sum(t.Context(), 0, identity(t, path), opener(path, &opened)); sum != sha256Of(t, path) || err != nil {
		t.Errorf("got %s, %v; want the digest of the new contents", sum, err)
	}
}

func TestFileThatChangedJustNowIsNotKept(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := func(d time.Duration, nsec uint32) ID {
		s := now.Add(d)
		ts := unix.StatxTimestamp{Sec: s.Unix(), Nsec: uint32(s.Nanosecond())}
		if nsec == 0 {
			ts.Nsec = 0
		}
		return ID{ctime: ts}
	}
	for _, tt := range []struct {
		name string
		file ID
		want bool
	}{
		{"changed a moment ago", at(-10*time.Millisecond, 1), false},
		{"changed a while ago", at(-time.Second, 1), true},
		{"changed a while ago on a medium of whole seconds", at(-2*time.Second, 0), false},
		{"changed long ago on a medium of whole seconds", at(-time.Minute, 0), true},
		{"changed in the future: the clock was set back", at(time.Hour, 1), false},
	} {
		if got := settled(tt.file.ctime, now); got != tt.want {
			t.Errorf("%s: settled is %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestFileThatIsAnotherOneIsRefused(t *testing.T) {
	t.Parallel()
	path, other := file(t, "one"), file(t, "two")
	h := NewHasher(1<<30, time.Minute, 10)
	var opened atomic.Int32
	for range 2 { // the refusal is not kept
		if sum, err := h.sum(t.Context(), 0, identity(t, path), opener(other, &opened)); err == nil {
			t.Errorf("got digest %s of another file", sum)
		}
	}
	if opened.Load() != 2 {
		t.Errorf("opened %d times, want 2", opened.Load())
	}
	if sum, err := h.sum(t.Context(), 0, identity(t, path), opener(path, &opened)); sum != sha256Of(t, path) || err != nil {
		t.Errorf("got %s, %v", sum, err)
	}
}

func TestHashingIsBounded(t *testing.T) {
	t.Parallel()
	var opened atomic.Int32
	t.Run("in size", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "50GB")
		must(t, os.WriteFile(path, nil, 0o644))
		must(t, os.Truncate(path, 50<<30))
		_, err := NewHasher(1<<30, time.Minute, 10).sum(t.Context(), 0, identity(t, path), opener(path, &opened))
		if err == nil || !strings.Contains(err.Error(), "larger than") || opened.Load() != 0 {
			t.Errorf("got error %v after %d opens", err, opened.Load())
		}
	})
	t.Run("in holes", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "10GB")
		must(t, os.WriteFile(path, nil, 0o644))
		must(t, os.Truncate(path, 10<<30))
		_, err := NewHasher(50<<30, time.Minute, 10).sum(t.Context(), 0, identity(t, path), opener(path, &opened))
		if err == nil || !strings.Contains(err.Error(), "mostly holes") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("in time", func(t *testing.T) {
		path := large(t)
		_, err := NewHasher(50<<30, 50*time.Millisecond, 10).sum(t.Context(), 0, identity(t, path), opener(path, &opened))
		if err == nil || !strings.Contains(err.Error(), "took longer than") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("for the caller", func(t *testing.T) {
		path := large(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		h := NewHasher(50<<30, 200*time.Millisecond, 10)
		if _, err := h.sum(ctx, 0, identity(t, path), opener(path, &opened)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v, want %v", err, context.DeadlineExceeded)
		}
		eventually(t, "the hashing has ended", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.running) == 0
		})
	})
	t.Run("in digests kept", func(t *testing.T) {
		h := NewHasher(1<<30, time.Minute, 3)
		paths := []string{file(t, "a"), file(t, "b"), file(t, "c"), file(t, "d")}
		ask := func(i int) (opens int32) {
			before := opened.Load()
			if _, err := h.sum(t.Context(), 0, identity(t, paths[i]), opener(paths[i], &opened)); err != nil {
				t.Fatal(err)
			}
			return opened.Load() - before
		}
		for i := range 3 {
			ask(i)
		}
		ask(0) // now b is the oldest
		ask(3)
		if ask(0) != 0 || ask(2) != 0 || ask(3) != 0 || ask(1) != 1 {
			t.Error("not the digest that was asked for last is the one forgotten")
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.kept) != 3 || h.recent.Len() != 3 {
			t.Errorf("%d digests are kept, want 3", len(h.kept))
		}
	})
}

func TestOnlyRegularFilesAreHashed(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o644))
	h := NewHasher(1<<30, time.Minute, 10)
	for _, path := range []string{fifo, "/dev/zero", t.TempDir()} {
		_, err := h.sum(t.Context(), 0, identity(t, path), func() (int, error) {
			return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
		if err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: got error %v", path, err)
		}
	}
}

// A stuck file is one whose reads do not return until the test lets them.
func stuck(t testing.TB, inside chan<- bool, until <-chan bool) func() (int, error) {
	return func() (int, error) {
		inside <- true
		<-until
		return -1, errors.New("the file system answered at last")
	}
}

// TestFileSystemThatDoesNotAnswerTakesFromItsOwnUser: the reads of one user never
// return, and another's files are hashed all the same.
func TestFileSystemThatDoesNotAnswerTakesFromItsOwnUser(t *testing.T) {
	t.Parallel()
	h := NewHasher(1<<30, 50*time.Millisecond, 10)
	inside, until := make(chan bool, 100), make(chan bool)
	name := func(i int) ID { return ID{Dev: 1, Ino: uint64(i), size: 1} }
	for i := range h.share {
		if _, err := h.sum(t.Context(), 1, name(i), stuck(t, inside, until)); err == nil || !strings.Contains(err.Error(), "took longer") {
			t.Errorf("stuck file %d: got error %v", i, err)
		}
	}
	for range h.share {
		<-inside
	}
	if s := h.Stats(); s.Lost != h.share || s.LostBy[1] != h.share || s.Hashing != 0 || s.Refused != uint64(h.share) {
		t.Errorf("numbers are %+v, want %d lost by user 1", s, h.share)
	}
	if _, err := h.sum(t.Context(), 1, name(100), stuck(t, inside, until)); err == nil || !strings.Contains(err.Error(), "all that one user may have") {
		t.Errorf("one file more of the same user: got error %v", err)
	}
	path := file(t, "another's")
	var opened atomic.Int32
	if sum, err := h.sum(t.Context(), 2, identity(t, path), opener(path, &opened)); sum != sha256Of(t, path) || err != nil {
		t.Errorf("another user's file: got %q, %v", sum, err)
	}
	close(until)
	eventually(t, "the workers are back", func() bool { return h.Stats().Lost == 0 })
	if sum, err := h.sum(t.Context(), 1, identity(t, path), opener(path, &opened)); sum != sha256Of(t, path) || err != nil {
		t.Errorf("the first user's file, once the file system has answered: got %q, %v", sum, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.people) != 0 || len(h.waiting) != 0 || h.active != 0 {
		t.Errorf("%d people, %d waiting and %d active are left", len(h.people), len(h.waiting), h.active)
	}
}

// TestOneUserDoesNotTakeEveryWorker: while all that one user may have is taken,
// the other half serves others, who had none for longer.
func TestOneUserDoesNotTakeEveryWorker(t *testing.T) {
	t.Parallel()
	h := NewHasher(1<<30, time.Minute, 10)
	inside, until := make(chan bool, 100), make(chan bool)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			h.sum(t.Context(), 1, ID{Dev: 1, Ino: uint64(i), size: 1}, stuck(t, inside, until))
		})
	}
	for range h.share {
		<-inside
	}
	path := file(t, "another's")
	var opened atomic.Int32
	if sum, err := h.sum(t.Context(), 2, identity(t, path), opener(path, &opened)); sum != sha256Of(t, path) || err != nil {
		t.Errorf("another user's file: got %q, %v", sum, err)
	}
	if s := h.Stats(); s.Hashing != h.share {
		t.Errorf("%d files of the first user are being hashed, want %d", s.Hashing, h.share)
	}
	close(until)
	wg.Wait()
}

// TestDigestIsNotOfWhoeverHasTheNumbers: the cache does not answer for a file on
// another file system that shows the same numbers.
func TestDigestIsNotOfWhoeverHasTheNumbers(t *testing.T) {
	t.Parallel()
	path := file(t, "trusted")
	id := identity(t, path)
	id.host = id.Dev
	h := NewHasher(1<<30, 1<<40, 10)
	sum, err := h.sum(t.Context(), 0, id, opening(path))
	must(t, err)
	if known, ok := h.known(id); !ok || known != sum {
		t.Errorf("digest %q is not kept", sum)
	}
	id.host++
	if known, ok := h.known(id); ok {
		t.Errorf("a file of the same numbers on another file system has digest %s", known)
	}
}
