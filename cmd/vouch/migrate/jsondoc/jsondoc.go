// Package jsondoc reads JSON with the place of each value, for those who change one and
// keep every other byte. Comments and trailing commas are let pass, as editors do. What two
// programs could read differently is an error.
package jsondoc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep a document may be nested.
const maxDepth = 64

// A Node is a value in a document, with its place.
type Node struct {
	Start, End int
	Kind       byte     // { [ " or 0 for anything else
	Text       string   // of "
	Members    []Member // of {, and of [ without names
}

// A Member is one of an object or a list.
type Member struct {
	Name  string
	Start int // of its name, or of the value in a list
	Value *Node
}

// Get returns a member's value, nil if there is none.
func (n *Node) Get(names ...string) *Node {
	for _, name := range names {
		if n == nil || n.Kind != '{' {
			return nil
		}
		var found *Node
		for _, m := range n.Members {
			if m.Name == name {
				found = m.Value
			}
		}
		n = found
	}
	return n
}

// Is reports whether there is a value of a kind.
func (n *Node) Is(kind byte) bool { return n != nil && n.Kind == kind }

// Parse reads a document. An error names the line, and tells nothing of what is in it.
func Parse(data []byte) (*Node, error) {
	p := reader{data: data}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		p.at = 3
	}
	if !utf8.Valid(data) {
		return nil, p.fail("it is not UTF-8")
	}
	n, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.at < len(data) {
		return nil, p.fail("something follows the document")
	}
	return n, nil
}

type reader struct {
	data []byte
	at   int
}

func (p *reader) fail(format string, args ...any) error {
	return fmt.Errorf("line %d: %s", 1+bytes.Count(p.data[:min(p.at, len(p.data))], []byte("\n")), fmt.Sprintf(format, args...))
}

// space goes past blanks and comments, and returns the byte there, 0 at the end.
func (p *reader) space() byte {
	for p.at < len(p.data) {
		rest := p.data[p.at:]
		switch c := rest[0]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			p.at++
		case bytes.HasPrefix(rest, []byte("//")):
			p.at = lineEnd(p.data, p.at)
		case bytes.HasPrefix(rest, []byte("/*")):
			i := bytes.Index(rest[2:], []byte("*/"))
			if i < 0 {
				return '/'
			}
			p.at += i + 4
		default:
			return c
		}
	}
	return 0
}

func (p *reader) value(depth int) (*Node, error) {
	if depth > maxDepth {
		return nil, p.fail("it is nested deeper than %d", maxDepth)
	}
	n := &Node{Kind: p.space()}
	n.Start = p.at
	var err error
	switch n.Kind {
	case '{', '[':
		err = p.members(n, depth)
	case '"':
		n.Text, err = p.text()
	default:
		n.Kind = 0
		for p.at < len(p.data) && strings.IndexByte("+-.0123456789abcdefghijklmnopqrstuvwxyzE", p.data[p.at]) >= 0 {
			p.at++
		}
		if p.at == n.Start {
			err = p.fail("it is no JSON")
		}
	}
	n.End = p.at
	return n, err
}

func (p *reader) members(n *Node, depth int) error {
	closing := byte('}')
	if n.Kind == '[' {
		closing = ']'
	}
	seen := make(map[string]bool)
	for p.at++; p.space() != closing; {
		m := Member{Start: p.at}
		if n.Kind == '{' {
			if p.space() != '"' {
				return p.fail("it is no JSON")
			}
			var err error
			if m.Name, err = p.text(); err != nil {
				return err
			}
			if seen[m.Name] {
				return p.fail("a name is given twice in one object, of which programs read one or the other; remove one")
			}
			seen[m.Name] = true
			if p.space() != ':' {
				return p.fail("it is no JSON")
			}
			p.at++
		}
		var err error
		if m.Value, err = p.value(depth + 1); err != nil {
			return err
		}
		n.Members = append(n.Members, m)
		switch p.space() {
		case ',':
			p.at++
		case closing:
		default:
			return p.fail("it is no JSON")
		}
	}
	p.at++
	return nil
}

// text reads a string.
func (p *reader) text() (string, error) {
	for i := p.at + 1; i < len(p.data) && p.data[i] != '\n'; i++ {
		switch p.data[i] {
		case '\\':
			i++
		case '"':
			var s string
			if json.Unmarshal(p.data[p.at:i+1], &s) != nil {
				return "", p.fail("it is no JSON")
			}
			p.at = i + 1
			return s, nil
		}
	}
	return "", p.fail("a string does not end")
}

func lineEnd(data []byte, at int) int {
	if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
		return at + i
	}
	return len(data)
}
