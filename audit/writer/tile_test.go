package writer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/reader"
)

func TestTilesReplaceSegments(t *testing.T) {
	t.Parallel()
	h := longLog(t, 4000)
	firsts, err := format.Segments(os.DirFS(h.dir))
	if err != nil {
		t.Fatal(err)
	}
	if firsts[0] == 0 {
		t.Errorf("no segment was removed: %v", firsts)
	}
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 || r.First != 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
	var next uint64
	for e, err := range reader.Records(context.Background(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Leaf.Index != next {
			t.Fatalf("record %d where %d should be", e.Leaf.Index, next)
		}
		next++
	}
	if next != r.Size {
		t.Errorf("read %d records of %d", next, r.Size)
	}
}

// tileDirReader is how a public reader fetches tiles.
type tileDirReader string

func (tileDirReader) Height() int                     { return format.TileHeight }
func (tileDirReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (d tileDirReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range tiles {
		b, err := os.ReadFile(filepath.Join(string(d), format.TilePath(t)))
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

func TestPublicTileReaderProvesEveryRecord(t *testing.T) {
	t.Parallel()
	h := longLog(t, 2000)
	signed, err := os.ReadFile(filepath.Join(h.dir, format.CheckpointName))
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(h.vkey())
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	c, err := format.ParseCheckpoint(n.Text)
	if err != nil {
		t.Fatal(err)
	}
	if r := h.verify(withTPM()); c.Size != r.Size {
		t.Errorf("checkpoint of %d records after closing, the log has %d", c.Size, r.Size)
	}
	tree := tlog.Tree{N: int64(c.Size), Hash: c.Root}
	hashes := tlog.TileHashReader(tree, tileDirReader(h.dir))
	for n := int64(0); n*format.TileWidth < tree.N; n++ {
		tile := tlog.Tile{H: format.TileHeight, L: format.EntriesLevel, N: n, W: int(min(format.TileWidth, tree.N-n*format.TileWidth))}
		err := format.ReadBundle(os.DirFS(h.dir), tile, 0, func(index uint64, raw []byte) error {
			if index%37 != 0 {
				return nil
			}
			proof, err := tlog.ProveRecord(tree.N, int64(index), hashes)
			if err != nil {
				return err
			}
			return tlog.CheckRecord(proof, tree.N, tree.Hash, int64(index), tlog.RecordHash(raw))
		})
		if err != nil {
			t.Fatalf("bundle %d: %v", n, err)
		}
	}
}

func TestTilesAreRebuiltFromSegments(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.fill(l, 600)
	h.stop(l)
	before := h.files()
	if err := os.RemoveAll(filepath.Join(h.dir, format.TileDir)); err != nil {
		t.Fatal(err)
	}
	if r := h.verify(withTPM()); r.OK || !slices.Contains(found(r, reader.Failure), "tile-missing") {
		t.Errorf("without tiles: %s", r.Verdict)
	}
	l = h.start()
	h.stop(l)
	if r := h.verify(withTPM()); !r.OK || len(r.Findings) != 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
	for _, name := range before {
		if tile, err := format.ParseTilePath(name); err == nil && tile.W == format.TileWidth && !slices.Contains(h.files(), name) {
			t.Errorf("%s was not made again", name)
		}
	}
}

func TestStatementAndKeysAreRepeatedInEachSegment(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 20 << 10
	l := h.start()
	key := &audit.Key{KeyID: "kid-1", PublicKey: []byte{1, 2, 3}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	h.append(l, audit.Record{Event: audit.EventJWTKey, Outcome: audit.Success, Key: key})
	h.fill(l, 300)
	h.stop(l)
	segments, statements, keys := 0, 0, 0
	for e, err := range reader.Records(context.Background(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Leaf.Event == audit.EventSegment:
			segments++
			if e.Leaf.Node != nil && bytes.Equal(e.Leaf.Node.Statement, h.tpm.Statement(h.opt.Key.Public().(ed25519.PublicKey))) {
				statements++
			}
		case e.Leaf.Event == audit.EventJWTKey:
			keys++
		}
	}
	if segments < 4 || statements != segments-1 || keys != segments {
		t.Errorf("%d segments repeat the statement %d times and have the key %d times", segments, statements, keys)
	}
}
