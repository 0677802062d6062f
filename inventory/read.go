package inventory

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
)

// MaxLen bounds a file that is read, in bytes.
const MaxLen = 8 << 20

// migrateFile is the command for what has no better one.
func migrateFile(_ *Finding, path string) string { return "vouch migrate file " + path }

// maxFindings bounds what is found in one file.
const maxFindings = 1000

// A finder knows one kind of place.
type finder struct {
	kind string
	is   func(p place) bool
	read func(r *reader) error
	// replace is the command for a finding. It gets the path as a shell reads it.
	replace func(f *Finding, path string) string
	hint    func(p place) string // what else is to do; nil: nothing
}

// finders are in the order in which they are asked whose a file is.
var finders = []finder{
	awsFinder, gcloudFinder, azureFinder, kubeconfigFinder, dockerFinder, netrcFinder, gitCredentialsFinder, gitRemoteFinder,
	npmrcFinder, pypircFinder, cargoFinder, ghFinder, mcpFinder, ciFinder, unitFinder, shellFinder, envFinder, sshKeyFinder, keyFileFinder,
	processFinder, historyFinder,
}

// A place is where a file is.
type place struct {
	path string   // cleaned
	name string   // its last part
	dir  string   // the one before that
	up   string   // and before that
	all  []string // all parts
}

func placeOf(path string) place {
	p := place{path: filepath.Clean(path)}
	p.all = strings.Split(strings.Trim(p.path, "/"), "/")
	p.name = p.all[len(p.all)-1]
	if n := len(p.all); n > 1 {
		p.dir = p.all[n-2]
	}
	if n := len(p.all); n > 2 {
		p.up = p.all[n-3]
	}
	return p
}

// KindOf returns the kind of a file by its name and place.
func KindOf(path string) (kind string, ok bool) {
	p := placeOf(path)
	for i := range finders {
		if f := &finders[i]; f.is != nil && f.is(p) {
			return f.kind, true
		}
	}
	return "", false
}

// ReadFile returns the secrets in a file of a kind. The path is for the findings, and for
// finders that tell by it what a file holds. An error, which tells nothing of the
// contents, comes with what stands before the place where they make no sense.
func ReadFile(kind, path string, data []byte) ([]Finding, error) {
	if len(data) > MaxLen {
		return nil, fmt.Errorf("reading %s: it is larger than %d bytes", Printable(path), MaxLen)
	}
	for i := range finders {
		f := &finders[i]
		if f.kind != kind {
			continue
		}
		if isBinary(data) && kind != Gcloud && kind != KeyFile && kind != Process {
			return nil, nil // of that name by chance
		}
		r := &reader{kind: kind, place: placeOf(path), data: data, counted: 1}
		err := f.read(r)
		r.conclude(f, path)
		if err != nil {
			err = fmt.Errorf("reading %s as %s: %w", Printable(path), kind, err)
		}
		return r.found, err
	}
	return nil, fmt.Errorf("reading %s: there is no kind %q", Printable(path), kind)
}

// isBinary reports whether a file is no text, as git tells.
func isBinary(data []byte) bool { return bytes.IndexByte(data[:min(len(data), 8000)], 0) >= 0 }

// A reader gathers what a finder finds in one file.
type reader struct {
	kind  string
	place place
	data  []byte
	found []Finding

	counted, until int // lines up to a byte
}

// line returns the line of a byte.
func (r *reader) line(at int) int {
	at = min(at, len(r.data))
	if at < r.until {
		r.counted, r.until = 1, 0
	}
	r.counted += bytes.Count(r.data[r.until:at], []byte("\n"))
	r.until = at
	return r.counted
}

// add notes a secret at a place in the file.
func (r *reader) add(item string, value []byte, start, end int) *Finding {
	if len(r.found) >= maxFindings {
		return &Finding{}
	}
	f := Finding{Kind: r.kind, Item: item, Value: secret.Of(bytes.Clone(value)), Start: start, End: end}
	if end > start {
		f.Line = r.line(start)
	}
	f.What = shapeOf(value)
	f.Expires = expiryOf(value)
	f.Broad = broad(f.What, value)
	r.found = append(r.found, f)
	return &r.found[len(r.found)-1]
}

// lease notes that no secret stands at a place, since vouchd is asked for it.
func (r *reader) lease(item string, at int) {
	if len(r.found) < maxFindings {
		r.found = append(r.found, Finding{Kind: r.kind, Item: item, Leased: true, Line: r.line(at)})
	}
}

// consider notes a value if it is a secret, or a handle, as far as a name and how sure
// a place is can tell.
func (r *reader) consider(sure certainty, name, item string, value []byte, start, end int) {
	switch {
	case len(r.found) >= maxFindings:
	case isHandle(value):
		r.lease(item, start)
	case isSecret(sure, name, value):
		r.add(item, value, start, end)
	}
}

// conclude fills in what all findings have, and keeps what was found once.
func (r *reader) conclude(f *finder, path string) {
	quoted := ShellQuote(path)
	kept := r.found[:0]
	for i := range r.found {
		one := &r.found[i]
		if again(kept, one) {
			continue
		}
		one.Path = path
		one.Item = r.without(one.Item)
		if !one.Leased && one.Replace == "" {
			one.Replace = f.replace(one, quoted)
		}
		if f.hint != nil && !one.Leased {
			one.Hint = f.hint(r.place)
		}
		kept = append(kept, *one)
	}
	r.found = kept
}

// whole notes a value that stands where nothing but a secret can, and of which the
// caller knows whose it is.
func (r *reader) whole(item, what string, value []byte, start, end int) *Finding {
	n := len(r.found)
	r.consider(exact, item, item, value, start, end)
	if len(r.found) == n || r.found[n].Leased {
		return &Finding{} // nobody has it
	}
	f := &r.found[n]
	if f.What == "" || f.What == "jwt" {
		f.What = what
	}
	return f
}

// again reports whether the same value was found at the same bytes.
func again(list []Finding, f *Finding) bool {
	for i := range list {
		if g := &list[i]; f.End > f.Start && g.Start == f.Start && g.End == f.End {
			return true
		}
	}
	return false
}

// without is an item without secrets, which a file may have as a name as well.
func (r *reader) without(item string) string {
	for i := range r.found {
		if v := r.found[i].Value.Reveal(); len(v) >= 4 {
			item = strings.ReplaceAll(item, string(v), redact.Mark)
		}
	}
	return Printable(item)
}
