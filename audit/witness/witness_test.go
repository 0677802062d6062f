package witness_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/witness"
	"github.com/vouchd/vouchd/audit/witness/witnesstest"
	"github.com/vouchd/vouchd/audit/writer"
)

// A host has a log that is written in runs, each of which ends in a published
// checkpoint.
type host struct {
	t       *testing.T
	dir     string
	key     ed25519.PrivateKey
	vkey    string
	refused []string
}

func newHost(t *testing.T) *host {
	return &host{t: t, dir: filepath.Join(t.TempDir(), "log"), key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32))}
}

// run is a daemon's life of so many records.
func (h *host) run(records int) {
	h.t.Helper()
	l, err := writer.Open(h.dir, writer.Options{Origin: "example.org/log", Key: h.key})
	if err != nil {
		h.t.Fatal(err)
	}
	h.vkey = l.Status().Key
	r := audit.Record{Event: audit.EventBundle, Outcome: audit.Success}
	must(h.t, l.Append(context.Background(), audit.Record{Event: audit.EventStart, Outcome: audit.Success}))
	for range records {
		must(h.t, l.Append(context.Background(), r))
	}
	must(h.t, l.Append(context.Background(), audit.Record{Event: audit.EventStop, Outcome: audit.Success}))
	must(h.t, l.Close(context.Background()))
}

func (h *host) client(url, key string) *witness.Client {
	h.t.Helper()
	c, err := witness.New(witness.Options{URL: url, Key: key, Interval: time.Hour, Timeout: 10 * time.Second, Dir: h.dir, LogKey: h.vkey,
		Refused: func(_ context.Context, reason string) error { h.refused = append(h.refused, reason); return nil }})
	must(h.t, err)
	h.t.Cleanup(c.Close)
	return c
}

func (h *host) verify(o reader.VerifyOptions) *reader.Report {
	h.t.Helper()
	r, err := reader.Verify(context.Background(), os.DirFS(h.dir), o)
	must(h.t, err)
	return r
}

func failures(r *reader.Report) (names []string) {
	for _, f := range r.Findings {
		if f.Severity == reader.Failure {
			names = append(names, f.Name)
		}
	}
	return names
}

func TestWitnessSignsWhatContinuesWhatItSigned(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(3)
	w := witnesstest.Start(t, "witness.example.org/w1")
	w.Know(t, h.vkey)
	c := h.client(w.URL, w.Key)
	for _, more := range []int{1, 300, 700} {
		must(t, c.Submit(t.Context()))
		if st := c.Stats(); st.Size != w.Size() || st.Err != nil || time.Since(st.Time) > time.Minute {
			t.Errorf("after %d records: %+v", w.Size(), st)
		}
		must(t, c.Submit(t.Context())) // the same again: its clock is news
		h.run(more)
	}
	c = h.client(w.URL+"/", w.Key) // a later daemon
	if c.Stats().Size != w.Size() {
		t.Errorf("a new client knows of %d records, want %d", c.Stats().Size, w.Size())
	}
	asked := w.Asked()
	must(t, c.Submit(t.Context()))
	if w.Asked() != asked+1 {
		t.Errorf("asked %d times, want once", w.Asked()-asked)
	}
	r := h.verify(reader.VerifyOptions{Witnesses: []string{w.Key}})
	if !r.OK || len(r.Witnessed) != 1 || r.Witnessed[0].Size != r.Size || !r.Witnessed[0].Known || r.Witnessed[0].Name != "witness.example.org/w1" {
		t.Errorf("%s %+v", r.Verdict, r.Witnessed)
	}
	if len(h.refused) > 0 {
		t.Errorf("refused: %q", h.refused)
	}
}

func TestClientWithoutMemoryIsToldByTheWitness(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(3)
	w := witnesstest.Start(t, "w1")
	w.Know(t, h.vkey)
	must(t, h.client(w.URL, w.Key).Submit(t.Context()))
	must(t, os.RemoveAll(filepath.Join(h.dir, "witness")))
	h.run(5)
	c := h.client(w.URL, w.Key)
	must(t, c.Submit(t.Context()))
	if st := c.Stats(); st.Size != w.Size() || st.Size < 11 {
		t.Errorf("%+v", st)
	}
	w.Forget() // a witness that lost its state is no attack on the log
	h.run(1)
	must(t, c.Submit(t.Context()))
	if len(h.refused) > 0 {
		t.Errorf("refused: %q", h.refused)
	}
}

