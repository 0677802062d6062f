package audit

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// largeLog is how large a log BenchmarkLarge makes, in MiB of segments.
var largeLog = flag.Int("large", 1024, "how large a log BenchmarkLarge makes, in `MiB`")

// BenchmarkLarge makes a large log once, has it lose its daemon, and measures how
// long the next start waits for it, how long it takes to verify, and the most memory
// that each has held. Run it alone, with -benchtime 1x.
func BenchmarkLarge(b *testing.B) {
	if testing.Short() {
		b.Skip("it writes gigabytes")
	}
	for b.Loop() {
		h := newHost(b)
		l := h.start()
		rs := slices.Repeat([]Record{attested(7)}, MaxAppend)
		began := time.Now()
		for written := int64(0); written < int64(*largeLog)<<20; {
			h.append(l, rs...)
			written += MaxAppend * 1100
		}
		size := l.Status().Size
		b.ReportMetric(float64(size), "records")
		b.ReportMetric(float64(size)/time.Since(began).Seconds(), "appended/s")
		waitForTiles(b, l)
		h.crash(l)
		b.ReportMetric(float64(must(diskBytes(os.DirFS(h.dir), "."))>>20), "MiB-on-disk")

		base := resetPeak(b)
		began = time.Now()
		l, err := Open(h.dir, h.opt)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "open-ms")
		b.ReportMetric(peak(b)-base, "open-MiB")
		h.append(l, Record{Event: EventStart, Outcome: Success})
		h.stop(l)

		base = resetPeak(b)
		began = time.Now()
		r, err := Verify(context.Background(), os.DirFS(h.dir), withTPM())
		if err != nil || !r.OK {
			b.Fatal(err, r.Verdict)
		}
		b.ReportMetric(float64(r.Size)/time.Since(began).Seconds(), "verified/s")
		b.ReportMetric(peak(b)-base, "verify-MiB")
	}
}

func waitForTiles(b *testing.B, l *Log) {
	b.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for l.Status().Size-l.tiled.Load() > 4*tileEvery {
		l.nudge()
		<-tick.C
	}
}

// resetPeak has the kernel forget the most memory that this process held, and
// returns what it holds now, in MiB.
func resetPeak(b *testing.B) float64 {
	b.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
	return peak(b)
}

// peak returns the most memory that this process held, in MiB.
func peak(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
