package systemd

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// JournalSocket is where systemd's journal takes entries.
const JournalSocket = "/run/systemd/journal/socket"

// LogHandler returns a handler for diagnostics. If stderr is the journal's (systemd sets
// JOURNAL_STREAM, systemd.exec(5)), it sends every attribute as a field of its own to
// the journal at the socket; otherwise it is plain.
func LogHandler(stderr *os.File, socket string, plain slog.Handler) slog.Handler {
	var st unix.Stat_t
	if err := unix.Fstat(int(stderr.Fd()), &st); err != nil || os.Getenv("JOURNAL_STREAM") != fmt.Sprintf("%d:%d", st.Dev, st.Ino) {
		return plain
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return plain
	}
	return &journalHandler{conn: conn, plain: plain}
}

// A journalHandler writes the journal's native protocol. What the journal does not
// take goes to the plain handler.
type journalHandler struct {
	conn  *net.UnixConn
	plain slog.Handler
	attrs []slog.Attr // with their groups in their names
	group string      // of attributes to come, with a dot at its end
}

// Bounds of what is handed on: a datagram has its limit, and errors of others may
// be of any length.
const (
	maxJournalValue = 8 << 10
	maxJournalAttrs = 64
	journalTimeout  = time.Second
)

// Enabled implements [slog.Handler].
func (h *journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.plain.Enabled(ctx, l)
}

// WithAttrs implements [slog.Handler].
func (h *journalHandler) WithAttrs(as []slog.Attr) slog.Handler {
	with := *h
	with.plain = h.plain.WithAttrs(as)
	with.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], flatten(nil, h.group, as)...)
	return &with
}

// WithGroup implements [slog.Handler].
func (h *journalHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.plain, with.group = h.plain.WithGroup(name), h.group+name+"."
	return &with
}

// Handle implements [slog.Handler].
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, h.group, []slog.Attr{a})
		return true
	})
	h.conn.SetWriteDeadline(time.Now().Add(journalTimeout))
	if _, err := h.conn.Write(journalEntry(r, attrs[:min(len(attrs), maxJournalAttrs)])); err != nil {
		return h.plain.Handle(ctx, r)
	}
	return nil
}

// flatten appends attributes, those of groups under the groups' names.
func flatten(to []slog.Attr, group string, as []slog.Attr) []slog.Attr {
	for _, a := range as {
		a.Value = a.Value.Resolve()
		switch {
		case a.Value.Kind() == slog.KindGroup && a.Key == "":
			to = flatten(to, group, a.Value.Group())
		case a.Value.Kind() == slog.KindGroup:
			to = flatten(to, group+a.Key+".", a.Value.Group())
		case a.Key != "":
			to = append(to, slog.Attr{Key: group + a.Key, Value: a.Value})
		}
	}
	return to
}

// journalEntry is a record in the journal's form. The message repeats the
// attributes, for those who read only that.
func journalEntry(r slog.Record, attrs []slog.Attr) []byte {
	message := r.Message
	for _, a := range attrs {
		value := a.Value.String()
		if value == "" || strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c == '"' || c == '=' || !strconv.IsPrint(c) }) {
			value = strconv.Quote(value)
		}
		message += " " + a.Key + "=" + value
	}
	b := field(nil, "MESSAGE", message)
	b = field(b, "PRIORITY", strconv.Itoa(priority(r.Level)))
	b = field(b, "SYSLOG_IDENTIFIER", "vouchd")
	for _, a := range attrs {
		b = field(b, fieldName(a.Key), a.Value.String())
	}
	return b
}

// field appends one field: a line, or its length and its bytes where it has line
// ends (systemd's JOURNAL_NATIVE_PROTOCOL).
func field(b []byte, name, value string) []byte {
	value = value[:min(len(value), maxJournalValue)]
	b = append(b, name...)
	if strings.Contains(value, "\n") {
		b = binary.LittleEndian.AppendUint64(append(b, '\n'), uint64(len(value)))
		b = append(b, value...)
	} else {
		b = append(append(b, '='), value...)
	}
	return append(b, '\n')
}

// fieldName makes a field's name of an attribute's key: capitals, digits and
// underscores, 64 at most, after a prefix that keeps it out of the journal's own.
func fieldName(key string) string {
	name := "VOUCHD_" + strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z':
			return c - 'a' + 'A'
		case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			return c
		}
		return '_'
	}, key)
	return name[:min(len(name), 64)]
}

// priority is syslog's for a level.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}
