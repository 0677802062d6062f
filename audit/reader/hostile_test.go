package reader

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// copied lays a log out in a directory.
func copied(t testing.TB, m fstest.MapFS) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.CopyFS(dir, m); err != nil {
		t.Fatal(err)
	}
	return dir
}

func verifyCopy(t testing.TB, dir string, o VerifyOptions) (*Report, error) {
	t.Helper()
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return Verify(t.Context(), d, o)
}

// TestNothingButFilesIsOpened: what is no file in a copy is named, and neither
// waited for nor read.
func TestNothingButFilesIsOpened(t *testing.T) {
	t.Parallel()
	m := smallLog(t)
	if r, err := verifyCopy(t, copied(t, m), withTPM()); err != nil || !r.OK {
		t.Fatalf("before tampering: %v", err)
	}
	places := []string{
		format.CheckpointName, format.SegmentName(0), format.TilePath(format.FullTile(format.EntriesLevel, 0)),
		format.TilePath(format.FullTile(0, 0)), format.WitnessDir + "/0123456789abcdef",
	}
	if m[places[1]] == nil {
		places[1] = newestSegment(t, m)
	}
	for kind, put := range map[string]func(path string) error{
		"FIFO":             func(path string) error { return unix.Mkfifo(path, 0o644) },
		"link to a device": func(path string) error { return os.Symlink("/dev/zero", path) },
		"link to a file":   func(path string) error { return os.Symlink("/etc/hostname", path) },
		"socket":           listenAt,
		"directory":        func(path string) error { return os.Mkdir(path, 0o755) },
		"link to a FIFO elsewhere": func(path string) error {
			return errors.Join(unix.Mkfifo(path+".fifo", 0o644), os.Symlink(path+".fifo", path))
		},
	} {
		for _, place := range places {
			t.Run(kind+" at "+place, func(t *testing.T) {
				dir := copied(t, m)
				path := filepath.Join(dir, place)
				os.Remove(path)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), put(path)); err != nil {
					t.Fatal(err)
				}
				r, err := verifyCopy(t, dir, withTPM())
				if err == nil && r.OK {
					t.Errorf("it holds: %s", r.Verdict)
				}
			})
		}
	}
}

func listenAt(path string) error {
	// A socket's path has to be short: it is made under another name.
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return errors.Join(l.Close(), os.Rename(dir+"/s", path))
}

func newestSegment(t testing.TB, m fs.FS) string {
	t.Helper()
	firsts, err := format.Segments(m)
	if err != nil || len(firsts) == 0 {
		t.Fatalf("segments: %v", err)
	}
	return format.SegmentName(firsts[len(firsts)-1])
}

func TestWhatIsMissingOrOlderIsToldByName(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 60 << 10
	l := h.start()
	h.fill(l, 300)
	h.stop(l)
	older := h.image()
	l = h.start()
	h.append(l, audittest.Attested(1))
	h.stop(l)
	whole := h.image()
	partial := func(level int) string {
		size := sizeIn(t, whole[format.CheckpointName].Data, h.vkey())
		n := int64(size) >> (format.TileHeight * max(0, level))
		tile := format.FullTile(level, n/format.TileWidth)
		tile.W = int(n % format.TileWidth)
		return format.TilePath(tile)
	}
	// What was published before that is there for a while.
	narrower := map[int]string{}
	for _, level := range []int{0, format.EntriesLevel} {
		newest, err := format.ParseTilePath(partial(level))
		if err != nil {
			t.Fatal(err)
		}
		narrow := newest
		narrow.W -= 2
		data, err := tilePrefix(narrow, whole[partial(level)].Data)
		if err != nil {
			t.Fatal(err)
		}
		narrower[level] = format.TilePath(narrow)
		whole[narrower[level]] = &fstest.MapFile{Data: data, Mode: 0o600}
	}
	if r := verifyImage(t, whole, withTPM()); !r.OK {
		t.Fatalf("before tampering: %s", r.Verdict)
	}
	for _, tt := range []struct {
		name   string
		change func(m fstest.MapFS)
		want   string
	}{
		{"no checkpoint", func(m fstest.MapFS) { delete(m, format.CheckpointName) }, "checkpoint-missing"},
		{"an older checkpoint", func(m fstest.MapFS) { m[format.CheckpointName] = older[format.CheckpointName] }, "checkpoint-old"},
		{"the newest partial bundle removed", func(m fstest.MapFS) { delete(m, partial(format.EntriesLevel)) }, "tile-missing"},
		{"the newest partial tile removed", func(m fstest.MapFS) { delete(m, partial(0)) }, "tile-missing"},
		{"an older partial bundle removed", func(m fstest.MapFS) { delete(m, narrower[format.EntriesLevel]) }, "tile-missing"},
		{"an older partial tile removed", func(m fstest.MapFS) { delete(m, narrower[0]) }, "tile-missing"},
		{"the newest partial tile above removed", func(m fstest.MapFS) { delete(m, partial(1)) }, "tile-missing"},
	} {
		m := clone(whole)
		tt.change(m)
		if len(m) == len(whole) && tt.want != "checkpoint-old" {
			t.Fatalf("%s: nothing was removed", tt.name)
		}
		if r := verifyImage(t, m, withTPM()); r.OK || !slices.Contains(found(r, Failure), tt.want) {
			t.Errorf("%s: %s, failures %v, want %s", tt.name, r.Verdict, found(r, Failure), tt.want)
		}
	}
}

