package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

// A licence is what a module's own files say.
type licence struct {
	ids    []string // of SPDX
	text   string
	notice string // the NOTICE file, which Apache-2.0 §4(d) wants passed on
}

func (l licence) expression() string { return strings.Join(l.ids, " AND ") }

// marks are phrases that are in every copy of a licence. A module whose text
// has none of them fails the build, for somebody to read it.
var marks = []struct{ id, phrase string }{
	{"MPL-2.0", "Mozilla Public License"},
	{"Apache-2.0", "Apache License"},
	{"MIT", "Permission is hereby granted, free of charge"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software"},
	{"BSD-3-Clause", "Neither the name of"},
	{"BSD-2-Clause", "Redistribution and use in source and binary forms"},
}

// allowed is what may be linked into an Apache-2.0 program and passed on with
// its text, and for MPL-2.0 with where its source is, too.
var allowed = []string{"Apache-2.0", "MIT", "ISC", "BSD-3-Clause", "BSD-2-Clause", "MPL-2.0"}

func licenceOf(m debug.Module) (licence, error) {
	dir, err := sourceOf(m)
	if err != nil {
		return licence{}, err
	}
	var l licence
	for _, name := range []string{"LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			l.text = string(data)
			break
		}
	}
	if l.ids = identify(l.text); len(l.ids) == 0 {
		return licence{}, fmt.Errorf("the licence of %s in %s is of no known kind", m.Path, dir)
	}
	for _, id := range l.ids {
		if !slices.Contains(allowed, id) {
			return licence{}, fmt.Errorf("the licence of %s is %s, which is not among %s", m.Path, id, strings.Join(allowed, ", "))
		}
	}
	notice, err := os.ReadFile(filepath.Join(dir, "NOTICE"))
	if err == nil {
		l.notice = string(notice)
	}
	return l, nil
}

// identify returns the licences whose marks are in a text.
func identify(text string) (ids []string) {
	words := strings.Join(strings.Fields(text), " ")
	for _, mark := range marks {
		if strings.Contains(words, mark.phrase) {
			ids = append(ids, mark.id)
			if mark.id == "BSD-3-Clause" {
				break // which has the words of BSD-2-Clause, too
			}
		}
	}
	return ids
}

func sourceOf(m debug.Module) (dir string, err error) {
	if m.Path == "stdlib" {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		return strings.TrimSpace(string(out)), err
	}
	out, err := exec.Command("go", "mod", "download", "-json", m.Path+"@"+m.Version).Output()
	if err != nil {
		return "", fmt.Errorf("finding the sources of %s: %w", m.Path, err)
	}
	var found struct{ Dir string }
	err = json.Unmarshal(out, &found)
	return found.Dir, err
}

// licences writes each module's licence; the text of Apache-2.0, which the
// package has once, is left out.
func licences(w io.Writer, programs []string) error {
	list, err := modules(programs)
	if err != nil {
		return err
	}
	for _, m := range list {
		l, err := licenceOf(m)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s\n%s %s: %s\n\n", strings.Repeat("-", 78), m.Path, m.Version, l.expression())
		if slices.Contains(l.ids, "MPL-2.0") { // §3.2
			fmt.Fprintf(w, "Its source, unchanged, is the Go module %s at version %s.\n\n", m.Path, m.Version)
		}
		if !strings.Contains(l.text, "TERMS AND CONDITIONS FOR USE, REPRODUCTION") {
			fmt.Fprintln(w, strings.TrimSpace(l.text))
		}
		if l.notice != "" {
			fmt.Fprintf(w, "\nNOTICE:\n%s\n", strings.TrimSpace(l.notice))
		}
	}
	return nil
}
