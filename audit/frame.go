package audit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A segment file is a sequence of frames:
//
//	kind (1 byte) | length (4, big endian) | CRC-32C (4, big endian) | bytes
//
// The checksum covers kind, length and bytes. It tells a torn write from a
// whole one; what a change was made on purpose, the tree tells.
const (
	kindSegment    = 'S' // first in the file: what the segment continues
	kindLeaf       = 'L'
	kindCheckpoint = 'C' // ends a batch: without it the leaves before do not count

	frameHeader = 9
	maxFrame    = MaxLeaf // bytes in a frame of any kind
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// beginFrame makes room for a frame's header; endFrame fills it once the bytes
// are there. start is where the frame begins.
func beginFrame(b []byte) []byte { return append(b, make([]byte, frameHeader)...) }

func endFrame(b []byte, start int, kind byte) {
	head, data := b[start:start+frameHeader], b[start+frameHeader:]
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	binary.BigEndian.PutUint32(head[5:], frameSum(head[:5], data))
}

func appendFrame(b []byte, kind byte, data []byte) []byte {
	start := len(b)
	b = append(beginFrame(b), data...)
	endFrame(b, start, kind)
	return b
}

func frameSum(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, crcTable), crcTable, data)
}

// errFrame means that the bytes at an offset are no frame: damaged, or torn
// off by a crash.
var errFrame = errors.New("no whole frame")

// A frameReader reads frames one after the other.
type frameReader struct {
	r    *bufio.Reader
	off  int64 // of the next frame
	held int   // bytes of the last frame, still in r
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 4*maxFrame)}
}

// next returns the next frame; its bytes are good until the next call. At the
// end of the file the error is io.EOF, and for bytes that make no frame it wraps
// errFrame; off then stays where those bytes begin.
func (f *frameReader) next() (kind byte, data []byte, err error) {
	f.r.Discard(f.held)
	f.held = 0
	head, err := f.r.Peek(frameHeader)
	switch {
	case err == io.EOF && len(head) == 0:
		return 0, nil, io.EOF
	case err == io.EOF:
		return 0, nil, fmt.Errorf("%w at offset %d: only %d bytes of a header", errFrame, f.off, len(head))
	case err != nil:
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("%w at offset %d: length %d is out of range", errFrame, f.off, n)
	}
	whole, err := f.r.Peek(frameHeader + int(n))
	switch {
	case err == io.EOF:
		return 0, nil, fmt.Errorf("%w at offset %d: the file ends inside it", errFrame, f.off)
	case err != nil:
		return 0, nil, err
	}
	kind, data = whole[0], whole[frameHeader:]
	if frameSum(whole[:5], data) != binary.BigEndian.Uint32(whole[5:]) {
		return 0, nil, fmt.Errorf("%w at offset %d: its checksum does not match", errFrame, f.off)
	}
	f.held = len(whole)
	f.off += int64(f.held)
	return kind, data, nil
}

// findCheckpoint looks for a whole checkpoint frame anywhere in b and returns
// where it starts, or -1.
func findCheckpoint(b []byte) int {
	for at := 0; ; at++ {
		i := bytes.IndexByte(b[at:], kindCheckpoint)
		if i < 0 {
			return -1
		}
		at += i
		rest := b[at:]
		if len(rest) < frameHeader {
			return -1
		}
		n := binary.BigEndian.Uint32(rest[1:])
		if n == 0 || n > maxFrame || len(rest) < frameHeader+int(n) {
			continue
		}
		if frameSum(rest[:5], rest[frameHeader:frameHeader+int(n)]) == binary.BigEndian.Uint32(rest[5:]) {
			return at
		}
	}
}
