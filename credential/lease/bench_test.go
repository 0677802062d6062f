package lease

import (
	"runtime"
	"testing"
	"time"
)

// BenchmarkTenThousandLeases is what 10,000 live leases of as many processes
// take in memory, and how long a start with them in the journal takes.
func BenchmarkTenThousandLeases(b *testing.B) {
	const n = 10_000
	h := newHost(b, plainDefinition)
	before := inUse()
	for i := range n {
		a, exit, _ := agent("one", i)
		h.processes[i] = exit
		h.grant(a)
	}
	each := float64(inUse()-before) / n
	var took time.Duration
	runs := 0
	for b.Loop() {
		h.m.Close()
		began := time.Now()
		h.start()
		took += time.Since(began)
		runs++
	}
	if got := len(h.m.Leases()); got != n {
		b.Fatalf("%d leases", got)
	}
	b.ReportMetric(each, "B/lease")
	b.ReportMetric(float64(took.Milliseconds())/float64(runs), "restart-ms")
}

// inUse is the memory in use: the heap's and the stacks'.
func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
