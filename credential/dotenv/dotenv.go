// Package dotenv reads .env files, where static keys usually lie, and puts
// handles in the place of values.
//
// There is no one format: shells, docker and a library in each language read
// these files, each a little differently. So a value counts as known only where
// they agree on it. Where they do not (an unquoted backslash, a dollar sign that
// some expand), the variable is told with the reason and left as it is; a line
// that makes no sense to any of them is an error. Nothing is guessed, since a
// value that is read wrongly here would be lost.
package dotenv

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/vouchd/vouchd/secret"
)

const byteOrderMark = "\xef\xbb\xbf"

// MaxLen bounds a file, in bytes.
const MaxLen = 1 << 20

// A File is a .env file as it was read.
type File struct {
	Variables []Variable // in the order of the file
	Comments  []Comment

	data []byte
}

// A Variable is one assignment.
type Variable struct {
	Name    string
	Line    int // from 1, where it begins
	Value   secret.Bytes
	Unclear string // why loaders disagree on its value; Value is empty then

	start, end int // of the value in the file, quotes included
}

// A Comment is one that reads as an assignment, as of a key that was commented
// out.
type Comment struct {
	Line  int
	Name  string
	Value secret.Bytes
}

// An Error is one line that makes no sense. It holds nothing of the line, which
// may be a secret.
type Error struct {
	Line int
	Msg  string // what is wrong; how to mend it
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Msg) }

// Parse reads a file. The error joins an [*Error] for each line that makes no
// sense; nothing can be done with the file then. Data is the file's from then on.
func Parse(data []byte) (*File, error) {
	if len(data) > MaxLen {
		return nil, fmt.Errorf("file has more than %d bytes", MaxLen)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return nil, &Error{1 + bytes.Count(data[:i], []byte("\n")), "holds a zero byte; this is no .env file"}
	}
	p := parser{data: data, line: 1}
	p.file.data = data
	if bytes.HasPrefix(data, []byte(byteOrderMark)) {
		p.at = len(byteOrderMark)
	}
	for p.at < len(data) {
		p.statement()
	}
	if err := errors.Join(p.errs...); err != nil {
		return nil, err
	}
	return &p.file, nil
}

// A Replacement is a text for the bytes from Start to End.
type Replacement struct {
	Start, End int
	Text       string
}

// Replace returns what puts other values in the place of those of variables that handle
// knows one for, which are all of that name.
func (f *File) Replace(handle func(name string) (value string, ok bool)) (list []Replacement) {
	for _, v := range f.Variables {
		if value, ok := handle(v.Name); ok {
			if v.end < len(f.data) && f.data[v.end] == '#' {
				value += " " // or the comment would be part of it
			}
			list = append(list, Replacement{v.start, v.end, value})
		}
	}
	return list
}

// maxErrors bounds how many errors are reported.
const maxErrors = 20

type parser struct {
	data []byte
	at   int // of the next byte
	line int // that byte's
	file File
	errs []error
}

func (p *parser) fail(line int, format string, args ...any) {
	if len(p.errs) < maxErrors {
		p.errs = append(p.errs, &Error{line, fmt.Sprintf(format, args...)})
	}
}

var (
	assignment = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*`)
	bareName   = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?[A-Za-z_][A-Za-z0-9_.-]*[ \t]*$`)
	commented  = regexp.MustCompile(`^[ \t#]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*?)[ \t]*$`)
)

// statement reads one line, or as many as its value has.
func (p *parser) statement() {
	line, text := p.line, p.rest()
	head := assignment.FindSubmatchIndex(text)
	switch trimmed := bytes.TrimSpace(text); {
	case len(trimmed) == 0:
	case trimmed[0] == '#':
		p.comment(line, trimmed)
	case head == nil && bareName.Match(text): // passed through from the environment
	case head == nil:
		p.fail(line, "is neither NAME=VALUE nor a comment; mend it or put # before it")
	default:
		name := string(text[head[2]:head[3]])
		p.at += head[1]
		p.value(Variable{Name: name, Line: line, start: p.at})
		return
	}
	p.skipLine()
}

// rest returns what is left of the line, without its end.
func (p *parser) rest() []byte {
	text := p.data[p.at:]
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		text = text[:i]
	}
	return bytes.TrimSuffix(text, []byte("\r"))
}

func (p *parser) skipLine() {
	if i := bytes.IndexByte(p.data[p.at:], '\n'); i >= 0 {
		p.at += i + 1
		p.line++
		return
	}
	p.at = len(p.data)
}

func (p *parser) comment(line int, text []byte) {
	if m := commented.FindSubmatch(text); m != nil {
		p.file.Comments = append(p.file.Comments, Comment{line, string(m[1]), secret.Of(bytes.Trim(m[2], `"'`))})
	}
}

