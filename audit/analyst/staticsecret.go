package analyst

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How old a static secret may be: one that only its owner can read, in one place, and any
// other.
const (
	staticDays = 90
	broadDays  = 30
)

// A StaticSecret is one that lies on the host, outside of vouchd, as an inventory has it.
type StaticSecret struct {
	Kind    string    `json:"kind"`
	Path    string    `json:"path"`
	Line    int       `json:"line,omitempty"`
	Item    string    `json:"item"`
	What    string    `json:"what,omitempty"`
	Readers []string  `json:"readers,omitempty"` // who could read it
	Places  int       `json:"places"`            // in which the same one lies
	Written time.Time `json:"written"`           // its file; it is older then
	Days    int       `json:"days"`
	Most    int       `json:"days_at_most"`
	Why     string    `json:"why,omitempty"` // fewer days count

	Broad  string `json:"-"` // why it may do more than one program needs
	Shared bool   `json:"-"` // others than its owner can read it
}

// AddInventory adds the static secrets of an inventory that are older than they should
// be, the oldest first.
func (u *Usage) AddInventory(taken time.Time, secrets []StaticSecret) {
	u.Inventory, u.Static = taken, []StaticSecret{}
	for _, s := range secrets {
		if s.Written.IsZero() {
			continue // nobody knows how old it is
		}
		s.Days = max(0, int(taken.Sub(s.Written).Hours()/24))
		switch s.Most = broadDays; {
		case s.Broad != "":
			s.Why = s.Broad
		case s.Places > 1:
			s.Why = fmt.Sprintf("it lies in %d places", s.Places)
		case s.Shared:
			s.Why = "others than its owner can read it"
		default:
			s.Most = staticDays
		}
		if s.Days > s.Most {
			u.Static = append(u.Static, s)
		}
	}
	slices.SortStableFunc(u.Static, func(a, b StaticSecret) int { return cmp.Compare(b.Days, a.Days) })
}

// text is one of them for people.
func (s *StaticSecret) text() string {
	where := s.Path
	if s.Line > 0 {
		where += ":" + strconv.Itoa(s.Line)
	}
	text := fmt.Sprintf("  ! %s, %s in %s: %d days old, and may be %d", or(s.What, "secret"), s.Item, where, s.Days, s.Most)
	if s.Why != "" {
		text += " (" + s.Why + ")"
	}
	if len(s.Readers) > 0 {
		text += "\n    " + strings.Join(s.Readers, ", ") + " could read it"
	}
	return text
}
