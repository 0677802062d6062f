package daemon

import (
	"context"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/export"
)

// eventCounts counts what is recorded, for metrics. It reads the log behind the
// requests, as an export does, so it counts what is durable and delays nothing.
type eventCounts struct {
	defined func(credential string) bool // whether the configuration has it

	mu sync.Mutex // guards n
	n  map[eventKind]uint64
}

// An eventKind is the labels of a counter. All have few values: events and
// outcomes are the log's own, and a credential is only named where the
// configuration does, because a caller may ask for any name.
type eventKind struct {
	event      audit.Event
	outcome    audit.Outcome
	credential string
}

// maxEventKinds bounds the counters should definitions come and go for months;
// events beyond that are counted without the credential's name.
const maxEventKinds = 10_000

var eventsTotal = metric("events_total", "Records in the attestation log since the start, by event, outcome and, for leases, the credential.", "event", "outcome", "credential")

func newEventCounts(defined func(string) bool) *eventCounts {
	return &eventCounts{defined: defined, n: make(map[eventKind]uint64)}
}

// run counts what the log gets from a record on, until the context ends.
func (c *eventCounts) run(ctx context.Context, r *records, from uint64) {
	export.New(c, export.Options{
		Log: os.DirFS(r.dir()), Key: r.Status().Key, Size: func() uint64 { return r.Status().Size },
		From: from, Logger: r.slog.With("sink", "metrics"),
	}).Run(ctx)
}

// Send implements [export.Sink].
func (c *eventCounts) Send(_ context.Context, events []export.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range events {
		c.count(&events[i].Leaf.Record)
	}
	return nil
}

func (c *eventCounts) count(r *audit.Record) {
	k := eventKind{event: r.Event, outcome: r.Outcome}
	if r.Credential != nil && c.defined(r.Credential.Name) {
		k.credential = r.Credential.Name
	}
	if _, known := c.n[k]; !known && len(c.n) >= maxEventKinds {
		k.credential = ""
	}
	c.n[k]++
}

func (c *eventCounts) collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, n := range c.n {
		out <- prometheus.MustNewConstMetric(eventsTotal, prometheus.CounterValue, float64(n), string(k.event), string(k.outcome), k.credential)
	}
}
