package format

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/state"
)

// Bounds of a batch: the records that become durable together, up to a checkpoint.
const (
	MaxBatchRecords = 1024
	MaxBatchBytes   = 1 << 20
	// MaxBatchTail is the most that a crash can leave unfinished: a batch is
	// closed once it is over MaxBatchBytes, after one more call's records.
	MaxBatchTail = MaxBatchBytes + audit.MaxAppend*(audit.MaxLeaf+state.FrameHead) + MaxFrame + state.FrameHead
)

// A Scanned is what reading a segment tells of the log's end.
type Scanned struct {
	Header SegmentHeader
	Tree   Tree  // at the last checkpoint
	End    int64 // behind the last checkpoint
	Bad    int64 // where reading ended: an unreadable frame, or the end
}

// A ScanVisitor follows what a scan reads. Only records that a later segment or
// anchor depends on are decoded, because a start must not take long.
type ScanVisitor struct {
	Record  func(index uint64, l *audit.Leaf) // l is nil where the record is none of those
	Settled func(*Tree)                       // a checkpoint covers the records so far, which make the tree
}

// ScanSegment reads a segment up to its last checkpoint, and checks that
// checkpoint's signature and root. It leaves every checkpoint before to the
// reader's Verify. The visitor may be the zero value.
func ScanSegment(r io.Reader, v ScanVisitor) (Scanned, error) {
	frames := Frames(r, 0)
	kind, data, err := frames.Next()
	if err == nil && kind != KindSegment {
		err = errors.New("no segment header")
	}
	if err != nil {
		return Scanned{}, fmt.Errorf("reading segment header: %w", err)
	}
	header, key, err := ParseSegmentHeader(data)
	if err != nil {
		return Scanned{}, err
	}
	s := Scanned{Header: header, Tree: header.Tree, End: frames.Offset()}
	last := header.Checkpoint
	if err := s.batches(frames, v, &last); err != nil {
		return Scanned{}, err
	}
	c, err := OpenCheckpoint(last, key)
	if err != nil {
		return Scanned{}, fmt.Errorf("the last checkpoint, before offset %d: %w", s.End, err)
	}
	if c.Size != uint64(s.Tree.Size) || c.Root != s.Tree.Root() {
		return Scanned{}, fmt.Errorf("the last checkpoint, before offset %d, is not of the records before it", s.End)
	}
	return s, nil
}

// batches reads on until the frames end, and keeps the last checkpoint.
func (s *Scanned) batches(frames *state.FrameReader, v ScanVisitor, last *[]byte) error {
	t := s.Tree
	for {
		kind, data, err := frames.Next()
		s.Bad = frames.Offset()
		if err == io.EOF || errors.Is(err, state.ErrNoFrame) {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind {
		case KindLeaf:
			l, err := decodeNotable(data)
			if err != nil {
				return fmt.Errorf("record %d, before offset %d: %w", t.Size, frames.Offset(), err)
			}
			if v.Record != nil {
				v.Record(uint64(t.Size), l)
			}
			t.Add(tlog.RecordHash(data))
		case KindCheckpoint:
			*last = append((*last)[:0:0], data...)
			s.Tree, s.End = t, frames.Offset()
			if v.Settled != nil {
				v.Settled(&t)
			}
		default:
			return fmt.Errorf("a frame of unknown kind %q before offset %d", kind, frames.Offset())
		}
	}
}

// decodeNotable decodes a record if a later segment or anchor depends on it, and
// returns nil otherwise.
func decodeNotable(raw []byte) (*audit.Leaf, error) {
	if !slices.ContainsFunc(notable, func(event []byte) bool { return bytes.Contains(raw, event) }) {
		return nil, nil
	}
	l, err := audit.DecodeLeaf(raw)
	if err != nil {
		return nil, err
	}
	return &l, nil
}

// The events that a later segment or anchor depends on, as they stand in a leaf.
var notable = [][]byte{
	[]byte(`"event":"` + audit.EventStart + `"`), []byte(`"event":"` + audit.EventNode + `"`),
	[]byte(`"event":"` + audit.EventIssuingCA + `"`), []byte(`"event":"` + audit.EventJWTKey + `"`),
	[]byte(`"event":"` + audit.EventSPIREAuthority + `"`),
	[]byte(`"event":"` + audit.EventSegment + `"`), []byte(`"event":"` + audit.EventAnchor + `"`),
	[]byte(`"event":"` + audit.EventAnchorIntent + `"`),
}

// DeservesAnchor tells whether a record is worth an anchor: neither anchors nor
// what a segment repeats are, or anchoring would never end.
func DeservesAnchor(l *audit.Leaf) bool {
	switch l.Event {
	case audit.EventAnchorIntent, audit.EventAnchor, audit.EventSegment:
		return false
	}
	return l.Log == nil || !l.Log.Repeated
}
