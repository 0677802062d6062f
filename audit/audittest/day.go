package audittest

import (
	"fmt"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A Lease makes a lease's records as the daemon writes them: with a request ID only
// where a caller asked, and the lease in all.
type Lease struct{ Credential audit.Credential }

// NewLease returns a lease that is granted at a time.
func NewLease(now time.Time, id, name, revocation string, ttl time.Duration) Lease {
	now = now.Truncate(time.Second)
	return Lease{audit.Credential{
		Lease: id, Name: name, Kind: "kind-of-" + name, Upstream: name + ".example.org", Handle: "handle-" + id,
		NotBefore: now, NotAfter: now.Add(ttl), TTL: ttl, Revocation: revocation,
	}}
}

// Record returns one about the lease.
func (x Lease) Record(e audit.Event, o audit.Outcome, reason string) audit.Record {
	r := Attested(9)
	r.Event, r.Outcome, r.Reason, r.RequestID = e, o, reason, ""
	c := x.Credential
	r.Credential = &c
	switch e {
	case audit.EventLeaseIntent, audit.EventLeaseGrant, audit.EventLeaseRenew:
		r.RequestID = "request-" + c.Lease
	case audit.EventLeaseRevokeIntent:
		r.RequestID = "another-request-" + c.Lease
	default:
		r.Workload = nil // the daemon by itself
	}
	return r
}

// Grant returns the intent and the grant.
func (x Lease) Grant() []audit.Record {
	return []audit.Record{x.Record(audit.EventLeaseIntent, audit.Success, ""), x.Record(audit.EventLeaseGrant, audit.Success, "")}
}

// End returns the end of the lease, with how it was used before.
func (x Lease) End(u audit.Use, e audit.Event, o audit.Outcome, reason string) []audit.Record {
	use := x.Record(audit.EventUse, audit.Success, "")
	use.Use = &u
	return []audit.Record{use, x.Record(e, o, reason)}
}

// Unseen is the use of a lease that nobody could see.
var Unseen = audit.Use{Source: "unknown"}

// Day returns what a daemon records between a start and a stop in which nothing is
// wrong. Days are told apart by run.
func Day(now time.Time, run int, version string) (day []audit.Record) {
	now = now.Truncate(time.Second)
	add := func(rs ...audit.Record) { day = append(day, rs...) }
	id := func(name string) string { return fmt.Sprintf("%s-%d", name, run) }
	lease := func(name, of, revocation string, ttl time.Duration) Lease {
		x := NewLease(now, id(name), of, revocation, ttl)
		add(x.Grant()...)
		return x
	}
	asked := func(x Lease) Lease { // its holder asks to end it
		add(x.Record(audit.EventLeaseRevokeIntent, audit.Success, ""))
		return x
	}
	end := func(x Lease, e audit.Event, o audit.Outcome, reason string) { add(x.End(Unseen, e, o, reason)...) }

	key := id("kid")
	add(
		audit.Record{Event: audit.EventNode, Outcome: audit.Success, Node: &audit.Node{PCRSHA256: "aabb"}},
		audit.Record{Event: audit.EventJWTKey, Outcome: audit.Success, Key: &audit.Key{KeyID: key, PublicKey: []byte{1}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour)}},
		audit.Record{Event: audit.EventReload, Outcome: audit.Success, Config: &audit.Config{Entries: 3, SHA256: "aa", Version: version}},
		audit.Record{Event: audit.EventReload, Outcome: audit.Failed, Reason: "entries.d/a.yaml:3: no selectors"},
		audit.Record{Event: audit.EventReload, Outcome: audit.Success, Config: &audit.Config{Entries: 4, SHA256: "ab", Version: version}},
	)
	jwt := Attested(9)
	jwt.Event, jwt.SVID = audit.EventJWTSVID, &audit.SVID{Kind: "jwt", ID: id("j"), KeyID: key, Audience: []string{"db"}, NotBefore: now, NotAfter: now.Add(5 * time.Minute)}
	add(Attested(9), jwt)

	// Each way in which the lease of a broker ends.
	end(lease("process", "postgres", "hard", time.Hour), audit.EventLeaseRevoke, audit.Success, "process ended")
	renewed := lease("expired", "postgres", "hard", time.Minute)
	renewed.Credential.NotAfter = now.Add(2 * time.Minute)
	add(renewed.Record(audit.EventLeaseRenew, audit.Success, ""))
	end(renewed, audit.EventLeaseRevoke, audit.Success, "expired")
	end(asked(lease("holder", "vault", "hard", time.Hour)), audit.EventLeaseRevoke, audit.Success, "revoked by its holder")
	retried := asked(lease("retried", "vault", "hard", time.Hour))
	add(retried.Record(audit.EventLeaseRevoke, audit.Failed, "the source answers 503"))
	end(retried, audit.EventLeaseRevoke, audit.Success, "revoked by its holder")
	wide := lease("grant-wide", "oauth", "grant-wide", time.Hour)
	add(audit.Record{Event: audit.EventAdmin, Outcome: audit.Success, Reason: "revoke leases of credential oauth", Workload: &audit.Workload{PID: 1}})
	end(wide, audit.EventLeaseRevoke, audit.Success, "revoked by an administrator (user 0)")
	end(asked(lease("clock", "aws", "expiry-only", time.Minute)), audit.EventLeaseEnd, audit.Expired, "revoked by its holder")
	end(lease("static", "static", "none", time.Minute), audit.EventLeaseEnd, audit.Expired, "expired")
	end(asked(lease("returned", "static", "none", time.Minute)), audit.EventLeaseEnd, audit.Expired, "revoked by its holder")

	// What is refused, and what a source does not give.
	refused := NewLease(now, "", "oauth", "", 0)
	down := NewLease(now, id("down"), "vault", "hard", time.Hour)
	add(
		audit.Record{Event: audit.EventWorkload, Outcome: audit.Denied, Reason: "no entry matches", Workload: &audit.Workload{PID: 3, UID: 7}},
		refused.Record(audit.EventLeaseIntent, audit.Denied, "not granted"),
		refused.Record(audit.EventLeaseRevokeIntent, audit.Denied, "no such lease"),
		down.Record(audit.EventLeaseIntent, audit.Success, ""),
		down.Record(audit.EventLeaseGrant, audit.Failed, "the source answers 503"),
	)

	// Leases that outlast the day: one held, one given up where only the clock ends it.
	lease("held", "postgres", "hard", 48*time.Hour)
	asked(lease("given-up", "aws", "expiry-only", 48*time.Hour))
	return day
}
