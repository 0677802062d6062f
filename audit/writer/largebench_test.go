package writer

import (
	"context"
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/reader"
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
		rs := slices.Repeat([]audit.Record{audittest.Attested(7)}, audit.MaxAppend)
		began := time.Now()
		for written := int64(0); written < int64(*largeLog)<<20; {
			h.append(l, rs...)
			written += audit.MaxAppend * 1100
		}
		size := l.Status().Size
		b.ReportMetric(float64(size), "records")
		b.ReportMetric(float64(size)/time.Since(began).Seconds(), "appended/s")
		waitForTiles(b, l)
		h.crash(l)
		b.ReportMetric(float64(must(diskBytes(os.DirFS(h.dir), "."))>>20), "MiB-on-disk")

		base := audittest.ResetPeak(b)
		began = time.Now()
		l, err := Open(h.dir, h.opt)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "open-ms")
		b.ReportMetric(audittest.Peak(b)-base, "open-MiB")
		h.append(l, audit.Record{Event: audit.EventStart, Outcome: audit.Success})
		h.stop(l)

		base = audittest.ResetPeak(b)
		began = time.Now()
		r, err := reader.Verify(context.Background(), os.DirFS(h.dir), withTPM())
		if err != nil || !r.OK {
			b.Fatal(err, r.Verdict)
		}
		b.ReportMetric(float64(r.Size)/time.Since(began).Seconds(), "verified/s")
		b.ReportMetric(audittest.Peak(b)-base, "verify-MiB")
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

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
