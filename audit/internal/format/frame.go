package format

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/vouchd/vouchd/audit"
)

// A segment file is a sequence of frames:
//
//	kind (1 byte) | length (4, big endian) | CRC-32C (4, big endian) | bytes
//
// The checksum covers kind, length and bytes. It tells a torn write from a
// whole one; what a change was made on purpose, the tree tells.
const (
	KindSegment    = 'S' // first in the file: what the segment continues
	KindLeaf       = 'L'
	KindCheckpoint = 'C' // ends a batch: without it the leaves before do not count

	FrameHeader = 9
	MaxFrame    = audit.MaxLeaf // bytes in a frame of any kind
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// BeginFrame makes room for a frame's header. Append the frame's bytes, then call
// EndFrame.
func BeginFrame(b []byte) []byte { return append(b, make([]byte, FrameHeader)...) }

// EndFrame completes a frame that BeginFrame began at start.
func EndFrame(b []byte, start int, kind byte) {
	head, data := b[start:start+FrameHeader], b[start+FrameHeader:]
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	binary.BigEndian.PutUint32(head[5:], frameSum(head[:5], data))
}

// AppendFrame appends a whole frame.
func AppendFrame(b []byte, kind byte, data []byte) []byte {
	start := len(b)
	b = append(BeginFrame(b), data...)
	EndFrame(b, start, kind)
	return b
}

func frameSum(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, crcTable), crcTable, data)
}

// ErrFrame means that the bytes at an offset are no frame: damaged, or torn
// off by a crash.
var ErrFrame = errors.New("no whole frame")

// A FrameReader reads frames one after the other.
type FrameReader struct {
	r    *bufio.Reader
	Off  int64 // of the next frame; set it when r does not begin at the file's start
	held int   // bytes of the last frame, still in r
}

// NewFrameReader returns a reader of the frames in r.
func NewFrameReader(r io.Reader) *FrameReader {
	return &FrameReader{r: bufio.NewReaderSize(r, 4*MaxFrame)}
}

// Next returns the next frame; its bytes are good until the next call. At the
// end of the file the error is io.EOF, and for bytes that make no frame it wraps
// ErrFrame; Off then stays where those bytes begin.
func (f *FrameReader) Next() (kind byte, data []byte, err error) {
	f.r.Discard(f.held)
	f.held = 0
	head, err := f.r.Peek(FrameHeader)
	switch {
	case err == io.EOF && len(head) == 0:
		return 0, nil, io.EOF
	case err == io.EOF:
		return 0, nil, fmt.Errorf("%w at offset %d: only %d bytes of a header", ErrFrame, f.Off, len(head))
	case err != nil:
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("%w at offset %d: length %d is out of range", ErrFrame, f.Off, n)
	}
	whole, err := f.r.Peek(FrameHeader + int(n))
	switch {
	case err == io.EOF:
		return 0, nil, fmt.Errorf("%w at offset %d: the file ends inside it", ErrFrame, f.Off)
	case err != nil:
		return 0, nil, err
	}
	kind, data = whole[0], whole[FrameHeader:]
	if frameSum(whole[:5], data) != binary.BigEndian.Uint32(whole[5:]) {
		return 0, nil, fmt.Errorf("%w at offset %d: its checksum does not match", ErrFrame, f.Off)
	}
	f.held = len(whole)
	f.Off += int64(f.held)
	return kind, data, nil
}

// FindCheckpoint looks for a whole checkpoint frame anywhere in b and returns
// where it starts, or -1.
func FindCheckpoint(b []byte) int {
	for at := 0; ; at++ {
		i := bytes.IndexByte(b[at:], KindCheckpoint)
		if i < 0 {
			return -1
		}
		at += i
		rest := b[at:]
		if len(rest) < FrameHeader {
			return -1
		}
		n := binary.BigEndian.Uint32(rest[1:])
		if n == 0 || n > MaxFrame || len(rest) < FrameHeader+int(n) {
			continue
		}
		if frameSum(rest[:5], rest[FrameHeader:FrameHeader+int(n)]) == binary.BigEndian.Uint32(rest[5:]) {
			return at
		}
	}
}
