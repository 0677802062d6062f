package audit

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// An Entry is one record as it is read from a log. Reading checks its form and
// its place, not its proof: that is for [Verify].
type Entry struct {
	Index uint64
	Leaf  Leaf
	Raw   []byte // the bytes that the tree covers; the caller's to keep
}

// Records reads the log from a record on. It ends behind the last checkpoint, or
// with an error, which comes with a zero Entry.
func Records(ctx context.Context, fsys fs.FS, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := cursor{fsys: fsys, index: from}
		c.readAll(ctx, yield)
	}
}

// Follow is Records, and then goes on with what is appended, until ctx ends. It
// looks every interval.
func Follow(ctx context.Context, fsys fs.FS, from uint64, interval time.Duration) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := cursor{fsys: fsys, index: from}
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for c.readAll(ctx, yield) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// readAll yields what is there. It reports whether to go on later.
func (c *cursor) readAll(ctx context.Context, yield func(Entry, error) bool) bool {
	err := c.advance(ctx, func(index uint64, raw []byte) error {
		leaf, err := DecodeLeaf(raw)
		if err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		if !yield(Entry{Index: index, Leaf: leaf, Raw: bytes.Clone(raw)}, nil) {
			return errStop
		}
		return nil
	})
	if err == errStop {
		return false
	}
	if err != nil {
		yield(Entry{}, fmt.Errorf("reading attestation log: %w", err))
		return false
	}
	return true
}

// A cursor is a place in the log: in the tiles where they are all there is, then
// in the segments, always behind a checkpoint.
type cursor struct {
	fsys  fs.FS
	index uint64 // of the next record wanted

	placed bool   // in a segment
	first  uint64 // of the segment being read
	off    int64
	at     uint64 // index of the record at off

	batch []byte // records since the last checkpoint, bundled
}

var (
	errStop = errors.New("stop") // the consumer wants no more
	errGone = errors.New("segment was removed meanwhile")
)

// advance calls each for the records that are there, from the one wanted on, as
// long as it returns nil. The bytes are good during the call.
func (c *cursor) advance(ctx context.Context, each func(index uint64, raw []byte) error) error {
	take := func(index uint64, raw []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := each(index, raw); err != nil {
			return err
		}
		c.index = index + 1
		return nil
	}
	for tries := 0; ; {
		firsts, err := segmentsOf(c.fsys)
		if err != nil {
			return err
		}
		if !c.placed {
			if err := c.place(firsts, take); err != nil {
				return err
			}
			if !c.placed {
				return nil // there are no segments, only tiles
			}
		}
		err = c.segment(ctx, take)
		if err == errGone && tries < 3 {
			c.placed = false // its records were moved to tiles meanwhile
			tries++
			continue
		}
		if err != nil {
			return err
		}
		// The segment is at its end. The list that names a segment after it is
		// older than what was read, so this one was sealed.
		next, ok := after(firsts, c.first)
		if !ok {
			return nil
		}
		if next != c.at {
			return fmt.Errorf("%s ends with record %d, and %s goes on elsewhere; see vouch log verify", segmentName(c.first), c.at, segmentName(next))
		}
		c.first, c.off = next, 0
	}
}

// place finds the segment that has the record wanted, once the tiles were read
// up to there.
func (c *cursor) place(firsts []uint64, take func(uint64, []byte) error) error {
	if len(firsts) == 0 || c.index < firsts[0] {
		if err := c.tiles(firsts, take); err != nil {
			return err
		}
	}
	for i, first := range firsts {
		if i == 0 || first <= c.index {
			c.first, c.off, c.at, c.placed = first, 0, first, true
		}
	}
	return nil
}

