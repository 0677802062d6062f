package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxFileLen bounds a configuration file, in bytes.
	MaxFileLen = 1 << 20
	// maxDepth bounds how deep mappings and lists may be nested. The deepest
	// document there is has four levels.
	maxDepth = 12
	// maxSearched bounds the files in which a syntax error's line is looked for
	// by parsing again; in larger ones it is the parser's, which is near.
	maxSearched = 64 << 10
)

// parse returns the document's top node; an empty document is an empty mapping.
func parse(data []byte) (*yaml.Node, *Error) {
	empty := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1, Column: 1}
	if len(data) > MaxFileLen {
		return nil, &Error{Msg: fmt.Sprintf("the file has %d bytes and may have %d; split it", len(data), MaxFileLen)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return empty, nil
	}
	if err != nil {
		return nil, syntaxError(data, err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, &Error{Pos: Pos{Line: second.Line}, Msg: "a second document begins here; put it into a file of its own"}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(data, err)
	}
	if len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return empty, nil
	}
	return doc.Content[0], nil
}

func syntaxError(data []byte, err error) *Error {
	line, what := splitSyntaxError(err)
	if len(data) <= maxSearched {
		line = syntaxErrorLine(data, what)
	}
	fix := "check the indentation, quotes and brackets here"
	switch {
	case strings.Contains(what, "mapping values"):
		fix = "put text that holds a colon and a space in quotes, and check the indentation"
	case strings.Contains(what, "cannot start any token"):
		fix = "indent with spaces, not tabs, and put text that begins with @, ` or % in quotes"
	case strings.Contains(what, "octet"), strings.Contains(what, "control characters"), strings.Contains(what, "UTF"):
		fix = "save the file as UTF-8 text"
	case strings.Contains(what, "unknown anchor"):
		fix = aliasFix
	}
	return &Error{Pos: Pos{Line: line}, Msg: "malformed YAML: " + what + "; " + fix}
}

// syntaxErrorLine returns the first line that completes the error, which is the
// one to look at. The parser's own numbers count from 0 or from 1 by the kind of
// error, and often name the beginning of the block.
func syntaxErrorLine(data []byte, what string) int {
	var ends []int // of each line
	end := 0
	for line := range bytes.Lines(data) {
		end += len(line)
		ends = append(ends, end)
	}
	return 1 + sort.Search(len(ends)-1, func(i int) bool {
		var doc yaml.Node
		dec := yaml.NewDecoder(bytes.NewReader(data[:ends[i]]))
		err := dec.Decode(&doc)
		if err == nil {
			err = dec.Decode(&doc)
		}
		if err == nil || errors.Is(err, io.EOF) {
			return false
		}
		_, same := splitSyntaxError(err)
		return same == what
	})
}

// splitSyntaxError takes "yaml: line 3: something" apart.
func splitSyntaxError(err error) (line int, what string) {
	what = strings.TrimPrefix(err.Error(), "yaml: ")
	if n, scanErr := fmt.Sscanf(what, "line %d: ", &line); n == 1 && scanErr == nil {
		_, what, _ = strings.Cut(what, ": ")
	}
	return max(line, 1), clip(what)
}

const aliasFix = "anchors and aliases are not accepted: write the value out, and put text that begins with & or * in quotes"

// plain checks that the tree under n holds only mappings with distinct words as keys,
// lists and scalars. It reports whether the tree can be decoded: its other problems
// are then found in the same run.
func (d *decoder) plain(n *yaml.Node, depth int) bool {
	switch {
	case depth > maxDepth:
		d.problems.Add(d.pos(n), "nested deeper than %d levels; check the indentation", maxDepth)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.problems.Add(d.pos(n), "%s", aliasFix)
		return false
	case n.Style&yaml.TaggedStyle != 0:
		d.problems.Add(d.pos(n), "tag %s is not accepted; remove it, and put text that begins with ! in quotes", clip(n.Tag))
		return false
	}
	ok := n.Kind != yaml.MappingNode || d.distinct(n)
	for _, child := range n.Content {
		ok = d.plain(child, depth+1) && ok
		if d.enough() {
			return false
		}
	}
	return ok
}

// enough reports whether there are so many problems that looking for more is
// pointless.
func (d *decoder) enough() bool { return len(d.problems) > 5*MaxErrors }

// distinct checks a mapping's keys, and reports whether all are words.
func (d *decoder) distinct(n *yaml.Node) bool {
	words := true
	seen := make(map[string]int)
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode {
			d.problems.Add(d.pos(k), "a key is %s; it must be a plain word", kindName(k))
			words = false
		} else if line, ok := seen[k.Value]; ok {
			d.problems.Add(d.pos(k), "key %q is given again, first in line %d; keep one", clip(k.Value), line)
		} else {
			seen[k.Value] = k.Line
		}
	}
	return words
}
