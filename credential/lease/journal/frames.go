package journal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/vouchd/vouchd/state"
)

// The journal's file is a magic line and frames as [state] has them. The first
// frame is the head: a salt and the sealed key. Each other is a JSON list of
// changes, encrypted with AES-256-GCM under a key that is derived for this file
// alone; the nonce is the frame's number, so frames open in their place only.
const (
	magic = "vouchd leases 1\n"

	headFrame = 'K'
	dataFrame = 'D'

	saltLen     = 32
	maxFrameLen = 64 << 20 // bytes after the head; a batch of the largest states
)

// ErrDamaged means that the journal holds something other than what was
// written, before its end. The daemon does not start over it: leases that it
// cannot read would never be ended.
var ErrDamaged = errors.New("lease journal is damaged")

func newKey() (key [32]byte) {
	rand.Read(key[:])
	return key
}

// A head is the first frame of a file.
type head struct {
	salt   []byte
	sealed []byte
}

func (h head) cipher(key [32]byte) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, key[:], h.salt, journalLabel, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// A frameFile is a journal's file that is being written.
type frameFile struct {
	f      *os.File
	aead   cipher.AEAD
	number uint64 // of the frames after the head
	size   int64
}

// newFrameFile writes the head of an empty file.
func newFrameFile(f *os.File, sealed []byte, key [32]byte) (*frameFile, error) {
	h := head{salt: make([]byte, saltLen), sealed: sealed}
	rand.Read(h.salt)
	aead, err := h.cipher(key)
	if err != nil {
		return nil, err
	}
	file := &frameFile{f: f, aead: aead}
	return file, file.put(state.AppendFrame([]byte(magic), headFrame, append(h.salt, sealed...)))
}

// write makes a frame of changes durable.
func (file *frameFile) write(changes []journalChange) error {
	if err := file.add(changes); err != nil {
		return err
	}
	return syscall.Fdatasync(int(file.f.Fd()))
}

// add writes a frame of changes, in one write: a torn frame can only be the
// last.
func (file *frameFile) add(changes []journalChange) error {
	if len(changes) == 0 {
		return nil
	}
	plain, err := json.Marshal(changes)
	if err != nil {
		return err
	}
	if len(plain) > maxFrameLen-file.aead.Overhead() {
		return fmt.Errorf("%d bytes are more than a frame holds", len(plain))
	}
	file.number++
	b := file.aead.Seal(state.BeginFrame(nil), nonce(file.number), plain, []byte{dataFrame})
	state.EndFrame(b, 0, dataFrame)
	return file.put(b)
}

func (file *frameFile) put(b []byte) error {
	n, err := file.f.Write(b)
	file.size += int64(n)
	return err
}

func (file *frameFile) close() { file.f.Close() }

func nonce(number uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), number)
}

// readHead reads the magic line and the first frame, which were durable before
// the file had its name. The reader returned stands behind them.
func readHead(f *os.File) (head, *state.FrameReader, error) {
	b := make([]byte, len(magic))
	if _, err := io.ReadFull(f, b); err != nil || string(b) != magic {
		return head{}, nil, fmt.Errorf("%w: it does not begin like one of this version", ErrDamaged)
	}
	frames := state.NewFrameReader(f, int64(len(magic)), maxFrameLen)
	kind, data, err := frames.Next()
	if err != nil || kind != headFrame || len(data) < saltLen {
		return head{}, nil, fmt.Errorf("%w at offset %d: its header cannot be read", ErrDamaged, len(magic))
	}
	data = slices.Clone(data)
	return head{salt: data[:saltLen], sealed: data[saltLen:]}, frames, nil
}

// readFrames passes each frame's plain text to yield, up to a torn end. Only the last write
// can be torn, and it was never reported as durable; anything else that differs from what
// was written is [ErrDamaged]. Damage to the last frame is indistinguishable from a torn
// write.
func readFrames(f *os.File, frames *state.FrameReader, aead cipher.AEAD, yield func(plain []byte) error) error {
	for number := uint64(1); ; number++ {
		at := frames.Offset()
		kind, data, err := frames.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, state.ErrNoFrame):
			return damagedBeforeEnd(f, at, number)
		case err != nil:
			return err
		}
		plain, err := aead.Open(nil, nonce(number), data, []byte{kind})
		if err != nil || kind != dataFrame {
			return fmt.Errorf("%w at offset %d: frame %d is not one that this machine wrote there; restore the file, or move it away and end its leases upstream by hand", ErrDamaged, at, number)
		}
		if err := yield(plain); err != nil {
			return fmt.Errorf("%w at offset %d: %w", ErrDamaged, at, err)
		}
	}
}

// damagedBeforeEnd returns nil if the bytes from at on are one torn write, and
// an error if a later frame follows them.
func damagedBeforeEnd(f *os.File, at int64, number uint64) error {
	rest, err := io.ReadAll(io.NewSectionReader(f, at, 1<<62))
	if err != nil || len(rest) == 0 {
		return err
	}
	later, data := state.FindFrame(rest[1:], dataFrame, len(rest))
	if later < 0 {
		return nil
	}
	return fmt.Errorf("%w at offset %d: frame %d cannot be read, and %d bytes of a later one follow; restore the file, or move it away and end its leases upstream by hand",
		ErrDamaged, at, number, len(data))
}
