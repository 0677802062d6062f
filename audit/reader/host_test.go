package reader

import (
	"context"
	"crypto/ed25519"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/writer"
)

// A host is a machine that keeps a log.
type host struct {
	t   testing.TB
	dir string
	tpm *audittest.TPM
	opt writer.Options
}

func newHost(t testing.TB) *host {
	h := &host{t: t, dir: filepath.Join(t.TempDir(), "log"), tpm: audittest.NewTPM()}
	h.opt = writer.Options{
		Origin: "vouchd.example.org/log", Key: audittest.LogKey, TPM: h.tpm,
		Logger:     slog.New(slog.DiscardHandler),
		RetryEvery: 10 * time.Millisecond,
	}
	return h
}

// start opens the log and records the daemon's start.
func (h *host) start() *writer.Log {
	h.t.Helper()
	l, err := writer.Open(h.dir, h.opt)
	if err != nil {
		h.t.Fatal(err)
	}
	h.append(l, audit.Record{Event: audit.EventStart, Outcome: audit.Success,
		Node:   &audit.Node{Resets: h.tpm.Resets, Statement: h.tpm.Statement(h.opt.Key.Public().(ed25519.PublicKey))},
		Config: &audit.Config{Version: "0.1.0", Entries: 3}})
	h.anchor(l)
	return l
}

func (h *host) append(l *writer.Log, rs ...audit.Record) {
	h.t.Helper()
	if err := l.Append(context.Background(), rs...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) anchor(l *writer.Log) {
	h.t.Helper()
	if err := l.Anchor(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

// stop records the daemon's stop and closes the log.
func (h *host) stop(l *writer.Log) {
	h.t.Helper()
	h.append(l, audit.Record{Event: audit.EventStop, Outcome: audit.Success})
	if err := l.Close(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) verify(o VerifyOptions) *Report {
	h.t.Helper()
	return verifyDir(h.t, h.dir, o)
}

func verifyDir(t testing.TB, dir string, o VerifyOptions) *Report {
	t.Helper()
	r, err := Verify(context.Background(), os.DirFS(dir), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func withTPM() VerifyOptions { return VerifyOptions{TPM: &audittest.Verifier{}} }

// found returns the names of a report's findings of a severity.
func found(r *Report, s Severity) []string {
	var names []string
	for _, f := range r.Findings {
		if f.Severity == s {
			names = append(names, f.Name)
		}
	}
	return names
}

// vkey is the note verifier key of the host's log.
func (h *host) vkey() string {
	vkey, err := note.NewEd25519VerifierKey(h.opt.Origin, h.opt.Key.Public().(ed25519.PublicKey))
	if err != nil {
		h.t.Fatal(err)
	}
	return vkey
}

// fill appends records until the log has at least size of them, and waits for
// the tiles to follow.
func (h *host) fill(l *writer.Log, size uint64) {
	h.t.Helper()
	batch := make([]audit.Record, audit.MaxAppend)
	for i := range batch {
		batch[i] = audittest.Attested(i + 1)
	}
	for l.Status().Size < size {
		h.append(l, batch...)
	}
}

// longLog is a log whose first segments were replaced by tiles, over several
// runs.
func longLog(t testing.TB, size uint64) *host {
	t.Helper()
	h := newHost(t)
	h.opt.SegmentBytes = 100 << 10
	for run := range uint64(4) {
		l := h.start()
		h.fill(l, size/4*(run+1))
		h.stop(l)
	}
	return h
}

func (h *host) files() []string {
	h.t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(h.dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return names
}

// image is a copy of a log in memory, to tamper with.
func (h *host) image() fstest.MapFS {
	h.t.Helper()
	m := fstest.MapFS{}
	for _, name := range h.files() {
		b, err := os.ReadFile(filepath.Join(h.dir, name))
		if err != nil {
			h.t.Fatal(err)
		}
		m[name] = &fstest.MapFile{Data: b, Mode: 0o600}
	}
	return m
}

// put writes the image back.
func (h *host) put(m fstest.MapFS) {
	h.t.Helper()
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Fatal(err)
	}
	if err := os.CopyFS(h.dir, m); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chmod(h.dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
}

func verifyImage(t testing.TB, fsys fs.FS, o VerifyOptions) *Report {
	t.Helper()
	r, err := Verify(context.Background(), fsys, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
