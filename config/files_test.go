package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestReadDirReadsYAMLFilesInTheOrderOfTheirNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"b.yaml", "a.yaml", "10.yaml", ".a.yaml.swp", ".hidden.yaml", "README", "a.yaml~", "a.yaml.dpkg-new", "x.disabled"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	must(t, os.Mkdir(filepath.Join(dir, "old"), 0o755))
	must(t, os.Symlink("b.yaml", filepath.Join(dir, "c.yaml")))
	files, err := ReadDir(dir, false)
	must(t, err)
	var got []string
	for _, f := range files {
		got = append(got, filepath.Base(f.Path)+"="+string(f.Data))
	}
	if diff := cmp.Diff([]string{"10.yaml=10.yaml", "a.yaml=a.yaml", "b.yaml=b.yaml", "c.yaml=b.yaml"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestReadDirRefusesWhatIsNoConfigurationFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o644)) // and is not held up by it
	must(t, os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o755))
	must(t, os.Symlink("gone", filepath.Join(dir, "dangling.yaml")))
	must(t, os.Symlink("loop.yaml", filepath.Join(dir, "loop.yaml")))
	must(t, os.WriteFile(filepath.Join(dir, "large.yaml"), make([]byte, MaxFileLen+1), 0o644))
	_, err := ReadDir(dir, true)
	want := `dangling.yaml: cannot be read: no such file or directory; fix it or move it away
dir.yaml: is not a regular file; replace it, or rename it to end in .disabled
large.yaml: is larger than 1048576 bytes; split it
loop.yaml: cannot be read: too many levels of symbolic links; fix it or move it away
pipe.yaml: is not a regular file; replace it, or rename it to end in .disabled`
	if diff := cmp.Diff(want, strings.ReplaceAll(fmt.Sprint(err), dir+"/", "")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Each case spoils one thing on the way to a file.
func TestNoFileIsReadThatOthersCouldChange(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to others")
	}
	for _, tt := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"a file that belongs to somebody else", func(dir string) error { return os.Chown(dir+"/etc/d/a.yaml", 1000, 0) },
			"etc/d/a.yaml: belongs to user 1000, who could grant identities with it; run: chown -h root etc/d/a.yaml"},
		{"a file that its group may write", func(dir string) error { return os.Chmod(dir+"/etc/d/a.yaml", 0o664) },
			"etc/d/a.yaml: has mode 0664, which lets other users grant identities; run: chmod go-w etc/d/a.yaml"},
		{"a directory that everybody may write", func(dir string) error { return os.Chmod(dir+"/etc/d", 0o777) },
			"etc/d: has mode 0777, which lets other users grant identities; run: chmod go-w etc/d"},
		{"a directory such as /tmp, to which everybody may add", func(dir string) error { return os.Chmod(dir+"/etc/d", 0o777|os.ModeSticky) },
			"etc/d: has mode 0777, which lets other users grant identities; run: chmod go-w etc/d"},
		{"a directory above, whose owner may rename what is in it", func(dir string) error { return os.Chown(dir+"/etc", 1000, 0) },
			"etc: belongs to user 1000, who could grant identities with it; run: chown -h root etc"},
		{"a link that belongs to somebody else", func(dir string) error { return os.Lchown(dir+"/etc/d/b.yaml", 1000, 0) },
			"etc/d/b.yaml: belongs to user 1000, who could grant identities with it; run: chown -h root etc/d/b.yaml"},
		{"a directory that a link leads through", func(dir string) error { return os.Chmod(dir+"/data", 0o775) },
			"data: has mode 0775, which lets other users grant identities; run: chmod go-w data"},
		{"the file at a link's end", func(dir string) error { return os.Chmod(dir+"/data/b.yaml", 0o646) },
			"data/b.yaml: has mode 0646, which lets other users grant identities; run: chmod go-w data/b.yaml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must(t, os.MkdirAll(dir+"/etc/d", 0o755))
			must(t, os.Mkdir(dir+"/data", 0o755))
			must(t, os.WriteFile(dir+"/etc/d/a.yaml", nil, 0o644))
			must(t, os.WriteFile(dir+"/data/b.yaml", nil, 0o644))
			must(t, os.Symlink("../../data/b.yaml", dir+"/etc/d/b.yaml"))
			if _, err := ReadDir(dir+"/etc/d", false); err != nil {
				t.Fatalf("before: %v", err)
			}
			must(t, tt.spoil(dir))
			_, err := ReadDir(dir+"/etc/d", false)
			if diff := cmp.Diff(tt.want, strings.ReplaceAll(fmt.Sprint(err), dir+"/", "")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if _, err := ReadDir(dir+"/etc/d", true); err != nil {
				t.Errorf("as a working copy: %v", err)
			}
		})
	}
}

func TestAFileMayStandInAStickyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777|os.ModeSticky))
	path := filepath.Join(dir, "vouchd.yaml")
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	if data, err := ReadFile(path); err != nil || string(data) != "x" {
		t.Errorf("ReadFile = %q, %v", data, err)
	}
}

func TestReadDirTellsOfADirectoryThatIsNone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "entries.d")
	must(t, os.WriteFile(path, nil, 0o644))
	_, err := ReadDir(path, false)
	if want := path + ": cannot be read: not a directory; fix it or move it away"; fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
