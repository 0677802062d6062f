package reader

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/vouchd/vouchd/audit/audittest"
)

// tarred archives a log as tar does below a directory: with an entry for each
// directory, in the order of names.
func tarred(t *testing.T, below string, log fstest.MapFS) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, data []byte) {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{".": true, "/": true}
	var names []string
	for name := range log {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		full := path.Join(below, name)
		var dirs []string
		for dir := path.Dir(full); !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			dirs = append(dirs, dir)
		}
		slices.Reverse(dirs)
		for _, dir := range dirs {
			put(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o700}, nil)
		}
		put(tar.Header{Typeflag: tar.TypeReg, Name: full, Mode: 0o600, Size: int64(len(log[name].Data))}, log[name].Data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func TestLogIsFoundInWhatTarMakesOfIt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	h.stop(l)
	want := h.verify(withTPM())
	for _, below := range []string{"", "log", "./log", "vouchd/log", "var/lib/vouchd/log"} {
		archive := tarred(t, below, h.image())
		fsys, err := ReadArchive(archive, archive.Size())
		if err == nil {
			fsys, err = FindLog(fsys)
		}
		if err != nil {
			t.Errorf("below %q: %v", below, err)
			continue
		}
		if r := verifyImage(t, fsys, withTPM()); !r.OK || r.Root != want.Root {
			t.Errorf("below %q: %s", below, r.Verdict)
		}
		n := 0
		for _, err := range Records(context.Background(), fsys, 0) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if uint64(n) != want.Size {
			t.Errorf("below %q: %d records of %d", below, n, want.Size)
		}
	}
}

func TestTwoLogsInOneCopyAreToBeNamed(t *testing.T) {
	t.Parallel()
	two := fstest.MapFS{"a/wal/x": {}, "b/log/tile/x": {}, "c/other": {}}
	if _, err := FindLog(two); err == nil || !strings.Contains(err.Error(), "a and b/log are both logs") {
		t.Errorf("got %v", err)
	}
	if logs, err := FindLogs(two, 10); err != nil || !slices.Equal(logs, []string{"a", "b/log"}) {
		t.Errorf("found %q, %v", logs, err)
	}
}

// A wideFS has more directories at its top than are looked into, and none below.
type wideFS struct{ opened *int }

func (w wideFS) Open(name string) (fs.File, error) {
	if strings.HasSuffix(name, "/wal") || strings.HasSuffix(name, "/tile") || name == "wal" || name == "tile" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	*w.opened++
	d := &archivedDir{entry: entry{path.Base(name), 0, fs.ModeDir | 0o700}}
	if name == "." {
		for i := range 3 * maxBelow {
			d.list = append(d.list, entry{fmt.Sprint(i), 0, fs.ModeDir | 0o700})
		}
	}
	return d, nil
}

func TestLookingForALogIsBounded(t *testing.T) {
	t.Parallel()
	deep := fstest.MapFS{strings.Repeat("d/", 50) + "wal/x": {}}
	if logs, err := FindLogs(deep, 10); err != nil || len(logs) != 0 {
		t.Errorf("far below: found %q, %v", logs, err)
	}
	var opened int
	if logs, err := FindLogs(wideFS{&opened}, 10); err == nil || opened > maxBelow+1 {
		t.Errorf("among many: found %q, %v, after opening %d directories", logs, err, opened)
	}
}

// A closedFS has a directory that may not be looked into.
type closedFS struct{ fstest.MapFS }

func (c closedFS) Open(name string) (fs.File, error) {
	if strings.HasPrefix(name, "closed") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return c.MapFS.Open(name)
}

func (c closedFS) Stat(name string) (fs.FileInfo, error) {
	if _, err := c.Open(name); err != nil {
		return nil, err
	}
	return c.MapFS.Stat(name)
}

func (c closedFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if _, err := c.Open(name); err != nil {
		return nil, err
	}
	return c.MapFS.ReadDir(name)
}

func TestDirectoryThatIsClosedIsNotPassedOver(t *testing.T) {
	t.Parallel()
	logs, err := FindLogs(closedFS{fstest.MapFS{"closed/wal/x": {}, "open/wal/x": {}}}, 10)
	if err != nil || !slices.Equal(logs, []string{"closed", "open"}) {
		t.Errorf("found %q, %v", logs, err)
	}
}