// TestASegmentWithoutItsHeaderIsDamage, wherever it stands and whatever is in it.
func TestASegmentWithoutItsHeaderIsDamage(t *testing.T) {
	t.Parallel()
	whole := smallLog(t)
	for _, name := range []string{format.SegmentName(99), format.SegmentName(1 << 40)} {
		for _, data := range []string{"", "hello\n", strings.Repeat("\x00", 100_000)} {
			m := clone(whole)
			m[name] = &fstest.MapFile{Data: []byte(data)}
			for _, live := range []bool{false, true} {
				o := withTPM()
				o.Live = live
				if r := verifyImage(t, m, o); r.OK || !slices.Contains(found(r, Failure), "damage") {
					t.Errorf("%s with %.10q, live %t: %s, failures %v", name, data, live, r.Verdict, found(r, Failure))
				}
			}
		}
	}
}

// TestRecordsThatNothingSignsAreToldSo: tiles alone, and records behind the last
// signed checkpoint, are nobody's word.
func TestRecordsThatNothingSignsAreToldSo(t *testing.T) {
	t.Parallel()
	whole := longLog(t, 2000).image()
	tiles := fstest.MapFS{}
	for name, f := range whole {
		if strings.HasPrefix(name, format.TileDir+"/") {
			tiles[name] = f
		}
	}
	for _, live := range []bool{false, true} {
		o := withTPM()
		o.Live = live
		r := verifyImage(t, tiles, o)
		if r.OK || r.Signed != 0 || !slices.Contains(found(r, Failure), "unsigned-records") {
			t.Errorf("tiles alone, live %t: %s, failures %v", live, r.Verdict, found(r, Failure))
		}
	}
	// A checkpoint of half of it, as a published one is for a moment.
	h := newHost(t)
	l := h.start()
	h.fill(l, 600)
	h.stop(l)
	half := h.image()[format.CheckpointName]
	l = h.start()
	h.fill(l, 1200)
	h.stop(l)
	tiles = fstest.MapFS{format.CheckpointName: half}
	for name, f := range h.image() {
		if strings.HasPrefix(name, format.TileDir+"/") {
			tiles[name] = f
		}
	}
	size := sizeIn(t, half.Data, h.vkey())
	o := withTPM()
	o.Live = true
	r := verifyImage(t, tiles, o)
	if !r.OK || r.Signed != size || r.Size <= r.Signed || !slices.Contains(found(r, Warning), "unsigned-records") {
		t.Errorf("behind the checkpoint, live: %s, signed %d of %d, findings %+v", r.Verdict, r.Signed, r.Size, r.Findings)
	}
	if r := verifyImage(t, tiles, withTPM()); r.OK || !slices.Contains(found(r, Failure), "unsigned-records") {
		t.Errorf("behind the checkpoint: %s, failures %v", r.Verdict, found(r, Failure))
	}
}

// TestTarballOfTheDirectoryVerifies: as docs/operate.md says to make one, and with
// other files of the state beside it.
func TestTarballOfTheDirectoryVerifies(t *testing.T) {
	t.Parallel()
	dir := copied(t, smallLog(t))
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "log-key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-C", filepath.Dir(dir), "-c", "log"}, {"-C", dir, "-c", "."}, {"-C", "/", "-c", filepath.Dir(dir)[1:]}} {
		out, err := exec.Command("tar", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		fsys, err := ReadArchive(bytes.NewReader(out), int64(len(out)))
		if err != nil {
			t.Fatal(err)
		}
		if r := verifyImage(t, fsys, withTPM()); !r.OK || len(r.Findings) > 0 {
			t.Errorf("%v: %s %+v", args, r.Verdict, r.Findings)
		}
	}
}

// TestSparseArchiveIsRefused: a member may claim 100 GB that take no space.
func TestSparseArchiveIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, format.CheckpointName), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, format.CheckpointName), 100<<30); err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"gnu", "pax"} {
		out, err := exec.Command("tar", "--sparse", "--format", form, "-C", dir, "-c", format.CheckpointName).Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ReadArchive(bytes.NewReader(out), int64(len(out))); err == nil || !strings.Contains(err.Error(), "holes") {
			t.Errorf("%s: got error %v", form, err)
		}
	}
}

// TestHostileNamesCostLittle: deep names, and many of them, are none of a log's.
func TestHostileNamesCostLittle(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{strings.Repeat("wal/", 40_000) + "x", strings.Repeat("a/", 2000) + "checkpoint"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50_000 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "tile/entries/x" + strings.Repeat("0", i%90), Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	fsys, err := ReadArchive(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if a := fsys.(*archive); len(a.files) != 1 || len(a.dirs) != 1 {
		t.Errorf("%d files and %d directories are kept of names that no log has", len(a.files), len(a.dirs))
	}
	dir := copied(t, smallLog(t))
	deep := filepath.Join(dir, "tile", strings.Repeat("0/", 900))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if r, err := verifyCopy(t, dir, withTPM()); err != nil || !r.OK || !slices.Contains(found(r, Note), "unknown-file") {
		t.Errorf("%v %v", r, err)
	}
}

func FuzzIsName(f *testing.F) {
	f.Add("tile/entries/x001/000.p/12")
	f.Add("wal/00000000000000000000.wal")
	f.Fuzz(func(t *testing.T, name string) {
		if !format.IsName(name) {
			return
		}
		if !fs.ValidPath(name) {
			t.Errorf("%q is no path", name)
		}
		if dir := filepath.Dir(name); strings.HasPrefix(dir, format.TileDir) && !format.IsTileDir(dir) {
			t.Errorf("%q lies where no tile can", name)
		}
	})
}

// sizeIn returns how many records a signed checkpoint is of.
func sizeIn(t testing.TB, signed []byte, vkey string) uint64 {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := format.OpenCheckpoint(signed, v)
	if err != nil {
		t.Fatal(err)
	}
	return c.Size
}
