package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// recover brings the log to its last valid checkpoint, or makes the first
// segment. What it cut off, if anything, is to be recorded.
func (l *Log) recover() (cut *LogEvent, err error) {
	firsts, err := l.survey()
	if err != nil {
		return nil, err
	}
	if len(firsts) == 0 {
		l.segDue = true
		return nil, nil
	}
	first := firsts[len(firsts)-1]
	name := segmentName(first)
	f, err := l.disk.open(name)
	if err != nil {
		return nil, err
	}
	s, cut, err := l.scan(f, name, first)
	var synced bool
	if err == nil {
		synced, err = l.synced(s.tree)
	}
	if err == nil && (cut != nil || !synced) {
		f, err = l.renew(f, name, s)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	l.seg = &segment{file: f, name: name, first: first, off: s.end}
	l.adopt(s)
	l.segDue = s.tree.size == int64(first) // the crash came before its first record
	return cut, nil
}

// synced tells whether the log is known to be on the disk up to its end. A
// daemon publishes a checkpoint only of what it has synced, and last of all when
// it closes. If it published more than there is, the end was removed.
func (l *Log) synced(t tree) (bool, error) {
	signed, err := readBounded(l.disk, checkpointName, maxFrame)
	if err != nil {
		return false, nil
	}
	c, err := openCosigned(signed, l.signer)
	if err != nil {
		return false, nil
	}
	size := uint64(t.size)
	if c.Size > size || c.Size == size && c.Root != t.root() {
		return false, fmt.Errorf("the log has %d records, and the checkpoint it published is of %d, or of others: its end was removed; restore it from a copy, or move the log away to begin a new one", size, c.Size)
	}
	return c.Size == size, nil
}

// renew puts a copy of the segment, up to its last checkpoint, in its place. If
// the last sync before a crash failed, the old file can be read and yet not be
// on the disk, and syncing it again would not tell.
func (l *Log) renew(old file, name string, s scanned) (file, error) {
	f, err := writeDurably(l.disk, name, func(f file) error { return copySegment(f, old, s.end, s.tree) })
	if err != nil {
		return old, fmt.Errorf("%s: %w", name, err)
	}
	old.Close()
	return f, nil
}

// survey lists the segments and removes what a crash left of files that were
// not finished.
func (l *Log) survey() ([]uint64, error) {
	if err := l.disk.mkdir(walDir); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(l.disk, walDir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tempSuffix) {
			if err := l.disk.remove(path.Join(walDir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	firsts, err := segmentsIn(entries)
	if err != nil || len(firsts) > 0 {
		return firsts, err
	}
	if _, err := fs.Stat(l.disk, tileDir); err == nil {
		return nil, fmt.Errorf("%s has no segment though the log has tiles: its end was removed; restore it from a copy, or move the log away to begin a new one", walDir)
	}
	return nil, l.disk.syncDir(".") // wal itself
}

// adopt takes over what a scan found.
func (l *Log) adopt(s scanned) {
	l.tree = s.tree
	l.next = uint64(s.tree.size)
	l.carry = s.carry
	l.segFrom = l.opt.Now()
	l.status = Status{
		Origin: l.signer.Name(), Key: l.signer.vkey,
		Size: l.next, Root: s.tree.root(), SegmentLen: s.end,
		Anchored: s.carry.anchored, AnchorIndex: s.carry.anchor,
	}
}

// scan reads the segment that the log ends in. Whatever lies behind its last
// checkpoint is cut off if it can be what a crash leaves of a batch.
func (l *Log) scan(f file, name string, first uint64) (scanned, *LogEvent, error) {
	size, err := f.size()
	if err != nil {
		return scanned{}, nil, err
	}
	s, err := scanSegment(io.NewSectionReader(f, 0, size))
	if err != nil {
		return scanned{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	if s.vkey != l.signer.vkey || uint64(s.header.tree.size) != first {
		return scanned{}, nil, fmt.Errorf("%s belongs to another log, or has another key (%s at %d); move the log away to begin a new one",
			name, Escape(s.vkey), s.header.tree.size)
	}
	if size == s.end {
		return s, nil, nil
	}
	cut, err := cuttable(f, s.end, size)
	if err != nil {
		return scanned{}, nil, fmt.Errorf("%s is damaged at offset %d: %w; restore the log from a copy, or move it away to begin a new one", name, s.bad, err)
	}
	return s, cut, nil
}

// cuttable tells what would be cut off behind the last checkpoint, or why it
// may not be: a whole checkpoint in there means that callers were told of those
// records, or may have been.
func cuttable(f file, end, size int64) (*LogEvent, error) {
	if size-end > maxBatchTail {
		return nil, fmt.Errorf("%d bytes behind the last checkpoint are more than a crash can leave", size-end)
	}
	tail := make([]byte, size-end)
	if _, err := f.ReadAt(tail, end); err != nil {
		return nil, err
	}
	if at := findCheckpoint(tail); at >= 0 {
		return nil, fmt.Errorf("there is a checkpoint behind it, at offset %d", end+int64(at))
	}
	return &LogEvent{Cut: uint64(len(tail)), CutSHA256: fmt.Sprintf("%x", sha256.Sum256(tail))}, nil
}

// scanned is what a segment says of the log.
type scanned struct {
	header segmentHeader
	vkey   string
	tree   tree  // at the last checkpoint
	end    int64 // behind the last checkpoint
	bad    int64 // where reading ended: an unreadable frame, or the end
	carry  carried
}

// scanSegment reads a segment up to its last checkpoint, whose signature and
// root it checks. That every checkpoint before is right, [Verify] tells.
func scanSegment(r io.Reader) (scanned, error) {
	frames := newFrameReader(r)
	kind, data, err := frames.next()
	if err == nil && kind != kindSegment {
		err = errors.New("no segment header")
	}
	if err != nil {
		return scanned{}, fmt.Errorf("reading segment header: %w", err)
	}
	header, v, err := parseSegmentHeader(data)
	if err != nil {
		return scanned{}, err
	}
	s := scanned{header: header, vkey: header.vkey, tree: header.tree, end: frames.off}
	last := header.checkpoint
	if err := s.batches(frames, &last); err != nil {
		return scanned{}, err
	}
	c, err := openCheckpoint(last, v)
	if err != nil {
		return scanned{}, fmt.Errorf("the last checkpoint, before offset %d: %w", s.end, err)
	}
	if c.Size != uint64(s.tree.size) || c.Root != s.tree.root() {
		return scanned{}, fmt.Errorf("the last checkpoint, before offset %d, is not of the records before it", s.end)
	}
	return s, nil
}

// batches reads on until the frames end, and keeps the last checkpoint.
func (s *scanned) batches(frames *frameReader, last *[]byte) error {
	t, carry := s.tree, s.carry
	for {
		kind, data, err := frames.next()
		s.bad = frames.off
		if err == io.EOF || errors.Is(err, errFrame) {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind {
		case kindLeaf:
			if err := carry.note(data, uint64(t.size)); err != nil {
				return fmt.Errorf("record %d, before offset %d: %w", t.size, frames.off, err)
			}
			t.add(tlog.RecordHash(data))
		case kindCheckpoint:
			*last = append((*last)[:0:0], data...)
			s.tree, s.end, s.carry = t, frames.off, carry
		default:
			return fmt.Errorf("a frame of unknown kind %q before offset %d", kind, frames.off)
		}
	}
}

// The events that carried takes note of, as they stand in a leaf.
var notable = [][]byte{
	[]byte(`"event":"` + EventStart + `"`), []byte(`"event":"` + EventNode + `"`),
	[]byte(`"event":"` + EventIssuingCA + `"`), []byte(`"event":"` + EventJWTKey + `"`),
	[]byte(`"event":"` + EventSegment + `"`), []byte(`"event":"` + EventAnchor + `"`),
	[]byte(`"event":"` + EventAnchorIntent + `"`),
}

// note keeps what matters later of a record that was read back. Only the few
// that matter are decoded: a start shall not take long.
func (c *carried) note(raw []byte, index uint64) error {
	matters := false
	for _, n := range notable {
		matters = matters || bytes.Contains(raw, n)
	}
	if !matters {
		c.news = index + 1
		return nil
	}
	l, err := DecodeLeaf(raw)
	if err != nil {
		return err
	}
	if deservesAnchor(&l) {
		c.news = index + 1
	}
	switch {
	case l.Event == EventAnchor:
		if l.Outcome == Success && l.Log != nil {
			c.anchored, c.anchor = l.Log.Size, index
		}
	case l.Event == EventSegment:
		if l.Log != nil {
			c.anchor = l.Log.Last
		}
		if l.Node != nil && len(l.Node.Statement) > 0 {
			c.start = &l.Record
		}
	case kept(&l.Record):
		c.keep(&l.Record, l.Time)
	}
	return nil
}

// mend tries to make an unwritable log writable again: it copies what is durable
// of the segment into a new file, which takes the old one's place. The old file
// is not synced again: after an error nobody knows which of its pages reached
// the disk. It reports whether nothing is left to mend.
func (l *Log) mend(ctx context.Context) bool {
	l.commit.Lock()
	refused, err := l.remake()
	l.commit.Unlock()
	if errors.Is(err, ErrClosed) {
		return true
	}
	if err != nil {
		l.opt.Logger.Error("attestation log still can't be written", "err", err)
		return false
	}
	l.opt.Logger.Info("attestation log can be written again", "refused", refused)
	err = l.appendOwn(ctx, Record{
		Event: EventRecover, Outcome: Success, Reason: "the log can be written again",
	}, &LogEvent{Refused: refused})
	return err == nil
}

// remake is called with commit held.
func (l *Log) remake() (refused uint64, err error) {
	l.mu.Lock()
	sticky := l.err
	l.mu.Unlock()
	if !errors.Is(sticky, ErrUnwritable) {
		return 0, ErrClosed
	}
	if err := l.dropUnborn(); err != nil {
		return 0, err
	}
	if l.seg != nil {
		f, err := l.renew(l.seg.file, l.seg.name, scanned{end: l.seg.off, tree: l.tree})
		if err != nil {
			return 0, err
		}
		l.seg.file = f
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	refused = l.refused
	l.err, l.refused = nil, 0
	l.segDue = l.seg == nil || l.seg.first == uint64(l.tree.size)
	return refused, nil
}

// dropUnborn removes a segment that was begun, but not taken into use when the
// error came. Left there, it would pass for the end of the log.
func (l *Log) dropUnborn() error {
	firsts, err := segmentsOf(l.disk)
	if err != nil {
		return err
	}
	for _, first := range firsts {
		if l.seg == nil || first > l.seg.first {
			if err := l.disk.remove(segmentName(first)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return l.disk.syncDir(walDir)
}

// copySegment copies a segment up to its last durable batch, and makes sure that
// the copy holds the tree that it must.
func copySegment(to, from file, end int64, t tree) error {
	if _, err := io.Copy(io.NewOffsetWriter(to, 0), io.NewSectionReader(from, 0, end)); err != nil {
		return err
	}
	s, err := scanSegment(io.NewSectionReader(to, 0, end))
	if err != nil {
		return err
	}
	if s.end != end || s.tree.root() != t.root() {
		return errors.New("the segment no longer holds what was written to it")
	}
	return nil
}
