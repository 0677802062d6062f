package state

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A file that is appended to is a sequence of frames:
//
//	kind (1 byte) | length (4, big endian) | CRC-32C (4, big endian) | bytes
//
// The checksum covers kind, length and bytes. It tells a whole write from one
// that a crash tore, and nothing about who wrote it: a file that must withstand
// an attacker seals what is in its frames, or signs it.

// FrameHead is the length of what stands before a frame's bytes.
const FrameHead = 1 + 4 + 4

// ErrNoFrame means that no whole frame stands at an offset: damaged, or torn
// off by a crash.
var ErrNoFrame = errors.New("no whole frame")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendFrame appends a frame to b.
func AppendFrame(b []byte, kind byte, data []byte) []byte {
	start := len(b)
	b = append(BeginFrame(b), data...)
	EndFrame(b, start, kind)
	return b
}

// BeginFrame makes room in b for the head of a frame whose bytes the caller
// appends. [EndFrame] fills the head in, given where the frame begins.
func BeginFrame(b []byte) []byte { return append(b, make([]byte, FrameHead)...) }

// EndFrame ends the frame that begins at start and reaches to the end of b.
func EndFrame(b []byte, start int, kind byte) {
	head, data := b[start:start+FrameHead], b[start+FrameHead:]
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	binary.BigEndian.PutUint32(head[5:], frameSum(head[:5], data))
}

func frameSum(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, data)
}

// A FrameReader reads frames one after the other. A length in a head is not
// believed: memory grows with the bytes that are there.
type FrameReader struct {
	r      *bufio.Reader
	most   int
	offset int64
	held   int          // bytes of the last frame, still in r
	long   bytes.Buffer // the bytes of a frame that is longer than r's buffer
}

// NewFrameReader returns a reader of frames of at most that many bytes. Offset
// is where in the file r stands.
func NewFrameReader(r io.Reader, offset int64, most int) *FrameReader {
	return &FrameReader{r: bufio.NewReaderSize(r, 64<<10), most: most, offset: offset}
}

// Offset is where in the file the next frame begins.
func (f *FrameReader) Offset() int64 { return f.offset }

// Next returns the next frame; its bytes are good until the next call. At the
// end of the file the error is [io.EOF]. For bytes that make no whole frame it
// wraps [ErrNoFrame]; Offset stays where they begin, and there is nothing
// further to read.
func (f *FrameReader) Next() (kind byte, data []byte, err error) {
	f.r.Discard(f.held)
	f.held = 0
	head, err := f.r.Peek(FrameHead)
	switch {
	case err == io.EOF && len(head) == 0:
		return 0, nil, io.EOF
	case err == io.EOF:
		return 0, nil, fmt.Errorf("%w at offset %d: only %d bytes of a head", ErrNoFrame, f.offset, len(head))
	case err != nil:
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if int64(length) > int64(f.most) {
		return 0, nil, fmt.Errorf("%w at offset %d: length %d is out of range", ErrNoFrame, f.offset, length)
	}
	kind, sum := head[0], binary.BigEndian.Uint32(head[5:])
	head, data, err = f.whole(int(length))
	switch {
	case err == io.EOF:
		return 0, nil, fmt.Errorf("%w at offset %d: the file ends inside it", ErrNoFrame, f.offset)
	case err != nil:
		return 0, nil, err
	}
	if frameSum(head[:5], data) != sum {
		return 0, nil, fmt.Errorf("%w at offset %d: its checksum does not match", ErrNoFrame, f.offset)
	}
	f.offset += FrameHead + int64(length)
	return kind, data, nil
}

// whole returns the head and the bytes of the next frame.
func (f *FrameReader) whole(length int) (head, data []byte, err error) {
	if FrameHead+length <= f.r.Size() {
		b, err := f.r.Peek(FrameHead + length)
		if err != nil {
			return nil, nil, err
		}
		f.held = len(b)
		return b[:FrameHead], b[FrameHead:], nil
	}
	f.long.Reset()
	if _, err := io.CopyN(&f.long, f.r, FrameHead+int64(length)); err != nil {
		return nil, nil, err
	}
	b := f.long.Bytes()
	return b[:FrameHead], b[FrameHead:], nil
}

// FindFrame looks anywhere in b for a whole frame of a kind, of at most that
// many bytes. It returns where the first one begins, or -1, and its bytes. One
// that stands behind bytes that make no frame shows that these were not torn off
// the end.
func FindFrame(b []byte, kind byte, most int) (at int, data []byte) {
	for at := 0; ; at++ {
		i := bytes.IndexByte(b[at:], kind)
		if i < 0 || len(b)-at-i < FrameHead {
			return -1, nil
		}
		at += i
		head, rest := b[at:at+FrameHead], b[at+FrameHead:]
		length := int64(binary.BigEndian.Uint32(head[1:]))
		if length > int64(most) || length > int64(len(rest)) {
			continue
		}
		if data := rest[:length]; frameSum(head[:5], data) == binary.BigEndian.Uint32(head[5:]) {
			return at, data
		}
	}
}
