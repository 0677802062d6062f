package process

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkAttestWarm attests a program whose digest is known, which makes its
// size of no account.
func BenchmarkAttestWarm(b *testing.B) {
	for _, megabytes := range []int{1, 20} {
		b.Run(fmt.Sprintf("program=%dMB", megabytes), func(b *testing.B) {
			p := benchmarked(b, megabytes<<20)
			a := NewAttester(Options{})
			for b.Loop() {
				if _, err := a.Attest(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAttestWarmParallel is the same by 64 callers at a time.
func BenchmarkAttestWarmParallel(b *testing.B) {
	p := benchmarked(b, 1<<20)
	a := NewAttester(Options{})
	b.SetParallelism(32) // times the processors, two
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := a.Attest(b.Context(), p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkAttestCold attests a program of 20 MB that was never hashed.
func BenchmarkAttestCold(b *testing.B) {
	p := benchmarked(b, 20<<20)
	for b.Loop() {
		if _, err := NewAttester(Options{}).Attest(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarked(b *testing.B, size int) *Peer {
	path := install(b, program(b, "sleep"), filepath.Join(openTempDir(b), "program"), strings.Repeat("x", size))
	child := run(b, nil, path, "600")
	waitForProgram(b, child, path)
	p := pin(b, child.Process.Pid)
	a := NewAttester(Options{})
	eventually(b, "its digest is kept", func() bool {
		before := a.Stats().Hashed
		_, err := a.Attest(b.Context(), p)
		return err == nil && a.Stats().Hashed == before
	})
	return p
}

// BenchmarkExit is the time from a peer's end to its Done, with 1,000 others.
func BenchmarkExit(b *testing.B) {
	child := run(b, nil, "sleep", "600")
	for range 1000 {
		pin(b, child.Process.Pid).Done()
	}
	for b.Loop() {
		b.StopTimer()
		dying := run(b, nil, "sleep", "600")
		done := pin(b, dying.Process.Pid).Done()
		b.StartTimer()
		dying.Process.Kill()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			b.Fatal("Done stays open")
		}
	}
}

// BenchmarkUnchanged looks again at a process that was attested.
func BenchmarkUnchanged(b *testing.B) {
	p := benchmarked(b, 1<<20)
	a := NewAttester(Options{})
	at, err := a.Attest(b.Context(), p)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := a.Unchanged(p, at); err != nil {
			b.Fatal(err)
		}
	}
}
