package audit

import (
	"slices"
	"time"
)

// carried is what a segment repeats at its start, so that it can be understood
// without the ones before, and what anchoring needs to know.
type carried struct {
	start    *Record // the last that brought a statement
	keys     []Record
	news     uint64 // size up to the last record that deserves an anchor
	anchored uint64 // size that the last anchor covers
	anchor   uint64 // its index
}

// maxKept bounds the keys that a segment repeats; there are seldom more than
// four in force.
const maxKept = 32

// kept tells whether later segments must repeat the record.
func kept(r *Record) bool {
	switch r.Event {
	case EventStart, EventNode:
		return r.Outcome == Success && r.Node != nil && len(r.Node.Statement) > 0
	case EventIssuingCA, EventJWTKey:
		return r.Outcome == Success && r.Key != nil
	}
	return false
}

func (c *carried) keep(r *Record, now time.Time) {
	if r.Key == nil {
		c.start = r
		return
	}
	c.keys = slices.DeleteFunc(slices.Clone(c.keys), func(old Record) bool {
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
func (l *Log) repeat(put func(*Record, *LogEvent) error) error {
	c := &l.carry
	r := Record{Event: EventSegment, Outcome: Success}
	if c.start != nil {
		r.Node = c.start.Node
	}
	if err := put(&r, &LogEvent{Key: l.signer.vkey, Last: c.anchor}); err != nil {
		return err
	}
	for i := range c.keys {
		if err := put(&c.keys[i], &LogEvent{Repeated: true}); err != nil {
			return err
		}
	}
	return nil
}
