package identity

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

// writeEntries makes n entries as a busy host has them, a thousand a file: each
// program has its unit and hash, and all share a user.
func writeEntries(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	for i := range n {
		if i%1000 == 0 {
			b.Reset()
			b.WriteString("entries:\n")
		}
		fmt.Fprintf(&b, "  - spiffe_id: spiffe://example.org/agent/%d\n    selectors: [unix:uid:1000, systemd:id:agent-%d.service, unix:sha256:%064x]\n", i, i, i)
		if i%1000 == 999 || i == n-1 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.yaml", i/1000)), []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func BenchmarkLoadEntries(b *testing.B) {
	for _, n := range []int{1, 1_000, 100_000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			dir := writeEntries(b, n)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var es *Entries
			for b.Loop() {
				var err error
				if es, err = LoadEntries(dir, td, limits); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "heap-B/entry")
			runtime.KeepAlive(es)
		})
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 1_000, 100_000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			es, err := LoadEntries(writeEntries(b, n), td, limits)
			if err != nil {
				b.Fatal(err)
			}
			have := selectors(b, "unix:uid:1000", "unix:user:agent", "unix:gid:1000", "unix:group:agent",
				"unix:supplementary_gid:27", "unix:supplementary_gid:44", "unix:path:/opt/agent/bin/agent",
				"systemd:slice:system.slice", "cgroup:path:/system.slice/agent.service",
				fmt.Sprintf("systemd:id:agent-%d.service", n/2), fmt.Sprintf("unix:sha256:%064x", n/2))
			b.ReportAllocs()
			for b.Loop() {
				if got := es.Match(have); len(got) != 1 {
					b.Fatalf("%d entries match, want 1", len(got))
				}
			}
		})
	}
}

// From a file's replacement on disk to the new entries in memory, with 1,000
// entries in all.
func BenchmarkChangeToEntries(b *testing.B) {
	dir := writeEntries(b, 1000)
	ctx, stop := context.WithCancel(b.Context())
	loaded, done := make(chan *Entries), make(chan error)
	go func() {
		done <- config.Watch(ctx, []string{dir}, func() {
			es, err := LoadEntries(dir, td, limits)
			if err != nil {
				b.Error(err)
			}
			select {
			case loaded <- es:
			case <-ctx.Done():
			}
		})
	}()
	<-loaded
	uid := 0
	for b.Loop() {
		uid++
		beside := filepath.Join(b.TempDir(), "new")
		text := fmt.Sprintf("entries: [{spiffe_id: spiffe://example.org/new, selectors: [unix:uid:%d]}]\n", uid)
		if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(beside, filepath.Join(dir, "new.yaml")); err != nil {
			b.Fatal(err)
		}
		wanted := selectors(b, fmt.Sprintf("unix:uid:%d", uid))
		for es := <-loaded; len(es.Match(wanted)) != 1; es = <-loaded {
		}
	}
	stop()
	if err := <-done; err != nil {
		b.Error(err)
	}
}

// All entries match one caller: the most that a request can ask for.
func BenchmarkMatchAll(b *testing.B) {
	var text strings.Builder
	text.WriteString("entries:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  - {spiffe_id: spiffe://example.org/agent/%d, selectors: [unix:uid:1000]}\n", i)
	}
	es, err := LoadEntries(write(b, map[string]string{"a.yaml": text.String()}), td, limits)
	if err != nil {
		b.Fatal(err)
	}
	have := selectors(b, "unix:uid:1000", "unix:gid:1000")
	b.ReportAllocs()
	for b.Loop() {
		if got := es.Match(have); len(got) != 1000 {
			b.Fatalf("%d entries match, want 1000", len(got))
		}
	}
}
