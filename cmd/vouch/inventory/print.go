package inventory

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/scan"
)

// A view is a result as it is printed.
type view struct {
	*scan.Result
	Since   string  `json:"since,omitempty"`
	Summary summary `json:"summary"`
}

// A summary counts secrets, each once wherever it lies.
type summary struct {
	Secrets  int `json:"secrets"`
	Places   int `json:"places"`
	Static   int `json:"static"`
	Expiring int `json:"expiring"`
	Leased   int `json:"leased"` // places
	Everyone int `json:"readable_by_everyone"`
	Broad    int `json:"over_broad"`
}

// keep leaves what is new, and counts it.
func (v *view) keep(is news) {
	v.Findings = slices.DeleteFunc(v.Findings, func(f inventory.Finding) bool { return !is(&f) })
	for _, group := range v.secrets() {
		v.Summary.Secrets++
		v.Summary.Places += len(group)
		worst := &group[0]
		if worst.Static() {
			v.Summary.Static++
		} else {
			v.Summary.Expiring++
		}
		if slices.ContainsFunc(group, func(f inventory.Finding) bool { return f.Access == inventory.Everyone }) {
			v.Summary.Everyone++
		}
		if worst.Broad != "" {
			v.Summary.Broad++
		}
	}
	for _, f := range v.Findings {
		if f.Leased {
			v.Summary.Leased++
		}
	}
}

// secrets are the findings by secret, in the order of the first place of each.
func (v *view) secrets() (groups [][]inventory.Finding) {
	at := make(map[string]int)
	for _, f := range v.Findings {
		if f.Leased {
			continue
		}
		i, ok := at[f.Fingerprint]
		if !ok {
			i = len(groups)
			at[f.Fingerprint] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], f)
	}
	return groups
}

// width is that of a terminal's line.
const width = 80

func (v *view) writeText(w io.Writer) {
	s := v.Summary
	if s.Secrets == 0 {
		fmt.Fprintf(w, "no secrets found%s\n", leased(s.Leased))
	} else {
		expiring := ""
		if s.Expiring > 0 {
			expiring = fmt.Sprintf(", %s", cli.Count(s.Expiring, "expires", "expire"))
		}
		fmt.Fprintf(w, "%s in %s: %d static%s%s\n", cli.Count(s.Secrets, "secret", "secrets"), cli.Count(s.Places, "place", "places"),
			s.Static, expiring, leased(s.Leased))
	}
	if s.Everyone > 0 {
		fmt.Fprintf(w, "  ! everyone on this host can read %d\n", s.Everyone)
	}
	if s.Broad > 0 {
		fmt.Fprintf(w, "  ! %d may do more than one program needs\n", s.Broad)
	}
	for _, group := range v.secrets() {
		v.writeSecret(w, group)
	}
	v.writeCounts(w)
}

func leased(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %s leased from vouchd", cli.Count(n, "place is", "places are"))
}

// writeSecret writes one secret and where it lies.
func (v *view) writeSecret(w io.Writer, group []inventory.Finding) {
	first := &group[0]
	what := cmp.Or(first.What, "secret")
	state := "static"
	if !first.Static() {
		state = "expires " + first.Expires.Local().Format("2006-01-02 15:04")
		if first.Expires.Before(v.Time) {
			state = "has expired"
		}
	}
	fmt.Fprintf(w, "\n%s, %s%s, %s\n", what, state, age(oldest(group), v.Time), first.Fingerprint)
	if first.Broad != "" {
		wrap(w, "  ! ", "    ", first.Broad)
	}
	if len(group) == 1 && first.Places > 1 {
		fmt.Fprintf(w, "    it lies in %d more, which are not new\n", first.Places-1)
	}
	for i := range group {
		f := &group[i]
		where := f.Path
		if f.Line > 0 {
			where += ":" + strconv.Itoa(f.Line)
		}
		if f.File != "" {
			where += " in " + inventory.Printable(f.File)
		}
		fmt.Fprintf(w, "  %s\n", where)
		wrap(w, "    ", "      ", strings.Join(about(f), "; "))
		fmt.Fprintf(w, "    %s\n", f.Replace)
		if f.Hint != "" {
			wrap(w, "    (", "     ", f.Hint+")")
		}
	}
}

