package writer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// recover brings the log to its last valid checkpoint, or makes the first
// segment. What it cut off, if anything, is to be recorded.
func (l *Log) recover() (cut *audit.LogEvent, err error) {
	firsts, err := l.survey()
	if err != nil {
		return nil, err
	}
	if len(firsts) == 0 {
		if l.opt.Begun || l.opt.Kept != nil {
			return nil, ErrMissing
		}
		l.segDue = true
		return nil, nil
	}
	kept, err := l.kept()
	if err != nil {
		return nil, err
	}
	first := firsts[len(firsts)-1]
	name := format.SegmentName(first)
	f, err := l.disk.open(name)
	if err != nil {
		return nil, err
	}
	s, carry, cut, err := l.scan(f, name, first, kept)
	var synced bool
	if err == nil {
		synced, err = l.synced(s.Tree)
	}
	if err == nil && (cut != nil || !synced) {
		f, err = l.renew(f, name, s)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	room, err := f.size()
	if err != nil {
		f.Close()
		return nil, err
	}
	l.seg = &segment{file: f, name: name, first: first, off: s.End, room: room}
	l.adopt(s, carry)
	l.segDue = s.Tree.Size == int64(first) // the crash came before its first record
	return cut, nil
}

// kept returns the checkpoint that the log is known to have reached, or the zero
// value.
func (l *Log) kept() (audit.Checkpoint, error) {
	if l.opt.Kept == nil {
		return audit.Checkpoint{}, nil
	}
	c, err := format.OpenCheckpoint(l.opt.Kept, l.signer)
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("the checkpoint kept outside of the log: %w", err)
	}
	return c, nil
}

// newest has the TPM tell whether the log's last anchor is its last.
func (l *Log) newest() error {
	tpm, ok := l.opt.TPM.(audit.NewestAnchorer)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), anchorTimeout)
	defer cancel()
	if l.carry.anchor == 0 {
		return rolledBack(tpm.Newest(ctx, nil, [32]byte{}))
	}
	var anchor audit.LogEvent
	c := format.Cursor{FS: l.disk, Index: l.carry.anchor}
	err := c.Advance(ctx, func(_ uint64, raw []byte) error {
		leaf, err := audit.DecodeLeaf(raw)
		if err == nil && leaf.Log == nil {
			err = errors.New("it is none")
		}
		if err != nil {
			return err
		}
		anchor = *leaf.Log
		return format.ErrStop
	})
	if err != format.ErrStop {
		return fmt.Errorf("reading the last anchor, record %d: %w", l.carry.anchor, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	root, err := format.ParseHash(anchor.Root)
	if err != nil {
		return fmt.Errorf("reading the last anchor, record %d: %w", l.carry.anchor, err)
	}
	covers := audit.Checkpoint{Origin: l.signer.Name(), Size: anchor.Size, Root: root}
	return rolledBack(tpm.Newest(ctx, anchor.Anchor, format.AnchorDigest(l.signer.vkey, covers)))
}

func rolledBack(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRolledBack, err)
	}
	return nil
}

// synced tells whether the log is known to be on the disk up to its end. A
// daemon publishes a checkpoint only of what it has synced, and last of all when
// it closes. If it published more than there is, the end was removed.
func (l *Log) synced(t format.Tree) (bool, error) {
	signed, err := format.ReadBounded(l.disk, format.CheckpointName, format.MaxFrame)
	if err != nil {
		return false, nil
	}
	c, err := format.OpenCosigned(signed, l.signer)
	if err != nil {
		return false, nil
	}
	size := uint64(t.Size)
	if c.Size > size || c.Size == size && c.Root != t.Root() {
		return false, fmt.Errorf("the log has %d records, and the checkpoint it published is of %d, or of others: its end was removed; restore it from a copy, or move the log away to begin a new one", size, c.Size)
	}
	return c.Size == size, nil
}

// renew puts a copy of the segment, up to its last checkpoint, in its place. If
// the last sync before a crash failed, the old file can be read and yet not be
// on the disk, and syncing it again would not tell.
func (l *Log) renew(old file, name string, s format.Scanned) (file, error) {
	f, err := writeDurably(l.disk, name, func(f file) error { return copySegment(f, old, s.End, s.Tree) })
	if err != nil {
		return old, fmt.Errorf("%s: %w", name, err)
	}
	old.Close()
	return f, nil
}

