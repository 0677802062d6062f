package file

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plant makes a tree of a few entries.
func plant(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(dir, "lib", "empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "lib", "agent.py"), []byte("a"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "run"), []byte("b"), 0o755))
	must(t, os.Symlink("/usr/bin/python3", filepath.Join(dir, "python")))
	return dir
}

func TestManifest(t *testing.T) {
	t.Parallel()
	dir := plant(t)
	must(t, os.WriteFile(filepath.Join(dir, "new\nline"), nil, 0o644))
	manifest, _, err := HashTree(t.Context(), dir)
	must(t, err)
	want := `dir "lib"
file - ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb "lib/agent.py"
dir "lib/empty"
file - e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 "new\nline"
link "python" "/usr/bin/python3"
file x 3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d "run"
`
	if string(manifest) != want {
		t.Errorf("got\n%s, want\n%s", manifest, want)
	}
}

func TestEveryChangeOfATreeShows(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		same   bool
	}{
		{"none", func(*testing.T, string) {}, true},
		{"time of a file", func(t *testing.T, dir string) { must(t, os.Chtimes(dir+"/run", time.Now(), time.Now())) }, true},
		{"contents", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/run", []byte("c"), 0o755)) }, false},
		{"contents with the times put back", func(t *testing.T, dir string) {
			info, err := os.Stat(dir + "/run")
			must(t, err)
			must(t, os.WriteFile(dir+"/run", []byte("c"), 0o755))
			must(t, os.Chtimes(dir+"/run", info.ModTime(), info.ModTime()))
		}, false},
		{"new file", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/lib/x.py", nil, 0o644)) }, false},
		{"new empty directory", func(t *testing.T, dir string) { must(t, os.Mkdir(dir+"/x", 0o755)) }, false},
		{"file removed", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/lib/agent.py")) }, false},
		{"file renamed", func(t *testing.T, dir string) { must(t, os.Rename(dir+"/run", dir+"/ran")) }, false},
		{"file made executable", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/lib/agent.py", 0o755)) }, false},
		{"link turned", func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/python"))
			must(t, os.Symlink("/tmp/python3", dir+"/python"))
		}, false},
		{"link for a file of the same contents", func(t *testing.T, dir string) {
			must(t, os.Rename(dir+"/run", filepath.Dir(dir)+"/run"))
			must(t, os.Symlink(filepath.Dir(dir)+"/run", dir+"/run"))
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := plant(t)
			h := NewHasher(0, 0, 0)
			anyone := func(os.FileInfo) error { return nil }
			before, err := h.Tree(t.Context(), 0, dir, anyone)
			must(t, err)
			tt.change(t, dir)
			after, err := h.Tree(t.Context(), 0, dir, anyone)
			must(t, err)
			if (before.SHA256 == after.SHA256) != tt.same {
				t.Errorf("digest %s before and %s after", before.SHA256, after.SHA256)
			}
			if _, sum, err := HashTree(t.Context(), dir); sum != after.SHA256 || err != nil {
				t.Errorf("HashTree gives %s, %v; the hasher %s", sum, err, after.SHA256)
			}
		})
	}
}

func TestTreesThatAreRefused(t *testing.T) {
	t.Parallel()
	anyone := func(os.FileInfo) error { return nil }
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		by      Writer
		want    string
	}{
		{"fifo", func(t *testing.T, dir string) { must(t, unix.Mkfifo(dir+"/fifo", 0o644)) }, anyone, "neither a file"},
		{"socket", func(t *testing.T, dir string) {
			l, err := net.Listen("unix", dir+"/s")
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, anyone, "neither a file"},
		{"too deep", func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir+strings.Repeat("/x", maxTreeDepth+1), 0o755))
		}, anyone, "deeper than"},
		{"owned by the workload", func(t *testing.T, dir string) {}, NotBy(uint32(os.Getuid())), "which the process runs as"},
		{"open to all", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/lib/agent.py", 0o666)) }, NotBy(4_000_000_000), "may write to it"},
		{"directory open to all", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/lib", 0o777)) }, NotBy(4_000_000_000), "may write to it"},
		{"mount point", func(t *testing.T, dir string) {
			if err := unix.Mount("none", dir+"/lib/empty", "tmpfs", 0, ""); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { unix.Unmount(dir+"/lib/empty", 0) })
		}, anyone, "mount point"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := plant(t)
			tt.prepare(t, dir)
			_, err := NewHasher(0, 0, 0).Tree(t.Context(), 0, dir, tt.by)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("when the request has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := HashTree(ctx, plant(t)); err == nil {
			t.Error("the tree was hashed all the same")
		}
	})
}

func TestWhoCanWriteOnTheWayToAFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of other users")
	}
	t.Parallel()
	base, err := os.MkdirTemp("/var", "file-test-*") // not below /tmp
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	must(t, os.Chmod(base, 0o755))
	for i, tt := range []struct {
		name    string
		prepare func(t *testing.T, dir string) (path string)
		by      Writer
		want    string // of the error, or "" for dir/file
	}{
		{"root's file", func(t *testing.T, dir string) string { return dir + "/file" }, OnlyRoot, ""},
		{"root's file through links of root's", func(t *testing.T, dir string) string {
			must(t, os.Symlink("sub/../b", dir+"/a"))
			must(t, os.Symlink(dir+"/file", dir+"/b"))
			must(t, os.Mkdir(dir+"/sub", 0o755))
			return dir + "/./a"
		}, OnlyRoot, ""},
		{"user's file", func(t *testing.T, dir string) string {
			must(t, os.Chown(dir+"/file", 1, 1))
			return dir + "/file"
		}, OnlyRoot, "belongs to user 1, not to root"},
		{"another user's file", func(t *testing.T, dir string) string {
			must(t, os.Chown(dir+"/file", 1, 1))
			return dir + "/file"
		}, NotBy(2), ""},
		{"the workload's own file", func(t *testing.T, dir string) string {
			must(t, os.Chown(dir+"/file", 2, 2))
			return dir + "/file"
		}, NotBy(2), "which the process runs as"},
		{"user's link to root's file", func(t *testing.T, dir string) string {
			must(t, os.Symlink(dir+"/file", dir+"/a"))
			must(t, os.Lchown(dir+"/a", 1, 1))
			return dir + "/a"
		}, OnlyRoot, "belongs to user 1"},
		{"root's file in a user's directory", func(t *testing.T, dir string) string {
			must(t, os.Chown(dir, 1, 1))
			return dir + "/file"
		}, OnlyRoot, "belongs to user 1"},
		{"link through a user's directory", func(t *testing.T, dir string) string {
			must(t, os.Mkdir(dir+"/sub", 0o755))
			must(t, os.Symlink("../file", dir+"/sub/a"))
			must(t, os.Chown(dir+"/sub", 1, 1))
			must(t, os.Symlink("sub/a", dir+"/b"))
			return dir + "/b"
		}, OnlyRoot, "belongs to user 1"},
		{"directory open to all, even with the sticky bit", func(t *testing.T, dir string) string {
			must(t, syscall.Chmod(dir, 0o1777))
			return dir + "/file"
		}, OnlyRoot, "others than its owner may write"},
		{"file open to its group", func(t *testing.T, dir string) string {
			must(t, os.Chmod(dir+"/file", 0o664))
			return dir + "/file"
		}, OnlyRoot, "others than its owner may write"},
		{"links in a circle", func(t *testing.T, dir string) string {
			must(t, os.Symlink("b", dir+"/a"))
			must(t, os.Symlink("a", dir+"/b"))
			return dir + "/a"
		}, OnlyRoot, "symbolic links"},
		{"relative path", func(*testing.T, string) string { return "file" }, OnlyRoot, "not absolute"},
		{"missing file", func(t *testing.T, dir string) string { return dir + "/missing" }, OnlyRoot, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(base, fmt.Sprint(i))
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.WriteFile(dir+"/file", nil, 0o644))
			got, err := Resolve(tt.prepare(t, dir), tt.by)
			if tt.want == "" && (err != nil || got != dir+"/file") {
				t.Errorf("got %s, %v", got, err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %s, %v; want error %q", got, err, tt.want)
			}
		})
	}
}

func TestChangeAfterTheStartIsSeen(t *testing.T) {
	t.Parallel()
	path := file(t, "x")
	old := identity(t, path)
	eventually(t, "a tick has passed", func() bool { return time.Since(time.Unix(old.ctime.Sec, int64(old.ctime.Nsec))) > 2*Tick })
	start := time.Now()
	if err := old.UnchangedSince(start); err != nil {
		t.Error(err)
	}
	// Put back in every way that an owner can.
	info, err := os.Stat(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte("x"), 0o644))
	must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	if err := identity(t, path).UnchangedSince(start); err == nil {
		t.Error("a file that was rewritten passes for unchanged")
	}
}