// tiles reads entry bundles up to the first segment, or to the end of the
// checkpoint where there is no segment.
func (c *cursor) tiles(firsts []uint64, take func(uint64, []byte) error) error {
	first, count, err := bundles(c.fsys)
	if err != nil {
		return err
	}
	end := uint64(first+count) * tileWidth
	if len(firsts) > 0 {
		end = firsts[0]
		if count == 0 {
			c.index = max(c.index, end) // a copy of segments alone
		}
	}
	c.index = max(c.index, min(uint64(first)*tileWidth, end))
	for c.index < end {
		err := bundle(c.fsys, fullTile(entriesLevel, int64(c.index/tileWidth)), c.index, func(index uint64, raw []byte) error {
			if index >= end {
				return nil
			}
			return take(index, raw)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func after(firsts []uint64, first uint64) (uint64, bool) {
	for _, f := range firsts {
		if f > first {
			return f, true
		}
	}
	return 0, false
}

// segment reads on in the segment, batch by batch, to its end.
func (c *cursor) segment(ctx context.Context, take func(uint64, []byte) error) error {
	f, err := openStill(c.fsys, segmentName(c.first))
	if errors.Is(err, fs.ErrNotExist) {
		return errGone
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(c.off, io.SeekStart); err != nil {
		return err
	}
	frames := newFrameReader(f)
	frames.off = c.off
	c.batch = c.batch[:0]
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind, data, err := frames.next()
		switch {
		case err == io.EOF, errors.Is(err, errFrame):
			return c.atEnd(f, frames.off, err)
		case err != nil:
			return err
		}
		switch kind {
		case kindSegment:
			c.off = frames.off
		case kindLeaf:
			c.batch = appendBundled(c.batch, data)
		case kindCheckpoint:
			if err := c.deliver(take); err != nil {
				return err
			}
			c.off = frames.off
		}
	}
}

// deliver hands out the batch.
func (c *cursor) deliver(take func(uint64, []byte) error) error {
	at := c.at
	for rest := c.batch; len(rest) > 0; at++ {
		var raw []byte
		var err error
		if raw, rest, err = splitBundle(rest); err != nil {
			return err
		}
		if at < c.index {
			continue
		}
		if err := take(at, raw); err != nil {
			return err
		}
	}
	c.at, c.batch = at, c.batch[:0]
	return nil
}

// atEnd tells an unfinished end, which may grow, from damage.
func (c *cursor) atEnd(f *still, off int64, cause error) error {
	if cause == io.EOF {
		return nil
	}
	torn, err := f.tornAt(off)
	if err != nil {
		return err
	}
	if !torn {
		return fmt.Errorf("%s: %w", segmentName(c.first), cause)
	}
	return nil
}

// A still is a file as long as it was when it was opened. A daemon may append
// meanwhile; what was there then, is whole.
type still struct {
	*io.SectionReader
	io.Closer
}

func openStill(fsys fs.FS, name string) (*still, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	at, ok := f.(io.ReaderAt)
	if !ok {
		f.Close()
		return nil, fmt.Errorf("%s: the file system can't read from the middle of files", name)
	}
	return &still{io.NewSectionReader(at, 0, fi.Size()), f}, nil
}

// tornAt tells whether the rest of the file is what a crash can leave.
func (s *still) tornAt(off int64) (bool, error) {
	n := s.Size() - off
	if n > maxBatchTail {
		return false, nil
	}
	tail := make([]byte, max(0, n))
	if _, err := s.ReadAt(tail, off); err != nil && err != io.EOF {
		return false, err
	}
	return findCheckpoint(tail) < 0, nil
}

// LeafHash returns the record's hash in the tree (RFC 6962 §2.1): with the log's
// ID and the index it leads back to a proof.
func (e Entry) LeafHash() [32]byte { return tlog.RecordHash(e.Raw) }

// LogID returns what names a log for good: the SHA-256 of its note verifier key,
// in hexadecimal.
func LogID(vkey string) string {
	id := logID(vkey)
	return hex.EncodeToString(id[:])
}

// openedSegments are a log's segments as they were at one moment.
type openedSegments struct {
	fsys   fs.FS
	firsts []uint64
	stills []*still // nil: opened when wanted
}

// openSegments lists the segments. Of a log in use it opens them all at once,
// since a daemon may turn them into tiles meanwhile.
func openSegments(fsys fs.FS, inUse bool) (*openedSegments, error) {
	for tries := 0; ; tries++ {
		firsts, err := segmentsOf(fsys)
		if err != nil {
			return nil, err
		}
		s := &openedSegments{fsys: fsys, firsts: firsts}
		if !inUse {
			return s, nil
		}
		for i := 0; i < len(firsts) && err == nil; i++ {
			var f *still
			if f, err = openStill(fsys, segmentName(firsts[i])); err == nil {
				s.stills = append(s.stills, f)
			}
		}
		if err == nil {
			return s, nil
		}
		s.close()
		if !errors.Is(err, fs.ErrNotExist) || tries == 10 {
			return nil, err
		}
	}
}

// open returns a segment; closing it twice does no harm.
func (s *openedSegments) open(i int) (*still, error) {
	if s.stills != nil {
		return s.stills[i], nil
	}
	return openStill(s.fsys, segmentName(s.firsts[i]))
}

func (s *openedSegments) close() {
	for _, f := range s.stills {
		f.Close()
	}
}
