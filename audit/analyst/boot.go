package analyst

import (
	"fmt"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A BootState is what the log knows of the machine at a time, and in what that
// differs from before.
type BootState struct {
	Index     uint64    `json:"record"`
	Time      time.Time `json:"time"`
	PCRSHA256 string    `json:"pcr_sha256,omitempty"` // over the boot PCRs
	Resets    uint32    `json:"resets"`               // the TPM's count, one more each boot
	EKSHA256  string    `json:"ek_sha256,omitempty"`
	Version   string    `json:"version,omitempty"` // of the daemon
	Passed    bool      `json:"passed"`            // false where the machine was found not to satisfy its policy
	Reason    string    `json:"reason,omitempty"`
	Changed   []string  `json:"changed,omitempty"` // nothing: it is the state as the time begins
}

// maxBootStates bounds what is listed.
const maxBootStates = 1000

// bootStates follows the machine's state through a time.
type bootStates struct {
	q     *Query
	known bool
	last  BootState
	list  []BootState
	left  uint64
}

func (b *bootStates) take(l *audit.Leaf) {
	if l.Node == nil || l.Event != audit.EventStart && l.Event != audit.EventNode {
		return
	}
	next := b.last
	next.Index, next.Time, next.Passed, next.Reason, next.Changed = l.Index, l.Time, l.Outcome == audit.Success, Reason(l), nil
	next.Resets = l.Node.Resets
	if l.Node.PCRSHA256 != "" {
		next.PCRSHA256 = l.Node.PCRSHA256
	}
	if l.Node.EKSHA256 != "" {
		next.EKSHA256 = l.Node.EKSHA256
	}
	if l.Config != nil && l.Config.Version != "" {
		next.Version = l.Config.Version
	}
	if b.known {
		next.Changed = next.changes(&b.last)
	}
	switch {
	case !b.q.Until.IsZero() && !l.Time.Before(b.q.Until):
		return
	case !b.known, l.Time.Before(b.q.From):
		first := next
		first.Changed = nil
		b.list = []BootState{first}
	case len(next.Changed) > 0 && len(b.list) < maxBootStates:
		b.list = append(b.list, next)
	case len(next.Changed) > 0:
		b.left++
	}
	b.known, b.last = true, next
}

// changes says in what a state differs from the one before.
func (s *BootState) changes(before *BootState) (list []string) {
	differs := func(what, a, b string) {
		if a != b && a != "" && b != "" {
			list = append(list, fmt.Sprintf("%s %s -> %s", what, a, b))
		}
	}
	differs("PCRs", before.PCRSHA256, s.PCRSHA256)
	differs("reset count", fmt.Sprint(before.Resets), fmt.Sprint(s.Resets))
	differs("TPM", before.EKSHA256, s.EKSHA256)
	differs("vouchd", before.Version, s.Version)
	if before.Passed != s.Passed {
		list = append(list, map[bool]string{true: "satisfies its policy again", false: "no longer satisfies its policy"}[s.Passed])
	}
	return list
}
