package credentialapi

import (
	"context"
	"strings"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A Recorder keeps what happens to leases in the attestation log. A step that a caller
// requested is recorded with that caller; what the daemon does on its own, such as ending a
// lease that expired, is tied to the caller by the lease.
type Recorder struct{ gate *gate.Recorder }

// NewRecorder returns a recorder for a [lease.Manager], which writes with
// the gate's.
func NewRecorder(r *gate.Recorder) *Recorder { return &Recorder{r} }

// Record implements [lease.Recorder]. A refusal of a user who is refused
// again and again is not recorded, which is an error: see [gate.Recorder].
func (r *Recorder) Record(ctx context.Context, e credential.Event) error {
	by := (*audit.Workload)(e.Asker)
	record := audit.Record{
		Event:      leaseEvent(e),
		RequestID:  e.RequestID,
		SPIFFEID:   e.Identity.String(),
		Outcome:    leaseOutcome(e.Outcome),
		Reason:     e.Reason,
		Duration:   e.Duration,
		Workload:   by,
		Credential: leaseCredential(e),
	}
	if e.Outcome == credential.Denied && by != nil {
		return r.gate.Refuse(ctx, by.UID, func() audit.Record { return record })
	}
	if !endsLease(e) {
		return r.gate.Record(ctx, record)
	}
	used := record
	used.Event, used.Outcome, used.Reason, used.Use = audit.EventUse, audit.Success, "", leaseUse(e)
	return r.gate.Record(ctx, used, record)
}

func leaseEvent(e credential.Event) audit.Event {
	switch e.Kind {
	case credential.EventGrant:
		return audit.EventLeaseGrant
	case credential.EventRenew:
		return audit.EventLeaseRenew
	case credential.EventRevoke:
		if e.Outcome == credential.RanOut {
			return audit.EventLeaseEnd
		}
		return audit.EventLeaseRevoke
	}
	return audit.EventLeaseIntent
}

func leaseOutcome(o credential.Outcome) audit.Outcome {
	switch o {
	case credential.Success:
		return audit.Success
	case credential.Denied:
		return audit.Denied
	case credential.RanOut:
		return audit.Expired
	}
	return audit.Failed
}

func leaseCredential(e credential.Event) *audit.Credential {
	c := &audit.Credential{
		Lease:      e.Lease,
		Name:       e.Credential,
		Kind:       e.Broker,
		Upstream:   e.Upstream,
		Handle:     e.Handle,
		Audience:   e.Audience,
		NotBefore:  e.NotBefore,
		NotAfter:   e.NotAfter,
		TTL:        e.TTL,
		Revocation: string(e.Revocation),
		Exposure:   string(e.Exposure),
	}
	// What is asked for is in the definition's words and what is granted in
	// the upstream's: side by side they would seem to differ.
	if e.Kind == credential.EventIntent {
		c.ScopeAsked = strings.Join(e.ScopeAsked, " ")
	} else {
		c.ScopeGranted = strings.Join(e.ScopeGranted, " ")
	}
	return c
}

// endsLease reports whether nothing is left of the lease, and its use can be
// summed up.
func endsLease(e credential.Event) bool {
	return e.Kind == credential.EventRevoke && (e.Outcome == credential.Success || e.Outcome == credential.RanOut)
}

func leaseUse(e credential.Event) *audit.Use {
	if !e.Use.Known && e.Use.Count == 0 {
		return &audit.Use{Source: "unknown"}
	}
	return &audit.Use{
		First: e.Use.First, Last: e.Use.Last, Count: uint64(max(0, e.Use.Count)),
		WithinTTL: !e.Use.Last.After(e.NotAfter), Source: "upstream",
	}
}