// value reads a value and what follows it on its last line.
func (p *parser) value(v Variable) {
	text := p.rest()
	var value []byte
	ok := true
	switch {
	case len(text) > 0 && (text[0] == '\'' || text[0] == '"' || text[0] == '`'):
		value, ok = p.quoted(&v, text[0])
	default:
		value = p.unquoted(&v, text)
	}
	if v.Line == 1 && bytes.HasPrefix(p.data, []byte(byteOrderMark)) {
		v.Unclear = "there is a byte order mark before it, which some read as part of the name; remove it"
	}
	if ok {
		if v.end = p.at; v.Unclear == "" {
			v.Value = secret.Of(value)
		}
		p.file.Variables = append(p.file.Variables, v)
		p.tail(&v)
	}
	p.skipLine()
}

// tail holds what follows a value to blanks and a comment.
func (p *parser) tail(v *Variable) {
	rest := bytes.TrimLeft(p.rest(), " \t")
	if len(rest) > 0 && rest[0] == '#' {
		p.comment(p.line, rest)
	} else if len(rest) > 0 {
		p.fail(v.Line, "has something behind the quoted value of %s; put quotes around all of it", v.Name)
	}
}

// unquoted reads to the end of the line or to a comment.
func (p *parser) unquoted(v *Variable, text []byte) []byte {
	value := text
	if i := commentAt(text); i >= 0 {
		value = text[:i]
	}
	value = bytes.TrimRight(value, " \t")
	p.at += len(value)
	switch {
	case len(value) > 0 && value[0] == '#':
		v.Unclear = "some read # as the beginning of a comment, and others as the value's; put single quotes around the value, or '' before a comment"
	case bytes.ContainsFunc(value, oddSpace):
		v.Unclear = "it has a space in it that some cut off and others keep; put single quotes around it, or remove the space"
	case bytes.ContainsAny(value, `"'\`):
		v.Unclear = "it has a quote or a backslash and no quotes around it; " + byHand
	case bytes.IndexByte(value, '#') >= 0:
		v.Unclear = "some read # as the beginning of a comment; put single quotes around it"
	case expands(value):
		v.Unclear = "some expand $ and ` in it; put single quotes around it"
	case bytes.IndexByte(value, '\r') >= 0:
		v.Unclear = "it has a carriage return in it"
	}
	return bytes.Clone(value)
}

// byHand is the way out where no quotes help.
const byHand = "seal it with vouch secret seal, and write its handle (vouch:NAME)"

// oddSpace reports whether only some count r as space, or as the end of a line.
func oddSpace(r rune) bool {
	return unicode.IsSpace(r) && r != ' ' && r != '\t' && r != '\r' && r != '\n' || r == '\u200b' || r == '\ufeff'
}

// commentAt returns where a comment begins: at a # after a space.
// Not all take a tab for one.
func commentAt(text []byte) int {
	for i := 1; i < len(text); i++ {
		if text[i] == '#' && text[i-1] == ' ' {
			return i
		}
	}
	return -1
}

// expands reports whether some would put something else in.
func expands(value []byte) bool {
	for i, c := range value {
		if c == '`' || c == '$' && i+1 < len(value) && strings.ContainsRune("{(_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789$@*#?!-", rune(value[i+1])) {
			return true
		}
	}
	return false
}

// quoted reads to the closing quote, over lines if need be.
func (p *parser) quoted(v *Variable, quote byte) (value []byte, ok bool) {
	body := p.data[p.at+1:]
	if quote == '`' {
		v.Unclear = "not all know these quotes; put single quotes around it"
	}
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == quote:
			p.at += i + 2
			p.line += bytes.Count(body[:i], []byte("\n"))
			return value, true
		case c == '\r':
			v.Unclear = "it has carriage returns in it, which some drop or read as line ends"
		case c == 0xe2 && (bytes.HasPrefix(body[i:], []byte("\u2028")) || bytes.HasPrefix(body[i:], []byte("\u2029"))):
			v.Unclear = "it has a line separator in it, at which some end the line; " + byHand
		case c == '$' && quote == '\'' && i+1 < len(body) && body[i+1] == '{':
			v.Unclear = "some expand ${…} even in single quotes; " + byHand
		case quote == '"' && expands(body[i:min(i+2, len(body))]):
			v.Unclear = "some expand $ and ` in it; put single quotes around it"
		case c == '\\' && quote != '"':
			v.Unclear = "some read a backslash in these quotes as more than itself; " + byHand
		case c == '\\':
			var used int
			if value, used = v.escape(value, body[i+1:]); used > 0 {
				i += used
				continue
			}
		}
		value = append(value, body[i])
	}
	p.fail(v.Line, "has a quote that nothing closes; close it, or put the other kind around it")
	p.at = len(p.data)
	return nil, false
}

// escape appends what a backslash in double quotes and what follows stand for,
// and returns how much followed.
func (v *Variable) escape(value, rest []byte) ([]byte, int) {
	if len(rest) == 0 {
		return value, 0
	}
	switch rest[0] {
	case '"', '\\', '$':
		v.Unclear = "some keep a backslash before \", \\ or $; put single quotes around it"
		return append(value, rest[0]), 1
	case 'n':
		// A shell keeps both characters; the libraries all make it a line end.
		return append(value, '\n'), 1
	}
	v.Unclear = "not all read the backslash in it the same way; put single quotes around it"
	return append(value, '\\', rest[0]), 1
}
