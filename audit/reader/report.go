package reader

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A Severity says what a finding does to the verdict.
type Severity string

const (
	Failure Severity = "failure" // the log does not hold
	Warning Severity = "warning" // it holds, but somebody should know why this happened
	Note    Severity = "note"    // what this verification could not, or need not, check
)

// rank orders severities, the worst first.
func (s Severity) rank() int { return slices.Index([]Severity{Failure, Warning, Note}, s) }

// A Finding is one thing that verifying found, with what it means.
type Finding struct {
	Severity Severity `json:"severity"`
	Name     string   `json:"name"`             // stable: counter-gap, tree-mismatch
	Index    *uint64  `json:"record,omitempty"` // the record it is about, if one
	Place    string   `json:"place,omitempty"`  // file and offset, if it is about bytes
	Message  string   `json:"message"`          // what was found
	Meaning  string   `json:"meaning"`          // what follows from it

	order uint64 // how many checkpoints were met before it
}

// Bounds of what a report lists. The text shows the first findings of each name;
// the report itself leaves none out but for a log made to have more than a reader
// could hold.
const (
	maxShown    = 20      // of one name
	maxFindings = 100_000 // in all, beside the first of each name
)

// A Report is the result of [Verify].
type Report struct {
	OK      bool   `json:"ok"`
	Verdict string `json:"verdict"` // one sentence

	Origin string `json:"origin"`
	Key    string `json:"key"`    // note verifier key that signed the log
	First  uint64 `json:"first"`  // index of the first record in this copy
	Size   uint64 `json:"size"`   // records in the whole log
	Signed uint64 `json:"signed"` // how many of them a signed checkpoint covers
	Root   string `json:"root"`   // of the tree with Size records, in base64

	From         time.Time              `json:"from,omitzero"` // wall time of the first and the last record
	To           time.Time              `json:"to,omitzero"`
	Events       map[audit.Event]uint64 `json:"events"` // records of each kind
	Segments     int                    `json:"segments"`
	Checkpoints  uint64                 `json:"checkpoints"`
	Anchors      uint64                 `json:"anchors"`
	Anchored     uint64                 `json:"anchored"` // how many records the last good anchor covers
	AnchorsByTPM bool                   `json:"anchors_checked"`
	FirstCounter uint64                 `json:"first_counter,omitempty"` // the TPM's, in the first anchor
	Counter      uint64                 `json:"counter,omitempty"`       // and in the last
	Witnessed    []Witnessed            `json:"witnessed,omitempty"`
	EKSHA256     string                 `json:"ek_sha256,omitempty"`
	AKName       string                 `json:"ak_name,omitempty"`

	Findings []Finding         `json:"findings"`
	Left     map[string]uint64 `json:"findings_left_out,omitempty"` // by name, beyond the first ones
	order    uint64            // of the next finding
	failed   bool
	counts   map[string]int
}

func (r *Report) add(f Finding) {
	if f.Severity == Failure {
		r.failed = true
	}
	if f.order == 0 {
		f.order = r.order
	}
	f.Message, f.Place = printed(f.Message), printed(f.Place)
	if r.counts[f.Name]++; r.counts[f.Name] > maxShown && len(r.Findings) >= maxFindings {
		r.Left[f.Name]++
		return
	}
	r.Findings = append(r.Findings, f)
}

// printed returns a text that is safe on a terminal: what the log has escaped
// already stays as it is.
func printed(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return audit.Escape(s)
	}
	return s
}

// conclude sets the verdict.
func (r *Report) conclude() {
	r.OK = !r.failed
	// The order of findings of one severity is that of the log, as it was read.
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.order, b.order))
	})
	count := func(s Severity) (n int) {
		for _, f := range r.Findings {
			if f.Severity == s {
				n++
			}
		}
		return n
	}
	switch {
	case r.failed:
		r.Verdict = "the log does not hold: " + r.Findings[0].Message
	case r.AnchorsByTPM:
		r.Verdict = fmt.Sprintf("the log holds: %d records, the first %d anchored in the TPM", r.Signed-r.First, r.Anchored)
	default:
		r.Verdict = fmt.Sprintf("the log holds together: %d records signed by its key; no anchor was checked", r.Signed-r.First)
	}
	if n := count(Warning); n > 0 && r.OK {
		r.Verdict += fmt.Sprintf("; %d warnings", n)
	}
}

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", sentence(r.Verdict))
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-12s "+format+"\n", append([]any{name}, args...)...)
	}
	row("log", "%s", r.Origin)
	row("key", "%s", r.Key)
	if r.EKSHA256 != "" {
		row("machine", "EK sha256:%s", r.EKSHA256)
		row("", "AK %s", r.AKName)
	}
	if r.From.IsZero() {
		row("records", "none")
	} else {
		row("records", "%d to %d, %s to %s", r.First, max(r.Size, 1)-1, r.From.Format(time.RFC3339), r.To.Format(time.RFC3339))
	}
	row("root", "%s", r.Root)
	row("checkpoints", "%d in %d segments", r.Checkpoints, r.Segments)
	if r.AnchorsByTPM {
		row("anchors", "%d, the last covers %d records; counter %d to %d", r.Anchors, r.Anchored, r.FirstCounter, r.Counter)
	} else {
		row("anchors", "%d, not checked", r.Anchors)
	}
	for _, w := range r.Witnessed {
		known := "a key that only the log names"
		if w.Known {
			known = "a key that you gave"
		}
		row("witness", "%s saw %d records at %s; %s", w.Name, w.Size, w.Time.Format(time.RFC3339), known)
	}
	names := make([]string, 0, len(r.Events))
	for e := range r.Events {
		names = append(names, string(e))
	}
	slices.Sort(names)
	for i, e := range names {
		head := ""
		if i == 0 {
			head = "events"
		}
		row(head, "%7d %s", r.Events[audit.Event(e)], e)
	}
	shown := map[string]uint64{}
	for _, f := range r.Findings {
		if shown[f.Name]++; shown[f.Name] <= maxShown {
			fmt.Fprintf(&b, "\n%s: %s%s: %s\n    %s\n", f.Severity, f.Name, f.at(), f.Message, sentence(f.Meaning))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(shown)) {
		if more := shown[name] + r.Left[name]; more > maxShown {
			fmt.Fprintf(&b, "\n%d more findings of %s are left out; --output json has them\n", more-maxShown, name)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (f Finding) at() string {
	var s string
	if f.Index != nil {
		s += fmt.Sprintf(" at record %d", *f.Index)
	}
	if f.Place != "" {
		s += " in " + f.Place
	}
	return s
}

func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
