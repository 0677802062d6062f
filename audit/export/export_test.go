package export

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/writer"
)

// newLog opens a log and returns what exports it.
func newLog(t *testing.T) (*writer.Log, Options) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	l, err := writer.Open(dir, writer.Options{
		Origin: "vouchd.example.org/log", Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{42}, 32)), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l, Options{
		Log: os.DirFS(dir), Key: l.Status().Key, Host: "host1", Size: func() uint64 { return l.Status().Size },
		Logger: slog.New(slog.DiscardHandler), Interval: time.Millisecond, MaxRetry: 5 * time.Millisecond, Timeout: 50 * time.Millisecond,
	}
}

func record(e audit.Event, o audit.Outcome) audit.Record {
	return audit.Record{
		Event: e, Outcome: o, RequestID: "r-1", SPIFFEID: "spiffe://example.org/a", Reason: "why\x1b[2J",
		Workload: &audit.Workload{PID: 7, UID: 1000, Path: "/usr/bin/agent\n", SHA256: "aa", Unit: "agent.service"},
	}
}

func add(t *testing.T, l *writer.Log, n int) {
	t.Helper()
	for range n {
		if err := l.Append(context.Background(), record(audit.EventX509SVID, audit.Success)); err != nil {
			t.Fatal(err)
		}
	}
}

// run runs an exporter until the test ends.
func run(t *testing.T, x *Exporter) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); x.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: gave up waiting", what)
		}
	}
}

// A moody sink does what its mood says.
type moody struct {
	mu   sync.Mutex
	mood func(context.Context) error
	got  []uint64
}

func (m *moody) set(mood func(context.Context) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mood = mood
}