// An attacker with root sets everything on the machine back, what the witness
// signed included.
func TestLogThatIsSetBackIsRefusedByTheWitnessAndToldByItsCheckpoint(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(3)
	w := witnesstest.Start(t, "w1")
	w.Know(t, h.vkey)
	must(t, h.client(w.URL, w.Key).Submit(t.Context()))
	old := t.TempDir()
	must(t, os.CopyFS(old, os.DirFS(h.dir)))
	h.run(20) // shall be forgotten
	must(t, h.client(w.URL, w.Key).Submit(t.Context()))
	elsewhere := h.read(witnessFile(t, h.dir))
	checkpoint := elsewhere[bytes.Index(elsewhere, []byte("\n\n"))+2:]

	for _, tt := range []struct {
		name   string
		more   int    // records of the new history
		reason string // for which the witness is told of
		want   string // finding
	}{
		{"and stays shorter", 1, "it signed 28 records, and the log has 9", "rolled-back"},
		{"and gets as long", 20, "it signed other 28 records than those of this log", "fork"},
		{"and goes on further", 90, "does not accept that the log of 98 records continues the 28", "fork"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, os.RemoveAll(h.dir))
			must(t, os.CopyFS(h.dir, os.DirFS(old)))
			must(t, os.Chmod(h.dir, 0o700))
			h.refused = nil
			h.run(tt.more)
			c := h.client(w.URL, w.Key)
			for range 2 {
				if err := c.Submit(t.Context()); !errors.Is(err, witness.ErrHistory) || !strings.Contains(err.Error(), tt.reason) {
					t.Errorf("submitting: %v, want %q", err, tt.reason)
				}
			}
			if len(h.refused) != 1 || !c.Stats().History {
				t.Errorf("told %d times, %+v", len(h.refused), c.Stats())
			}
			r := h.verify(reader.VerifyOptions{Checkpoint: checkpoint})
			if got := failures(r); !slices.Contains(got, tt.want) {
				t.Errorf("%s: failures %v, want %s", r.Verdict, got, tt.want)
			}
			// With what the witness signed lying with the log, that is enough.
			must(t, os.WriteFile(witnessFile(t, h.dir), elsewhere, 0o600))
			if got := failures(h.verify(reader.VerifyOptions{})); !slices.Contains(got, tt.want) {
				t.Errorf("failures %v, want %s", got, tt.want)
			}
			if c := h.client(w.URL, w.Key); tt.more == 1 {
				if err := c.Submit(t.Context()); !errors.Is(err, witness.ErrHistory) {
					t.Errorf("submitting what is shorter than what is kept: %v", err)
				}
			}
		})
	}
}

