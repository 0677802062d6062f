package reader

import (
	"errors"
	"io/fs"
	"sort"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// Since returns the index of a record that no record younger than t comes
// before, to give to [Records]: close to the first such record, by looking at the
// start of a few bundles and segments instead of reading the whole log. Where the
// clock was set back over t, records from before that may be missed; a reader to
// whom that matters begins at 0.
func Since(fsys fs.FS, t time.Time) (uint64, error) {
	firsts, err := format.Segments(fsys)
	if err != nil {
		return 0, err
	}
	// The last segment that begins before t.
	n, err := lastBefore(len(firsts), t, func(i int) (time.Time, error) { return firstTime(fsys, firsts[i]) })
	if err != nil {
		return 0, err
	}
	if n >= 0 {
		return firsts[n], nil
	}
	first, count, err := format.Bundles(fsys)
	if err != nil || count == 0 {
		return 0, err
	}
	b, err := lastBefore(int(count), t, func(i int) (time.Time, error) {
		return bundleTime(fsys, first+int64(i))
	})
	if err != nil {
		return 0, err
	}
	return uint64(first+int64(max(b, 0))) * format.TileWidth, nil
}

// lastBefore returns the last of n places whose time is before t, or -1.
func lastBefore(n int, t time.Time, at func(int) (time.Time, error)) (int, error) {
	var failed error
	i := sort.Search(n, func(i int) bool {
		got, err := at(i)
		if err != nil {
			failed = err
		}
		return !got.Before(t)
	})
	return i - 1, failed
}

// firstTime is the time of a segment's first record, or of now where it has none
// yet.
func firstTime(fsys fs.FS, first uint64) (time.Time, error) {
	f, err := fsys.Open(format.SegmentName(first))
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	frames := format.Frames(f, 0)
	for {
		kind, data, err := frames.Next()
		if err != nil {
			return time.Now(), nil
		}
		if kind == format.KindLeaf {
			l, err := audit.DecodeLeaf(data)
			return l.Time, err
		}
	}
}

func bundleTime(fsys fs.FS, n int64) (time.Time, error) {
	var at time.Time
	err := format.ReadBundle(fsys, format.FullTile(format.EntriesLevel, n), 0, func(_ uint64, raw []byte) error {
		l, err := audit.DecodeLeaf(raw)
		if err != nil {
			return err
		}
		at = l.Time
		return format.ErrStop
	})
	if errors.Is(err, fs.ErrNotExist) {
		return time.Now(), nil // not full yet, so the segments have it
	}
	if err != nil && err != format.ErrStop {
		return time.Time{}, err
	}
	return at, nil
}
