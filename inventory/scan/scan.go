// Package scan goes over a host, and has package inventory read what may hold a secret.
//
// What it goes over is not trusted. Links are not followed, nor are devices, pipes and
// sockets opened; a file is read up to a bound, and only if its name or place says that a
// finder knows it, or if it is small enough to be a key. A tree is gone through a
// directory at a time, so memory does not grow with it. What cannot be read is counted and
// named, and ends nothing.
//
// A value is overwritten once its fingerprint is made.
package scan

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

// A Scan is what to go over.
type Scan struct {
	Dirs      []string // trees of files; a file is one as well
	Exclude   []string // patterns of names, or of whole paths if they have a slash
	Processes bool     // the environments of those that may be read
	Proc      string   // where processes are; /proc if empty
	History   bool     // of the repositories in Dirs
	Key       Key

	// What was done so far, for whoever waits.
	Files, Found atomic.Int64
}

// A Result is what was found.
type Result struct {
	Time      time.Time           `json:"time"`
	Dirs      []string            `json:"dirs"`
	Processes bool                `json:"processes"`
	History   bool                `json:"history"`
	Counts    Counts              `json:"counts"`
	Findings  []inventory.Finding `json:"findings"` // the worst first
	Unread    []Unread            `json:"unread"`   // the first so many
}

// Counts are how much was gone over.
type Counts struct {
	Files        int64 `json:"files"`      // that were there
	Read         int64 `json:"files_read"` // that a finder has seen
	Directories  int64 `json:"directories"`
	Processes    int64 `json:"processes"`
	Repositories int64 `json:"repositories"`
	Objects      int64 `json:"objects_of_history"`
	Unread       int64 `json:"unread"`
	Left         int64 `json:"findings_left_out"` // beyond the first so many
}

// An Unread is what could not be read, and why.
type Unread struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// Bounds of a result.
const (
	maxFindings = 20_000
	maxUnread   = 100
	maxRepos    = 1000
)

// A run is one going over.
type run struct {
	*Scan
	ctx    context.Context
	result *Result
	people *people
	links  []link   // that units have to other files
	repos  []string // directories of git
	seen   map[place]bool
}

// A link is the name of a file in a unit.
type link struct {
	file string
	at   inventory.Finding // of LoadCredential=; for EnvironmentFile= it is empty
}

// A place is where a secret was found.
type place struct {
	path, print string
}

// Run goes over all of it. Its error is that of the context; the result has then what was
// found until it ended.
func (s *Scan) Run(ctx context.Context) (*Result, error) {
	r := &run{
		Scan: s, ctx: ctx, people: readPeople(), seen: make(map[place]bool),
		result: &Result{Time: time.Now().UTC(), Dirs: []string{}, Processes: s.Processes, History: s.History, Findings: []inventory.Finding{}, Unread: []Unread{}},
	}
	for _, dir := range outermost(s.Dirs) {
		r.result.Dirs = append(r.result.Dirs, inventory.Printable(dir))
		r.tree(dir)
	}
	r.follow()
	if s.Processes {
		r.processes(cmp.Or(s.Proc, "/proc"))
	}
	if s.History {
		for _, repo := range r.repos {
			r.history(repo)
		}
	}
	r.conclude()
	return r.result, ctx.Err()
}

// outermost returns the directories without those that are inside another.
func outermost(dirs []string) (list []string) {
	dirs = slices.Clone(dirs)
	for i := range dirs {
		if abs, err := filepath.Abs(dirs[i]); err == nil {
			dirs[i] = abs
		}
	}
	slices.Sort(dirs)
	for _, d := range slices.Compact(dirs) {
		if !slices.ContainsFunc(list, func(outer string) bool { return isBelow(d, outer) }) {
			list = append(list, d)
		}
	}
	return list
}

func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// unread notes what could not be read.
func (r *run) unread(path string, err error) {
	r.result.Counts.Unread++
	if len(r.result.Unread) < maxUnread {
		r.result.Unread = append(r.result.Unread, Unread{inventory.Printable(path), why(err, path)})
	}
}

// why is an error without the path that stands beside it.
func why(err error, path string) string {
	text := err.Error()
	for _, before := range []string{"open " + path + ": ", "reading " + inventory.Printable(path) + " ", "reading " + inventory.Printable(path) + ": "} {
		text = strings.TrimPrefix(text, before)
	}
	return inventory.Printable(text)
}

// take adds findings, which are all of one file, or as good as.
func (r *run) take(found []inventory.Finding, facts func(f *inventory.Finding)) {
	for _, f := range found {
		if len(r.result.Findings) >= maxFindings {
			r.result.Counts.Left++
			continue
		}
		if !f.Leased {
			f.Fingerprint = r.Key.print(f.Value)
		}
		f.Value.Wipe()
		f.Value = secret.Bytes{}
		if !f.Leased {
			at := place{f.Path, f.Fingerprint}
			if r.seen[at] {
				continue // the same secret in the same file, or by another way to it
			}
			r.seen[at] = true
		}
		if facts != nil {
			facts(&f)
		}
		f.Path, f.State = inventory.Printable(f.Path), f.StateOf()
		r.result.Findings = append(r.result.Findings, f)
		r.Found.Add(1)
	}
}

// conclude tells what only all findings together tell, and sorts them.
func (r *run) conclude() {
	places, from := make(map[string]int), make(map[string]string)
	for i := range r.result.Findings {
		f := &r.result.Findings[i]
		places[f.Fingerprint]++
		if f.Kind == inventory.Env || f.Kind == inventory.Unit || f.Kind == inventory.Shell {
			from[f.Fingerprint] = f.Replace
		}
	}
	for i := range r.result.Findings {
		f := &r.result.Findings[i]
		if f.Leased {
			continue
		}
		f.Places = places[f.Fingerprint]
		if f.Kind == inventory.Process && from[f.Fingerprint] != "" {
			f.Replace, f.Hint = from[f.Fingerprint], "then start the program again"
		}
	}
	slices.SortStableFunc(r.result.Findings, func(a, b inventory.Finding) int {
		return cmp.Or(-cmp.Compare(weight(&a), weight(&b)), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Item, b.Item))
	})
}

// weight is how bad it is that a secret lies there.
func weight(f *inventory.Finding) (n int) {
	if f.Leased {
		return 0
	}
	n = 1
	if f.Static() {
		n += 100
	}
	n += map[string]int{inventory.Everyone: 50, inventory.Group: 20}[f.Access]
	if f.Broad != "" {
		n += 30
	}
	return n + min(f.Places-1, 10)
}
