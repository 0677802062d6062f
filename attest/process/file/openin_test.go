package file

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenIn compares with what the kernel itself finds below a root.
func TestOpenIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	must(t, os.WriteFile(dir+"/a/b/file", []byte("x"), 0o644))
	for link, target := range map[string]string{
		"/absolute": "/a/b", "/relative": "a/b", "/a/up": "../a/b/file", "/out": "../../../../../../etc", "/loop": "loop",
		"/dir": "a/", "/host": dir, "/chain": "absolute/../up", "/slashes": "//a//b///file",
	} {
		must(t, os.Symlink(target, dir+link))
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	found := 0
	for _, path := range []string{
		"/a/b/file", "/absolute/file", "/relative/file", "/a/up", "/out/passwd", "/loop", "/loop/x", "/dir/b/file", "/chain", "/slashes",
		"/../../a/b/file", "/a/../a/./b//file", "/host/a/b/file", "/missing", "/a/b/file/x", "/a/b/file/..", "/a/b/file/", "/a/b/",
		"/" + strings.Repeat("a/../", 100) + "a/b/file", "/a/b/file/../file",
	} {
		want, wantErr := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if wantErr == unix.ENOSYS {
			t.Skip("the kernel's own way is closed here")
		}
		got, err := OpenIn(root, path)
		if (err == nil) != (wantErr == nil) && !strings.Contains(path, "file/") { // a file for a directory on the way is nothing here
			t.Errorf("%s: got %v, the kernel says %v", path, err, wantErr)
		}
		if err == nil && wantErr == nil {
			found++
			var a, b unix.Stat_t
			must(t, unix.Fstat(got, &a))
			must(t, unix.Fstat(want, &b))
			if a.Ino != b.Ino || a.Dev != b.Dev {
				t.Errorf("%s leads elsewhere than the kernel goes", path)
			}
		}
		if err == nil {
			unix.Close(got)
		}
		if wantErr == nil {
			unix.Close(want)
		}
	}
	if found < 10 {
		t.Errorf("%d paths lead somewhere", found)
	}
	for _, path := range []string{"/", "/..", strings.Repeat("/a/up/x", 3), "/loop", "/" + strings.Repeat("a/", maxInside+1)} {
		if fd, err := OpenIn(root, path); err == nil {
			unix.Close(fd)
			t.Errorf("%.20s leads somewhere", path)
		}
	}
}
