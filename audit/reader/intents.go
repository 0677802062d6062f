package reader

import (
	"cmp"
	"slices"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// intents are what was announced about leases and has no result yet, by kind and
// lease. The daemon announces what it is about to do at a source, so a crash
// before the result shows.
type intents map[string]intent

type intent struct {
	index  uint64
	what   string    // grant or revocation
	until  time.Time // when the credential ends if nothing ends it; zero if not known
	waits  bool      // a revocation that only the source's clock brings about
	failed bool      // the source was asked, and has not confirmed
}

// maxIntents bounds what is remembered.
const maxIntents = 65536

// What a source can do about a credential, as records say it: nothing, until it
// expires or is rotated.
const (
	expiryOnly  = "expiry-only"
	unrevocable = "none"
)

// take follows a record about a lease. The end of a lease is the result of
// everything that was announced about it.
func (o intents) take(l *audit.Leaf) {
	switch l.Event {
	case audit.EventLeaseIntent:
		o.open("grant", l)
	case audit.EventLeaseRevokeIntent:
		o.open("revocation", l)
	case audit.EventLeaseGrant:
		o.close("grant", l)
	case audit.EventLeaseRevoke, audit.EventLeaseEnd:
		if l.Outcome == audit.Failed {
			o.failed(l)
			return
		}
		o.close("grant", l)
		o.close("revocation", l)
	}
}

// open takes up an intent. One that was refused or failed announces nothing.
func (o intents) open(what string, l *audit.Leaf) {
	if l.Outcome != audit.Success || len(o) >= maxIntents {
		return
	}
	i := intent{index: l.Index, what: what}
	if c := l.Credential; c != nil {
		i.until = c.NotAfter
		i.waits = what == "revocation" && (c.Revocation == expiryOnly || c.Revocation == unrevocable)
	}
	byLease, byRequest := intentKeys(what, l)
	o[cmp.Or(byLease, byRequest)] = i
}

func (o intents) close(what string, l *audit.Leaf) {
	byLease, byRequest := intentKeys(what, l)
	delete(o, byLease)
	delete(o, byRequest)
}

// failed notes that a source did not confirm the end of a lease. The daemon goes
// on trying.
func (o intents) failed(l *audit.Leaf) {
	key, _ := intentKeys("revocation", l)
	if i, ok := o[key]; ok {
		i.failed = true
		o[key] = i
	}
}

// intentKeys are what an intent and its result have in common: the lease, and,
// where a record does not name it, the request. The first is empty where there is
// no lease.
func intentKeys(what string, l *audit.Leaf) (byLease, byRequest string) {
	byRequest = what + " of request " + l.RequestID
	if l.Credential != nil {
		byRequest += " " + l.Credential.Name
		if l.Credential.Lease != "" {
			byLease = what + " of lease " + l.Credential.Lease
		}
	}
	return byLease, byRequest
}

// orphans returns the intents that lack a result at the time of the log's last
// record: first those whose credential may still work, then by place.
func (o intents) orphans(end time.Time) []intent {
	var all []intent
	for _, i := range o {
		if i.waits && (i.until.IsZero() || i.until.After(end)) {
			continue // its result is due when the credential expires
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b intent) int {
		if a.over(end) != b.over(end) {
			if b.over(end) {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.index, b.index)
	})
	return all
}

// over tells whether the credential has expired by then.
func (i intent) over(end time.Time) bool { return !i.until.IsZero() && !i.until.After(end) }

// finding is what an orphan means.
func (i intent) finding(end time.Time) Finding {
	f := Finding{Severity: Warning, Name: "orphaned-intent", Index: &i.index,
		Message: "the " + i.what + " announced here has no result",
		Meaning: "the daemon was interrupted; the credential may exist at its source, see that it was revoked"}
	switch {
	case i.failed:
		f.Message = "the revocation announced here failed, and no later record confirms it"
		f.Meaning = "the credential may still work; revoke it at its source"
	case i.over(end):
		f.Meaning = "the daemon was interrupted; the credential, if it was made, was to expire by " + i.until.UTC().Format(time.RFC3339)
	}
	return f
}
