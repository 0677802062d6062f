package analyst

import (
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A Query says which records a reader is about. What is empty asks for nothing.
type Query struct {
	From, Until time.Time // from the first on, and before the second
	SPIFFEID    string
	Credential  string
	Outcome     string // as recorded, or the word of [Ending]
	Event       string // how it begins
	Request     string
}

// Wants tells whether the query is about a record.
func (q *Query) Wants(l *audit.Leaf) bool {
	return q.within(l.Time) && q.about(l) && q.outcome(l) &&
		strings.HasPrefix(string(l.Event), q.Event) &&
		(q.Request == "" || l.RequestID == q.Request)
}

func (q *Query) within(t time.Time) bool {
	return !t.Before(q.From) && (q.Until.IsZero() || t.Before(q.Until))
}

// about tells whether a record is of the identity and the credential.
func (q *Query) about(l *audit.Leaf) bool {
	return (q.SPIFFEID == "" || l.SPIFFEID == q.SPIFFEID) &&
		(q.Credential == "" || l.Credential != nil && l.Credential.Name == q.Credential)
}

func (q *Query) outcome(l *audit.Leaf) bool {
	return q.Outcome == "" || q.Outcome == string(l.Outcome) || q.Outcome == string(Ending(l))
}

// An End is how a lease ended, in one word.
type End string

// The ways a lease ends.
const (
	EndRevoked     End = "revoked"     // the source confirmed it, before the time was up
	EndExpired     End = "expired"     // the time was up
	EndReleased    End = "released"    // given up before that at a source that can't revoke
	EndUnconfirmed End = "unconfirmed" // the source did not confirm it, and is asked again
)

// Outcomes are the words that [Query].Outcome may be.
func Outcomes() []string {
	return []string{
		string(audit.Success), string(audit.Denied), string(audit.Failed),
		string(EndExpired), string(EndRevoked), string(EndReleased), string(EndUnconfirmed),
	}
}

// Ending returns how a lease ended by a record that tells of it, else nothing.
func Ending(l *audit.Leaf) End {
	timeUp := strings.HasPrefix(l.Reason, "expired")
	switch {
	case l.Event != audit.EventLeaseRevoke && l.Event != audit.EventLeaseEnd:
		return ""
	case l.Event == audit.EventLeaseRevoke && l.Outcome != audit.Success:
		return EndUnconfirmed
	case timeUp || l.Reason == "":
		if l.Event == audit.EventLeaseRevoke && !timeUp {
			return EndRevoked
		}
		return EndExpired
	case l.Event == audit.EventLeaseRevoke:
		return EndRevoked
	}
	return EndReleased
}

// Word is how a record went, in one word.
func Word(l *audit.Leaf) string {
	if end := Ending(l); end != "" {
		return string(end)
	}
	return string(l.Outcome)
}

// Reason returns why a record went as it did. Of a lease that nobody could revoke
// it does not say "revoked", as records of earlier versions do.
func Reason(l *audit.Leaf) string {
	if rest, ok := strings.CutPrefix(l.Reason, "revoked by "); ok && Ending(l) != EndRevoked && Ending(l) != "" {
		return "ended by " + rest
	}
	return l.Reason
}

// timeLayout names the zone with each time.
const timeLayout = "2006-01-02 15:04:05Z07:00"

// stamp is a time for people.
func stamp(t time.Time, zone *time.Location) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.In(zone).Format(timeLayout)
}
