package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
)

// A report says what was done with each secret of a file.
type report struct {
	File        string   `json:"file"`
	DryRun      bool     `json:"dry_run,omitempty"`
	Sealed      []item   `json:"sealed"` // and replaced in the file
	Kept        []item   `json:"kept"`   // as they were
	Databases   []item   `json:"databases,omitempty"`
	Left        []item   `json:"left,omitempty"` // secrets that this command cannot replace
	Comments    []item   `json:"comments_that_look_secret,omitempty"`
	Definitions string   `json:"definitions,omitempty"` // file with them, to review
	FillIn      []string `json:"fill_in,omitempty"`     // of the better definitions in that file
	Credentials []string `json:"credentials"`           // for the entry
	Changes     []change `json:"changes"`
	Then        []string `json:"then,omitempty"` // what to do for programs to go on
	Undo        string   `json:"undo,omitempty"` // the command that undoes it
}

// An item is one secret, or what could be one.
type item struct {
	Item       string `json:"item"` // in the words of the file
	Line       int    `json:"line"`
	Credential string `json:"credential,omitempty"`
	Why        string `json:"why,omitempty"`
}

// A change is lines of the file, without secrets.
type change struct {
	Line int      `json:"line"`
	Old  []string `json:"old"`
	New  []string `json:"new"`
}

// An edit puts a text in the place of bytes.
type edit struct {
	start, end int
	text       string
}

// A span is where a secret is written.
type span struct{ start, end int }

// A plan is what to do with one file.
type plan struct {
	report
	*options
	file    *held.File
	command string // as it was given, for the definitions
	edits   []edit
	hidden  []span
	seals   []sealing
	errs    []error
	names   map[string]secret.Bytes // by credential
	places  map[string]secret.Bytes // by where tools ask for it
}

// A sealing is a value to be sealed, and how its credential is to be defined.
type sealing struct {
	definition
	value secret.Bytes
}

func newPlan(m *options, f *held.File, command string) *plan {
	return &plan{
		options: m, file: f, command: command, names: make(map[string]secret.Bytes), places: make(map[string]secret.Bytes),
		report: report{File: f.Path, DryRun: m.dryRun, Sealed: []item{}, Kept: []item{}, Credentials: []string{}, Changes: []change{}},
	}
}

// fail notes what keeps the file from being migrated. All of it is said at once.
func (p *plan) fail(line int, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("line %d: %w", line, fmt.Errorf(format, args...)))
}

// line returns the line of a byte.
func (p *plan) line(at int) int { return 1 + bytes.Count(p.file.Data[:at], []byte("\n")) }

// hide keeps the bytes of a secret out of every output.
func (p *plan) hide(start, end int) { p.hidden = append(p.hidden, span{start, end}) }

// edit puts a text in the place of bytes.
func (p *plan) edit(start, end int, text string) { p.edits = append(p.edits, edit{start, end, text}) }

// keeps notes an item that --keep leaves, and reports whether it does.
func (p *plan) keeps(name string, line int) bool {
	if !slices.Contains(p.keep, name) {
		return false
	}
	p.Kept = append(p.Kept, item{inventory.Printable(name), line, "", "--keep"})
	return true
}

// handle notes an item that stands for a credential already.
func (p *plan) handle(name string, line int, credential string) {
	if sealed.CheckName(credential) != nil {
		p.fail(line, "%s has an invalid handle; write it as vouch:NAME or vouch:NAME:FIELD", inventory.Printable(name))
		return
	}
	p.Kept = append(p.Kept, item{inventory.Printable(name), line, credential, "already a handle"})
	p.Credentials = append(p.Credentials, credential)
}