// about is what a place is beside its path.
func about(f *inventory.Finding) (list []string) {
	item := f.Item
	if f.Program != "" {
		item += " of " + f.Program
		if f.Processes > 1 {
			item += fmt.Sprintf(" and %s", cli.Count(f.Processes-1, "other process", "other processes"))
		}
	}
	list = append(list, f.Kind+": "+item)
	if len(f.Readers) > 0 {
		list = append(list, strings.Join(f.Readers, ", ")+" can read it")
	}
	return list
}

func oldest(group []inventory.Finding) (t time.Time) {
	for i := range group {
		if m := group[i].Modified; !m.IsZero() && (t.IsZero() || m.Before(t)) {
			t = m
		}
	}
	return t
}

// age is how long ago a file was written, which a secret is at least.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	days := days(t, now)
	if days == 0 {
		return ", written today"
	}
	return ", " + cli.Count(days, "day", "days") + " old"
}

func days(t, now time.Time) int { return max(0, int(now.Sub(t).Hours()/24)) }

// wrap writes words in lines that fit a terminal.
func wrap(w io.Writer, first, next, text string) {
	line, words := first, strings.Fields(text)
	for i, word := range words {
		switch {
		case i > 0 && len([]rune(line))+1+len([]rune(word)) > width:
			fmt.Fprintln(w, line)
			line = next + word
		case i > 0:
			line += " " + word
		default:
			line += word
		}
	}
	fmt.Fprintln(w, line)
}

func (v *view) writeCounts(w io.Writer) {
	c := v.Counts
	text := fmt.Sprintf("scanned %s in %s", cli.Count(c.Files, "file", "files"), cli.Count(c.Directories, "directory", "directories"))
	if v.Processes {
		text += fmt.Sprintf(", %s", cli.Count(c.Processes, "process", "processes"))
	}
	if v.History {
		text += fmt.Sprintf(", %s of %s", cli.Count(c.Objects, "version of a file", "versions of files"), cli.Count(c.Repositories, "repository", "repositories"))
	}
	fmt.Fprintln(w)
	wrap(w, "", "  ", text)
	if c.Left > 0 {
		fmt.Fprintf(w, "! %d findings are left out: there are more than this holds; name a directory\n", c.Left)
	}
	if c.Unread > 0 {
		fmt.Fprintf(w, "! %s not be read:\n", cli.Count(c.Unread, "place could", "places could"))
		const shown = 5
		for _, u := range v.Unread[:min(shown, len(v.Unread))] {
			wrap(w, "  ", "    ", u.Path+": "+u.Why)
		}
		if c.Unread > shown {
			fmt.Fprintf(w, "  and others; see --output json\n")
		}
	}
}

// writeCSV writes a row for each place.
func (v *view) writeCSV(w io.Writer) error {
	t := csv.NewWriter(w)
	t.Write([]string{
		"kind", "path", "line", "item", "what", "state", "access", "readers", "owner", "mode", "modified", "days", "expires",
		"fingerprint", "places", "over_broad", "replace", "hint",
	})
	for i := range v.Findings {
		f := &v.Findings[i]
		old := ""
		if !f.Modified.IsZero() {
			old = strconv.Itoa(days(f.Modified, v.Time))
		}
		t.Write(analyst.Cells([]string{
			f.Kind, f.Path, strconv.Itoa(f.Line), f.Item, f.What, f.State, f.Access, strings.Join(f.Readers, ", "), f.Owner, f.Mode, stamp(f.Modified), old, stamp(f.Expires),
			f.Fingerprint, strconv.Itoa(f.Places), f.Broad, f.Replace, f.Hint,
		}))
	}
	t.Flush()
	return t.Error()
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
