package format

import (
	"bytes"
	"fmt"
	"io"

	"github.com/vouchd/vouchd/state"
)

// The file of the segment that is being written is filled with zeros ahead of what is
// written: making a batch durable then changes no size. A crash leaves zeros behind
// the last batch, and of the batch in flight any of its sectors.
const (
	Preallocated = 64 << 10 // bytes, of which a segment's file is a multiple meanwhile
	sector       = 512      // bytes that a disk writes whole, or not at all
	maxTail      = MaxBatchTail + Preallocated
)

// ReadTail reads what a crash left behind the last checkpoint, at an offset, of a
// file: without the zeros at its end, and so nothing where the file ends cleanly. An
// error says why no crash can have left it, so that the file was damaged.
func ReadTail(r io.ReaderAt, off, size int64) ([]byte, error) {
	if size-off > maxTail {
		return nil, fmt.Errorf("%d bytes behind the last checkpoint are more than a crash can leave", size-off)
	}
	tail := make([]byte, size-off)
	if _, err := r.ReadAt(tail, off); err != nil && err != io.EOF {
		return nil, err
	}
	tail = bytes.TrimRight(tail, "\x00")
	if at := FindCheckpoint(tail); at >= 0 && !tornBefore(tail[:at], off) {
		return nil, fmt.Errorf("there is a checkpoint behind it, at offset %d", off+int64(at))
	}
	return tail, nil
}

// tornBefore tells whether a sector of what stands at the offset was never written: a
// batch's checkpoint may have reached the disk before the rest of the batch, and then
// nobody was told of it.
func tornBefore(b []byte, off int64) bool {
	for len(b) > 0 {
		n := min(int64(len(b)), sector-off%sector)
		if len(bytes.TrimLeft(b[:n], "\x00")) == 0 {
			return true
		}
		b, off = b[n:], off+n
	}
	return false
}

// FindCheckpoint looks for a whole checkpoint frame anywhere in b and returns
// where it starts, or -1.
func FindCheckpoint(b []byte) int {
	at, _ := state.FindFrame(b, KindCheckpoint, MaxFrame)
	return at
}
