package state

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplacedFileHasItsModeAndLeavesNothingBeside(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"old", "new"} {
		wrote, err := ReplaceFile(path, []byte(text), Mode(0o640))
		if err != nil {
			t.Fatal(err)
		}
		now, err := os.Lstat(path)
		if err != nil || !os.SameFile(wrote, now) || now.Mode() != 0o640 {
			t.Errorf("%s: the file is %v, %v", text, now, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("the file holds %q, %v", got, err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestFailedReplacementLeavesTheOldFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "directory")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFileDurably(path, []byte("x"), Mode(0o600)); err == nil {
		t.Error("a directory was replaced")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}
