package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// walDir holds the segments, each named by the index of its first record.
const walDir = "wal"

const (
	segmentSuffix = ".wal"
	tempSuffix    = ".tmp"
)

func segmentName(first uint64) string {
	return path.Join(walDir, fmt.Sprintf("%020d%s", first, segmentSuffix))
}

// segmentsOf returns the first index of every segment, in order; none if there
// is no walDir, as in a copy of tiles alone.
func segmentsOf(fsys fs.FS) ([]uint64, error) {
	entries, err := fs.ReadDir(fsys, walDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return segmentsIn(entries)
}

// segmentsIn returns the first index of every segment in walDir, in order.
func segmentsIn(entries []fs.DirEntry) ([]uint64, error) {
	var firsts []uint64
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || segmentName(first) != path.Join(walDir, e.Name()) {
			return nil, fmt.Errorf("%s/%s is not the name of a segment", walDir, e.Name())
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	return firsts, nil
}

// A segmentHeader says what a segment continues: enough to go on from there
// without the segments before.
type segmentHeader struct {
	vkey       string
	checkpoint []byte // signed, of the tree before the first record
	tree       tree   // the same tree
}

// The header's form: a title, the verifier key and the frontier, one a line;
// an empty line; the signed checkpoint.
const segmentTitle = "vouchd attestation log segment v1"

func (h segmentHeader) marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%s\n", segmentTitle, h.vkey)
	for _, hash := range h.tree.frontier() {
		fmt.Fprintf(&b, "%s\n", hash)
	}
	b.WriteByte('\n')
	b.Write(h.checkpoint)
	return b.Bytes()
}

// parseSegmentHeader checks that the checkpoint is signed by the key that the
// header names, and that it is of the tree that the frontier makes. Whether
// that key is the right one is the caller's to judge.
func parseSegmentHeader(data []byte) (segmentHeader, note.Verifier, error) {
	head, checkpoint, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) < 2 || lines[0] != segmentTitle {
		return segmentHeader{}, nil, errors.New("not a segment header that is known here")
	}
	v, err := note.NewVerifier(lines[1])
	if err != nil {
		return segmentHeader{}, nil, fmt.Errorf("segment's key: %w", err)
	}
	c, err := openCheckpoint(checkpoint, v)
	if err != nil {
		return segmentHeader{}, nil, fmt.Errorf("segment's %w", err)
	}
	var frontier []tlog.Hash
	for _, line := range lines[2:] {
		hash, err := parseHash(line)
		if err != nil {
			return segmentHeader{}, nil, fmt.Errorf("segment's frontier: %w", err)
		}
		frontier = append(frontier, hash)
	}
	t, err := treeFrom(int64(c.Size), frontier)
	if err != nil {
		return segmentHeader{}, nil, fmt.Errorf("segment's frontier: %w", err)
	}
	if t.root() != c.Root {
		return segmentHeader{}, nil, errors.New("segment's frontier does not make its checkpoint's root")
	}
	h := segmentHeader{vkey: lines[1], checkpoint: bytes.Clone(checkpoint), tree: t}
	if !bytes.Equal(h.marshal(), data) {
		return segmentHeader{}, nil, errors.New("segment header is not in canonical form")
	}
	return h, v, nil
}

// A segment is the one that records are appended to. The committing goroutine
// owns it.
type segment struct {
	file  file
	name  string
	first uint64
	off   int64 // where the next batch goes; all before is durable
}

// createSegment makes a segment durable under its name, with only a header, or
// not at all.
func createSegment(d disk, h segmentHeader) (*segment, error) {
	first := uint64(h.tree.size)
	frame := appendFrame(nil, kindSegment, h.marshal())
	s := &segment{name: segmentName(first), first: first, off: int64(len(frame))}
	var err error
	s.file, err = writeDurably(d, s.name, func(f file) error {
		_, err := f.WriteAt(frame, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making segment: %w", err)
	}
	return s, nil
}

// writeDurably replaces a file by one that fill writes, and returns it open. In a
// crash the name stands for the old file or for the whole new one.
func writeDurably(d disk, name string, fill func(file) error) (file, error) {
	temp := name + tempSuffix
	if err := d.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := d.create(temp)
	if err != nil {
		return nil, err
	}
	err = fill(f)
	if err == nil {
		err = f.sync()
	}
	if err == nil {
		err = d.rename(temp, name)
	}
	if err == nil {
		err = d.syncDir(path.Dir(name))
	}
	if err != nil {
		f.Close()
		d.remove(temp) // its space is needed where the disk is full
		return nil, err
	}
	return f, nil
}
