package held

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestOnlyAPlainFileOfOneNameIsOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) { must(t, os.WriteFile(at(name), []byte(text), 0o600)) }
	write("plain", "x")
	write("linked", "x")
	must(t, os.Symlink(at("plain"), at("link")))
	must(t, os.Link(at("linked"), at("second")))
	must(t, syscall.Mkfifo(at("fifo"), 0o600))
	write("large", strings.Repeat("x", MaxLen+1))
	must(t, os.Mkdir(at("dir"), 0o700))
	write("dir/file", "y")
	must(t, os.Symlink("dir", at("to-dir")))
	must(t, os.Symlink("loop", at("loop")))
	for name, want := range map[string]string{
		"link": "symbolic link", "linked": "2 hard links", "fifo": "not a regular file", "large": "larger than", "dir": "not a regular file", "missing": "no such file", "loop/x": "too many levels",
	} {
		if f, err := Open(at(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %s", name, f, err, want)
		}
	}
	f, err := Open(at("to-dir/file"))
	must(t, err)
	defer f.Close()
	if f.Path != at("dir/file") || string(f.Data) != "y" {
		t.Errorf("by a link of our own it is %s with %q", f.Path, f.Data)
	}
}

// A user has the path to a file lead elsewhere, before root opens it and after.
func TestUserCannotHaveAnotherFileWritten(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "migrate") // one that others may pass through
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	const user = 12345
	home, other := filepath.Join(dir, "home"), filepath.Join(dir, "other")
	for _, d := range []string{home, home + "/x", other} {
		must(t, os.Mkdir(d, 0o755))
		must(t, os.WriteFile(d+"/file", []byte("old"), 0o600))
	}
	must(t, os.Chown(home, user, user))
	must(t, os.Symlink(other, home+"/link"))
	must(t, os.Lchown(home+"/link", user, user))
	if _, err := Open(home + "/link/file"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("a link of user %d", user)) {
		t.Errorf("by a user's link: %v", err)
	}
	f, err := Open(home + "/x/file")
	must(t, err)
	defer f.Close()
	must(t, os.Rename(home+"/x", home+"/y"))
	must(t, os.Symlink(other, home+"/x"))
	must(t, f.Replace([]byte("new")))
	for path, want := range map[string]string{other + "/file": "old", home + "/y/file": "new"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", path, got, err)
		}
	}
}

// Somebody edits the file while its secrets are being sealed.
func TestFileThatChangedMeanwhileIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ".env")
	write := func(text string) { must(t, os.WriteFile(path, []byte(text), 0o600)) }
	for name, change := range map[string]func(){
		"edited":         func() { write("A_KEY=newer\n") },
		"replaced":       func() { os.Rename(path, path+".old"); write("A_KEY=old\n") },
		"made a link":    func() { os.Rename(path, path+".old"); os.Symlink(path+".old", path) },
		"given two ones": func() { os.Link(path, path+".second") },
	} {
		os.Remove(path)
		os.Remove(path + ".second")
		write("A_KEY=old\n")
		f, err := Open(path)
		must(t, err)
		change()
		now, err := os.ReadFile(path)
		must(t, err)
		if err := f.Replace([]byte("A_KEY=vouch:a\n")); err == nil {
			t.Errorf("%s: it is replaced", name)
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != string(now) {
			t.Errorf("%s: the file is %q, %v", name, after, err)
		}
		if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "..env*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %q is left", name, left)
		}
		f.Close()
	}
}

func TestReplacedFileKeepsOwnerModeAndAccessList(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	must(t, os.Chown(path, 1234, 2345))
	must(t, os.Chmod(path, 0o640))
	f, err := Open(path)
	must(t, err)
	defer f.Close()
	must(t, f.Replace([]byte("new")))
	info, err := os.Lstat(path)
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o640 || st.Uid != 1234 || st.Gid != 2345 {
		t.Errorf("it has mode %v and owner %d:%d", info.Mode(), st.Uid, st.Gid)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
