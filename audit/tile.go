package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Tiles are the log in the form that public readers of transparency logs
// understand (C2SP tlog-tiles): the tree's hashes and the records, 256 to a
// file, and a checkpoint. They follow the segments at a distance.
const (
	tileDir        = "tile"
	checkpointName = "checkpoint"
	tileHeight     = 8
	tileWidth      = 1 << tileHeight
	entriesLevel   = -1 // the records, in tlog's counting
	maxBundle      = tileWidth * (2 + MaxLeaf)
)

// tilePath returns the name of a tile's file: tile/<level>/<number>, or
// tile/entries/<number>, and .p/<width> behind it for a tile that isn't full.
func tilePath(t tlog.Tile) string {
	p := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if rest, ok := strings.CutPrefix(p, "data/"); ok {
		p = "entries/" + rest
	}
	return path.Join(tileDir, p)
}

// parseTilePath is the inverse of tilePath.
func parseTilePath(name string) (tlog.Tile, error) {
	p, ok := strings.CutPrefix(name, tileDir+"/")
	if rest, entries := strings.CutPrefix(p, "entries/"); entries {
		p = "data/" + rest
	} else if strings.HasPrefix(p, "data/") {
		ok = false
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, p))
	if !ok || err != nil {
		return tlog.Tile{}, fmt.Errorf("%s is not the name of a tile", name)
	}
	return t, nil
}

func fullTile(level int, n int64) tlog.Tile {
	return tlog.Tile{H: tileHeight, L: level, N: n, W: tileWidth}
}

// tileEnd returns how many records a tree has at least that has the tile.
func tileEnd(t tlog.Tile) uint64 {
	return (uint64(t.N)*tileWidth + uint64(t.W)) << (tileHeight * max(0, t.L))
}

// appendBundled appends a record to an entry bundle: its length in two bytes,
// big endian, and itself.
func appendBundled(b, raw []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
}

// splitBundle takes the first record off a bundle.
func splitBundle(b []byte) (raw, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errors.New("entry bundle ends inside a length")
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > MaxLeaf || n > len(b)-2 {
		return nil, nil, fmt.Errorf("entry bundle with a record of %d bytes, and %d left", n, len(b)-2)
	}
	return b[2 : 2+n], b[2+n:], nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, err
}

// bundle calls each for the records of a full bundle, from the one with index
// from on, as long as it returns nil.
func bundle(fsys fs.FS, t tlog.Tile, from uint64, each func(index uint64, raw []byte) error) error {
	name := tilePath(t)
	b, err := readBounded(fsys, name, maxBundle)
	if err != nil {
		return err
	}
	index := uint64(t.N) * tileWidth
	for range t.W {
		var raw []byte
		if raw, b, err = splitBundle(b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if index >= from {
			if err := each(index, raw); err != nil {
				return err
			}
		}
		index++
	}
	if len(b) > 0 {
		return fmt.Errorf("%s: %d bytes behind the last record", name, len(b))
	}
	return nil
}

// bundles returns the number of the first full entry bundle, and how many there
// are; a gap between them is left for the reader to meet. Without bundles the
// count is 0.
func bundles(fsys fs.FS) (first, count int64, err error) {
	first = -1
	err = walkBundles(fsys, path.Join(tileDir, "entries"), func(n int64) {
		if first < 0 || n < first {
			first = n
		}
		count = max(count, n+1)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil || first < 0 {
		return 0, 0, err
	}
	return first, count - first, nil
}

func walkBundles(fsys fs.FS, dir string, full func(n int64)) error {
	return fs.WalkDir(fsys, dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasSuffix(name, ".p"):
			return fs.SkipDir
		case d.IsDir() || strings.HasSuffix(name, tempSuffix):
			return nil
		}
		if t, err := parseTilePath(name); err == nil {
			full(t.N)
		}
		return nil
	})
}

// A tileSet gathers a growing tree's hashes into tiles.
type tileSet struct {
	tree   tree
	levels [(len(tree{}.edge) + tileHeight - 1) / tileHeight][]byte // the tile at each level that is not full yet
}

// add appends a record's hash. It calls full for each tile that this makes full;
// the data is good during the call.
func (s *tileSet) add(leaf tlog.Hash, full func(t tlog.Tile, data []byte) error) error {
	done := s.tree.add(leaf)
	for level := 0; level < len(done); level += tileHeight {
		l := level / tileHeight
		s.levels[l] = append(s.levels[l], done[level][:]...)
		if len(s.levels[l]) < tileWidth*tlog.HashSize {
			continue
		}
		t := fullTile(l, s.tree.size>>(tileHeight*(l+1))-1)
		if err := full(t, s.levels[l]); err != nil {
			return err
		}
		s.levels[l] = s.levels[l][:0]
	}
	return nil
}

// partial returns the tile at a level that is not full, or one of width 0.
func (s *tileSet) partial(level int) (tlog.Tile, []byte) {
	return tlog.Tile{
		H: tileHeight, L: level, N: s.tree.size >> (tileHeight * (level + 1)),
		W: len(s.levels[level]) / tlog.HashSize,
	}, s.levels[level]
}

// tileSetAt rebuilds the set for a tree of size records, a multiple of 256, from
// the tiles of level 1 and up. Nothing proves them yet: the caller holds the
// tree that grows from them against a signed checkpoint.
func tileSetAt(fsys fs.FS, size uint64) (*tileSet, error) {
	s := new(tileSet)
	var frontier []tlog.Hash
	for level := len(s.levels) - 1; level >= 1; level-- {
		n := int64(size >> (tileHeight * level))
		if n%tileWidth == 0 {
			continue
		}
		t := tlog.Tile{H: tileHeight, L: level, N: n / tileWidth, W: int(n % tileWidth)}
		data, err := readTilePrefix(fsys, t)
		if err != nil {
			return nil, err
		}
		s.levels[level] = data
		for bit := tileHeight - 1; bit >= 0; bit-- {
			if n>>bit&1 == 0 {
				continue
			}
			h, err := tlog.HashFromTile(t, data, tlog.StoredHashIndex(level*tileHeight+bit, n>>bit-1))
			if err != nil {
				return nil, err
			}
			frontier = append(frontier, h)
		}
	}
	t, err := treeFrom(int64(size), frontier)
	if err != nil {
		return nil, err
	}
	s.tree = t
	return s, nil
}

// readTilePrefix reads a tile that is not full from its own file, or from that
// of any wider one.
func readTilePrefix(fsys fs.FS, t tlog.Tile) ([]byte, error) {
	want := t.W * tlog.HashSize
	for w := t.W; w <= tileWidth; w++ {
		wider := t
		wider.W = w
		data, err := readBounded(fsys, tilePath(wider), tileWidth*tlog.HashSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && len(data) != w*tlog.HashSize {
			err = fmt.Errorf("%s has %d bytes", tilePath(wider), len(data))
		}
		if err != nil {
			return nil, err
		}
		return data[:want:want], nil
	}
	return nil, fmt.Errorf("%s, or a wider one: %w", tilePath(t), fs.ErrNotExist)
}
