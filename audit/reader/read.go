package reader

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"iter"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// An Entry is one record as it is read from a log. Reading checks its form and
// its place, not its proof: that is for [Verify].
type Entry struct {
	Index uint64
	Leaf  audit.Leaf
	Raw   []byte // the bytes that the tree covers; the caller's to keep
}

// Records reads the log from a record on. It ends behind the last checkpoint, or
// with an error, which comes with a zero Entry.
func Records(ctx context.Context, fsys fs.FS, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := format.Cursor{FS: fsys, Index: from}
		readAll(ctx, &c, yield)
	}
}

// Follow is Records, and then goes on with what is appended, until ctx ends. It
// looks every interval.
func Follow(ctx context.Context, fsys fs.FS, from uint64, interval time.Duration) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := format.Cursor{FS: fsys, Index: from}
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for readAll(ctx, &c, yield) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// readAll yields what is there. It reports whether to go on later.
func readAll(ctx context.Context, c *format.Cursor, yield func(Entry, error) bool) bool {
	err := c.Advance(ctx, func(index uint64, raw []byte) error {
		leaf, err := audit.DecodeLeaf(raw)
		if err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		if !yield(Entry{Index: index, Leaf: leaf, Raw: bytes.Clone(raw)}, nil) {
			return format.ErrStop
		}
		return nil
	})
	if err == format.ErrStop {
		return false
	}
	if err != nil {
		yield(Entry{}, fmt.Errorf("reading attestation log: %w", err))
		return false
	}
	return true
}

// LeafHash returns the record's hash in the tree (RFC 6962 §2.1): with the log's
// ID and the index it leads back to a proof.
func (e Entry) LeafHash() [32]byte { return tlog.RecordHash(e.Raw) }