func TestRefusalIsAWarningInTheLog(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l, err := writer.Open(h.dir, writer.Options{Origin: "example.org/log", Key: h.key})
	must(t, err)
	must(t, l.Append(t.Context(),
		audit.Record{Event: audit.EventStart, Outcome: audit.Success},
		audit.Record{Event: audit.EventWitness, Outcome: audit.Denied, Reason: "witness w1: it signed 28 records, and the log has 9"},
		audit.Record{Event: audit.EventStop, Outcome: audit.Success}))
	must(t, l.Close(context.Background()))
	r := h.verify(reader.VerifyOptions{})
	if i := slices.IndexFunc(r.Findings, func(f reader.Finding) bool { return f.Name == "witness-refused" }); i < 0 || !strings.Contains(r.Findings[i].Message, "28 records") {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

func TestWitnessAskedForAndMissingFails(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(1)
	w := witnesstest.Start(t, "w1")
	r := h.verify(reader.VerifyOptions{Witnesses: []string{w.Key}})
	if got := failures(r); !slices.Equal(got, []string{"not-witnessed"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestEveryByteOfWhatAWitnessSignedMatters(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(1)
	w := witnesstest.Start(t, "w1")
	w.Know(t, h.vkey)
	must(t, h.client(w.URL, w.Key).Submit(t.Context()))
	name := witnessFile(t, h.dir)
	whole := h.read(name)
	for i := range whole {
		changed := bytes.Clone(whole)
		changed[i] ^= 1 << (i % 8)
		must(t, os.WriteFile(name, changed, 0o600))
		if r := h.verify(reader.VerifyOptions{}); r.OK {
			t.Errorf("byte %d of %d flipped (%q), and %s", i, len(whole), changed, r.Verdict)
		}
		must(t, os.WriteFile(name, whole[:i], 0o600))
		if r := h.verify(reader.VerifyOptions{}); r.OK {
			t.Errorf("cut to %d of %d bytes, and %s", i, len(whole), r.Verdict)
		}
	}
	if _, err := witness.New(witness.Options{Key: w.Key, LogKey: h.vkey, Dir: h.dir}); err == nil {
		t.Error("a client goes on from a damaged file")
	}
	must(t, os.WriteFile(name, whole, 0o600))
	must(t, os.Rename(name, filepath.Join(filepath.Dir(name), "0123456789abcdef")))
	if r := h.verify(reader.VerifyOptions{}); r.OK {
		t.Error("a renamed file passes")
	}
}

func TestArchiveHasWhatWitnessesSigned(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(1)
	w := witnesstest.Start(t, "w1")
	w.Know(t, h.vkey)
	must(t, h.client(w.URL, w.Key).Submit(t.Context()))
	var b bytes.Buffer
	must(t, reader.Archive(t.Context(), os.DirFS(h.dir), &b, 0))
	fsys, err := reader.ReadArchive(bytes.NewReader(b.Bytes()), int64(b.Len()))
	must(t, err)
	r, err := reader.Verify(t.Context(), fsys, reader.VerifyOptions{Witnesses: []string{w.Key}})
	must(t, err)
	if !r.OK || len(r.Witnessed) != 1 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

// What a witness may answer that it must not.
func TestWitnessThatErrsIsNotBelieved(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(3)
	w := witnesstest.Start(t, "w1")
	w.Know(t, h.vkey)
	other := witnesstest.Start(t, "w2")
	other.Know(t, h.vkey)
	otherLog := newHost(t)
	otherLog.key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{6}, 32))
	otherLog.run(9)
	for _, tt := range []struct {
		name    string
		answer  http.HandlerFunc
		want    string
		history bool
	}{
		{"nothing", func(http.ResponseWriter, *http.Request) {}, "no cosignature", false},
		{"another witness's signature", other.ServeHTTP, "no cosignature", false},
		{"a signature of its own name and another key", func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(rw, "— w1 %s\n", strings.Repeat("A", 100)+"==")
		}, "no cosignature", false},
		{"a redirect", func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, w.URL+"/add-checkpoint", http.StatusTemporaryRedirect)
		}, "it redirects (status 307)", false},
		{"no end", func(rw http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := rw.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, "more than 16384 bytes", false},
		{"no answer in time", func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // so that the server sees the client go
			<-r.Context().Done()
		}, "imeout", false},
		{"a conflict without a size", func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(409) }, "status 409 without", false},
		{"a conflict of a size that is none", func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/x.tlog.size")
			rw.WriteHeader(409)
			fmt.Fprintln(rw, "018446744073709551615")
		}, "status 409 without", false},
		{"a conflict each time with another size", func(rw http.ResponseWriter, r *http.Request) {
			var old int
			fmt.Fscanf(r.Body, "old %d\n", &old)
			rw.Header().Set("Content-Type", "text/x.tlog.size")
			rw.WriteHeader(409)
			fmt.Fprintln(rw, old+1)
		}, "neither a state", true},
		{"a larger size than there ever was", func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/x.tlog.size")
			rw.WriteHeader(409)
			fmt.Fprintln(rw, 1000)
		}, "it signed 1000 records", true},
		{"that it does not know the log", func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(404) }, "give its operator the log's key, " + h.vkey, false},
		{"a failure", func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(500) }, "status 500", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(tt.answer)
			defer server.Close()
			dir := t.TempDir()
			must(t, os.CopyFS(dir, os.DirFS(h.dir)))
			limit := 10 * time.Second
			if tt.want == "imeout" {
				limit = 50 * time.Millisecond
			}
			c, err := witness.New(witness.Options{URL: server.URL, Key: w.Key, Interval: time.Hour, Timeout: limit, Dir: dir, LogKey: h.vkey})
			must(t, err)
			defer c.Close()
			err = c.Submit(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, witness.ErrHistory) != tt.history {
				t.Errorf("Submit = %v, want %q", err, tt.want)
			}
			if st := c.Stats(); st.Err == nil || st.Size != 0 || st.History != tt.history {
				t.Errorf("%+v", st)
			}
			if _, err := os.Stat(filepath.Join(dir, "witness")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was kept: %v", err)
			}
		})
	}
}

func TestWitnessThatIsAwayIsTriedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(3)
	w := witnesstest.Start(t, "w1") // that does not know the log yet
	c, err := witness.New(witness.Options{URL: w.URL, Key: w.Key, Interval: time.Millisecond, Timeout: 10 * time.Second, Dir: h.dir, LogKey: h.vkey})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	wait(t, "the failure shows", func() bool { return c.Stats().Err != nil })
	w.Know(t, h.vkey)
	wait(t, "it is signed", func() bool { return c.Stats().Err == nil && c.Stats().Size > 0 })
	cancel()
	<-done
	c.Close()
}

func TestParseWitnessRefuses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run(0)
	w := witnesstest.Start(t, "w1")
	for name, key := range map[string]string{
		"nothing":               "",
		"a log's key":           h.vkey,
		"another hash":          strings.Replace(w.Key, "+", "+0", 1),
		"a short key":           w.Key[:len(w.Key)-4],
		"a name with a control": "\x1b[31m" + w.Key,
		"something behind it":   w.Key + " ",
	} {
		if _, err := reader.ParseWitness(key); err == nil {
			t.Errorf("%s: accepted %q", name, key)
		}
	}
	if p, err := reader.ParseWitness(w.Key); err != nil || p.String() != w.Key {
		t.Errorf("%v, %v", p, err)
	}
}

func (h *host) read(name string) []byte {
	h.t.Helper()
	b, err := os.ReadFile(name)
	must(h.t, err)
	return b
}

// witnessFile is the one file that a witness's signature is kept in.
func witnessFile(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "witness", "*"))
	if err != nil || len(names) != 1 {
		t.Fatalf("files of witnesses: %v, %v", names, err)
	}
	return names[0]
}

func wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); !holds(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
