package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
)

// Tiles are the log in the form that public readers of transparency logs
// understand (C2SP tlog-tiles): the tree's hashes and the records, 256 to a
// file, and a checkpoint. They follow the segments at a distance.
const (
	TileDir        = "tile"
	CheckpointName = "checkpoint"
	TileHeight     = 8
	TileWidth      = 1 << TileHeight
	EntriesLevel   = -1 // the records, in tlog's counting
	maxBundle      = TileWidth * (2 + audit.MaxLeaf)
)

// TilePath returns the name of a tile's file: tile/<level>/<number>, or
// tile/entries/<number>, and .p/<width> behind it for a tile that isn't full.
func TilePath(t tlog.Tile) string {
	p := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", TileHeight))
	if rest, ok := strings.CutPrefix(p, "data/"); ok {
		p = "entries/" + rest
	}
	return path.Join(TileDir, p)
}

// ParseTilePath is the inverse of TilePath.
func ParseTilePath(name string) (tlog.Tile, error) {
	p, ok := strings.CutPrefix(name, TileDir+"/")
	if rest, entries := strings.CutPrefix(p, "entries/"); entries {
		p = "data/" + rest
	} else if strings.HasPrefix(p, "data/") {
		ok = false
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", TileHeight, p))
	if !ok || err != nil {
		return tlog.Tile{}, fmt.Errorf("%s is not the name of a tile", name)
	}
	return t, nil
}

// FullTile returns a tile of 256 hashes, or of records at [EntriesLevel].
func FullTile(level int, n int64) tlog.Tile {
	return tlog.Tile{H: TileHeight, L: level, N: n, W: TileWidth}
}

// TileEnd returns how many records a tree has at least that has the tile.
func TileEnd(t tlog.Tile) uint64 {
	return (uint64(t.N)*TileWidth + uint64(t.W)) << (TileHeight * max(0, t.L))
}

// AppendBundled appends a record to an entry bundle: its length in two bytes,
// big endian, and itself.
func AppendBundled(b, raw []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
}

// SplitBundle takes the first record off a bundle.
func SplitBundle(b []byte) (raw, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errors.New("entry bundle ends inside a length")
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > audit.MaxLeaf || n > len(b)-2 {
		return nil, nil, fmt.Errorf("entry bundle with a record of %d bytes, and %d left", n, len(b)-2)
	}
	return b[2 : 2+n], b[2+n:], nil
}

// ReadBounded reads a file of at most limit bytes.
func ReadBounded(fsys fs.FS, name string, limit int64) ([]byte, error) {
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

// ReadBundle calls each for the records of a full bundle, from the one with index
// from on, as long as it returns nil.
func ReadBundle(fsys fs.FS, t tlog.Tile, from uint64, each func(index uint64, raw []byte) error) error {
	name := TilePath(t)
	b, err := ReadBounded(fsys, name, maxBundle)
	if err != nil {
		return err
	}
	index := uint64(t.N) * TileWidth
	for range t.W {
		var raw []byte
		if raw, b, err = SplitBundle(b); err != nil {
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

// Bundles returns the number of the first full entry bundle, and how many there
// are; a gap between them is left for the reader to meet. Without bundles the
// count is 0.
func Bundles(fsys fs.FS) (first, count int64, err error) {
	first = -1
	err = walkBundles(fsys, path.Join(TileDir, "entries"), func(n int64) {
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
		case d.IsDir() && (strings.HasSuffix(name, ".p") || !IsTileDir(name)):
			return fs.SkipDir
		case d.IsDir() || strings.HasSuffix(name, TempSuffix):
			return nil
		}
		if t, err := ParseTilePath(name); err == nil {
			full(t.N)
		}
		return nil
	})
}

// A TileSet gathers a growing tree's hashes into tiles.
type TileSet struct {
	Tree   Tree
	Levels [(len(Tree{}.edge) + TileHeight - 1) / TileHeight][]byte // the tile at each level that is not full yet
}

// Add appends a record's hash. It calls full for each tile that this makes full;
// the data is good during the call.
func (s *TileSet) Add(leaf tlog.Hash, full func(t tlog.Tile, data []byte) error) error {
	done := s.Tree.Add(leaf)
	for level := 0; level < len(done); level += TileHeight {
		l := level / TileHeight
		s.Levels[l] = append(s.Levels[l], done[level][:]...)
		if len(s.Levels[l]) < TileWidth*tlog.HashSize {
			continue
		}
		t := FullTile(l, s.Tree.Size>>(TileHeight*(l+1))-1)
		if err := full(t, s.Levels[l]); err != nil {
			return err
		}
		s.Levels[l] = s.Levels[l][:0]
	}
	return nil
}

// Partial returns the tile at a level that is not full, or one of width 0.
func (s *TileSet) Partial(level int) (tlog.Tile, []byte) {
	return tlog.Tile{
		H: TileHeight, L: level, N: s.Tree.Size >> (TileHeight * (level + 1)),
		W: len(s.Levels[level]) / tlog.HashSize,
	}, s.Levels[level]
}

// TileSetAt rebuilds the set for a tree of size records, a multiple of 256, from
// the tiles of level 1 and up. Nothing proves them yet: the caller holds the
// tree that grows from them against a signed checkpoint.
func TileSetAt(fsys fs.FS, size uint64) (*TileSet, error) {
	s := new(TileSet)
	var frontier []tlog.Hash
	for level := len(s.Levels) - 1; level >= 1; level-- {
		n := int64(size >> (TileHeight * level))
		if n%TileWidth == 0 {
			continue
		}
		t := tlog.Tile{H: TileHeight, L: level, N: n / TileWidth, W: int(n % TileWidth)}
		data, err := ReadTilePrefix(fsys, t)
		if err != nil {
			return nil, err
		}
		s.Levels[level] = data
		for bit := TileHeight - 1; bit >= 0; bit-- {
			if n>>bit&1 == 0 {
				continue
			}
			h, err := tlog.HashFromTile(t, data, tlog.StoredHashIndex(level*TileHeight+bit, n>>bit-1))
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
	s.Tree = t
	return s, nil
}

// ReadTilePrefix reads a tile that is not full from its own file, or from that
// of any wider one.
func ReadTilePrefix(fsys fs.FS, t tlog.Tile) ([]byte, error) {
	want := t.W * tlog.HashSize
	for w := t.W; w <= TileWidth; w++ {
		wider := t
		wider.W = w
		data, err := ReadBounded(fsys, TilePath(wider), TileWidth*tlog.HashSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && len(data) != w*tlog.HashSize {
			err = fmt.Errorf("%s has %d bytes", TilePath(wider), len(data))
		}
		if err != nil {
			return nil, err
		}
		return data[:want:want], nil
	}
	return nil, fmt.Errorf("%s, or a wider one: %w", TilePath(t), fs.ErrNotExist)
}
