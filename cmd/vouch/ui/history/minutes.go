package history

import (
	"math"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A Sum is what was done in a time.
type Sum struct {
	SVIDs    uint64 // issued
	Leases   uint64 // granted
	Uses     uint64 // of leases, as their sources saw
	Calls    uint64 // made by vouchd
	Bad      uint64 // of the calls, those without an answer or with a status of 400 and above
	Refused  uint64
	Failed   uint64 // what was asked for, and could not be done
	Sent     uint64 // bytes of content, by calls
	Received uint64
	Rows     uint64 // of databases
	Took     time.Duration
}

// Done is how often something was handed out or done.
func (s *Sum) Done() uint64 { return s.SVIDs + s.Leases + s.Uses + s.Calls }

// Bytes is what went over the network.
func (s *Sum) Bytes() uint64 { return s.Sent + s.Received }

func (s *Sum) add(c *cell) {
	s.SVIDs += uint64(c.svids)
	s.Leases += uint64(c.leases)
	s.Uses += uint64(c.uses)
	s.Calls += uint64(c.calls)
	s.Bad += uint64(c.bad)
	s.Refused += uint64(c.refused)
	s.Failed += uint64(c.failed)
	s.Sent, s.Received, s.Rows = s.Sent+c.sent, s.Received+c.received, s.Rows+c.rows
	s.Took += time.Duration(c.took) * time.Microsecond
}

// A cell is what one identity did with one credential in one minute.
type cell struct {
	key
	svids, leases, uses, calls, bad, refused, failed uint32
	sent, received, rows, took                       uint64 // took: microseconds
}

type key struct {
	minute               int64 // since 1970
	identity, credential uint32
}

func (c *cell) time() time.Time { return time.Unix(c.minute*60, 0) }

const (
	chunkCells = 4096
	maxChunks  = 96 // of about 400 KB
)

// minutes are the cells that are kept, in the order of the log.
type minutes struct {
	chunks [][]cell
	now    int64         // the minute of the cells below
	at     map[key]*cell // those of that minute
}

// take counts a record. It returns the time from which on all is kept, if that has changed.
func (m *minutes) take(n *names, l *audit.Leaf) (begins time.Time) {
	var of cell
	of.minute = l.Time.Unix() / 60
	if !of.count(l) {
		return begins
	}
	of.identity = n.number(l.SPIFFEID)
	if l.Credential != nil {
		of.credential = n.number(l.Credential.Name)
	}
	if m.at == nil || m.now != of.minute {
		m.now, m.at = of.minute, make(map[key]*cell)
	}
	if c := m.at[of.key]; c != nil {
		c.merge(&of)
		return begins
	}
	last := len(m.chunks) - 1
	if last < 0 || len(m.chunks[last]) == chunkCells {
		if len(m.chunks) == maxChunks {
			m.chunks = append(m.chunks[:0], m.chunks[1:]...)
			begins = m.chunks[0][0].time()
		}
		m.chunks = append(m.chunks, make([]cell, 0, chunkCells)) // cells do not move
		last = len(m.chunks) - 1
	}
	m.chunks[last] = append(m.chunks[last], of)
	m.at[of.key] = &m.chunks[last][len(m.chunks[last])-1]
	return begins
}

// count counts a record, and reports whether there was anything to count.
func (c *cell) count(l *audit.Leaf) bool {
	if call := l.Call; call != nil && l.Event == audit.EventCallEnd {
		n := few(max(1, call.Count))
		c.calls = n
		if l.Outcome != audit.Success || !call.OfDatabase() && (call.Status == 0 || call.Status >= 400) {
			c.bad = n
		}
		c.sent, c.received, c.rows, c.took = call.Sent, call.Received, call.Rows, uint64(l.Duration.Microseconds())
		return true
	}
	switch {
	case refused(l) && l.Outcome == audit.Denied:
		c.refused = 1
	case refused(l):
		c.failed = 1
	case l.Outcome != audit.Success:
		return false
	case l.Event == audit.EventX509SVID, l.Event == audit.EventJWTSVID, l.Event == audit.EventWITSVID:
		c.svids = 1
	case l.Event == audit.EventLeaseGrant:
		c.leases = 1
	case l.Event == audit.EventUse && l.Use != nil && l.Use.Source == "upstream" && l.Use.Count > 0:
		c.uses = few(l.Use.Count)
	default:
		return false
	}
	return true
}

// few is a count that a log made by somebody else cannot have overflow.
func few(n uint64) uint32 { return uint32(min(n, 1<<20)) }

func (c *cell) merge(o *cell) {
	for _, f := range []struct {
		into *uint32
		n    uint32
	}{{&c.svids, o.svids}, {&c.leases, o.leases}, {&c.uses, o.uses}, {&c.calls, o.calls}, {&c.bad, o.bad}, {&c.refused, o.refused}, {&c.failed, o.failed}} {
		*f.into = uint32(min(uint64(*f.into)+uint64(f.n), math.MaxUint32))
	}
	c.sent, c.received, c.rows, c.took = c.sent+o.sent, c.received+o.received, c.rows+o.rows, c.took+o.took
}

// names are texts by number, so that cells are small. Number 0 is the empty text, 1 stands for
// all beyond the first so many: a caller may ask for any name.
type names struct {
	text   []string
	number func(string) uint32
}

// Others stands for the names of identities and credentials beyond those that are kept.
const Others = "(others)"

const maxNames = 20_000

func newNames() *names {
	n := &names{text: []string{"", Others}}
	known := map[string]uint32{"": 0, Others: 1}
	n.number = func(s string) uint32 {
		i, ok := known[s]
		switch {
		case ok:
			return i
		case len(n.text) == maxNames:
			return 1
		}
		i = uint32(len(n.text))
		n.text, known[s] = append(n.text, s), i
		return i
	}
	return n
}
