// Package export hands the attestation log on to a SIEM: as OCSF JSON lines, to
// the journal, or as OpenTelemetry logs.
//
// The log itself is the spool. An [Exporter] follows the files and remembers how
// far it got, so a sink that is slow, blocked or down costs no memory and never
// delays a record; when the sink is back, it gets what it missed. A sink that
// falls behind by more than a bound loses the oldest events, which are counted.
// Delivery is at least once: after a crash a few events may come twice. Each
// carries the log's ID, its index and its leaf hash, by which doubles and gaps
// show, and which lead back to a proof.
//
// What a sink has is a copy. Whether it is the truth, reader.Verify tells from the
// log.
package export

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
)

// An Event is one record with what leads back to its proof.
type Event struct {
	LogID string // SHA-256 of the log's verifier key, hexadecimal
	Host  string // where the log was written
	reader.Entry
}

// A Sink takes events, in the order of the log. Send returns nil once they are
// handed over, and before ctx ends. After an error all of them come again.
type Sink interface {
	Send(ctx context.Context, events []Event) error
}

// Options say what is exported. Log, Key and Size are needed.
type Options struct {
	Log  fs.FS         // the log's directory
	Key  string        // the log's note verifier key
	Host string        // name of this host
	Size func() uint64 // durable records in the log
	From uint64        // the first record to export
	// Saved is called with the next record to export after each batch that was
	// handed over; keep it and give it as From at the next start. May be nil.
	Saved  func(next uint64) error
	Logger *slog.Logger // slog.Default if nil

	MaxLag   uint64        // records that a sink may fall behind by, 1,000,000 if zero
	Interval time.Duration // how often to look for new records, 1 s if zero
	Timeout  time.Duration // for one batch, 10 s if zero
	MaxRetry time.Duration // longest wait between tries, 1 min if zero
}

// batchSize is how many events go at once.
const batchSize = 256

// An Exporter feeds one sink.
type Exporter struct {
	sink Sink
	opt  Options
	id   string

	mu    sync.Mutex // guards stats
	stats Stats
}

// Stats are how far an exporter got.
type Stats struct {
	Next     uint64 // the next record to export
	Sent     uint64 // events handed over by this process
	Dropped  uint64 // events left out because the sink fell behind
	Failures uint64 // batches that had to be tried again
	Err      error  // why the last try failed; nil after one that did not
}

// New makes an exporter; Run runs it.
func New(sink Sink, o Options) *Exporter {
	if o.MaxLag == 0 {
		o.MaxLag = 1_000_000
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.MaxRetry == 0 {
		o.MaxRetry = time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Exporter{sink: sink, opt: o, id: audit.LogID(o.Key), stats: Stats{Next: o.From}}
}

// Stats returns how far the exporter got.
func (x *Exporter) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stats
}

// Run exports until ctx ends. Errors of the sink and of reading are tried again,
// logged once each time that they begin and end.
func (x *Exporter) Run(ctx context.Context) {
	wait := x.opt.Interval
	for {
		err := x.round(ctx)
		if ctx.Err() != nil {
			return
		}
		x.note(err)
		if err != nil {
			wait = min(max(wait, x.opt.Interval)*2, x.opt.MaxRetry)
		} else {
			wait = x.opt.Interval
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (x *Exporter) note(err error) {
	x.mu.Lock()
	before := x.stats.Err
	x.stats.Err = err
	if err != nil {
		x.stats.Failures++
	}
	x.mu.Unlock()
	switch {
	case err != nil && before == nil:
		x.opt.Logger.Warn("exporting the attestation log: the sink does not take records; they wait", "err", err)
	case err == nil && before != nil:
		x.opt.Logger.Info("exporting the attestation log: the sink takes records again")
	}
}

// round exports what is there.
func (x *Exporter) round(ctx context.Context) error {
	x.skip()
	from := x.Stats().Next
	size := x.opt.Size()
	if from >= size {
		return nil
	}
	batch := make([]Event, 0, min(batchSize, size-from))
	for e, err := range reader.Records(ctx, x.opt.Log, from) {
		if err != nil {
			return err
		}
		if e.Index > x.Stats().Next+uint64(len(batch)) && len(batch) == 0 {
			x.drop(e.Index) // retention was quicker
		}
		batch = append(batch, Event{LogID: x.id, Host: x.opt.Host, Entry: e})
		if len(batch) < batchSize {
			continue
		}
		if err := x.send(ctx, batch); err != nil {
			return err
		}
		batch = batch[:0]
		if x.skip() {
			return nil // go on from there
		}
	}
	return x.send(ctx, batch)
}

func (x *Exporter) send(ctx context.Context, batch []Event) error {
	if len(batch) == 0 {
		return nil
	}
	sendCtx, cancel := context.WithTimeout(ctx, x.opt.Timeout)
	defer cancel()
	if err := x.sink.Send(sendCtx, batch); err != nil {
		return fmt.Errorf("exporting records %d to %d: %w", batch[0].Index, batch[len(batch)-1].Index, err)
	}
	next := batch[len(batch)-1].Index + 1
	x.mu.Lock()
	x.stats.Next = next
	x.stats.Sent += uint64(len(batch))
	x.mu.Unlock()
	if x.opt.Saved == nil {
		return nil
	}
	return x.opt.Saved(next)
}

// skip leaves out the oldest records if the sink is too far behind.
func (x *Exporter) skip() bool {
	size := x.opt.Size()
	if next := x.Stats().Next; size <= next || size-next <= x.opt.MaxLag {
		return false
	}
	x.drop(size - x.opt.MaxLag)
	return true
}

func (x *Exporter) drop(next uint64) {
	x.mu.Lock()
	dropped := next - x.stats.Next
	x.stats.Dropped += dropped
	x.stats.Next = next
	x.mu.Unlock()
	x.opt.Logger.Warn("exporting the attestation log: the sink is too far behind, or retention too quick; records are left out", "records", dropped)
}
