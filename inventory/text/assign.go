// Package text reads the syntaxes in which configuration files have values, and keeps
// where in the file each value is written.
//
// Its readers are lenient: what makes no sense is left out, since the rest of the file may
// hold a secret. They are bounded by the length of what they read.
package text

import (
	"bytes"
	"regexp"
)

// An Entry is a value with its name.
type Entry struct {
	Section    string // the heading it stands below, where a syntax has such
	Key        string
	Value      []byte // without quotes
	Start, End int    // where the value is written, without quotes
	Exported   bool   // of a shell: programs that it starts have it
	Comment    bool   // it was commented out
}

var assignment = regexp.MustCompile(`^[ \t]*(#[# \t]*)?(?:(export|declare -x|typeset -x|setenv|set(?:[ \t]+-[a-zA-Z]{1,4}|[ \t]+--[a-z]{1,12}){1,4})[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(=|[ \t])[ \t]*`)

// Assignments reads NAME=VALUE lines, as shells and .env files have them, and those of
// csh and fish, which have a space there.
func Assignments(data []byte) (list []Entry) {
	for at := textStart(data); at < len(data); {
		end := lineEnd(data, at)
		e, next, ok := assigned(data, at, end)
		for ok {
			list = append(list, e)
			if next >= end || e.Comment || data[next] != ' ' && data[next] != '\t' {
				break
			}
			exported := e.Exported // export A=1 B=2
			if e, next, ok = assigned(data, next, end); ok {
				e.Exported = exported
			}
		}
		at = max(next, end+1)
	}
	return list
}

// assigned reads the line from at to end, or more lines if a quote is open at its end.
func assigned(data []byte, at, end int) (e Entry, next int, ok bool) {
	m := assignment.FindSubmatchIndex(data[at:end])
	if m == nil {
		return e, 0, false
	}
	command := ""
	if m[4] >= 0 {
		command = string(data[at+m[4] : at+m[5]])
	}
	spaced := len(command) > 3 && command[:3] == "set"
	if spaced != (data[at+m[8]] != '=') {
		return e, 0, false
	}
	e = Entry{Key: string(data[at+m[6] : at+m[7]]), Exported: command != "", Comment: m[2] >= 0}
	e.Start = at + m[1]
	limit := len(data)
	if e.Comment {
		limit = end
	}
	e.Value, e.Start, e.End, next = word(data[:limit], e.Start, end)
	return e, next, true
}

// word reads a value that begins at a byte: what is in quotes, else up to a space and
// what follows a command.
func word(data []byte, start, end int) (value []byte, from, to, next int) {
	if start < len(data) && (data[start] == '"' || data[start] == '\'') {
		if i := closing(data, start); i >= 0 {
			return unescaped(data[start+1:i], data[start]), start + 1, i, i + 1
		}
		start++ // a quote that nothing closes: what is on the line
	}
	to = start
	for to < end && data[to] != ' ' && data[to] != '\t' && data[to] != '\r' {
		to++
	}
	if to > start && data[to-1] == ';' {
		to--
	}
	return data[start:to], start, to, to
}

// maxQuoted bounds a value in quotes, so that one that is not closed costs no more.
const maxQuoted = 16 << 10

// closing returns where the quote at a byte is closed, -1 if it is not.
func closing(data []byte, start int) int {
	for i := start + 1; i < min(len(data), start+maxQuoted); i++ {
		switch {
		case data[i] == '\\' && data[start] == '"':
			i++
		case data[i] == data[start]:
			return i
		}
	}
	return -1
}

// unescaped is what stands in double quotes without the backslashes.
func unescaped(b []byte, quote byte) []byte {
	if quote != '"' || bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) {
			i++
			if b[i] == 'n' {
				out = append(out, '\n')
				continue
			}
		}
		out = append(out, b[i])
	}
	return out
}

// textStart is where a text begins, after a byte order mark.
func textStart(data []byte) int {
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return 3
	}
	return 0
}

func lineEnd(data []byte, at int) int {
	if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
		return at + i
	}
	return len(data)
}
