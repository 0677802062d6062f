package migrate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep a document may be nested.
const maxDepth = 64

// A node is a value in a document of JSON, with its place. Comments and trailing commas
// are let pass, as editors do.
type node struct {
	start, end int
	kind       byte // { [ " or 0 for anything else
	text       string
	members    []member // of {, and of [ without names
}

type member struct {
	name  string
	start int // of its name, or of the value in a list
	value *node
}

// get returns a member's value, nil if there is none.
func (n *node) get(names ...string) *node {
	for _, name := range names {
		if n == nil || n.kind != '{' {
			return nil
		}
		var found *node
		for _, m := range n.members {
			if m.name == name {
				found = m.value
			}
		}
		n = found
	}
	return n
}

// is reports whether there is a value of a kind.
func (n *node) is(kind byte) bool { return n != nil && n.kind == kind }

// parseJSON reads a document. An error names the line, and tells nothing of what is in it.
func parseJSON(data []byte) (*node, error) {
	p := jsonReader{data: data}
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

type jsonReader struct {
	data []byte
	at   int
}

func (p *jsonReader) fail(format string, args ...any) error {
	return fmt.Errorf("line %d: %s", 1+bytes.Count(p.data[:min(p.at, len(p.data))], []byte("\n")), fmt.Sprintf(format, args...))
}

// space goes past blanks and comments, and returns the byte there, 0 at the end.
func (p *jsonReader) space() byte {
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

func (p *jsonReader) value(depth int) (*node, error) {
	if depth > maxDepth {
		return nil, p.fail("it is nested deeper than %d", maxDepth)
	}
	n := &node{kind: p.space()}
	n.start = p.at
	var err error
	switch n.kind {
	case '{', '[':
		err = p.members(n, depth)
	case '"':
		n.text, err = p.text()
	default:
		n.kind = 0
		for p.at < len(p.data) && strings.IndexByte("+-.0123456789abcdefghijklmnopqrstuvwxyzE", p.data[p.at]) >= 0 {
			p.at++
		}
		if p.at == n.start {
			err = p.fail("it is no JSON")
		}
	}
	n.end = p.at
	return n, err
}

func (p *jsonReader) members(n *node, depth int) error {
	closing := byte('}')
	if n.kind == '[' {
		closing = ']'
	}
	seen := make(map[string]bool)
	for p.at++; p.space() != closing; {
		m := member{start: p.at}
		if n.kind == '{' {
			if p.space() != '"' {
				return p.fail("it is no JSON")
			}
			var err error
			if m.name, err = p.text(); err != nil {
				return err
			}
			if seen[m.name] {
				return p.fail("a name is given twice in one object, of which programs read one or the other; remove one")
			}
			seen[m.name] = true
			if p.space() != ':' {
				return p.fail("it is no JSON")
			}
			p.at++
		}
		var err error
		if m.value, err = p.value(depth + 1); err != nil {
			return err
		}
		n.members = append(n.members, m)
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
func (p *jsonReader) text() (string, error) {
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

// quoted is a text as JSON has it.
func quoted(text string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(text) // of a string there is no error
	return strings.TrimSuffix(b.String(), "\n")
}

// insert plans a new member at the end of an object, with blanks before it as before the
// first.
func (p *plan) insert(in *node, name, value string) {
	text := quoted(name) + ": " + value
	if len(in.members) == 0 {
		p.edit(in.start+1, in.start+1, text)
		return
	}
	blank := string(p.file.data[in.start+1 : in.members[0].start])
	if strings.TrimSpace(blank) != "" { // a comment
		blank = " "
	}
	at := in.members[len(in.members)-1].value.end
	p.edit(at, at, ","+blank+text)
}

// removeMembers plans to take members out of an object.
func (p *plan) removeMembers(in *node, gone func(name string) bool) {
	n := len(in.members)
	last := n // the members from there on all go
	for last > 0 && gone(in.members[last-1].name) {
		last--
	}
	for i := range last {
		if gone(in.members[i].name) {
			p.edit(in.members[i].start, in.members[i+1].start, "")
		}
	}
	switch {
	case last == n:
	case last == 0:
		p.edit(in.members[0].start, in.members[n-1].value.end, "")
	default:
		p.edit(in.members[last-1].value.end, in.members[n-1].value.end, "")
	}
}