func (m *moody) Send(ctx context.Context, events []Event) error {
	m.mu.Lock()
	mood := m.mood
	m.mu.Unlock()
	if mood != nil {
		if err := mood(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range events {
		m.got = append(m.got, events[i].Index)
	}
	return nil
}

func (m *moody) seen() []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

func TestEveryRecordArrivesInOrder(t *testing.T) {
	t.Parallel()
	l, o := newLog(t)
	var saved uint64
	var mu sync.Mutex
	o.Saved = func(next uint64) error {
		mu.Lock()
		defer mu.Unlock()
		saved = next
		return nil
	}
	sink := new(moody)
	x := New(sink, o)
	run(t, x)
	add(t, l, 700)
	waitFor(t, "exporting", func() bool { return x.Stats().Next == l.Status().Size })
	for i, index := range sink.seen() {
		if uint64(i) != index {
			t.Fatalf("event %d is record %d", i, index)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if saved != l.Status().Size || x.Stats().Dropped != 0 {
		t.Errorf("saved %d of %d, %+v", saved, l.Status().Size, x.Stats())
	}
}

func TestBlockedSinkNeitherDelaysNorLosesRecords(t *testing.T) {
	t.Parallel()
	l, o := newLog(t)
	sink := new(moody)
	sink.set(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	x := New(sink, o)
	run(t, x)
	add(t, l, 10)
	waitFor(t, "the sink's time limit", func() bool { return x.Stats().Failures > 1 })
	add(t, l, 500) // would hang here
	if x.Stats().Err == nil {
		t.Error("the statistics do not tell of the blocked sink")
	}
	sink.set(nil)
	waitFor(t, "catching up", func() bool { return x.Stats().Next == l.Status().Size })
	if got := sink.seen(); uint64(len(got)) != l.Status().Size || x.Stats().Err != nil {
		t.Errorf("%d events of %d records, %+v", len(got), l.Status().Size, x.Stats())
	}
}

func TestSinkTooFarBehindLosesTheOldestAndItIsCounted(t *testing.T) {
	t.Parallel()
	l, o := newLog(t)
	o.MaxLag = 100
	sink := new(moody)
	sink.set(func(context.Context) error { return errors.New("down") })
	x := New(sink, o)
	run(t, x)
	add(t, l, 350)
	waitFor(t, "dropping", func() bool { return x.Stats().Dropped >= 251 })
	sink.set(nil)
	waitFor(t, "catching up", func() bool { return x.Stats().Next == l.Status().Size })
	s, size := x.Stats(), l.Status().Size
	if s.Sent+s.Dropped != size || uint64(len(sink.seen())) != s.Sent {
		t.Errorf("%d sent and %d dropped of %d", s.Sent, s.Dropped, size)
	}
}

func TestLinesLeadBackToTheProof(t *testing.T) {
	t.Parallel()
	l, o := newLog(t)
	add(t, l, 3)
	r, w := net.Pipe()
	x := New(Lines{w}, o)
	run(t, x)
	t.Cleanup(func() { r.Close() })
	lines := bufio.NewScanner(r)
	next := uint64(0)
	for e, err := range reader.Records(context.Background(), o.Log, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		var got struct {
			Unmapped struct {
				LogID    string `json:"log_id"`
				Index    uint64 `json:"record_index"`
				LeafHash string `json:"leaf_hash"`
				Record   json.RawMessage
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		h := e.LeafHash()
		if got.Unmapped.Index != next || got.Unmapped.LogID != audit.LogID(o.Key) || got.Unmapped.LeafHash != fmt.Sprintf("%x", h[:]) || !bytes.Equal(got.Unmapped.Record, e.Raw) {
			t.Errorf("record %d: %s", next, lines.Text())
		}
		next++
	}
}

func TestJournalGetsFieldsOfItsOwn(t *testing.T) {
	t.Parallel()
	l, o := newLog(t)
	add(t, l, 1)
	path := filepath.Join(t.TempDir(), "journal")
	journal, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	sink, err := DialJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	run(t, New(sink, o))
	buf := make([]byte, 64<<10)
	for range 2 { // the log's own first record, and ours
		n, err := journal.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		buf = buf[:n]
		if strings.Contains(string(buf), "x509_svid") {
			break
		}
		buf = buf[:cap(buf)]
	}
	for _, want := range []string{
		"MESSAGE=x509_svid.issue: success for spiffe://example.org/a (why\\x1b[2J)\n", "PRIORITY=6\n", "VOUCHD_RECORD=1\n",
		"VOUCHD_PROGRAM=/usr/bin/agent\\x0a\n", "VOUCHD_LOG_ID=" + audit.LogID(o.Key) + "\n", "VOUCHD_UNIT=agent.service\n",
	} {
		if !strings.Contains(string(buf), want) {
			t.Errorf("no %q in\n%s", want, buf)
		}
	}
	for line := range strings.Lines(string(buf)) {
		if name, _, ok := strings.Cut(line, "="); !ok || strings.ToUpper(name) != name {
			t.Errorf("no field: %q", line)
		}
	}
}

func TestJournalTellsOfUsesThatWereSeen(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]bool{"upstream": true, "unknown": false} {
		r := used(7)
		r.Use.Source = source
		got := string(journalEntry(&Event{LogID: "id", Entry: reader.Entry{Leaf: audit.Leaf{Record: r, Time: time.Now()}}}))
		if strings.Contains(got, "VOUCHD_USES=7\n") != want || !strings.Contains(got, "VOUCHD_CREDENTIAL=warehouse\n") {
			t.Errorf("seen by %s:\n%s", source, got)
		}
	}
}

func TestOTLPSendsLogRecords(t *testing.T) {
	var mu sync.Mutex
	var got []*collector.ExportLogsServiceRequest
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(r.Body); err != nil {
				t.Error(err)
			}
		}
		b, err := io.ReadAll(body)
		req := new(collector.ExportLogsServiceRequest)
		if err == nil {
			err = proto.Unmarshal(b, req)
		}
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, req)
	}))
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=vouchd")
	sink, err := NewOTLP(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close(context.Background())
	l, o := newLog(t)
	o.Timeout = 5 * time.Second
	add(t, l, 5)
	x := New(sink, o)
	run(t, x)
	waitFor(t, "exporting", func() bool { return x.Stats().Next == l.Status().Size })
	mu.Lock()
	defer mu.Unlock()
	records := got[0].ResourceLogs[0].ScopeLogs[0].LogRecords
	if len(records) != 6 || records[1].EventName != "vouchd.x509_svid.issue" {
		t.Fatalf("%v", got[0])
	}
	text := records[1].String()
	for _, want := range []string{"vouchd.log.leaf_hash", audit.LogID(o.Key), "spiffe://example.org/a"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	server.Close()
	add(t, l, 1)
	waitFor(t, "the failure to show", func() bool { return x.Stats().Err != nil })
}
