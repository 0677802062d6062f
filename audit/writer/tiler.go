package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit/internal/format"
)

// A tiler writes the tiles, and removes segments that they have replaced. It
// belongs to the background: no record waits for it, and an error costs only
// that it begins again from the segments.
type tiler struct {
	disk   disk
	signer *signer

	set       *format.TileSet // nil: not begun
	cursor    format.Cursor
	bytes     int64           // in all tiles
	entries   []byte          // records of the bundle that is not full yet
	unsynced  map[string]bool // files that are not known to be durable
	published uint64          // size of the last published checkpoint
	partials  []string        // files of the last publication
	older     []string        // and of the one before
}

// advance takes records up to size into tiles, and publishes a checkpoint if
// asked to.
func (t *tiler) advance(ctx context.Context, size uint64, publish bool) error {
	err := t.step(ctx, size, publish)
	if err != nil {
		*t = tiler{disk: t.disk, signer: t.signer}
		return fmt.Errorf("writing tiles: %w", err)
	}
	return nil
}

func (t *tiler) step(ctx context.Context, size uint64, publish bool) error {
	if t.set == nil {
		if err := t.begin(); err != nil {
			return err
		}
	}
	err := t.cursor.Advance(ctx, func(index uint64, raw []byte) error {
		if index >= size {
			return format.ErrStop
		}
		if index == t.cursor.First {
			if err := t.trim(); err != nil {
				return err
			}
		}
		return t.add(raw)
	})
	if err != nil && err != format.ErrStop {
		return err
	}
	if publish && uint64(t.set.Tree.Size) == size && t.published != size {
		return t.publish()
	}
	return nil
}

// begin goes back to the first segment. The tiles before it are durable, or it
// would not be the first; those after are written again, or compared.
func (t *tiler) begin() error {
	firsts, err := format.Segments(t.disk)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		return fs.ErrNotExist
	}
	first := firsts[0]
	t.unsynced = map[string]bool{}
	if err := t.forgetPartials(); err != nil {
		return err
	}
	if t.bytes, err = diskBytes(t.disk, format.TileDir); err != nil {
		return err
	}
	if t.set, err = format.TileSetAt(t.disk, first&^(format.TileWidth-1)); err != nil {
		return err
	}
	if first%format.TileWidth != 0 {
		err := format.ReadBundle(t.disk, format.FullTile(format.EntriesLevel, int64(first/format.TileWidth)), 0, func(index uint64, raw []byte) error {
			if index >= first {
				return nil
			}
			return t.add(raw)
		})
		if err != nil {
			return err
		}
	}
	h, err := t.headerOf(first)
	if err != nil {
		return err
	}
	if h.Tree.Root() != t.set.Tree.Root() {
		return fmt.Errorf("the tiles are not of the records before %s; see vouch log verify", format.SegmentName(first))
	}
	t.cursor = format.Cursor{FS: t.disk, Index: first}
	return nil
}

