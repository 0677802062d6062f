package proxy

import (
	"context"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// begin records a call that is about to be made. When it returns nil, the record is
// durable.
func (s *session) begin(ctx context.Context, q *question) error {
	return q.caller.Record(ctx, q.describe(audit.EventCall))
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
	c.WithinTTL = !time.Now().After(q.lease.Lease.Expires)
	if o.Problem != "" {
		r.Outcome, r.Reason = audit.Failed, o.Problem
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
	o.records = append(o.records, r)
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
