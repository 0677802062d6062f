package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// A room is what the log takes on the disk and may take. Log.mu guards it.
//
// The bound holds by an estimate: what was measured last, and twice what was
// written since, because a record lies in a segment and in a tile for a while. At the
// estimate's end the background measures, and removes what is old enough; if that is
// not enough, the log is full. A part of the bound is reserved for the records
// without which a daemon could neither start, nor stop, nor end what it has handed
// out, so that a full log is a state that it can live in and leave.
type room struct {
	measured int64         // bytes, when the background looked last
	since    int64         // bytes that what was written since may take
	full     bool          // retention found no more to remove
	pass     chan struct{} // closed when the background has looked, or the log fails
	passed   time.Time     // when it looked
}

// Shares of Options.MaxBytes: what is reserved, where retention begins to remove,
// and down to where.
const (
	minReserve  = 64 << 10
	reserveOf   = 16
	pruneAbove  = 0.87
	pruneDownTo = 0.80
)

// most is what the log may take before ordinary records are refused.
func (o *Options) most() int64 { return o.MaxBytes - max(minReserve, o.MaxBytes/reserveOf) }

// ordinary tells whether a record has no claim to what is reserved: those by which
// something is handed out, and those that anybody can bring about.
func ordinary(e audit.Event) bool {
	switch e {
	case audit.EventStart, audit.EventStop, audit.EventReload, audit.EventNode, audit.EventIssuingCA, audit.EventJWTKey, audit.EventUpstream, audit.EventWitness, audit.EventStreamEnd, audit.EventAdmin,
		audit.EventSecretRotate, audit.EventSecretRemove,
		audit.EventSPIREAttest, audit.EventSPIREAuthority, audit.EventSPIREBundle, audit.EventSPIREEntries, audit.EventSPIREOffline, audit.EventSPIREOnline,
		audit.EventLeaseGrant, audit.EventLeaseRevokeIntent, audit.EventLeaseRevoke, audit.EventLeaseEnd, audit.EventUse:
		return false
	}
	return !e.OfLog()
}

// admit returns nil once there is room for the records, and ErrFull if there is
// none and none can be made.
func (l *Log) admit(ctx context.Context, rs []audit.Record) error {
	if l.opt.MaxBytes == 0 {
		return nil
	}
	most := l.opt.MaxBytes
	for i := range rs {
		if rs[i].Event == audit.EventStop {
			return nil // the last word is never refused
		}
		if ordinary(rs[i].Event) {
			most = l.opt.most()
		}
	}
	for {
		l.mu.Lock()
		r, broken := l.room, l.err
		l.mu.Unlock()
		if broken != nil || r.measured+r.since <= most {
			return nil // join says what is broken
		}
		if !r.full || time.Since(r.passed) > l.opt.RetryEvery {
			l.nudge()
		}
		if r.full {
			return audit.ErrFull
		}
		select {
		case <-r.pass:
		case <-ctx.Done():
			return fmt.Errorf("waiting for room in the log: %w", ctx.Err())
		}
	}
}

