package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"time"
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

// A cursor is a place in the log, always behind a checkpoint.
type cursor struct {
	fsys  fs.FS
	index uint64 // of the next record wanted

	placed bool
	first  uint64 // of the segment being read
	off    int64
	at     uint64 // index of the record at off
}

// readAll yields what is there. It reports whether to go on later.
func (c *cursor) readAll(ctx context.Context, yield func(Entry, error) bool) bool {
	err := c.advance(ctx, func(e Entry) bool { return yield(e, nil) })
	if err == errStop {
		return false
	}
	if err != nil {
		yield(Entry{}, fmt.Errorf("reading attestation log: %w", err))
		return false
	}
	return true
}

// errStop means that the consumer wants no more.
var errStop = errors.New("stop")

func (c *cursor) advance(ctx context.Context, yield func(Entry) bool) error {
	for {
		entries, err := fs.ReadDir(c.fsys, walDir)
		if err != nil {
			return err
		}
		firsts, err := segmentsIn(entries)
		if err != nil {
			return err
		}
		if len(firsts) == 0 {
			return fs.ErrNotExist
		}
		if !c.placed {
			c.place(firsts)
		}
		if err := c.segment(ctx, yield); err != nil {
			return err
		}
		// The segment is at its end. If another follows, it was sealed; but only
		// if the list that names the other is older than what was read.
		next, ok := after(firsts, c.first)
		if !ok {
			return nil
		}
		if next != c.at {
			return fmt.Errorf("%s ends with %d records, and %s goes on with another number; see vouch log verify", segmentName(c.first), c.at, segmentName(next))
		}
		c.first, c.off = next, 0
	}
}

// place chooses the segment that has the record wanted, or the first one.
func (c *cursor) place(firsts []uint64) {
	c.first = firsts[0]
	for _, first := range firsts {
		if first <= c.index {
			c.first = first
		}
	}
	c.placed, c.at = true, c.first
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
func (c *cursor) segment(ctx context.Context, yield func(Entry) bool) error {
	name := segmentName(c.first)
	f, err := openStill(c.fsys, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(c.off, io.SeekStart); err != nil {
		return err
	}
	frames := newFrameReader(f)
	frames.off = c.off
	var batch []Entry
	at := c.at
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
			if at >= c.index {
				batch = append(batch, Entry{Index: at, Raw: bytes.Clone(data)})
			}
			at++
		case kindCheckpoint:
			if err := c.deliver(batch, yield); err != nil {
				return err
			}
			batch = batch[:0]
			c.off, c.at = frames.off, at
		}
	}
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

func (c *cursor) deliver(batch []Entry, yield func(Entry) bool) error {
	for _, e := range batch {
		leaf, err := DecodeLeaf(e.Raw)
		if err != nil {
			return fmt.Errorf("record %d: %w", e.Index, err)
		}
		e.Leaf = leaf
		c.index = e.Index + 1
		if !yield(e) {
			return errStop
		}
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
