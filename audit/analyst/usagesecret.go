package analyst

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A SecretUsage is what the log knows of one secret that is sealed to the
// machine, at the log's end.
type SecretUsage struct {
	Name     string    `json:"name"`
	Sealed   time.Time `json:"sealed,omitzero"` // the present value; unknown where its record is gone
	RotateBy time.Time `json:"rotate_by,omitzero"`
	Due      bool      `json:"due"`
	Removed  bool      `json:"removed,omitempty"`
	Rotated  uint64    `json:"rotated"` // times
	Uses     uint64    `json:"uses"`
	LastUse  time.Time `json:"last_use,omitzero"`
	UsedBy   []string  `json:"used_by,omitempty"` // SPIFFE IDs
	// Former counts hand-outs of a value that had been replaced or removed: an
	// older copy of the state directory's secrets was put back.
	Former uint64 `json:"former_values_handed_out,omitempty"`

	revision uint64 // of the present value
}

const (
	maxSecrets    = 10_000
	sealedPrefix  = "sealed:" // of what a grant of a sealed secret has as its upstream
	secretsLayout = "2006-01-02"
)

// secretUsages gathers them by name.
type secretUsages map[string]*SecretUsage

// take notes a record about a secret. How old a value is counts from its own
// record, however long that is ago; uses count from since on.
func (u secretUsages) take(l *audit.Leaf, since time.Time) {
	if l.Credential == nil || l.Outcome != audit.Success {
		return
	}
	switch l.Event {
	case audit.EventSecretSeal, audit.EventSecretRotate:
		s := u.of(l.Credential.Name)
		s.revision = revisionOf(l.Credential.Handle)
		s.Sealed, s.RotateBy, s.Removed = l.Credential.NotBefore, l.Credential.NotAfter, false
		if l.Event == audit.EventSecretRotate && !l.Time.Before(since) {
			s.Rotated++
		}
	case audit.EventSecretRemove:
		u.of(l.Credential.Name).Removed = true
	case audit.EventLeaseGrant:
		name, ok := strings.CutPrefix(l.Credential.Upstream, sealedPrefix)
		if !ok || l.Time.Before(since) {
			return
		}
		s := u.of(name)
		s.Uses, s.LastUse = s.Uses+1, l.Time
		s.UsedBy = listed(s.UsedBy, l.SPIFFEID)
		if s.Removed || revisionOf(l.Credential.Handle) < s.revision {
			s.Former++
		}
	}
}

// revisionOf reads a value's handle, NAME@REVISION; 0 if it is none.
func revisionOf(handle string) uint64 {
	n, err := strconv.ParseUint(handle[strings.LastIndexByte(handle, '@')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (u secretUsages) of(name string) *SecretUsage {
	s := u[name]
	if s == nil {
		s = &SecretUsage{Name: name}
		if len(u) < maxSecrets {
			u[name] = s
		}
	}
	return s
}

// conclude returns them by name, as they are at the log's end.
func (u secretUsages) conclude(end time.Time) (all []*SecretUsage) {
	for _, name := range slices.Sorted(maps.Keys(u)) {
		s := u[name]
		s.Due = !s.Removed && !s.RotateBy.IsZero() && end.After(s.RotateBy)
		slices.Sort(s.UsedBy)
		all = append(all, s)
	}
	return all
}

// text is one secret for people.
func (s *SecretUsage) text(end time.Time, zone *time.Location) string {
	var b strings.Builder
	fmt.Fprintf(&b, "secret %s:", s.Name)
	switch {
	case s.Removed:
		b.WriteString(" removed")
	case s.Sealed.IsZero():
		b.WriteString(" sealed before this log begins")
	default:
		b.WriteString(" " + Count(int(end.Sub(s.Sealed).Hours()/24), "day") + " old")
	}
	if s.Uses == 0 {
		b.WriteString(", not used")
	} else {
		fmt.Fprintf(&b, ", used %s, last %s by %s", Times(s.Uses), stamp(s.LastUse, zone), strings.Join(s.UsedBy, ", "))
	}
	if s.Due {
		fmt.Fprintf(&b, "\n  ! should have been rotated by %s", s.RotateBy.Format(secretsLayout))
	}
	if s.Former > 0 {
		fmt.Fprintf(&b, "\n  ! a value that had been replaced or removed was handed out %s: an older copy of it was put back", Times(s.Former))
	}
	return b.String()
}
