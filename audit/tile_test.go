package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// fill appends records until the log has at least size of them, and waits for
// the tiles to follow.
func (h *host) fill(l *Log, size uint64) {
	h.t.Helper()
	batch := make([]Record, MaxAppend)
	for i := range batch {
		batch[i] = attested(i + 1)
	}
	for l.Status().Size < size {
		h.append(l, batch...)
	}
}

// longLog is a log whose first segments were replaced by tiles, over several
// runs.
func longLog(t testing.TB, size uint64) *host {
	t.Helper()
	h := newHost(t)
	h.opt.SegmentBytes = 100 << 10
	for run := range uint64(4) {
		l := h.start()
		h.fill(l, size/4*(run+1))
		h.stop(l)
	}
	return h
}

func (h *host) files() []string {
	h.t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(h.dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return names
}

func TestTilesReplaceSegments(t *testing.T) {
	t.Parallel()
	h := longLog(t, 4000)
	firsts, err := segmentsOf(os.DirFS(h.dir))
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
	for e, err := range Records(context.Background(), os.DirFS(h.dir), 0) {
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

func (tileDirReader) Height() int                     { return tileHeight }
func (tileDirReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (d tileDirReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range tiles {
		b, err := os.ReadFile(filepath.Join(string(d), tilePath(t)))
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
	signed, err := os.ReadFile(filepath.Join(h.dir, checkpointName))
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSigner(h.opt.Origin, h.opt.Key)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(s.vkey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		t.Fatal(err)
	}
	if r := h.verify(withTPM()); c.Size != r.Size {
		t.Errorf("checkpoint of %d records after closing, the log has %d", c.Size, r.Size)
	}
	tree := tlog.Tree{N: int64(c.Size), Hash: c.Root}
	hashes := tlog.TileHashReader(tree, tileDirReader(h.dir))
	for n := int64(0); n*tileWidth < tree.N; n++ {
		tile := tlog.Tile{H: tileHeight, L: entriesLevel, N: n, W: int(min(tileWidth, tree.N-n*tileWidth))}
		err := bundle(os.DirFS(h.dir), tile, 0, func(index uint64, raw []byte) error {
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
	if err := os.RemoveAll(filepath.Join(h.dir, tileDir)); err != nil {
		t.Fatal(err)
	}
	if r := h.verify(withTPM()); r.OK || !slices.Contains(r.found(Failure), "tile-missing") {
		t.Errorf("without tiles: %s", r.Verdict)
	}
	l = h.start()
	h.stop(l)
	if r := h.verify(withTPM()); !r.OK || len(r.Findings) != 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
	for _, name := range before {
		if tile, err := parseTilePath(name); err == nil && tile.W == tileWidth && !slices.Contains(h.files(), name) {
			t.Errorf("%s was not made again", name)
		}
	}
}

func TestReaderFollowsWhileSegmentsTurnIntoTiles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 50 << 10
	l := h.start()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	const want = 3000
	done := make(chan error, 1)
	go func() {
		var next uint64
		for e, err := range Follow(ctx, os.DirFS(h.dir), 0, time.Millisecond) {
			if err != nil {
				done <- err
				return
			}
			if e.Index != next {
				done <- fmt.Errorf("record %d where %d should be", e.Index, next)
				return
			}
			if next++; next == want {
				done <- nil
				return
			}
		}
		done <- fmt.Errorf("ended after %d records: %w", next, ctx.Err())
	}()
	for l.Status().Size < want {
		h.append(l, attested(1), attested(2), attested(3))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	h.stop(l)
}

func TestTileNamesRoundTrip(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		tile tlog.Tile
		want string
	}{
		{fullTile(0, 0), "tile/0/000"},
		{fullTile(2, 1234067), "tile/2/x001/x234/067"},
		{fullTile(entriesLevel, 1234), "tile/entries/x001/234"},
		{tlog.Tile{H: tileHeight, L: 1, N: 5, W: 17}, "tile/1/005.p/17"},
		{tlog.Tile{H: tileHeight, L: entriesLevel, N: 5, W: 255}, "tile/entries/005.p/255"},
	} {
		if got := tilePath(tt.tile); got != tt.want {
			t.Errorf("%v is named %s, want %s", tt.tile, got, tt.want)
		}
		if got, err := parseTilePath(tt.want); err != nil || got != tt.tile {
			t.Errorf("%s is %v (%v), want %v", tt.want, got, err, tt.tile)
		}
	}
	for _, name := range []string{"tile/0/0", "tile/data/000", "tile/8/0/000", "tile/0/000.p/256", "tile/0/000.p/0", "tile/entries/x000/001", "tile/-1/000"} {
		if got, err := parseTilePath(name); err == nil {
			t.Errorf("%s is %v", name, got)
		}
	}
}

func TestStatementAndKeysAreRepeatedInEachSegment(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 20 << 10
	l := h.start()
	key := &Key{KeyID: "kid-1", PublicKey: []byte{1, 2, 3}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	h.append(l, Record{Event: EventJWTKey, Outcome: Success, Key: key})
	h.fill(l, 300)
	h.stop(l)
	segments, statements, keys := 0, 0, 0
	for e, err := range Records(context.Background(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Leaf.Event == EventSegment:
			segments++
			if e.Leaf.Node != nil && bytes.Equal(e.Leaf.Node.Statement, h.tpm.statement(h.opt.Key.Public().(ed25519.PublicKey))) {
				statements++
			}
		case e.Leaf.Event == EventJWTKey:
			keys++
		}
	}
	if segments < 4 || statements != segments-1 || keys != segments {
		t.Errorf("%d segments repeat the statement %d times and have the key %d times", segments, statements, keys)
	}
}
