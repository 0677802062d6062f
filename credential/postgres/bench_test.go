package postgres_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/credential/postgres"
)

// synced is a log that costs what a durable record costs: a write and a sync.
type synced struct {
	mu    sync.Mutex
	file  *os.File
	ended chan time.Time
}

func (s *synced) Record(_ context.Context, e credential.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.file.Write(make([]byte, 1024)); err != nil {
		return err
	}
	if err := syscall.Fdatasync(int(s.file.Fd())); err != nil {
		return err
	}
	if e.Kind == credential.EventRevoke && e.Outcome == credential.Success && s.ended != nil {
		s.ended <- time.Now()
	}
	return nil
}

func benchManager(b *testing.B, ended chan time.Time) *lease.Manager {
	b.Helper()
	dir := b.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "credentials.d"), 0o700); err != nil {
		b.Fatal(err)
	}
	text := strings.Replace(definition(""), "bind: lease", "bind: process", 1)
	if err := os.WriteFile(filepath.Join(dir, "credentials.d", "a.yaml"), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	m, err := openManager(dir, postgres.Open, &synced{file: file, ended: ended})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(m.Close)
	return m
}

func benchHolder(pid int) (credential.Holder, chan struct{}) {
	exit := make(chan struct{})
	return credential.Holder{
		ID:      spiffeid.RequireFromString("spiffe://example.org/agent"),
		Process: credential.Process{PID: pid, BootID: "boot"},
		Exit:    exit,
	}, exit
}

// report gives the median and the 99th percentile in milliseconds.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
}

// BenchmarkGrant compares asking the server directly with a lease of it, with
// everything that is made durable on the way.
func BenchmarkGrant(b *testing.B) {
	b.Run("direct", func(b *testing.B) {
		broker := open(b, definition(""))
		var took []time.Duration
		for b.Loop() {
			began := time.Now()
			p, _ := issue(b, broker, "orders")
			took = append(took, time.Since(began))
			if _, err := broker.Revoke(b.Context(), p.Handle); err != nil {
				b.Fatal(err)
			}
		}
		report(b, took)
	})
	b.Run("leased", func(b *testing.B) {
		m := benchManager(b, nil)
		h, _ := benchHolder(1)
		var took []time.Duration
		for b.Loop() {
			began := time.Now()
			g, err := m.Grant(b.Context(), h, credential.Ask{Name: "warehouse-readonly", Granted: []string{"warehouse-readonly"}})
			took = append(took, time.Since(began))
			if err != nil {
				b.Fatal(err)
			}
			if err := m.Revoke(b.Context(), h, g.Lease.ID, nil); err != nil {
				b.Fatal(err)
			}
		}
		report(b, took)
	})
}

// BenchmarkRevokeAfterExit is how long a process's exit takes to reach the
// server and be confirmed and recorded.
func BenchmarkRevokeAfterExit(b *testing.B) {
	ended := make(chan time.Time, 1)
	m := benchManager(b, ended)
	var took []time.Duration
	for pid := 1; b.Loop(); pid++ {
		h, exit := benchHolder(pid)
		if _, err := m.Grant(b.Context(), h, credential.Ask{Name: "warehouse-readonly", Granted: []string{"warehouse-readonly"}}); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		close(exit)
		took = append(took, (<-ended).Sub(began))
	}
	report(b, took)
}
