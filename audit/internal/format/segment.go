package format

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

// WALDir holds the segments, each named by the index of its first record.
const WALDir = "wal"

const segmentSuffix = ".wal"

// TempSuffix ends the name of a file that is being written. It counts for nothing
// until it has its name without it.
const TempSuffix = ".tmp"

// SegmentName returns the name of the segment that begins with a record.
func SegmentName(first uint64) string {
	return path.Join(WALDir, fmt.Sprintf("%020d%s", first, segmentSuffix))
}

// Segments returns the first index of every segment, in order; none if there
// is no WALDir, as in a copy of tiles alone.
func Segments(fsys fs.FS) ([]uint64, error) {
	entries, err := fs.ReadDir(fsys, WALDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return SegmentsIn(entries)
}

// SegmentsIn returns the first index of every segment in WALDir, in order.
func SegmentsIn(entries []fs.DirEntry) ([]uint64, error) {
	var firsts []uint64
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), segmentSuffix) {
			continue
		}
		first, ok := segmentFirst(e.Name())
		if !ok {
			return nil, fmt.Errorf("%s/%s is not the name of a segment", WALDir, e.Name())
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	return firsts, nil
}

// segmentFirst returns the index of the first record of the segment whose file, in
// WALDir, has the name.
func segmentFirst(base string) (first uint64, ok bool) {
	first, err := strconv.ParseUint(strings.TrimSuffix(base, segmentSuffix), 10, 64)
	return first, err == nil && SegmentName(first) == path.Join(WALDir, base)
}

// A SegmentHeader says what a segment continues: enough to go on from there
// without the segments before.
type SegmentHeader struct {
	Key        string // the log's, as a note verifier key
	Checkpoint []byte // signed, of the tree before the first record
	Tree       Tree   // the same tree
}

// The header's form: a title, the verifier key and the frontier, one a line;
// an empty line; the signed checkpoint.
const segmentTitle = "vouchd attestation log segment v1"

// Marshal returns the header as it stands in a segment's first frame.
func (h SegmentHeader) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%s\n", segmentTitle, h.Key)
	for _, hash := range h.Tree.frontier() {
		fmt.Fprintf(&b, "%s\n", hash)
	}
	b.WriteByte('\n')
	b.Write(h.Checkpoint)
	return b.Bytes()
}

// ParseSegmentHeader checks that the checkpoint is signed by the key that the
// header names, and that it is of the tree that the frontier makes. Whether
// that key is the right one is the caller's to judge.
func ParseSegmentHeader(data []byte) (SegmentHeader, note.Verifier, error) {
	head, checkpoint, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) < 2 || lines[0] != segmentTitle {
		return SegmentHeader{}, nil, errors.New("not a segment header that is known here")
	}
	v, err := note.NewVerifier(lines[1])
	if err != nil {
		return SegmentHeader{}, nil, fmt.Errorf("segment's key: %w", err)
	}
	c, err := OpenCheckpoint(checkpoint, v)
	if err != nil {
		return SegmentHeader{}, nil, fmt.Errorf("segment's %w", err)
	}
	var frontier []tlog.Hash
	for _, line := range lines[2:] {
		hash, err := ParseHash(line)
		if err != nil {
			return SegmentHeader{}, nil, fmt.Errorf("segment's frontier: %w", err)
		}
		frontier = append(frontier, hash)
	}
	t, err := treeFrom(int64(c.Size), frontier)
	if err != nil {
		return SegmentHeader{}, nil, fmt.Errorf("segment's frontier: %w", err)
	}
	if t.Root() != c.Root {
		return SegmentHeader{}, nil, errors.New("segment's frontier does not make its checkpoint's root")
	}
	h := SegmentHeader{Key: lines[1], Checkpoint: bytes.Clone(checkpoint), Tree: t}
	if !bytes.Equal(h.Marshal(), data) {
		return SegmentHeader{}, nil, errors.New("segment header is not in canonical form")
	}
	return h, v, nil
}
