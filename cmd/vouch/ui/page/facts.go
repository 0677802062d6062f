// Package page makes the pages of vouch ui from facts: what the daemon said, and what its log
// told. It asks nobody and reads nothing, so that the same facts are the same page.
//
// Text in facts is from outside: names of files, reasons, what agents asked for. Whatever of
// it is shown passes [label], which escapes what does not print, cuts what is long, and makes
// both visible; html/template keeps it from being markup.
package page

import (
	"time"

	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Facts are what a page is made of.
type Facts struct {
	Now     time.Time // in the zone that times are shown in
	Host    string
	Range   Range
	Refresh time.Duration // how often the browser is to ask again; 0: when somebody does

	Log    string // where it is
	Copied bool   // it is a copy: no daemon was asked, and now is the log's end

	Daemon   *view.Status // nil if there is none, or it does not answer
	Away     string       // why it does not
	Entries  []view.Entry // nil: nobody says
	Leases   []view.Lease // the same
	Defined  []Credential
	Unread   string // why the credentials' definitions are not known
	Seen     *history.View
	Verified Verification
	Gone     map[int]bool // holders of leases that have ended, by PID
}

// A Range is a time to look back over.
type Range struct {
	Name  string // as in a link
	Short string // of the link
	Title string // after "the last"
	Step  time.Duration
	Steps int
}

// Ranges are those to choose from, the shortest first.
var Ranges = []Range{
	{"1h", "1 hour", "hour", time.Minute, 60},
	{"24h", "24 hours", "24 hours", 30 * time.Minute, 48},
	{"7d", "7 days", "7 days", 3 * time.Hour, 56},
	{"30d", "30 days", "30 days", 12 * time.Hour, 60},
}

// RangeOf returns the range by a name, or the one that a page begins with.
func RangeOf(name string) Range {
	for _, r := range Ranges {
		if r.Name == name {
			return r
		}
	}
	return Ranges[1]
}

// Window returns the range up to a time: whole steps, the last of which is going on.
func (r Range) Window(now time.Time) history.Window {
	return history.Window{Until: now.Truncate(r.Step).Add(r.Step), Step: r.Step, Steps: r.Steps}
}

// A Credential is what its definition says.
type Credential struct {
	Name        string
	Kind        string // of its source
	Upstream    string
	Description string
	Gives       string // what a holder is given
	Lifetime    time.Duration
	Enforced    bool // the rules are not only tried out
	Rules       []Rule
}

// A Rule is one on calls.
type Rule struct {
	Name    string
	Allows  bool
	What    string // methods and paths, or statements
	Further string // conditions
}

// A Verification is what came of verifying the log.
type Verification struct {
	Running bool
	Began   time.Time // the one that is running
	Done    time.Time // the last one; zero: none
	Report  *reader.Report
	Err     string // why it could not be made
}
