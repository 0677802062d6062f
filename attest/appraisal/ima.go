package appraisal

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrIMA means that a list of measurements is not the one behind PCR 10.
var ErrIMA = errors.New("the IMA list is not the one that PCR 10 was extended with")

// imaPCR is the PCR that IMA extends (CONFIG_IMA_MEASURE_PCR_IDX).
const imaPCR = 10

// An imaEntry is one measured file.
type imaEntry struct {
	path      string
	digest    string // algorithm:hexadecimal
	violation bool   // the file was open for writing as it was measured, so its digest means nothing

	data []byte
}

// parseIMA parses the kernel's binary list of the templates ima-ng and ima-sig
// (Documentation/security/IMA-templates.rst). Numbers are little-endian, as on
// every architecture that vouchd runs on.
func parseIMA(b []byte) ([]imaEntry, error) {
	var entries []imaEntry
	r := imaReader(b)
	for i := 1; len(r) > 0; i++ {
		e, err := r.entry()
		if err != nil {
			return nil, fmt.Errorf("IMA list, entry %d: %w", i, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

type imaReader []byte

var errShort = errors.New("is cut off")

func (r *imaReader) entry() (imaEntry, error) {
	pcr, err := r.number()
	if err != nil {
		return imaEntry{}, err
	}
	if pcr != imaPCR {
		return imaEntry{}, fmt.Errorf("is for PCR %d", pcr)
	}
	digest, err := r.bytes(sha1.Size)
	if err != nil {
		return imaEntry{}, err
	}
	name, err := r.field()
	if err != nil {
		return imaEntry{}, err
	}
	if s := string(name); s != "ima-ng" && s != "ima-sig" {
		return imaEntry{}, fmt.Errorf("has template %.20q; use ima-ng or ima-sig", s)
	}
	data, err := r.field()
	if err != nil {
		return imaEntry{}, err
	}
	e := imaEntry{data: data, violation: bytes.Equal(digest, make([]byte, sha1.Size))}
	// The list has SHA-1 digests only. They prove nothing and still have to fit.
	if made := sha1.Sum(data); !e.violation && !bytes.Equal(made[:], digest) {
		return imaEntry{}, errors.New("does not have the digest of its data")
	}
	return e, e.parse()
}

// parse reads the fields d-ng ("sha256:", NUL, digest) and n-ng (path, NUL).
func (e *imaEntry) parse() error {
	r := imaReader(e.data)
	d, err := r.field()
	if err != nil {
		return err
	}
	n, err := r.field()
	if err != nil {
		return err
	}
	algorithm, digest, ok := bytes.Cut(d, []byte(":\x00"))
	path, end := bytes.CutSuffix(n, []byte{0})
	if !ok || !end || bytes.IndexByte(path, 0) >= 0 {
		return errors.New("has malformed fields")
	}
	e.digest = string(algorithm) + ":" + hex.EncodeToString(digest)
	e.path = string(path)
	return nil
}

func (r *imaReader) number() (uint32, error) {
	b, err := r.bytes(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *imaReader) field() ([]byte, error) {
	n, err := r.number()
	if err != nil {
		return nil, err
	}
	return r.bytes(n)
}

func (r *imaReader) bytes(n uint32) ([]byte, error) {
	if uint64(n) > uint64(len(*r)) {
		return nil, errShort
	}
	b := (*r)[:n]
	*r = (*r)[n:]
	return b, nil
}

// replayIMA returns the entries that make up PCR 10 as it was quoted (SHA-256
// bank). The list was read after the quote, so entries may follow; they are
// not proven and left out.
func replayIMA(entries []imaEntry, pcr []byte) ([]imaEntry, error) {
	value := make([]byte, sha256.Size)
	for i, e := range entries {
		measured := sha256.Sum256(e.data)
		if e.violation {
			copy(measured[:], bytes.Repeat([]byte{0xff}, sha256.Size))
		}
		h := sha256.New()
		h.Write(value)
		h.Write(measured[:])
		value = h.Sum(value[:0])
		if bytes.Equal(value, pcr) {
			return entries[:i+1], nil
		}
	}
	return nil, ErrIMA
}

// An imaPattern names files by path and digest.
type imaPattern struct {
	Path   string   `yaml:"path" required:"true" like:"/usr/bin/*"`
	SHA256 []digest `yaml:"sha256"`
}

// allows reports whether the pattern names the file for certain: no digests
// stand for any digest, and an unknown digest is none of those named.
func (p imaPattern) allows(e imaEntry) bool {
	return p.matchesPath(e.path) && (len(p.SHA256) == 0 || e.known() && p.names(e.digest))
}

// forbids reports whether the pattern may name the file: an unknown digest may
// be any.
func (p imaPattern) forbids(e imaEntry) bool {
	return p.matchesPath(e.path) && (len(p.SHA256) == 0 || !e.known() || p.names(e.digest))
}

// matchesPath compares paths; a * at the end stands for anything.
func (p imaPattern) matchesPath(path string) bool {
	prefix, open := strings.CutSuffix(p.Path, "*")
	return path == p.Path || open && strings.HasPrefix(path, prefix)
}

func (p imaPattern) names(d string) bool {
	return slices.Contains(p.SHA256, digest(strings.TrimPrefix(d, "sha256:")))
}

// known reports whether the file's SHA-256 digest is known. It is not if the
// kernel hashes with something else.
func (e imaEntry) known() bool { return !e.violation && strings.HasPrefix(e.digest, "sha256:") }
