package reload

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/config"
)

// HeldBack is which files on disk are not in force, and why, by path. It is the problem
// of a value that the other files make.
type HeldBack []HeldFile

// A HeldFile is a file that cannot be loaded, or that contradicts another.
type HeldFile struct {
	Path   string
	Former bool // what it held when it last could be loaded is in force; otherwise nothing of it is
	Why    config.Errors
}

// Error names the files, each with what has to be repaired.
func (h HeldBack) Error() string {
	var b strings.Builder
	for i, f := range h {
		if i > 0 {
			b.WriteByte('\n')
		}
		in := "and nothing of it is"
		if f.Former {
			in = "and what it held before still is"
		}
		fmt.Fprintf(&b, "%s is not in force, %s:\n%v", f.Path, in, f.Why.Err())
	}
	return b.String()
}

// Unwrap returns the problems one by one.
func (h HeldBack) Unwrap() (all []error) {
	for _, f := range h {
		all = append(all, f.Why.Err())
	}
	return all
}

// Lost reports whether there is a file of which nothing is in force.
func (h HeldBack) Lost() bool {
	return slices.ContainsFunc(h, func(f HeldFile) bool { return !f.Former })
}

// maxRounds bounds how often files are parsed to find out which have to be held back.
const maxRounds = 16

// parseFiles makes a value of the files on disk, in place of each that has a problem with
// what it held before, if anything. Before has the files that the value in force was made
// of. Where that leads to no value either, the error is parse's.
func parseFiles[T any](dir string, before []config.File, parse func([]config.File) (T, error)) (value T, files []config.File, held HeldBack, err error) {
	disk, err := config.ReadDir(dir, false)
	unread, ok := errors.AsType[config.Errors](err)
	if err != nil && !ok {
		return value, nil, nil, err
	}
	c := choice{disk: byPath(disk), before: byPath(before), why: make(map[string]config.Errors)}
	for _, e := range unread {
		if e.File == dir { // of all that it holds
			return value, nil, nil, unread
		}
		c.why[e.File] = append(c.why[e.File], e)
	}
	for round := range maxRounds {
		files = c.files()
		if value, err = parse(files); err == nil {
			return value, files, c.held(), nil
		}
		problems, ok := errors.AsType[config.Errors](err)
		if !ok {
			return value, nil, nil, err
		}
		if round == 0 {
			unread = append(unread, problems...)
		}
		if !c.holdBack(problems) {
			break
		}
	}
	return value, nil, nil, unread.Err()
}

// A choice is between the files on disk and those before.
type choice struct {
	disk, before map[string]config.File
	why          map[string]config.Errors // of those held back
}

func byPath(files []config.File) map[string]config.File {
	m := make(map[string]config.File, len(files))
	for _, f := range files {
		m[f.Path] = f
	}
	return m
}

// files returns what to make a value of, in the order of names.
func (c *choice) files() (files []config.File) {
	for path, f := range c.disk {
		if _, held := c.why[path]; !held {
			files = append(files, f)
		}
	}
	for path := range c.why {
		if f, ok := c.before[path]; ok {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b config.File) int { return strings.Compare(filepath.Base(a.Path), filepath.Base(b.Path)) })
	return files
}

// holdBack holds back the files that the problems name and that have changed: either of two
// that contradict each other. Where what was there before is at fault, every change is held
// back. It reports whether that is any.
func (c *choice) holdBack(problems config.Errors) bool {
	found := make(map[string]config.Errors)
	for _, p := range problems {
		for _, path := range slices.Compact([]string{p.File, p.Other.File}) {
			if c.changed(path) {
				found[path] = append(found[path], p)
			}
		}
	}
	if len(found) == 0 {
		for path := range c.disk {
			if c.changed(path) {
				found[path] = problems
			}
		}
	}
	maps.Copy(c.why, found)
	return len(found) > 0
}

// changed reports whether a file on disk is not what it was before, and not held back.
func (c *choice) changed(path string) bool {
	now, ok := c.disk[path]
	_, held := c.why[path]
	was, had := c.before[path]
	return ok && !held && !(had && bytes.Equal(now.Data, was.Data))
}

func (c *choice) held() (h HeldBack) {
	for path, why := range c.why {
		_, former := c.before[path]
		h = append(h, HeldFile{path, former, why})
	}
	slices.SortFunc(h, func(a, b HeldFile) int { return strings.Compare(a.Path, b.Path) })
	return h
}
