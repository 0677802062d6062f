package analyst

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

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
		Origin: "vouchd.example.org/log", Key: audittest.LogKey, TPM: h.tpm, Logger: slog.New(slog.DiscardHandler), Now: time.Now,
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
	if err := l.Anchor(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	return l
}

func (h *host) append(l *writer.Log, rs ...audit.Record) {
	h.t.Helper()
	if err := l.Append(context.Background(), rs...); err != nil {
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
