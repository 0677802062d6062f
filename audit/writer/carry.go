package writer

import (
	"slices"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// carried is what a segment repeats at its start, so that it can be understood
// without the ones before, and what anchoring needs to know.
type carried struct {
	start    *audit.Record // the last that brought a statement
	keys     []audit.Record
	news     uint64 // size up to the last record that deserves an anchor
	anchored uint64 // size that the last anchor covers
	anchor   uint64 // its index
}

// maxKept bounds the keys that a segment repeats; there are seldom more than
// four in force.
const maxKept = 32

// kept tells whether later segments must repeat the record.
func kept(r *audit.Record) bool {
	switch r.Event {
	case audit.EventStart, audit.EventNode:
		return r.Outcome == audit.Success && r.Node != nil && len(r.Node.Statement) > 0
	case audit.EventIssuingCA, audit.EventJWTKey, audit.EventSPIREAuthority:
		return r.Outcome == audit.Success && r.Key != nil
	}
	return false
}

func (c *carried) keep(r *audit.Record, now time.Time) {
	if r.Key == nil {
		c.start = r
		return
	}
	c.keys = slices.DeleteFunc(slices.Clone(c.keys), func(old audit.Record) bool {
		return old.Key.KeyID == r.Key.KeyID || !old.Key.NotAfter.IsZero() && old.Key.NotAfter.Before(now)
	})
	c.keys = append(c.keys, *r)
	if len(c.keys) > maxKept {
		c.keys = slices.Delete(c.keys, 0, 1)
	}
}

// unanchored returns how many records wait for an anchor, or 0 if none of them
// is worth one.
func (c *carried) unanchored() uint64 {
	if c.news <= c.anchored {
		return 0
	}
	return c.news - c.anchored
}

// repeat puts what begins a segment.
func (l *Log) repeat(put func(*audit.Record, *audit.LogEvent) error) error {
	c := &l.carry
	r := audit.Record{Event: audit.EventSegment, Outcome: audit.Success}
	if c.start != nil {
		r.Node = c.start.Node
	}
	if err := put(&r, &audit.LogEvent{Key: l.signer.vkey, Last: c.anchor}); err != nil {
		return err
	}
	for i := range c.keys {
		if err := put(&c.keys[i], &audit.LogEvent{Repeated: true}); err != nil {
			return err
		}
	}
	return nil
}

// note keeps what matters later of a record that was read back; l is nil where
// nothing but its place does.
func (c *carried) note(index uint64, l *audit.Leaf) {
	if l == nil || format.DeservesAnchor(l) {
		c.news = index + 1
	}
	switch {
	case l == nil:
	case l.Event == audit.EventAnchor:
		if l.Outcome == audit.Success && l.Log != nil {
			c.anchored, c.anchor = l.Log.Size, index
		}
	case l.Event == audit.EventSegment:
		if l.Log != nil {
			c.anchor = l.Log.Last
		}
		if l.Node != nil && len(l.Node.Statement) > 0 {
			c.start = &l.Record
		}
	case kept(&l.Record):
		c.keep(&l.Record, l.Time)
	}
}
