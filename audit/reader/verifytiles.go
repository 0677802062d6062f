package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// A tileChecker holds the tiles against the records, as these are read, and
// reads the records that only tiles hold.
type tileChecker struct {
	v          *verifier
	checkpoint []byte // signed; empty: there is none
	size       uint64 // of the checkpoint: so far the tiles must be there
	first      int64  // number of the first entry bundle
	bundles    int64  // how many there are
	off        bool   // hashes before are not known, so tiles can't be compared
	entries    []byte // records of the bundle at hand
}

// from is the first record that the bundles hold.
func (c *tileChecker) from() uint64 { return uint64(c.first) * format.TileWidth }

func (c *tileChecker) survey() (err error) {
	c.first, c.bundles, err = format.Bundles(c.v.fsys)
	return err
}

func (c *tileChecker) readCheckpoint() (err error) {
	c.checkpoint, err = format.ReadBounded(c.v.fsys, format.CheckpointName, format.MaxFrame)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bundles reads the records before the first segment, or all where there is
// none.
func (v *verifier) bundles(ctx context.Context, segs *format.OpenedSegments) error {
	c := &v.tiles
	end := c.from() + uint64(c.bundles)*format.TileWidth
	if len(segs.Firsts) > 0 {
		end = segs.Firsts[0]
	}
	if err := v.openTiled(segs, end); err != nil {
		return err
	}
	if !v.begun {
		return nil
	}
	set, err := format.TileSetAt(v.fsys, c.from())
	if err != nil {
		v.fail("tile-missing", nil, err.Error(), "what came before this copy's first record can't be accounted for")
		return nil
	}
	v.startAt(set.Tree)
	v.set, c.off = set, false
	for n := c.first; v.size() < end; n++ {
		tile := format.FullTile(format.EntriesLevel, n)
		v.name = format.TilePath(tile)
		if !c.exists(tile) {
			tile.W = int(end - v.size())
		}
		err := format.ReadBundle(v.fsys, tile, 0, func(index uint64, raw []byte) error {
			if index >= end {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			return v.record(raw)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.fail("damage", nil, err.Error(), "the records in this file can't be read: it is missing, or was changed")
			return nil
		}
	}
	return nil
}

// resume takes up the tiles where the copy begins with a segment, and that with
// a bundle.
func (c *tileChecker) resume() {
	if c.v.size()%format.TileWidth != 0 {
		return
	}
	set, err := format.TileSetAt(c.v.fsys, c.v.size())
	if err == nil && set.Tree.Root() == c.v.root() {
		c.v.set, c.off = set, false
	}
}

func (c *tileChecker) exists(t tlog.Tile) bool {
	_, err := fs.Stat(c.v.fsys, format.TilePath(t))
	return err == nil
}

// openTiled settles the key before any segment is read: from the first segment
// where there is one, or else from the first record in the tiles that names it.
func (v *verifier) openTiled(segs *format.OpenedSegments, end uint64) error {
	vkey := v.o.Key
	if len(segs.Firsts) > 0 {
		f, err := segs.Open(0)
		if err != nil {
			return err
		}
		if _, data, err := format.Frames(io.NewSectionReader(f, 0, f.Size()), 0).Next(); err == nil {
			if h, _, err := format.ParseSegmentHeader(data); err == nil {
				vkey = h.Key
			}
		}
		segs.Release(f)
	} else if vkey == "" {
		vkey = v.tiles.namedKey(end)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		v.fail("no-key", nil, "nothing in this copy names the log's key", "no signature can be checked; give the key")
		return nil
	}
	v.open(vkey, verifier)
	return nil
}

func (c *tileChecker) namedKey(end uint64) (vkey string) {
	for n := c.first; vkey == "" && uint64(n+1)*format.TileWidth <= end; n++ {
		err := format.ReadBundle(c.v.fsys, format.FullTile(format.EntriesLevel, n), 0, func(_ uint64, raw []byte) error {
			if !bytes.Contains(raw, []byte(`"event":"`+audit.EventSegment+`"`)) {
				return nil
			}
			if l, err := audit.DecodeLeaf(raw); err == nil && l.Event == audit.EventSegment && l.Log != nil {
				vkey = l.Log.Key
			}
			return nil
		})
		if err != nil {
			return ""
		}
	}
	return vkey
}

// add appends a record to the verifier's tree, and compares what it completes.
func (c *tileChecker) add(raw []byte, h tlog.Hash) error {
	c.entries = format.AppendBundled(c.entries, raw)
	return c.v.set.Add(h, func(t tlog.Tile, data []byte) error {
		if t.L == 0 {
			records := t
			records.L = format.EntriesLevel
			if err := c.compare(records, c.entries); err != nil {
				return err
			}
			c.entries = c.entries[:0]
		}
		return c.compare(t, data)
	})
}

// compare holds a tile's files, the full one and those that stood in for it,
// against the data they must have. A tile that is not full has no full file.
func (c *tileChecker) compare(t tlog.Tile, data []byte) error {
	whole := format.FullTile(t.L, t.N)
	if t.W == format.TileWidth {
		if err := c.compareFile(t, data); err != nil {
			return err
		}
	}
	entries, err := fs.ReadDir(c.v.fsys, format.TilePath(whole)+".p")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		part, err := format.ParseTilePath(path.Join(format.TilePath(whole)+".p", e.Name()))
		if err != nil || part.W > t.W {
			continue // the walk at the end tells of it
		}
		prefix, err := tilePrefix(part, data)
		if err != nil {
			return err
		}
		if err := c.compareFile(part, prefix); err != nil {
			return err
		}
	}
	return nil
}

// tilePrefix cuts a tile's data to a narrower width.
func tilePrefix(t tlog.Tile, data []byte) ([]byte, error) {
	if t.L != format.EntriesLevel {
		return data[:t.W*tlog.HashSize], nil
	}
	rest := data
	for range t.W {
		var err error
		if _, rest, err = format.SplitBundle(rest); err != nil {
			return nil, err
		}
	}
	return data[:len(data)-len(rest)], nil
}

func (c *tileChecker) compareFile(t tlog.Tile, want []byte) error {
	name := format.TilePath(t)
	got, err := format.ReadBounded(c.v.fsys, name, int64(len(want)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if t.W == format.TileWidth && format.TileEnd(t) <= c.size && !(c.v.o.Live && t.L < 1) { // retention may be at work
			c.fail("tile-missing", name, "the tile is missing", "the daemon makes it anew from the segments as long as those are there; until then the tiles prove nothing about it")
		}
	case err != nil && len(got) <= len(want):
		return err
	case !bytes.Equal(got, want):
		c.fail("tile-mismatch", name, "the tile does not hold the log's records", "the file was changed, or the disk damaged it")
	}
	return nil
}

// end compares the tiles that are not full, and looks for files that should not
// be there.
func (c *tileChecker) end(ctx context.Context) error {
	v := c.v
	if c.off && c.bundles > 0 {
		v.rep.add(Finding{Severity: Note, Name: "tiles-not-checked", Message: "the tiles were not held against the records", Meaning: "the hashes before the first segment are not in this copy"})
	}
	c.published()
	if !c.off {
		for level := range v.set.Levels {
			t, data := v.set.Partial(level)
			if level == 0 {
				records := t
				records.L = format.EntriesLevel
				if err := c.compare(records, c.entries); err != nil {
					return err
				}
			}
			if err := c.compare(t, data); err != nil {
				return err
			}
		}
	}
	return fs.WalkDir(v.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && v.o.Live:
			return nil // removed since it was listed
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.IsDir() && (name == "." || name == format.WALDir || name == format.WitnessDir || format.IsTileDir(name)):
			return nil
		case d.IsDir():
			c.unknown(name)
			return fs.SkipDir // however deep it is
		}
		return c.file(name)
	})
}

// published tells of what the daemon publishes, last of all when it stops, and the
// copy does not have: the checkpoint, and the tiles that it needs and that are not
// full. Segments alone hold by themselves.
func (c *tileChecker) published() {
	v := c.v
	switch {
	case len(c.checkpoint) == 0 && c.stopped() && c.tiled():
		c.fail("checkpoint-missing", format.CheckpointName, "the copy has tiles and no checkpoint",
			"it was removed; whoever reads the tiles alone can't check them")
		return
	case c.size == 0 || !c.stopped():
		return // where there is one that is not the log's word, that is told
	case c.size < v.size():
		c.fail("checkpoint-old", format.CheckpointName, fmt.Sprintf("the checkpoint is of %d records, and the log has %d", c.size, v.size()),
			"an older checkpoint was put here, or the disk failed as the daemon stopped")
	}
	for level := format.EntriesLevel; level < len(v.set.Levels); level++ {
		n := int64(c.size >> (format.TileHeight * max(0, level)))
		t := tlog.Tile{H: format.TileHeight, L: level, N: n / format.TileWidth, W: int(n % format.TileWidth)}
		if t.W > 0 && !c.covered(t) {
			c.fail("tile-missing", format.TilePath(t), "the tile that the checkpoint ends in is missing",
				"the daemon makes it anew from the segments as long as those are there; until then the tiles prove nothing about it")
		}
	}
}

// stopped tells whether the daemon stopped after the last record, having published
// what it had to.
func (c *tileChecker) stopped() bool { return !c.v.o.Live && !c.v.chain.running }

// tiled tells whether the copy has anything in the tiles' directory.
func (c *tileChecker) tiled() bool {
	entries, err := fs.ReadDir(c.v.fsys, format.TileDir)
	return err == nil && len(entries) > 0
}

// covered tells whether the copy has the tile or a wider one in its place.
func (c *tileChecker) covered(t tlog.Tile) bool {
	full := format.TilePath(format.FullTile(t.L, t.N))
	if c.exists(format.FullTile(t.L, t.N)) {
		return true
	}
	entries, err := fs.ReadDir(c.v.fsys, full+".p")
	if err != nil {
		return false
	}
	for _, e := range entries {
		part, err := format.ParseTilePath(path.Join(full+".p", e.Name()))
		if err == nil && part.W >= t.W {
			return true
		}
	}
	return false
}

func (c *tileChecker) unknown(name string) {
	c.v.rep.add(Finding{Severity: Note, Name: "unknown-file", Place: name, Message: "the file is none of the log's", Meaning: "it was not looked at"})
}

// file judges one file by its name; tiles before the copy's first record by the
// tiles above them.
func (c *tileChecker) file(name string) error {
	v := c.v
	switch {
	case strings.HasSuffix(name, format.TempSuffix):
		return nil // what a crash, or a daemon at work, leaves
	case name == format.CheckpointName, path.Dir(name) == format.WALDir, isWitnessFile(name):
		return nil
	case !strings.HasPrefix(name, format.TileDir+"/"):
		c.unknown(name)
		return nil
	}
	t, err := format.ParseTilePath(name)
	if err != nil {
		c.fail("unknown-tile", name, "no tile has this name", "somebody put the file here")
		return nil
	}
	if format.TileEnd(t) > v.size() && v.o.Live {
		return nil // made since the segments were read
	}
	if format.TileEnd(t) > v.size() {
		c.fail("tile-beyond", name, fmt.Sprintf("the tile is of %d records, and the log has %d", format.TileEnd(t), v.size()),
			"records at the end were removed, or this is an older copy")
		return nil
	}
	if t.W < format.TileWidth && t.L < 1 && c.stopped() {
		twin := t
		twin.L = format.EntriesLevel - t.L // records and their hashes are published, and go, together
		if !c.exists(twin) {
			c.fail("tile-missing", format.TilePath(twin), "the tile is missing, and the one published with it is there", "it was removed; the records are in wider tiles or in segments")
		}
	}
	if format.TileEnd(t) > v.rep.First || t.L == format.EntriesLevel {
		return nil // compared on the way
	}
	return c.compareUp(t, name)
}

// compareUp holds a full tile against its hash in the level above.
func (c *tileChecker) compareUp(t tlog.Tile, name string) error {
	if t.W < format.TileWidth {
		return nil
	}
	data, err := format.ReadBounded(c.v.fsys, name, format.TileWidth*tlog.HashSize)
	if err != nil {
		return err
	}
	above := tlog.Tile{H: format.TileHeight, L: t.L + 1, N: t.N / format.TileWidth, W: int(t.N%format.TileWidth) + 1}
	want, err := format.ReadTilePrefix(c.v.fsys, above)
	if err != nil {
		c.fail("tile-missing", format.TilePath(above), err.Error(), "a tile below it can't be checked")
		return nil
	}
	if len(data) != format.TileWidth*tlog.HashSize || !bytes.Equal(tileRoot(t, data), want[len(want)-tlog.HashSize:]) {
		c.fail("tile-mismatch", name, "the tile does not have the hash that the level above has for it", "the file was changed, or the disk damaged it")
	}
	return nil
}

// tileRoot returns the hash that stands for a full tile in the level above.
func tileRoot(t tlog.Tile, data []byte) []byte {
	level := format.TileHeight*t.L + format.TileHeight - 1
	left, errL := tlog.HashFromTile(t, data, tlog.StoredHashIndex(level, 2*t.N))
	right, errR := tlog.HashFromTile(t, data, tlog.StoredHashIndex(level, 2*t.N+1))
	if errL != nil || errR != nil {
		return nil
	}
	h := tlog.NodeHash(left, right)
	return h[:]
}

func (c *tileChecker) fail(name, place, message, meaning string) {
	c.v.rep.add(Finding{Severity: Failure, Name: name, Place: place, Message: message, Meaning: meaning})
}