// leave notes a secret that stays in the file, and what to do about it.
func (p *plan) leave(name string, line int, format string, args ...any) {
	p.Left = append(p.Left, item{inventory.Printable(name), line, "", fmt.Sprintf(format, args...)})
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// nameFor is the name of a credential.
func (p *plan) nameFor(words string) string {
	name := p.prefix + "-" + strings.Trim(notInName.ReplaceAllString(strings.ToLower(words), "-"), "-")
	return strings.TrimRight(name[:min(len(name), 100)], "-")
}

// seal plans to seal a value under a name made of words. A second value under a name gets
// a number.
func (p *plan) seal(d definition, words string, line int, value secret.Bytes, why string) (credential string) {
	for _, place := range d.places {
		if there, taken := p.places[place]; taken && !there.Equal(value) {
			p.fail(line, "there is another secret for the same place, and a tool asks for one; remove one of them")
		}
		p.places[place] = value
	}
	name := p.nameFor(words)
	for n, base := 2, name; ; n++ {
		there, taken := p.names[name]
		if !taken {
			break
		}
		if there.Equal(value) {
			p.Sealed = append(p.Sealed, item{inventory.Printable(d.item), line, name, why})
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
	if err := sealed.CheckName(name); err != nil {
		p.fail(line, "%w", err)
		return name
	}
	if value.Len() == 0 || value.Len() > sealed.MaxLen {
		p.fail(line, "%s has %d bytes, and a secret has 1 to %d", d.item, value.Len(), sealed.MaxLen)
		return name
	}
	p.keepSealing(d, name, line, value, why)
	return name
}

func (p *plan) keepSealing(d definition, name string, line int, value secret.Bytes, why string) {
	d.name = name
	p.names[name] = value
	p.seals = append(p.seals, sealing{d, value})
	p.Sealed = append(p.Sealed, item{inventory.Printable(d.item), line, name, why})
	p.Credentials = append(p.Credentials, name)
}

// deliverable reports whether a program can be started with a variable, or why not.
func (p *plan) deliverable(variable string, line int) (but string, ok bool) {
	if _, known := policy.PresetOf(variable); known || p.disclosable || p.proxyLater {
		return "", true
	}
	err := fmt.Errorf("no preset makes calls with %s, so that its program could not start; give --disclosable to hand values to the programs that an entry grants them, --keep %[1]s, or --proxy-later to write its proxy block by hand", variable)
	if p.dryRun {
		return "; but " + err.Error(), true
	}
	p.fail(line, "%w", err)
	return "", false
}

// finish puts the plan in order, and returns the file as it will be. An error lists
// every obstacle.
func (p *plan) finish() (after []byte, err error) {
	if err := errors.Join(p.errs...); err != nil {
		return nil, cli.InFile(p.file.Path, err)
	}
	slices.Sort(p.Credentials)
	p.Credentials = slices.Compact(p.Credentials)
	after, err = splice(p.file.Data, p.edits)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; give --keep for one of them", p.file.Path, err)
	}
	p.Changes = changesOf(p)
	return after, nil
}

// splice returns data with the edits made, and puts these in order.
func splice(data []byte, edits []edit) ([]byte, error) {
	slices.SortStableFunc(edits, func(a, b edit) int { return a.start - b.start })
	var b bytes.Buffer
	at := 0
	for _, e := range edits {
		if e.start < at || e.end < e.start || e.end > len(data) {
			return nil, errors.New("two changes are to be made at one place")
		}
		b.Write(data[at:e.start])
		b.WriteString(e.text)
		at = e.end
	}
	b.Write(data[at:])
	return b.Bytes(), nil
}

// leftBehind notes what an inventory of the file, as it will be, still finds.
func leftBehind(p *plan, kind string, after []byte) {
	found, err := inventory.ReadFile(kind, p.file.Path, after)
	if err != nil {
		return // its syntax was good enough for the change
	}
	for _, f := range found {
		known := slices.ContainsFunc(p.Left, func(i item) bool { return i.Line == f.Line || i.Item == f.Item })
		kept := slices.ContainsFunc(p.keep, func(name string) bool { return name != "" && strings.Contains(f.Item, name) })
		if f.Leased || known || kept {
			continue
		}
		p.leave(f.Item, f.Line, "this command does not replace it; take it out by hand, and rotate it")
	}
}

// sealedStays notes a value that is to be sealed and would stay elsewhere in the file,
// where nobody looks for it, unless it is told to keep some.
func sealedStays(p *plan, after []byte) {
	const least = 8 // bytes: a shorter one is found in other words
	if len(p.keep) > 0 {
		return
	}
	for _, s := range p.seals {
		v := s.value.Reveal()
		at := bytes.Index(after, v)
		if len(v) < least || at < 0 {
			continue
		}
		line := 1 + bytes.Count(after[:at], []byte("\n"))
		if !slices.ContainsFunc(p.Left, func(i item) bool { return i.Line == line }) {
			p.leave(s.item, line, "the same value stands here as well; take it out by hand")
		}
	}
}

const (
	mark      = "[secret]"
	mostShown = 160 // bytes of a line
)

// changesOf is the edits line by line, without secrets.
func changesOf(p *plan) []change {
	list := []change{}
	data := p.file.Data
	for i := 0; i < len(p.edits); {
		from := bytes.LastIndexByte(data[:p.edits[i].start], '\n') + 1
		to := shownEnd(data, p.edits[i])
		last := i + 1
		for last < len(p.edits) && p.edits[last].start <= to {
			to = max(to, shownEnd(data, p.edits[last]))
			last++
		}
		var after strings.Builder
		at := from
		for _, e := range p.edits[i:last] {
			after.WriteString(masked(p, at, e.start))
			after.WriteString(e.text)
			at = min(e.end, to)
		}
		after.WriteString(masked(p, at, to))
		list = append(list, change{p.line(from), lines(masked(p, from, to)), lines(after.String())})
		i = last
	}
	return list
}

// shownEnd is where the line ends that an edit ends in, which may be its line end.
func shownEnd(data []byte, e edit) int {
	if e.end > e.start && data[e.end-1] == '\n' {
		return e.end - 1
	}
	return lineEnd(data, e.end)
}

func lineEnd(data []byte, at int) int {
	if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
		return at + i
	}
	return len(data)
}

// masked is a part of the file without its secrets.
func masked(p *plan, from, to int) string {
	hide := slices.Clone(p.hidden)
	if from >= to {
		return ""
	}
	for _, f := range redact.Find(p.file.Data[from:to]) {
		hide = append(hide, span{from + f.Start, from + f.End})
	}
	slices.SortFunc(hide, func(a, b span) int { return a.start - b.start })
	var b strings.Builder
	at := from
	for _, h := range hide {
		if h.end <= at || h.start >= to {
			continue
		}
		b.Write(p.file.Data[at:max(at, h.start)])
		b.WriteString(mark)
		at = min(to, h.end)
	}
	b.Write(p.file.Data[at:to])
	return b.String()
}

// lines are those of a text, as a terminal may show them.
func lines(text string) (list []string) {
	if text == "" {
		return []string{}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		cut := ""
		if len(line) > mostShown {
			line, cut = line[:mostShown], "…"
		}
		indent := len(line) - len(strings.TrimLeft(line, " \t"))
		list = append(list, line[:indent]+inventory.Printable(line[indent:])+cut)
	}
	return list
}

func (v *report) writeText(w io.Writer) {
	verb := "sealed"
	if v.DryRun {
		verb = "would be sealed"
	}
	path := inventory.Printable(v.File)
	for _, list := range []struct {
		items []item
		verb  string
	}{{v.Kept, "kept as is: "}, {v.Left, "LEFT: "}, {v.Comments, ""}} {
		if list.verb == "kept as is: " {
			for _, s := range v.Sealed {
				fmt.Fprintf(w, "%s:%d: %s %s as %s: %s\n", path, s.Line, s.Item, verb, s.Credential, s.Why)
			}
			for _, d := range v.Databases {
				fmt.Fprintf(w, "%s:%d: %s names the socket of %s: %s\n", path, d.Line, d.Item, d.Credential, d.Why)
			}
		}
		for _, i := range list.items {
			sep := " "
			if list.verb == "" {
				sep = ": "
			}
			fmt.Fprintf(w, "%s:%d: %s%s%s%s\n", path, i.Line, i.Item, sep, list.verb, i.Why)
		}
	}
	if len(v.Changes) > 0 {
		fmt.Fprintln(w)
		for _, c := range v.Changes {
			fmt.Fprintf(w, "@@ %s:%d @@\n", filepath.Base(path), c.Line)
			for _, l := range c.Old {
				fmt.Fprintf(w, "-%s\n", l)
			}
			for _, l := range c.New {
				fmt.Fprintf(w, "+%s\n", l)
			}
		}
	}
	if v.Definitions != "" {
		if v.DryRun {
			fmt.Fprintf(w, "\nDefinitions would be in %s, to review.\n", v.Definitions)
		} else {
			fmt.Fprintf(w, "\nReview %s and rename it to end in .yaml.\n", v.Definitions)
		}
		if len(v.FillIn) > 0 {
			fmt.Fprintf(w, "It has better definitions too, for which no key is needed. Fill in: %s.\n", strings.Join(v.FillIn, ", "))
		}
	}
	if len(v.Credentials) > 0 {
		fmt.Fprintf(w, "Add to the entry of the program that needs them:\n\n    credentials: [%s]\n\n", strings.Join(v.Credentials, ", "))
		for _, then := range v.Then {
			fmt.Fprintln(w, then)
		}
	}
	if len(v.Sealed)+len(v.Databases)+len(v.Left) == 0 {
		fmt.Fprintf(w, "%s: there is nothing to do.\n", path)
	}
	if len(v.Sealed) > 0 && !v.DryRun {
		fmt.Fprintf(w, "The values were in a file and may be in its backups: rotate them at their sources.\n")
	}
	if v.Undo != "" && !v.DryRun {
		fmt.Fprintf(w, "To undo this: %s\n", v.Undo)
	}
}
