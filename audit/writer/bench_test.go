package writer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// BenchmarkAppend measures durable appends, beside what the disk takes for one
// write and one fdatasync of the same size, in the same run: at the end of a file,
// which grows, and where zeros are already.
func BenchmarkAppend(b *testing.B) {
	b.Run("floor=grown", func(b *testing.B) { benchFloor(b, 0) })
	b.Run("floor=zeroed", func(b *testing.B) { benchFloor(b, 64<<20) })
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) { benchAppend(b, writers) })
	}
}

func benchFloor(b *testing.B, zeroed int) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, zeroed), 0); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 1100)
	took := make([]time.Duration, 0, 1<<16)
	for b.Loop() {
		start := time.Now()
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	percentiles(b, took)
}

func benchAppend(b *testing.B, writers int) {
	h := newHost(b)
	h.opt.TPM = nil
	l, err := Open(h.dir, h.opt)
	if err != nil {
		b.Fatal(err)
	}
	r := audittest.Attested(1)
	var left atomic.Int64
	left.Store(int64(b.N))
	all := make([][]time.Duration, writers)
	b.ReportAllocs()
	base := audittest.ResetPeak(b)
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				start := time.Now()
				if err := l.Append(context.Background(), r); err != nil {
					b.Error(err)
					return
				}
				all[w] = append(all[w], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(audittest.Peak(b)-base, "peak-MiB")
	percentiles(b, slices.Concat(all...))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	if err := l.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkOpen measures how long a daemon's start waits for a log whose last
// segment is full, after a clean stop and after a crash.
func BenchmarkOpen(b *testing.B) {
	for _, clean := range []bool{true, false} {
		b.Run(fmt.Sprintf("clean=%v", clean), func(b *testing.B) {
			h := newHost(b)
			l := h.start()
			for l.Status().SegmentLen < 7<<20 {
				h.append(l, slices.Repeat([]audit.Record{audittest.Attested(7)}, audit.MaxAppend)...)
			}
			h.stop(l)
			b.ReportAllocs()
			base := audittest.ResetPeak(b)
			defer func() { b.ReportMetric(audittest.Peak(b)-base, "peak-MiB") }()
			for b.Loop() {
				b.StopTimer()
				if !clean {
					os.Remove(filepath.Join(h.dir, format.CheckpointName))
				}
				b.StartTimer()
				l, err := Open(h.dir, h.opt)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := l.Close(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
