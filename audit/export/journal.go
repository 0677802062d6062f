package export

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/vouchd/vouchd/audit"
)

// JournalSocket is where systemd's journal takes entries.
const JournalSocket = "/run/systemd/journal/socket"

// A Journal sink writes to systemd's journal: a message, and the record's facts
// in fields of their own, VOUCHD_EVENT and so on, for journalctl to select by.
//
// It speaks the journal's native protocol itself: go-systemd's journal.Send has
// no time limit, and a sink may not hang.
type Journal struct{ conn *net.UnixConn }

// DialJournal connects to the journal's socket, usually [JournalSocket].
func DialJournal(path string) (*Journal, error) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("connecting to the journal: %w", err)
	}
	return &Journal{conn}, nil
}

// Close closes the connection.
func (j *Journal) Close() error { return j.conn.Close() }

// Send implements [Sink].
func (j *Journal) Send(ctx context.Context, events []Event) error {
	deadline, _ := ctx.Deadline()
	if err := j.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	for i := range events {
		if _, err := j.conn.Write(journalEntry(&events[i])); err != nil {
			return fmt.Errorf("writing record %d to the journal: %w", events[i].Index, err)
		}
	}
	return nil
}

// journalEntry is an entry in the native protocol: NAME=value, one a line. The
// log's texts are escaped, so none has a line end in it.
func journalEntry(e *Event) []byte {
	var b bytes.Buffer
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s=%s\n", name, value)
		}
	}
	l := &e.Leaf
	field("MESSAGE", message(l))
	field("PRIORITY", strconv.Itoa(priority(l)))
	field("SYSLOG_IDENTIFIER", "vouchd-log")
	field("VOUCHD_EVENT", string(l.Event))
	field("VOUCHD_OUTCOME", string(l.Outcome))
	field("VOUCHD_SPIFFE_ID", l.SPIFFEID)
	field("VOUCHD_REQUEST_ID", l.RequestID)
	field("VOUCHD_LOG_ID", e.LogID)
	field("VOUCHD_RECORD", strconv.FormatUint(e.Index, 10))
	field("VOUCHD_LEAF_HASH", leafHash(e))
	if w := l.Workload; w != nil {
		field("VOUCHD_PID", strconv.Itoa(w.PID))
		field("VOUCHD_UID", strconv.FormatUint(uint64(w.UID), 10))
		field("VOUCHD_PROGRAM", w.Path)
		field("VOUCHD_UNIT", w.Unit)
	}
	if c := l.Credential; c != nil {
		field("VOUCHD_CREDENTIAL", c.Name)
	}
	if u := l.Use; u != nil && u.Source != "unknown" {
		field("VOUCHD_USES", strconv.FormatUint(u.Count, 10))
	}
	return b.Bytes()
}

// priority is a syslog level: warning (4) for what was refused or failed, notice
// (5) for the daemon's own life, info (6) for all else.
func priority(l *audit.Leaf) int {
	switch {
	case l.Outcome == audit.Denied, l.Outcome == audit.Failed:
		return 4
	case l.Event == audit.EventStart, l.Event == audit.EventStop, l.Event == audit.EventReload, l.Event == audit.EventRecover, l.Event == audit.EventPrune, l.Event == audit.EventRestart:
		return 5
	}
	return 6
}
