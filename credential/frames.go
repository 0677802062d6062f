package credential

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
	"hash/crc32"
	"io"
	"os"
	"syscall"
)

// The journal's file is a magic line and frames of type, length, CRC-32C over
// both and the bytes, and the bytes; numbers are big-endian. The first frame is
// the head: a salt and the sealed key. Each other is a JSON list of changes,
// encrypted with AES-256-GCM under a key that is derived for this file alone;
// the nonce is the frame's number, so that frames open in their place only.
const (
	magic = "vouchd leases 1\n"

	headFrame = 'K'
	dataFrame = 'D'

	frameHeadLen = 1 + 4 + 4
	saltLen      = 32
	maxFrameLen  = 64 << 20 // bytes after the head; a batch of the largest states
)

// ErrDamaged means that the journal holds something other than what was
// written, before its end. The daemon does not start over it: leases that it
// cannot read would never be ended.
var ErrDamaged = errors.New("lease journal is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
	return file, file.put(append([]byte(magic), frame(headFrame, append(h.salt, sealed...))...))
}

// write makes a frame of changes durable.
func (file *frameFile) write(changes []journalChange) error {
	if err := file.add(changes); err != nil {
		return err
	}
	return syscall.Fdatasync(int(file.f.Fd()))
}

// add writes a frame of changes, in one write so that a torn frame can only be
// the last.
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
	return file.put(frame(dataFrame, file.aead.Seal(nil, nonce(file.number), plain, []byte{dataFrame})))
}

func (file *frameFile) put(b []byte) error {
	n, err := file.f.Write(b)
	file.size += int64(n)
	return err
}

func (file *frameFile) close() { file.f.Close() }

func frame(kind byte, data []byte) []byte {
	b := make([]byte, frameHeadLen, frameHeadLen+len(data))
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(len(data)))
	binary.BigEndian.PutUint32(b[5:], checksum(b[:5], data))
	return append(b, data...)
}

func checksum(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, data)
}

func nonce(number uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), number)
}

// readHead reads the magic line and the first frame, which were durable before
// the file had its name.
func readHead(f *os.File) (head, error) {
	b := make([]byte, len(magic))
	if _, err := io.ReadFull(f, b); err != nil || string(b) != magic {
		return head{}, fmt.Errorf("%w: it does not begin as one of this version does", ErrDamaged)
	}
	kind, data, err := readFrame(f)
	if err != nil || kind != headFrame || len(data) < saltLen {
		return head{}, fmt.Errorf("%w at offset %d: its head cannot be read", ErrDamaged, len(magic))
	}
	return head{salt: data[:saltLen], sealed: data[saltLen:]}, nil
}

// errTorn means a frame that is not whole.
var errTorn = errors.New("frame is not whole")

func readFrame(r io.Reader) (kind byte, data []byte, err error) {
	var b [frameHeadLen]byte
	if n, err := io.ReadFull(r, b[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return 0, nil, io.EOF
		}
		return 0, nil, errTorn
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n > maxFrameLen {
		return 0, nil, errTorn
	}
	// Grown as it is read, so that a wrong length takes no more memory than
	// the file has bytes.
	data, err = io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil || len(data) < int(n) || checksum(b[:5], data) != binary.BigEndian.Uint32(b[5:]) {
		return 0, nil, errTorn
	}
	return b[0], data, nil
}

// readFrames gives each frame's plain text to yield, up to a torn end. Torn is
// the last write alone, which nobody was told is durable; anything else that is
// not as it was written is [ErrDamaged]. Damage to the last frame cannot be
// told from a torn write.
func readFrames(f *os.File, h head, key [32]byte, yield func(plain []byte) error) error {
	aead, err := h.cipher(key)
	if err != nil {
		return err
	}
	for number := uint64(1); ; number++ {
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		kind, data, err := readFrame(f)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return damagedBeforeEnd(f, at, number)
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
	if err != nil {
		return err
	}
	for i := 1; i+frameHeadLen <= len(rest); i++ {
		length := int64(binary.BigEndian.Uint32(rest[i+1:]))
		if rest[i] != dataFrame || length > int64(len(rest)-i-frameHeadLen) {
			continue
		}
		data := rest[i+frameHeadLen:][:length]
		if checksum(rest[i:][:5], data) != binary.BigEndian.Uint32(rest[i+5:]) {
			continue
		}
		return fmt.Errorf("%w at offset %d: frame %d cannot be read, and %d bytes of a later one follow; restore the file, or move it away and end its leases upstream by hand",
			ErrDamaged, at, number, len(data))
	}
	return nil
}
