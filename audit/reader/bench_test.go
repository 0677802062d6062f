package reader

import (
	"fmt"
	"slices"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// BenchmarkVerify measures records a second of one core, for logs written by
// many at once and by one alone, whose every record has a signature.
func BenchmarkVerify(b *testing.B) {
	for _, perBatch := range []int{audit.MaxAppend, 1} {
		b.Run(fmt.Sprintf("batch=%d", perBatch), func(b *testing.B) {
			const records = 20_000
			h := newHost(b)
			h.opt.SegmentBytes = 1 << 30 // all in one, without tiles
			l := h.start()
			rs := slices.Repeat([]audit.Record{audittest.Attested(7)}, perBatch)
			for l.Status().Size < records {
				h.append(l, rs...)
			}
			h.stop(l)
			size := l.Status().Size
			m := h.image()
			for name := range m {
				if name != format.SegmentName(0) {
					delete(m, name)
				}
			}
			b.SetBytes(int64(len(m[format.SegmentName(0)].Data)))
			b.ReportAllocs()
			base := audittest.ResetPeak(b)
			for b.Loop() {
				if r := verifyImage(b, m, withTPM()); !r.OK {
					b.Fatal(r.Verdict)
				}
			}
			b.ReportMetric(audittest.Peak(b)-base, "peak-MiB")
			b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