// retain keeps the log within its bound. It belongs to the background.
func (l *Log) retain(ctx context.Context) {
	l.mu.Lock()
	before := l.room.since
	l.mu.Unlock()
	used, soon, err := l.measure(ctx)
	if err != nil && ctx.Err() == nil {
		l.opt.Logger.Error("attestation log: retention", "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if used >= 0 {
		l.room.measured, l.room.since = used, l.room.since-before
		l.status.DiskBytes = used
	}
	limit := l.opt.MaxBytes
	l.room.full = limit > 0 && l.room.measured+l.room.since > l.opt.most()
	if soon && !l.status.FullSoon {
		l.opt.Logger.Warn("attestation log is nearly as large as it may be, and nothing in it is old enough to go", "bytes", used, "limit", limit, "keep_for", l.opt.KeepFor)
	}
	l.status.FullSoon = soon
	l.room.passed = time.Now()
	l.room.wake()
}

// wake has those look again who wait for room.
func (r *room) wake() {
	close(r.pass)
	r.pass = make(chan struct{})
}

// measure returns what the log takes on the disk, after removing what may go, or -1
// where the tiles are not known; and whether it will be full without anything being
// old enough to go.
func (l *Log) measure(ctx context.Context) (used int64, soon bool, err error) {
	if l.tiler.set == nil {
		return -1, false, nil
	}
	segments, err := diskBytes(l.disk, format.WALDir)
	used = segments + l.tiler.bytes
	limit := float64(l.opt.MaxBytes)
	if err != nil || limit == 0 || float64(used) < pruneDownTo*limit {
		return used, false, err
	}
	if float64(used) < pruneAbove*limit {
		_, upTo, err := l.removable(1)
		return used, err == nil && upTo == 0, err
	}
	freed, err := l.prune(ctx, used-int64(pruneDownTo*limit))
	used -= freed
	return used, float64(used) >= pruneAbove*limit, err
}

// removable returns the number of the first bundle, and of the one to remove up to
// if so many bytes are to be freed; 0 if none can go.
func (l *Log) removable(want int64) (first, upTo int64, err error) {
	first, count, err := format.Bundles(l.disk)
	if err != nil || count == 0 {
		return 0, 0, err
	}
	firsts, err := format.Segments(l.disk)
	if err != nil || len(firsts) == 0 {
		return 0, 0, err
	}
	// The bundle that the first segment begins in is needed to go on from there.
	upTo, err = l.prunable(first, min(first+count, int64(firsts[0]/format.TileWidth)), want)
	if upTo == first {
		upTo = 0
	}
	return first, upTo, err
}

// prune removes records from the front, up to the start of a segment, and as
// many as it takes to free so many bytes. It records first what it removes.
func (l *Log) prune(ctx context.Context, want int64) (freed int64, err error) {
	first, upTo, err := l.removable(want)
	if err != nil || upTo == 0 {
		return 0, err
	}
	records := uint64(upTo) * format.TileWidth
	err = l.appendOwn(ctx, audit.Record{
		Event: audit.EventPrune, Outcome: audit.Success, Reason: fmt.Sprintf("retention: the log is larger than %d bytes", l.opt.MaxBytes),
	}, &audit.LogEvent{Size: records})
	if err != nil {
		return 0, err
	}
	l.opt.Logger.Info("attestation log: removing the oldest records", "before", records)
	before := l.tiler.bytes
	for n := first; n < upTo; n++ {
		for _, level := range []int{format.EntriesLevel, 0} {
			if err := l.tiler.drop(format.TilePath(format.FullTile(level, n))); err != nil {
				return before - l.tiler.bytes, err
			}
		}
	}
	return before - l.tiler.bytes, nil
}

// prunable returns the number of the bundle to remove up to, end at most: one
// that has the start of a segment in it, so that what stays can be understood,
// and that is old enough.
func (l *Log) prunable(first, end int64, want int64) (upTo int64, err error) {
	upTo = first
	oldest := l.opt.Now().Add(-l.opt.KeepFor)
	var freed, freedBefore int64 // by removing up to n, and up to upTo
	for n := first; n <= end && freedBefore < want; n++ {
		begins, young := false, false
		err := format.ReadBundle(l.disk, format.FullTile(format.EntriesLevel, n), 0, func(_ uint64, raw []byte) error {
			if !bytes.Contains(raw, []byte(`"event":"`+audit.EventSegment+`"`)) {
				return nil
			}
			leaf, err := audit.DecodeLeaf(raw)
			if err != nil {
				return err
			}
			begins = begins || leaf.Event == audit.EventSegment
			young = leaf.Time.After(oldest) // what is before it may be no older
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) {
			break // not full yet
		}
		if err != nil {
			return 0, err
		}
		if young {
			break
		}
		if begins {
			upTo, freedBefore = n, freed
		}
		freed += sizeOf(l.disk, format.TilePath(format.FullTile(format.EntriesLevel, n)))
	}
	return upTo, nil
}

// diskBytes adds up the files in a directory.
func diskBytes(fsys fs.FS, dir string) (total int64, err error) {
	err = fs.WalkDir(fsys, dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			total += fi.Size()
		}
		return nil
	})
	return total, err
}

func sizeOf(fsys fs.FS, name string) int64 {
	fi, err := fs.Stat(fsys, name)
	if err != nil {
		return 0
	}
	return fi.Size()
}
