package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// However long a writer pauses, and wherever, what it has written so far is not
// in force.
func TestAFileIsNotReadWhileItIsOpenForWriting(t *testing.T) {
	t.Parallel()
	dir := guardedDir(t)
	const text = "entries:\n  - spiffe_id: spiffe://example.org/a\n    selectors:\n      - unix:uid:1\n      - unix:gid:2\n"
	path := filepath.Join(dir, "a.yaml")
	w, err := os.Create(path)
	must(t, err)
	defer w.Close()
	for i := range len(text) {
		if _, err := w.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"ReadFile": second(ReadFile(path)), "ReadDir": second(ReadDir(dir, false))} {
			if err == nil || !strings.Contains(err.Error(), "a.yaml: is open for writing") {
				t.Fatalf("%s after byte %d: %v", what, i, err)
			}
		}
	}
	must(t, w.Close())
	if data, err := ReadFile(path); err != nil || string(data) != text {
		t.Errorf("ReadFile of the closed file: %q, %v", data, err)
	}
	if files, err := ReadDir(dir, false); err != nil || len(files) != 1 {
		t.Errorf("ReadDir once the file is closed: %d files, %v", len(files), err)
	}
}

// A working copy is read as it is: an editor may have it open.
func TestAWorkingCopyIsReadWhileItIsOpenForWriting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w, err := os.Create(filepath.Join(dir, "a.yaml"))
	must(t, err)
	defer w.Close()
	if files, err := ReadDir(dir, true); err != nil || len(files) != 1 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

func TestReadingLeavesNoLease(t *testing.T) {
	t.Parallel()
	path := filepath.Join(guardedDir(t), "a.yaml")
	must(t, os.WriteFile(path, []byte("a: 1\n"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	release, err := holdWhole(f)
	must(t, err)
	if _, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK, 0); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("a writer while the file is held: %v", err)
	}
	release()
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("a writer once it was released: %v", err)
	}
	w.Close()
}

// No event tells that a file was closed without being written any further.
func TestWatchTellsThatAWriterHasGone(t *testing.T) {
	t.Parallel()
	dir := guardedDir(t)
	path := filepath.Join(dir, "a.yaml")
	w, err := os.Create(path)
	must(t, err)
	defer w.Close()
	read := make(chan error, 1000)
	watchUntilDone(t, dir, func() { read <- second(ReadFile(path)) })
	if err := <-read; err == nil {
		t.Fatal("the file was read while it was open for writing")
	}
	must(t, w.Close())
	for err := range read {
		if err == nil {
			return
		}
	}
}

// guardedDir returns a directory that passes the check of who may write.
func guardedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := guarded(dir); err != nil {
		t.Fatalf("the test needs a directory for itself: %v", err)
	}
	return dir
}

func second[T any](_ T, err error) error { return err }
