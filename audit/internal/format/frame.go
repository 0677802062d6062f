package format

import (
	"io"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/state"
)

// The frames of a segment file, which are those of package state: what a change
// was made on purpose, the tree tells and not their checksum.
const (
	KindSegment    = 'S' // first in the file: what the segment continues
	KindLeaf       = 'L'
	KindCheckpoint = 'C' // ends a batch: without it the leaves before do not count

	MaxFrame = audit.MaxLeaf // bytes in a frame of any kind
)

// Frames returns a reader of the frames in r, which stands at an offset in the file.
func Frames(r io.Reader, offset int64) *state.FrameReader {
	return state.NewFrameReader(r, offset, MaxFrame)
}
