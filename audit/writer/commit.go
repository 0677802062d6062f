package writer

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/state"
)

// A batch is what becomes durable together: records and, at its end, one
// checkpoint. Whoever puts the first record in leads it, that is, writes it as
// soon as the batch before is written; meanwhile others join.
type batch struct {
	first    uint64
	buf      []byte // frames
	hashes   []tlog.Hash
	rotate   bool           // begins a segment
	intent   int            // which of its records announces an anchor; -1: none
	anchor   int            // which of its records is an anchor; -1: none
	lastNews int            // which of its records was last to deserve an anchor; -1: none
	kept     []audit.Record // what a later segment must repeat

	done     chan struct{} // closed once the fields below are set
	err      error
	anchored audit.Checkpoint // of the tree up to the announcement
}

// checkpointRoom is what a record's part of the checkpoint and of the hash tiles may
// take, in bytes.
const checkpointRoom = 512

const (
	tileEvery      = 4 * format.TileWidth // records between two times that tiles are written
	keepBatchBytes = 64 << 10             // a larger buffer isn't kept for the next batch
)

// Append writes the records, all of them or none, and returns once they are
// durable. Until then whatever they speak of must not happen. Records of
// concurrent callers share one write and one sync.
//
// The error wraps [ErrUnwritable] where the log is to blame, and says what is
// wrong with the record otherwise. If ctx ends while the records are being
// written, their fate is unknown: they may be in the log, though the caller was
// refused. The log keeps no reference to the records but for the contents of
// Node and Key, which must not be changed afterwards.
func (l *Log) Append(ctx context.Context, rs ...audit.Record) error {
	if len(rs) == 0 {
		return nil
	}
	if len(rs) > audit.MaxAppend {
		return fmt.Errorf("appending %d records at once; at most %d are allowed", len(rs), audit.MaxAppend)
	}
	for i := range rs {
		if e := rs[i].Event; e.OfLog() || !e.Known() {
			return fmt.Errorf("appending record: unknown event \"%s\"", audit.Escape(string(rs[i].Event)))
		}
	}
	if err := l.admit(ctx, rs); err != nil {
		return err
	}
	_, err := l.append(ctx, rs, nil)
	return err
}

// appendOwn appends one of the log's own records. An empty one only brings about
// what begins a segment.
func (l *Log) appendOwn(ctx context.Context, r audit.Record, e *audit.LogEvent) error {
	_, err := l.append(ctx, []audit.Record{r}, e)
	return err
}

func (l *Log) append(ctx context.Context, rs []audit.Record, e *audit.LogEvent) (*batch, error) {
	b, leads, err := l.join(ctx, rs, e)
	if err != nil {
		return nil, err
	}
	if leads {
		l.lead(b)
		return b, b.err
	}
	select {
	case <-b.done:
		return b, b.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a record to be durable: %w", ctx.Err())
	}
}

// join puts the records into the pending batch. The caller leads the batch if
// they are its first.
func (l *Log) join(ctx context.Context, rs []audit.Record, e *audit.LogEvent) (b *batch, leads bool, err error) {
	for {
		l.mu.Lock()
		b = l.pending
		if l.err != nil {
			l.refused += uint64(len(rs))
			defer l.mu.Unlock()
			return nil, false, l.err
		}
		if len(b.hashes) < format.MaxBatchRecords && len(b.buf) < format.MaxBatchBytes {
			break
		}
		l.mu.Unlock()
		select {
		case <-b.done:
		case <-ctx.Done():
			return nil, false, fmt.Errorf("waiting to write a record: %w", ctx.Err())
		}
	}
	defer l.mu.Unlock()
	leads = len(b.hashes) == 0
	due := l.segDue
	if leads {
		b.first, b.rotate, l.segDue = l.next, due, false
	}
	if err := l.encode(b, rs, e); err != nil {
		if leads {
			b.clear()
			l.segDue = due
		}
		return nil, false, err
	}
	return b, leads, nil
}

// encode appends the records' frames to the batch, or leaves it as it was.
func (l *Log) encode(b *batch, rs []audit.Record, e *audit.LogEvent) error {
	bytes, count, next := len(b.buf), len(b.hashes), l.next
	now, mono := l.opt.Now(), sinceBoot()
	put := func(r *audit.Record, e *audit.LogEvent) error {
		l.scratch = audit.Leaf{Version: audit.LeafVersion, Index: l.next, Time: now, Mono: mono, BootID: l.bootID, Record: *r, Log: e}
		start := len(b.buf)
		buf, err := audit.AppendLeaf(state.BeginFrame(b.buf), &l.scratch)
		l.scratch = audit.Leaf{}
		if err != nil {
			return err
		}
		state.EndFrame(buf, start, format.KindLeaf)
		b.buf = buf
		b.hashes = append(b.hashes, tlog.RecordHash(buf[start+state.FrameHead:]))
		l.next++
		return nil
	}
	var err error
	if b.rotate && count == 0 {
		err = l.repeat(put)
	}
	intent, anchor, news := b.intent, b.anchor, b.lastNews
	for i := range rs {
		if err != nil || rs[i].Event == "" {
			break
		}
		switch rs[i].Event {
		case audit.EventAnchorIntent:
			intent = len(b.hashes)
		case audit.EventAnchor:
			anchor = len(b.hashes)
		default:
			news = len(b.hashes)
		}
		err = put(&rs[i], e)
	}
	if err != nil {
		b.buf, b.hashes, l.next = b.buf[:bytes], b.hashes[:count], next
		return err
	}
	b.intent, b.anchor, b.lastNews = intent, anchor, news
	l.room.since += 2 * int64(len(b.buf)-bytes+checkpointRoom)
	for i := range rs {
		if kept(&rs[i]) {
			b.kept = append(b.kept, rs[i])
		}
	}
	return nil
}

