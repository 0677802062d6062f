package systemd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A journal is the receiving end of the journal's socket.
type journal struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func newJournal(t *testing.T) *journal {
	t.Helper()
	dir, err := os.MkdirTemp("", "vj") // short, because a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	j := &journal{t: t, path: filepath.Join(dir, "socket")}
	if j.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.conn.Close() })
	return j
}

// next reads one entry.
func (j *journal) next() map[string]string {
	j.t.Helper()
	b := make([]byte, 1<<20)
	n, err := j.conn.Read(b)
	if err != nil {
		j.t.Fatal(err)
	}
	fields := make(map[string]string)
	for b = b[:n]; len(b) > 0; {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		name, value, short := strings.Cut(string(line), "=")
		if !short {
			length := binary.LittleEndian.Uint64(rest)
			value, rest = string(rest[8:8+length]), rest[8+length+1:]
		}
		fields[name], b = value, rest
	}
	return fields
}

// stderrOf returns a file that the environment says is the journal's.
func stderrOf(t *testing.T, journals bool) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if !journals {
		st.Ino++
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	return f
}

func TestDiagnosticsAreFieldsOfTheJournal(t *testing.T) {
	j := newJournal(t)
	var plain bytes.Buffer
	log := slog.New(LogHandler(stderrOf(t, true), j.path, slog.NewTextHandler(&plain, nil)))
	log.Debug("nobody asked for it")
	log.With("sink", "ocsf").WithGroup("lease").Warn("revoking a lease", "credential", "tides", "err", errors.New("two\nlines"), slog.Group("at", "host", "db 1"))
	got := j.next()
	for name, want := range map[string]string{
		"MESSAGE":  `revoking a lease sink=ocsf lease.credential=tides lease.err="two\nlines" lease.at.host="db 1"`,
		"PRIORITY": "4", "SYSLOG_IDENTIFIER": "vouchd",
		"VOUCHD_SINK": "ocsf", "VOUCHD_LEASE_CREDENTIAL": "tides", "VOUCHD_LEASE_ERR": "two\nlines", "VOUCHD_LEASE_AT_HOST": "db 1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if len(got) != 7 || plain.Len() > 0 {
		t.Errorf("fields %q, and on standard error %q", got, plain.String())
	}
	log.Info(strings.Repeat("x", 1<<20), strings.Repeat("k", 1000), strings.Repeat("v", 1<<20))
	for name, value := range j.next() {
		if len(name) > 64 || len(value) > maxJournalValue {
			t.Errorf("a field of %d bytes, its name of %d", len(value), len(name))
		}
	}
}

func TestHostileTextMakesNoFieldOfTheJournal(t *testing.T) {
	j := newJournal(t)
	log := slog.New(LogHandler(stderrOf(t, true), j.path, slog.NewTextHandler(&bytes.Buffer{}, nil)))
	log.Error("x\nPRIORITY=7\n", "err\nMESSAGE=y", "\nSYSLOG_IDENTIFIER=sshd\n")
	got := j.next()
	if got["PRIORITY"] != "3" || got["SYSLOG_IDENTIFIER"] != "vouchd" || !strings.HasPrefix(got["MESSAGE"], "x\nPRIORITY=7\n") || got["VOUCHD_ERR_MESSAGE_Y"] != "\nSYSLOG_IDENTIFIER=sshd\n" || len(got) != 4 {
		t.Errorf("%q", got)
	}
}

func TestDiagnosticsStayOnStandardErrorWithoutTheJournal(t *testing.T) {
	j := newJournal(t)
	var plain bytes.Buffer
	handler := slog.NewTextHandler(&plain, nil)
	slog.New(LogHandler(stderrOf(t, false), j.path, handler)).Info("one")
	slog.New(LogHandler(stderrOf(t, true), j.path+"-none", handler)).Info("two")
	gone := LogHandler(stderrOf(t, true), j.path, handler)
	j.conn.Close()
	slog.New(gone).With("k", "v").Info("three")
	for _, want := range []string{"msg=one", "msg=two", "msg=three k=v"} {
		if !strings.Contains(plain.String(), want) {
			t.Errorf("no %q in %s", want, plain.String())
		}
	}
}