// forgetPartials removes what an earlier run published of records that were to
// come: a crash can have left it unfinished, and nothing else would replace it.
func (t *tiler) forgetPartials() error {
	var dirs []string
	for _, level := range []string{"0", "entries"} {
		err := fs.WalkDir(t.disk, path.Join(format.TileDir, level), func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasSuffix(name, ".p") {
				dirs = append(dirs, name)
				return fs.SkipDir
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, dir := range dirs {
		if err := t.dropPartials(dir); err != nil {
			return err
		}
	}
	return nil
}

func (t *tiler) headerOf(first uint64) (format.SegmentHeader, error) {
	f, err := t.disk.Open(format.SegmentName(first))
	if err != nil {
		return format.SegmentHeader{}, err
	}
	defer f.Close()
	_, data, err := format.Frames(f, 0).Next()
	if err != nil {
		return format.SegmentHeader{}, err
	}
	h, _, err := format.ParseSegmentHeader(data)
	return h, err
}

func (t *tiler) add(raw []byte) error {
	t.entries = format.AppendBundled(t.entries, raw)
	return t.set.Add(tlog.RecordHash(raw), func(tile tlog.Tile, data []byte) error {
		if tile.L == 0 {
			records := tile
			records.L = format.EntriesLevel
			if err := t.full(records, t.entries); err != nil {
				return err
			}
			t.entries = t.entries[:0]
		}
		return t.full(tile, data)
	})
}

// full writes a full tile and removes what stood in for it.
func (t *tiler) full(tile tlog.Tile, data []byte) error {
	if err := t.write(tile, data); err != nil {
		return err
	}
	return t.dropPartials(format.TilePath(tile) + ".p")
}

func (t *tiler) dropPartials(dir string) error {
	entries, err := fs.ReadDir(t.disk, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := t.drop(path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	// Durably: a file that comes back with the next power cut, its contents
	// perhaps never synced, would pass for damage.
	if err := t.disk.syncDir(dir); err != nil {
		return err
	}
	return t.disk.remove(dir)
}

// write puts a tile in place, whole. From level 1 up it is durable at once,
// since beginning again builds on it; below, publishing makes it so.
func (t *tiler) write(tile tlog.Tile, data []byte) error {
	name := format.TilePath(tile)
	if tile.L < 1 {
		t.unsynced[name] = true
	}
	if old, err := format.ReadBounded(t.disk, name, int64(len(data))); err == nil && bytes.Equal(old, data) {
		return nil
	}
	t.bytes += int64(len(data)) - sizeOf(t.disk, name)
	if err := t.disk.mkdir(path.Dir(name)); err != nil {
		return err
	}
	if tile.L < 1 {
		return writeWhole(t.disk, name, data)
	}
	if err := t.writeDurably(name, data); err != nil {
		return err
	}
	return t.syncDirs(name)
}

func (t *tiler) writeDurably(name string, data []byte) error {
	f, err := writeDurably(t.disk, name, func(f file) error {
		_, err := f.WriteAt(data, 0)
		return err
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// writeWhole replaces a file by a whole one, but not durably.
func writeWhole(d disk, name string, data []byte) error {
	temp := name + format.TempSuffix
	if err := d.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.create(temp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		d.remove(temp) // its space is needed where the disk is full
		return err
	}
	return d.rename(temp, name)
}

func (t *tiler) drop(name string) error {
	delete(t.unsynced, name)
	t.bytes -= sizeOf(t.disk, name)
	if err := t.disk.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// publish writes the tiles that are not full, makes all tiles durable, and then
// the checkpoint that needs them. The records and hashes of the last publication
// stay until the next but one, for readers that hold its checkpoint; from level
// 1 up, until the tile is full.
func (t *tiler) publish() error {
	var now []string
	for level := range t.set.Levels {
		tile, data := t.set.Partial(level)
		if tile.W == 0 {
			continue
		}
		if err := t.write(tile, data); err != nil {
			return err
		}
		if level > 0 {
			continue
		}
		records := tile
		records.L = format.EntriesLevel
		if err := t.write(records, t.entries); err != nil {
			return err
		}
		now = []string{format.TilePath(tile), format.TilePath(records)}
	}
	if err := t.syncAll(); err != nil {
		return err
	}
	signed, err := t.signer.checkpoint(&t.set.Tree)
	if err != nil {
		return err
	}
	if err := t.writeDurably(format.CheckpointName, signed); err != nil {
		return err
	}
	t.published = uint64(t.set.Tree.Size)
	if slices.Equal(now, t.partials) {
		return nil
	}
	for _, name := range t.older {
		if err := t.drop(name); err != nil {
			return err
		}
	}
	removed := t.older
	t.older, t.partials = t.partials, now
	for _, name := range removed { // see dropPartials, which may have been there first
		if err := t.disk.syncDir(path.Dir(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// trim is called at the start of a segment: it makes durable what the segments
// before are not needed for any more, and removes them. A segment stays until
// the bundle that its last records are in is full.
func (t *tiler) trim() error {
	firsts, err := format.Segments(t.disk)
	if err != nil {
		return err
	}
	covered := uint64(t.set.Tree.Size) &^ (format.TileWidth - 1)
	keep := 0 // the last segment that the tiles reach wholly up to
	for i, first := range firsts {
		if first <= covered {
			keep = i
		}
	}
	if keep == 0 {
		return nil
	}
	if err := t.publish(); err != nil {
		return err
	}
	for _, first := range firsts[:keep] {
		if err := t.disk.remove(format.SegmentName(first)); err != nil {
			return err
		}
	}
	return t.disk.syncDir(format.WALDir)
}

// syncAll makes all tiles durable.
func (t *tiler) syncAll() error {
	names := slices.Collect(maps.Keys(t.unsynced))
	for _, name := range names {
		if err := t.sync(name); err != nil {
			return err
		}
	}
	clear(t.unsynced)
	return t.syncDirs(names...)
}

// syncDirs makes the names durable, up to the log's directory.
func (t *tiler) syncDirs(names ...string) error {
	done := map[string]bool{}
	for _, name := range names {
		for dir := path.Dir(name); !done[dir]; dir = path.Dir(dir) {
			done[dir] = true
			if err := t.disk.syncDir(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// sync makes one file's contents durable. Where that fails the file goes, so
// that it is made anew: a second sync of the same file would prove nothing.
func (t *tiler) sync(name string) error {
	f, err := t.disk.open(name)
	if err != nil {
		return err
	}
	err = errors.Join(f.sync(), f.Close())
	if err != nil {
		t.disk.remove(name)
	}
	return err
}
