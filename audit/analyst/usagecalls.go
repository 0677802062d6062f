package analyst

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/audit"
)

// A CallsUsage is the calls that the proxy made for an identity with one credential.
type CallsUsage struct {
	Calls    uint64            `json:"calls"`
	Refused  uint64            `json:"refused,omitempty"` // by the rules, or before
	Failed   uint64            `json:"failed,omitempty"`  // without an answer, or with a status of 400 and above
	Sent     uint64            `json:"bytes_sent"`        // of content
	Received uint64            `json:"bytes_received"`
	Redacted uint64            `json:"redacted,omitempty"`  // times that the credential was in a response
	Shaped   uint64            `json:"shaped,omitempty"`    // with what looks like another secret in the response
	AfterTTL uint64            `json:"after_ttl,omitempty"` // ended after their lease had
	Rules    map[string]uint64 `json:"rules,omitempty"`     // calls, by the rule that allowed them
}

// call counts a record of a call, and reports whether it is one.
func (c *CredentialUsage) call(l *audit.Leaf) bool {
	if l.Call == nil {
		return false
	}
	if c.Calls == nil {
		c.Calls = &CallsUsage{Rules: map[string]uint64{}}
	}
	u, call := c.Calls, l.Call
	switch {
	case l.Event == audit.EventCall && l.Outcome != audit.Success:
		u.Refused++
	case l.Event == audit.EventCallEnd:
		n := max(1, call.Count)
		u.Calls += n
		if l.Outcome != audit.Success || !call.OfDatabase() && (call.Status == 0 || call.Status >= 400) {
			u.Failed += n
		}
		u.Sent, u.Received, u.Redacted = u.Sent+call.Sent, u.Received+call.Received, u.Redacted+call.Redacted
		if call.Shapes != "" {
			u.Shaped += n
		}
		if !call.WithinTTL {
			u.AfterTTL += n
		}
		if _, known := u.Rules[call.Rule]; !call.OfDatabase() && (known || len(u.Rules) < maxListed) {
			u.Rules[call.Rule] += n
		}
		if c.FirstUse.IsZero() {
			c.FirstUse = l.Time
		}
		c.LastUse = l.Time
	}
	return true
}

// said puts the calls into words.
func (u *CallsUsage) said() string {
	s := "called " + Times(u.Calls)
	var rules []string
	for _, name := range slices.Sorted(maps.Keys(u.Rules)) {
		if name == "" {
			rules = append(rules, fmt.Sprintf("%d that no rule allows", u.Rules[name]))
		} else {
			rules = append(rules, fmt.Sprintf("%d by rule %s", u.Rules[name], name))
		}
	}
	if len(rules) > 0 {
		s += " (" + strings.Join(rules, ", ") + ")"
	}
	s += ", " + Count(u.Sent, "byte") + fmt.Sprintf(" sent and %d received", u.Received)
	for _, part := range []struct {
		n    uint64
		what string
	}{{u.Refused, "refused"}, {u.Failed, "failed"}, {u.Redacted, "with the credential in the response, which was taken out"}, {u.Shaped, "with what looks like another secret in the response"}, {u.AfterTTL, "ended after the lease"}} {
		if part.n > 0 {
			s += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	return s
}
