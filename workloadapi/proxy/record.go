package proxy

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// begin records a call that is about to be made. When it returns nil, the record is
// durable: its own, or that of the window that it is in.
func (s *session) begin(ctx context.Context, q *question) (err error) {
	open := func() error { return q.caller.Record(ctx, q.describe(audit.EventCall)) }
	if !q.def.Proxy.Window {
		return open()
	}
	p := q.caller.Process
	key := windowKey{q.entry.ID, q.def.Name, q.call.Rule, p.PID, p.StartTime}
	q.window, err = s.windows.enter(key, q.caller.RequestID, open)
	return err
}

// describe is the record of a call.
func (q *question) describe(event audit.Event) audit.Record {
	r := q.caller.DescribeAs(event, q.entry)
	call := q.call
	r.Call = &call
	r.Credential = &audit.Credential{Name: q.def.Name, Kind: q.def.Broker}
	if l := q.lease; l != nil {
		r.Credential = &audit.Credential{
			Name: l.Lease.Credential, Kind: l.Lease.Broker, Upstream: q.def.Proxy.Base().Host, Handle: l.Lease.Handle,
			NotAfter: l.Lease.Expires, Revocation: string(l.Lease.Revocation),
		}
	}
	return r
}

// record tells the log what came of a call. Nothing waits for it.
func (s *session) record(ctx context.Context, q *question, o *link.Outcome) {
	r := q.describe(audit.EventCallEnd)
	r.Credential.Lease = s.Leases.LeaseHash(q.lease.Lease.ID)
	r.Duration = o.Duration
	c := r.Call
	c.Status, c.Sent, c.Received, c.Redacted = uint64(max(0, o.Status)), uint64(max(0, o.Sent)), uint64(max(0, o.Received)), uint64(max(0, o.Redacted))
	c.Shapes = strings.Join(o.Shapes, ",")
	c.WithinTTL = !time.Now().After(q.lease.Lease.Expires)
	if o.Problem != "" {
		r.Outcome, r.Reason = audit.Failed, o.Problem
	}
	if q.window != "" {
		r.RequestID, c.Count = q.window, 1
	}
	s.outcomes.add(context.WithoutCancel(ctx), s.Server, r)
}

// outcomes are records that nothing waits for: they are made durable together, a moment
// later. A crash before that leaves calls without an outcome.
type outcomes struct {
	mu      sync.Mutex // guards the fields below
	records []audit.Record
	due     bool
	work    sync.WaitGroup
}

const outcomesEvery = 100 * time.Millisecond

func (o *outcomes) add(ctx context.Context, s *Server, r audit.Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.take(r)
	if o.due {
		return
	}
	o.due = true
	o.work.Add(1)
	time.AfterFunc(outcomesEvery, func() {
		defer o.work.Done()
		o.mu.Lock()
		records := o.records
		o.records, o.due = nil, false
		o.mu.Unlock()
		if err := s.Recorder.Record(ctx, records...); err != nil {
			s.Logger.Error("recording what came of calls", "calls", len(records), "err", err)
		}
	})
}

// take adds a record, or what it says to the one of the same window that went the same
// way.
func (o *outcomes) take(r audit.Record) {
	for i := range o.records {
		if r.Call.Count == 0 {
			break // it is one call's alone
		}
		other := &o.records[i]
		if other.RequestID != r.RequestID || other.Outcome != r.Outcome || other.Reason != r.Reason || other.Call.Status != r.Call.Status || other.Call.WithinTTL != r.Call.WithinTTL || other.Call.Shapes != r.Call.Shapes {
			continue
		}
		c := other.Call
		c.Count++
		c.Sent, c.Received, c.Redacted = c.Sent+r.Call.Sent, c.Received+r.Call.Received, c.Redacted+r.Call.Redacted
		other.Duration = max(other.Duration, r.Duration)
		return
	}
	o.records = append(o.records, r)
}
