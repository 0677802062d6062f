package text

import (
	"encoding/json"
	"errors"
	"strconv"
)

// A Leaf is a text with the names on the way to it; of a list's elements their numbers.
type Leaf struct {
	Path       []string
	Value      []byte
	Start, End int // where it is written, without quotes; both 0 if not in one piece
}

// Bounds of a document.
const (
	maxDepth  = 64
	maxLeaves = 200_000
)

var (
	errJSON  = errors.New("it is no JSON from some byte on")
	errLarge = errors.New("it is nested too deeply, or has too many values")
)

// JSON reads the texts in a document of JSON, with comments and trailing commas as
// editors allow them (JSONC). An error comes with what stands before it.
func JSON(data []byte) ([]Leaf, error) {
	p := jsonParser{data: data, at: textStart(data)}
	err := p.value(nil, 0)
	if err == nil {
		if p.space(); p.at < len(data) {
			err = errJSON
		}
	}
	return p.leaves, err
}

type jsonParser struct {
	data   []byte
	at     int
	leaves []Leaf
}

// space goes past blanks and comments, and returns the byte there, 0 at the end.
func (p *jsonParser) space() byte {
	for p.at < len(p.data) {
		switch c := p.data[p.at]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			p.at++
		case c == '/' && p.at+1 < len(p.data) && p.data[p.at+1] == '/':
			p.at = lineEnd(p.data, p.at)
		case c == '/' && p.at+1 < len(p.data) && p.data[p.at+1] == '*':
			for p.at += 2; p.at < len(p.data) && (p.data[p.at] != '/' || p.data[p.at-1] != '*'); {
				p.at++
			}
			p.at = min(p.at+1, len(p.data))
		default:
			return c
		}
	}
	return 0
}

func (p *jsonParser) value(path []string, depth int) error {
	if depth > maxDepth || len(p.leaves) >= maxLeaves {
		return errLarge
	}
	switch c := p.space(); c {
	case '{':
		return p.members(path, depth, '}', true)
	case '[':
		return p.members(path, depth, ']', false)
	case '"':
		v, start, end, err := p.text()
		if err != nil {
			return err
		}
		p.leaves = append(p.leaves, Leaf{append([]string(nil), path...), v, start, end})
		return nil
	}
	start := p.at
	for p.at < len(p.data) && (isAlnum(p.data[p.at]) || p.data[p.at] == '-' || p.data[p.at] == '+' || p.data[p.at] == '.') {
		p.at++
	}
	if p.at == start {
		return errJSON
	}
	return nil
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// members reads what an object or a list has.
func (p *jsonParser) members(path []string, depth int, end byte, keyed bool) error {
	p.at++
	for n := 0; ; n++ {
		if p.space() == end {
			p.at++
			return nil
		}
		name := strconv.Itoa(n)
		if keyed {
			if p.space() != '"' {
				return errJSON
			}
			key, _, _, err := p.text()
			if err != nil {
				return err
			}
			if p.space() != ':' {
				return errJSON
			}
			p.at++
			name = string(key)
		}
		if err := p.value(append(path[:len(path):len(path)], name), depth+1); err != nil {
			return err
		}
		switch p.space() {
		case ',':
			p.at++
		case end:
		default:
			return errJSON
		}
	}
}

// text reads a string.
func (p *jsonParser) text() (value []byte, start, end int, err error) {
	start = p.at + 1
	escaped := false
	for i := start; i < len(p.data); i++ {
		switch p.data[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			p.at = i + 1
			if !escaped {
				return p.data[start:i], start, i, nil
			}
			var s string
			if json.Unmarshal(p.data[start-1:i+1], &s) != nil {
				return nil, 0, 0, errJSON
			}
			return []byte(s), start, i, nil
		case '\n':
			return nil, 0, 0, errJSON
		}
	}
	return nil, 0, 0, errJSON
}
