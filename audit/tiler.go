package audit

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
)

// A tiler writes the tiles, and removes segments that they have replaced. It
// belongs to the background: no record waits for it, and an error costs only
// that it begins again from the segments.
type tiler struct {
	disk   disk
	signer *signer

	set       *tileSet // nil: not begun
	cursor    cursor
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
	err := t.cursor.advance(ctx, func(index uint64, raw []byte) error {
		if index >= size {
			return errStop
		}
		if index == t.cursor.first {
			if err := t.trim(); err != nil {
				return err
			}
		}
		return t.add(raw)
	})
	if err != nil && err != errStop {
		return err
	}
	if publish && uint64(t.set.tree.size) == size && t.published != size {
		return t.publish()
	}
	return nil
}

// begin goes back to the first segment. The tiles before it are durable, or it
// would not be the first; those after are written again, or compared.
func (t *tiler) begin() error {
	firsts, err := segmentsOf(t.disk)
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
	if t.bytes, err = diskBytes(t.disk, tileDir); err != nil {
		return err
	}
	if t.set, err = tileSetAt(t.disk, first&^(tileWidth-1)); err != nil {
		return err
	}
	if first%tileWidth != 0 {
		err := bundle(t.disk, fullTile(entriesLevel, int64(first/tileWidth)), 0, func(index uint64, raw []byte) error {
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
	if h.tree.root() != t.set.tree.root() {
		return fmt.Errorf("the tiles are not of the records before %s; see vouch log verify", segmentName(first))
	}
	t.cursor = cursor{fsys: t.disk, index: first}
	return nil
}

// forgetPartials removes what an earlier run published of records that were to
// come: a crash can have left it unfinished, and nothing else would replace it.
func (t *tiler) forgetPartials() error {
	var dirs []string
	for _, level := range []string{"0", "entries"} {
		err := fs.WalkDir(t.disk, path.Join(tileDir, level), func(name string, d fs.DirEntry, err error) error {
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

func (t *tiler) headerOf(first uint64) (segmentHeader, error) {
	f, err := t.disk.Open(segmentName(first))
	if err != nil {
		return segmentHeader{}, err
	}
	defer f.Close()
	_, data, err := newFrameReader(f).next()
	if err != nil {
		return segmentHeader{}, err
	}
	h, _, err := parseSegmentHeader(data)
	return h, err
}

func (t *tiler) add(raw []byte) error {
	t.entries = appendBundled(t.entries, raw)
	return t.set.add(tlog.RecordHash(raw), func(tile tlog.Tile, data []byte) error {
		if tile.L == 0 {
			records := tile
			records.L = entriesLevel
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
	return t.dropPartials(tilePath(tile) + ".p")
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
	name := tilePath(tile)
	if tile.L < 1 {
		t.unsynced[name] = true
	}
	if old, err := readBounded(t.disk, name, int64(len(data))); err == nil && bytes.Equal(old, data) {
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
	temp := name + tempSuffix
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
	for level := range t.set.levels {
		tile, data := t.set.partial(level)
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
		records.L = entriesLevel
		if err := t.write(records, t.entries); err != nil {
			return err
		}
		now = []string{tilePath(tile), tilePath(records)}
	}
	if err := t.syncAll(); err != nil {
		return err
	}
	signed, err := t.signer.checkpoint(&t.set.tree)
	if err != nil {
		return err
	}
	if err := t.writeDurably(checkpointName, signed); err != nil {
		return err
	}
	t.published = uint64(t.set.tree.size)
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
	firsts, err := segmentsOf(t.disk)
	if err != nil {
		return err
	}
	covered := uint64(t.set.tree.size) &^ (tileWidth - 1)
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
		if err := t.disk.remove(segmentName(first)); err != nil {
			return err
		}
	}
	return t.disk.syncDir(walDir)
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
