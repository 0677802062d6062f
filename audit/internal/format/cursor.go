package format

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/vouchd/vouchd/state"
)

// A Cursor is a place in the log: in the tiles where they are all there is, then
// in the segments, always behind a checkpoint.
type Cursor struct {
	FS    fs.FS  // the log
	Index uint64 // of the next record wanted

	placed bool   // in a segment
	First  uint64 // of the segment being read
	off    int64
	at     uint64 // index of the record at off

	batch []byte // records since the last checkpoint, bundled
}

// ErrStop is what a callback returns to end a walk early. The walk returns it.
var ErrStop = errors.New("stop")

var errGone = errors.New("segment was removed meanwhile")

// Advance calls each for the records that are there, from the one wanted on, as
// long as it returns nil. The bytes are good during the call.
func (c *Cursor) Advance(ctx context.Context, each func(index uint64, raw []byte) error) error {
	take := func(index uint64, raw []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := each(index, raw); err != nil {
			return err
		}
		c.Index = index + 1
		return nil
	}
	for tries := 0; ; {
		firsts, err := Segments(c.FS)
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
		next, ok := after(firsts, c.First)
		if !ok {
			return nil
		}
		if next != c.at {
			return fmt.Errorf("%s ends with record %d, and %s goes on elsewhere; see vouch log verify", SegmentName(c.First), c.at, SegmentName(next))
		}
		c.First, c.off = next, 0
	}
}

// place finds the segment that has the record wanted, once the tiles were read
// up to there.
func (c *Cursor) place(firsts []uint64, take func(uint64, []byte) error) error {
	if len(firsts) == 0 || c.Index < firsts[0] {
		if err := c.tiles(firsts, take); err != nil {
			return err
		}
	}
	for i, first := range firsts {
		if i == 0 || first <= c.Index {
			c.First, c.off, c.at, c.placed = first, 0, first, true
		}
	}
	return nil
}

// tiles reads entry bundles up to the first segment, or to the end of the
// checkpoint where there is no segment.
func (c *Cursor) tiles(firsts []uint64, take func(uint64, []byte) error) error {
	first, count, err := Bundles(c.FS)
	if err != nil {
		return err
	}
	end := uint64(first+count) * TileWidth
	if len(firsts) > 0 {
		end = firsts[0]
		if count == 0 {
			c.Index = max(c.Index, end) // a copy of segments alone
		}
	}
	c.Index = max(c.Index, min(uint64(first)*TileWidth, end))
	for c.Index < end {
		err := ReadBundle(c.FS, FullTile(EntriesLevel, int64(c.Index/TileWidth)), c.Index, func(index uint64, raw []byte) error {
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

// rereads is how often a frame that is not whole is read again.
const rereads = 3

// segment reads on in the segment, batch by batch, to its end.
func (c *Cursor) segment(ctx context.Context, take func(uint64, []byte) error) error {
	f, err := OpenStill(c.FS, SegmentName(c.First))
	if errors.Is(err, fs.ErrNotExist) {
		return errGone
	}
	if err != nil {
		return err
	}
	defer f.Close()
	frames := f.Frames(c.off)
	c.batch = c.batch[:0]
	for again := rereads; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind, data, err := frames.Next()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, state.ErrNoFrame):
			if err = c.atEnd(f, frames.Offset(), err); err == nil || again == 0 {
				return err
			}
			again-- // what was read may have been half written, and be whole by now
			frames = f.Frames(frames.Offset())
			continue
		case err != nil:
			return err
		}
		again = rereads
		switch kind {
		case KindSegment:
			c.off = frames.Offset()
		case KindLeaf:
			c.batch = AppendBundled(c.batch, data)
		case KindCheckpoint:
			if err := c.deliver(take); err != nil {
				return err
			}
			c.off = frames.Offset()
		}
	}
}

// deliver hands out the batch.
func (c *Cursor) deliver(take func(uint64, []byte) error) error {
	at := c.at
	for rest := c.batch; len(rest) > 0; at++ {
		var raw []byte
		var err error
		if raw, rest, err = SplitBundle(rest); err != nil {
			return err
		}
		if at < c.Index {
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
func (c *Cursor) atEnd(f *Still, off int64, cause error) error {
	if _, err := f.Tail(off); err != nil {
		return fmt.Errorf("%s: %w: %w", SegmentName(c.First), cause, err)
	}
	return nil
}