// lead writes the batch once it is its turn.
func (l *Log) lead(b *batch) {
	l.commit.Lock()
	defer l.commit.Unlock()
	l.mu.Lock()
	if b != l.pending { // it failed along with the batch before it
		l.mu.Unlock()
		return
	}
	l.pending = l.freshBatch()
	l.mu.Unlock()

	t, err := l.write(b)

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.opt.Logger.Error("attestation log can't be written: refusing everything that needs a record", "err", err)
		b.err = fmt.Errorf("%w: %w", audit.ErrUnwritable, err)
		l.refused += uint64(len(b.hashes))
		l.fail(b.err)
		close(b.done)
		l.nudge()
		return
	}
	l.tree = t
	l.committed(b)
	close(b.done)
	l.keepSpare(b)
}

// write makes the batch durable and returns the tree with it.
func (l *Log) write(b *batch) (format.Tree, error) {
	if b.rotate {
		if err := l.rotate(); err != nil {
			return format.Tree{}, err
		}
	}
	t := l.tree
	for i, h := range b.hashes {
		t.Add(h)
		if i == b.intent {
			b.anchored = audit.Checkpoint{Origin: l.signer.Name(), Size: uint64(t.Size), Root: t.Root()}
		}
	}
	signed, err := l.signer.checkpoint(&t)
	if err != nil {
		return format.Tree{}, fmt.Errorf("signing checkpoint: %w", err)
	}
	b.buf = state.AppendFrame(b.buf, format.KindCheckpoint, signed)
	return t, l.seg.write(b.buf)
}

// committed takes note of a durable batch. The caller holds commit and mu.
func (l *Log) committed(b *batch) {
	now := l.opt.Now()
	s := &l.status
	s.Size, s.Root, s.LastAppend, s.SegmentLen = uint64(l.tree.Size), l.tree.Root(), now, l.seg.off
	if b.rotate {
		l.segFrom = now
	}
	full := l.seg.off >= l.opt.SegmentBytes || now.Sub(l.segFrom) >= l.opt.SegmentAge
	l.segDue = full && !l.pending.rotate // a batch that began meanwhile may see to it already
	l.room.since += l.seg.grown
	l.seg.grown = 0
	if b.lastNews >= 0 {
		l.carry.news = b.first + uint64(b.lastNews) + 1
	}
	for i := range b.kept {
		l.carry.keep(&b.kept[i], now)
	}
	if l.carry.unanchored() >= uint64(l.opt.AnchorRecords) || s.Size-l.tiled.Load() >= tileEvery && s.TileErr == nil {
		l.nudge()
	}
}

// fail refuses everything from now on: the pending batch, which can't follow on
// one that is not there, and all that comes. The caller holds commit and mu.
func (l *Log) fail(err error) {
	l.err = err
	b := l.pending
	l.pending = l.freshBatch()
	l.next = uint64(l.tree.Size)
	b.err = err
	l.refused += uint64(len(b.hashes))
	close(b.done)
	l.room.wake()
}

// freshBatch returns an empty batch. The caller holds mu.
func (l *Log) freshBatch() *batch {
	b := &batch{done: make(chan struct{})}
	if s := l.spare; s != nil {
		b.buf, b.hashes, l.spare = s.buf, s.hashes, nil
	}
	b.clear()
	return b
}

func (b *batch) clear() {
	*b = batch{buf: b.buf[:0], hashes: b.hashes[:0], done: b.done, intent: -1, anchor: -1, lastNews: -1}
}

// keepSpare keeps a written batch's memory. The waiters read only its results.
func (l *Log) keepSpare(b *batch) {
	if cap(b.buf) <= keepBatchBytes {
		l.spare = &batch{buf: b.buf, hashes: b.hashes}
	}
}

// rotate begins a segment where the log stands. The old one is sealed: it ends
// with a checkpoint and is never written again.
func (l *Log) rotate() error {
	signed, err := l.signer.checkpoint(&l.tree)
	if err != nil {
		return err
	}
	if l.seg != nil && l.seg.first == uint64(l.tree.Size) {
		return nil // it has no records yet
	}
	seg, err := createSegment(l.disk, format.SegmentHeader{Key: l.signer.vkey, Checkpoint: signed, Tree: l.tree})
	if err != nil {
		return err
	}
	if l.seg != nil {
		l.seg.close()
	}
	l.seg = seg
	return nil
}
