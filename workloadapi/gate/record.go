package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/writer"
	"github.com/vouchd/vouchd/identity"
)

// A Recorder writes decisions to the attestation log, and bounds how many
// refusals of one user it writes, whichever front refuses. Its methods are safe
// for concurrent use.
type Recorder struct {
	log      *writer.Log
	refusals *refusals
	ledger   *ledger
	persons  *persons
	limited  *counters
	later    later
}

// NewRecorder returns a recorder. A daemon has one.
func NewRecorder(log *writer.Log, share Share) *Recorder {
	scarce := func() bool { return share.Bytes > 0 && log.Status().DiskBytes > share.Bytes/2 }
	return &Recorder{
		log:      log,
		refusals: newRefusals(share, scarce),
		ledger:   &ledger{share: share, now: time.Now, identities: make(map[string]*spending), scarce: scarce},
		persons:  newPersons("/etc/subuid"),
		limited:  new(counters),
	}
}

// Record makes records durable, in as many batches as the log wants. If one
// fails, the log may tell of more than was handed out, never of less.
func (r *Recorder) Record(ctx context.Context, records ...audit.Record) error {
	for batch := range slices.Chunk(records, audit.MaxAppend) {
		if err := r.log.Append(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// Refuse makes the record of a refusal durable. For a user who is refused again
// and again it only counts it, without describe, and returns
// [ErrTooManyRefusals].
func (r *Recorder) Refuse(ctx context.Context, uid uint32, describe func() audit.Record) error {
	person := r.persons.of(uid)
	ok, first := r.refusals.allow(person)
	if ok {
		return r.log.Append(ctx, describe())
	}
	r.limited.refusals.Add(1)
	if first {
		r.later.do(sumEvery, func() {
			n := r.refusals.take(person)
			if n == 0 {
				return
			}
			sum := audit.Record{
				Event: audit.EventWorkload, Outcome: audit.Denied, Workload: &audit.Workload{UID: person},
				Reason: fmt.Sprintf("%d refusals of this user were counted and not recorded one by one", n),
			}
			r.log.Append(context.WithoutCancel(ctx), sum) // a log that cannot be written says so itself
		})
	}
	return ErrTooManyRefusals
}

// Person returns the user that a user ID counts for: the owner of a subordinate
// one (subuid(5)), else itself.
func (r *Recorder) Person(uid uint32) uint32 { return r.persons.of(uid) }

// Close records what was only counted yet. The log is closed after it.
func (r *Recorder) Close() { r.later.close() }

// Record makes durable what the caller is about to get.
func (c *Caller) Record(ctx context.Context, records ...audit.Record) error {
	if !c.proven {
		return c.Fail(errors.New("recording an answer to a caller that has not proven its presence"))
	}
	return c.Fail(c.gate.recorder.Record(ctx, records...))
}

// Refuse records why the caller gets nothing, and returns what to tell it. A
// caller that went away is not refused: nothing was decided.
func (c *Caller) Refuse(ctx context.Context, event audit.Event, cause error) error {
	if ctx.Err() != nil && errors.Is(cause, ctx.Err()) && context.Cause(ctx) == ctx.Err() {
		return c.Fail(cause)
	}
	err := c.gate.recorder.Refuse(context.WithoutCancel(ctx), c.Peer().UID(), func() audit.Record { return refusalOf(c, event, cause) })
	switch {
	case err == nil, errors.Is(err, ErrTooManyRefusals) && errors.Is(cause, ErrNode):
		return c.Fail(cause) // if a thousand streams end at once, all are told why
	default:
		return c.Fail(fmt.Errorf("%w; the refusal was: %v", err, cause))
	}
}

// refusalOf is the record of why a caller gets nothing.
func refusalOf(c *Caller, event audit.Event, cause error) audit.Record {
	r := c.Describe(event)
	r.Outcome, r.Reason = audit.Denied, cause.Error()
	if len(c.lost) > 0 {
		r.SPIFFEID, r.Workload.Entry = c.lost[0].ID.String(), c.lost[0].Pos.String()
	}
	if !c.as.ID.IsZero() {
		r.SPIFFEID, r.Workload.Entry = c.as.ID.String(), c.as.Pos.String()
	}
	if c.request.Credential != "" {
		r.Credential = &audit.Credential{Name: c.request.Credential}
	}
	r.Call = c.request.Call
	if errors.Is(cause, audit.ErrUnwritable) || errors.Is(cause, identity.ErrNoAuthority) {
		r.Outcome = audit.Failed
	}
	return r
}

// End records that an answer that lasted has ended.
func (c *Caller) End(ctx context.Context, reason string) error {
	r := c.Describe(audit.EventStreamEnd)
	r.Reason = reason
	return c.Fail(c.gate.recorder.Record(context.WithoutCancel(ctx), r))
}

// Describe begins a record about the caller.
func (c *Caller) Describe(event audit.Event) audit.Record {
	return audit.Record{
		Event:     event,
		RequestID: c.RequestID,
		Outcome:   audit.Success,
		Duration:  time.Since(c.Arrived),
		Workload:  c.workload(),
	}
}

// DescribeAs begins a record about the caller under one of its entries.
func (c *Caller) DescribeAs(event audit.Event, e identity.Entry) audit.Record {
	r := c.Describe(event)
	r.SPIFFEID = e.ID.String()
	r.Workload.Entry = e.Place()
	return r
}

// DescribeX509 is the record of an X509-SVID.
func (c *Caller) DescribeX509(e identity.Entry, svid *identity.X509SVID) audit.Record {
	digest := sha256.Sum256(svid.Leaf)
	r := c.DescribeAs(audit.EventX509SVID, e)
	r.SVID = &audit.SVID{
		Kind: "x509", ID: svid.Serial, SHA256: hex.EncodeToString(digest[:]), KeyID: svid.IssuerID,
		DNSNames:  svid.Names.DNS,
		NotBefore: svid.NotBefore, NotAfter: svid.NotAfter,
		Signing: svid.Server.Signing, Offline: svid.Server.Offline,
	}
	if svid.Names.Common != identity.CommonName(e.ID) { // which says no more than the ID
		r.SVID.CommonName = svid.Names.Common
	}
	return r
}

// DescribeJWT is the record of a JWT-SVID.
func (c *Caller) DescribeJWT(e identity.Entry, svid *identity.JWTSVID) audit.Record {
	digest := sha256.Sum256([]byte(svid.Token))
	r := c.DescribeAs(audit.EventJWTSVID, e)
	r.SVID = &audit.SVID{
		Kind: "jwt", ID: svid.JTI, SHA256: hex.EncodeToString(digest[:]), KeyID: svid.KeyID,
		Audience: svid.Audience, NotBefore: svid.IssuedAt, NotAfter: svid.ExpiresAt,
		Signing: svid.Server.Signing, Offline: svid.Server.Offline,
	}
	return r
}

// DescribeWIT is the record of a WIT-SVID.
func (c *Caller) DescribeWIT(e identity.Entry, svid *identity.WITSVID) audit.Record {
	digest := sha256.Sum256([]byte(svid.Token))
	r := c.DescribeAs(audit.EventWITSVID, e)
	r.SVID = &audit.SVID{
		Kind: "wit", SHA256: hex.EncodeToString(digest[:]), KeyID: svid.KeyID,
		NotBefore: svid.IssuedAt, NotAfter: svid.ExpiresAt,
		Signing: svid.Server.Signing, Offline: svid.Server.Offline,
	}
	return r
}

func (c *Caller) workload() *audit.Workload {
	if c.Process != nil {
		return WorkloadOf(c.Process)
	}
	p := c.Peer()
	return &audit.Workload{PID: p.PID(), UID: p.UID(), GID: p.GID(), Unit: c.request.Unit}
}

// WorkloadOf is what a record says about an attested process.
func WorkloadOf(p *process.Attested) *audit.Workload {
	return &audit.Workload{
		PID: p.PID, StartTime: p.StartTime, UID: p.UID, GID: p.GID,
		Path: p.Path, SHA256: p.SHA256, Device: p.Device, Inode: p.Inode,
		Cgroup: p.Cgroup, Unit: p.Unit, Selectors: p.Selectors.Strings(),
	}
}