// survey lists the segments and removes what a crash left of files that were
// not finished.
func (l *Log) survey() ([]uint64, error) {
	if err := l.disk.mkdir(format.WALDir); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(l.disk, format.WALDir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), format.TempSuffix) {
			if err := l.disk.remove(path.Join(format.WALDir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	firsts, err := format.SegmentsIn(entries)
	if err != nil || len(firsts) > 0 {
		return firsts, err
	}
	if _, err := fs.Stat(l.disk, format.TileDir); err == nil {
		return nil, fmt.Errorf("%s has no segment though the log has tiles: its end was removed; restore it from a copy, or move the log away to begin a new one", format.WALDir)
	}
	return nil, l.disk.syncDir(".") // wal itself
}

// adopt takes over what a scan found.
func (l *Log) adopt(s format.Scanned, carry carried) {
	l.tree = s.Tree
	l.next = uint64(s.Tree.Size)
	l.carry = carry
	l.segFrom = l.opt.Now()
	l.status = Status{
		Origin: l.signer.Name(), Key: l.signer.vkey,
		Size: l.next, Root: s.Tree.Root(), SegmentLen: s.End,
		Anchored: carry.anchored, AnchorIndex: carry.anchor,
	}
}

// scan reads the segment that the log ends in. Whatever lies behind its last
// checkpoint is cut off if it can be what a crash leaves of a batch.
func (l *Log) scan(f file, name string, first uint64, kept audit.Checkpoint) (format.Scanned, carried, *audit.LogEvent, error) {
	size, err := f.size()
	if err != nil {
		return format.Scanned{}, carried{}, nil, err
	}
	var sofar, carry carried // with what no checkpoint covers yet, and without
	forked := false
	s, err := format.ScanSegment(io.NewSectionReader(f, 0, size), format.ScanVisitor{
		Record: sofar.note,
		Settled: func(t *format.Tree) {
			carry = sofar
			forked = forked || uint64(t.Size) == kept.Size && t.Root() != kept.Root
		},
	})
	if err != nil {
		return format.Scanned{}, carried{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	if size := uint64(s.Tree.Size); forked || size < kept.Size {
		return format.Scanned{}, carried{}, nil, fmt.Errorf("%w: it has %d records, and %d others, or more, were anchored", ErrRolledBack, size, kept.Size)
	}
	if s.Header.Key != l.signer.vkey || uint64(s.Header.Tree.Size) != first {
		return format.Scanned{}, carried{}, nil, fmt.Errorf("%s belongs to another log, or has another key (%s at %d); move the log away to begin a new one",
			name, audit.Escape(s.Header.Key), s.Header.Tree.Size)
	}
	if size == s.End {
		return s, carry, nil, nil
	}
	cut, err := cuttable(f, s.End, size)
	if err != nil {
		return format.Scanned{}, carried{}, nil, fmt.Errorf("%s is damaged at offset %d: %w; restore the log from a copy, or move it away to begin a new one", name, s.Bad, err)
	}
	return s, carry, cut, nil
}

// cuttable tells what would be cut off behind the last checkpoint, nil where nothing
// was written there, or why it may not be.
func cuttable(f file, end, size int64) (*audit.LogEvent, error) {
	tail, err := format.ReadTail(f, end, size)
	if err != nil {
		return nil, err
	}
	if len(tail) == 0 {
		return nil, nil
	}
	return &audit.LogEvent{Cut: uint64(len(tail)), CutSHA256: fmt.Sprintf("%x", sha256.Sum256(tail))}, nil
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
	err = l.appendOwn(ctx, audit.Record{
		Event: audit.EventRecover, Outcome: audit.Success, Reason: "the log can be written again",
	}, &audit.LogEvent{Refused: refused})
	return err == nil
}

// remake is called with commit held.
func (l *Log) remake() (refused uint64, err error) {
	l.mu.Lock()
	sticky := l.err
	l.mu.Unlock()
	if !errors.Is(sticky, audit.ErrUnwritable) {
		return 0, ErrClosed
	}
	if err := l.dropUnborn(); err != nil {
		return 0, err
	}
	if l.seg != nil {
		f, err := l.renew(l.seg.file, l.seg.name, format.Scanned{End: l.seg.off, Tree: l.tree})
		if err != nil {
			return 0, err
		}
		l.seg.file, l.seg.room = f, l.seg.off
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	refused = l.refused
	l.err, l.refused = nil, 0
	l.segDue = l.seg == nil || l.seg.first == uint64(l.tree.Size)
	return refused, nil
}

// dropUnborn removes a segment that was begun, but not taken into use when the
// error came. Left there, it would pass for the end of the log.
func (l *Log) dropUnborn() error {
	firsts, err := format.Segments(l.disk)
	if err != nil {
		return err
	}
	for _, first := range firsts {
		if l.seg == nil || first > l.seg.first {
			if err := l.disk.remove(format.SegmentName(first)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return l.disk.syncDir(format.WALDir)
}

// copySegment copies a segment up to its last durable batch, and makes sure that
// the copy holds the tree that it must.
func copySegment(to, from file, end int64, t format.Tree) error {
	if _, err := io.Copy(io.NewOffsetWriter(to, 0), io.NewSectionReader(from, 0, end)); err != nil {
		return err
	}
	s, err := format.ScanSegment(io.NewSectionReader(to, 0, end), format.ScanVisitor{})
	if err != nil {
		return err
	}
	if s.End != end || s.Tree.Root() != t.Root() {
		return errors.New("the segment no longer holds what was written to it")
	}
	return nil
}
