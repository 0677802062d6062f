package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// retain keeps the log within its bound. It belongs to the background.
func (l *Log) retain(ctx context.Context) {
	if l.tiler.set == nil {
		return // what the tiles take is not known
	}
	segments, err := diskBytes(l.disk, walDir)
	used := segments + l.tiler.bytes
	limit := l.opt.MaxBytes
	if err == nil && limit > 0 && used > limit {
		var freed int64
		freed, err = l.prune(ctx, used-limit*9/10)
		used -= freed
	}
	if err != nil && ctx.Err() == nil {
		l.opt.Logger.Error("attestation log: retention", "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.status.DiskBytes
	l.status.DiskBytes, l.full = used, limit > 0 && used > limit
	if soon := limit / 5 * 4; limit > 0 && used > soon && before <= soon {
		l.opt.Logger.Warn("attestation log is nearly as large as it may be; archive it, or give it more", "bytes", used, "limit", limit)
	}
}

func (l *Log) isFull() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.full
}

// prune removes records from the front, up to the start of a segment, and as
// many as it takes to free so many bytes. It records first what it removes.
func (l *Log) prune(ctx context.Context, want int64) (freed int64, err error) {
	first, count, err := bundles(l.disk)
	if err != nil || count == 0 {
		return 0, err
	}
	firsts, err := segmentsOf(l.disk)
	if err != nil || len(firsts) == 0 {
		return 0, err
	}
	// The bundle that the first segment begins in is needed to go on from there.
	upTo, err := l.prunable(first, min(first+count, int64(firsts[0]/tileWidth)), want)
	if err != nil || upTo == first {
		return 0, err
	}
	records := uint64(upTo) * tileWidth
	err = l.appendOwn(ctx, Record{
		Event: EventPrune, Outcome: Success, Reason: fmt.Sprintf("retention: the log is larger than %d bytes", l.opt.MaxBytes),
	}, &LogEvent{Size: records})
	if err != nil {
		return 0, err
	}
	l.opt.Logger.Info("attestation log: removing the oldest records", "before", records)
	before := l.tiler.bytes
	for n := first; n < upTo; n++ {
		for _, level := range []int{entriesLevel, 0} {
			if err := l.tiler.drop(tilePath(fullTile(level, n))); err != nil {
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
		err := bundle(l.disk, fullTile(entriesLevel, n), 0, func(_ uint64, raw []byte) error {
			if !bytes.Contains(raw, []byte(`"event":"`+EventSegment+`"`)) {
				return nil
			}
			leaf, err := DecodeLeaf(raw)
			if err != nil {
				return err
			}
			begins = begins || leaf.Event == EventSegment
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
		freed += sizeOf(l.disk, tilePath(fullTile(entriesLevel, n)))
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
