package ui

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/writer"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/ui/page"
)

// BenchmarkMillion measures what a log of a million records costs: how long the page is not
// complete, how long one page takes then, and the most memory. Run it alone, with
// -benchtime 1x.
func BenchmarkMillion(b *testing.B) {
	if testing.Short() {
		b.Skip("it writes a gigabyte")
	}
	const records, agents = 1_000_000, 40
	dir := filepath.Join(b.TempDir(), "log")
	now := time.Now().Add(-30 * 24 * time.Hour)
	l, err := writer.Open(dir, writer.Options{Origin: "o", Key: audittest.LogKey, TPM: audittest.NewTPM(), Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	if err != nil {
		b.Fatal(err)
	}
	for n := 0; n < records; n += audit.MaxAppend {
		rs := make([]audit.Record, audit.MaxAppend)
		for i := range rs {
			rs[i] = million(n+i, agents)
		}
		now = now.Add(30 * 24 * time.Hour / (records / audit.MaxAppend))
		if err := l.Append(context.Background(), rs...); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		base := audittest.ResetPeak(b)
		src, err := newSource(&cli.Options{}, dir)
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		began := time.Now()
		go func() { defer close(ended); src.history.Follow(ctx, src.open) }()
		var slowest time.Duration
		ask := func(of page.Range) {
			at := time.Now()
			if err := page.Overview(new(bytes.Buffer), src.gather(ctx, question{of: of})); err != nil {
				b.Fatal(err)
			}
			slowest = max(slowest, time.Since(at))
		}
		tick := time.NewTicker(100 * time.Millisecond)
		for !src.history.State().CaughtUp {
			<-tick.C
			ask(page.Ranges[3])
		}
		tick.Stop()
		b.ReportMetric(time.Since(began).Seconds(), "s-to-read")
		b.ReportMetric(float64(src.history.State().Read), "records")
		b.ReportMetric(float64(slowest.Microseconds())/1000, "ms-page-meanwhile")
		for _, r := range page.Ranges {
			slowest = 0
			for range 20 {
				ask(r)
			}
			b.ReportMetric(float64(slowest.Microseconds())/1000, "ms-page-"+r.Name)
		}
		b.ReportMetric(audittest.Peak(b)-base, "peak-MiB")
		began = time.Now()
		src.verify(ctx)
		b.ReportMetric(time.Since(began).Seconds(), "s-to-verify")
		cancel()
		<-ended
	}
}

// million is a record of a busy host: calls of many agents, leases, refusals.
func million(n, agents int) audit.Record {
	r := audittest.Attested(n % 30_000)
	r.SPIFFEID = fmt.Sprintf("spiffe://example.org/agent/%d", n/2%agents)
	r.RequestID = fmt.Sprint("r", n/2)
	r.Credential = &audit.Credential{Name: fmt.Sprint("api-", n/2%7), Lease: fmt.Sprint("l", n/2000)}
	r.Call = &audit.Call{Door: "loopback", Method: "POST", Path: "/v1/responses", Rule: "chat"}
	switch {
	case n%2 == 0 && n%1000 == 0:
		r.Event, r.Outcome, r.Reason = audit.EventCall, audit.Denied, "no rule allows it"
	case n%2 == 0:
		r.Event = audit.EventCall
	default:
		r.Event, r.Call.Status, r.Call.Sent, r.Call.Received, r.Call.WithinTTL = audit.EventCallEnd, 200, 2000, 9000, true
	}
	return r
}
