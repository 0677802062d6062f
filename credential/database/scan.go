package database

import (
	"errors"
	"strings"
)

// A kind is what sort of token one is.
type kind uint8

const (
	none   kind = iota // the end
	word               // bare: a keyword or an identifier, in capitals
	quoted             // an identifier in quotes, without them
	text               // a string, without its quotes, as it is written
	sign               // one byte of anything else
)

type token struct {
	kind kind
	text string
}

func (t token) is(words ...string) bool {
	if t.kind != word {
		return false
	}
	for _, w := range words {
		if t.text == w {
			return true
		}
	}
	return false
}

func (t token) sign(c byte) bool { return t.kind == sign && t.text[0] == c }

// A scan reads the tokens of SQL as PostgreSQL's own lexer does (src/backend/parser/scan.l).
// What that reads in two ways, by the setting of standard_conforming_strings, is an error.
type scan struct {
	sql   string
	at    int
	depth int // of parentheses
}

// Errors of text that is not judged.
var (
	errUnclosed  = errors.New("a string, name or comment in it is not closed")
	errBackslash = errors.New("a string in it has a backslash before a quote, which PostgreSQL reads in two ways; write it as E'...'")
	errUnicode   = errors.New("a name in it is written with U&, which is not judged")
	errZero      = errors.New("it has a zero byte in it")
)

func space(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func begins(c byte) bool {
	return c == '_' || c >= 0x80 || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// blank skips white space and comments. Those of C's kind nest.
func (s *scan) blank() error {
	for s.at < len(s.sql) {
		rest := s.sql[s.at:]
		switch {
		case space(rest[0]):
			s.at++
		case strings.HasPrefix(rest, "--"):
			n := strings.IndexAny(rest, "\r\n")
			if n < 0 {
				n = len(rest)
			}
			s.at += n
		case strings.HasPrefix(rest, "/*"):
			if err := s.comment(); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

func (s *scan) comment() error {
	depth := 0
	for s.at+1 < len(s.sql) {
		switch s.sql[s.at : s.at+2] {
		case "/*":
			depth++
			s.at += 2
		case "*/":
			depth--
			s.at += 2
			if depth == 0 {
				return nil
			}
		default:
			s.at++
		}
	}
	return errUnclosed
}

// next returns the next token; at the end one of kind none.
func (s *scan) next() (token, error) {
	if err := s.blank(); err != nil || s.at == len(s.sql) {
		return token{}, err
	}
	c := s.sql[s.at]
	switch {
	case begins(c):
		return s.word()
	case c == '\'':
		return s.string(false)
	case c == '"':
		return s.name()
	case c == '$':
		return s.dollar()
	case digit(c):
		from := s.at
		for s.at < len(s.sql) && digit(s.sql[s.at]) {
			s.at++
		}
		return token{sign, s.sql[from : from+1]}, nil
	}
	switch c {
	case '(':
		s.depth++
	case ')':
		s.depth--
	}
	s.at++
	return token{sign, s.sql[s.at-1 : s.at]}, nil
}

// word reads a bare word, or the string or name that it is a prefix of.
func (s *scan) word() (token, error) {
	from := s.at
	for s.at < len(s.sql) && (begins(s.sql[s.at]) || digit(s.sql[s.at]) || s.sql[s.at] == '$') {
		s.at++
	}
	w, after := s.sql[from:s.at], byte(0)
	if s.at < len(s.sql) {
		after = s.sql[s.at]
	}
	switch {
	case after == '\'' && len(w) == 1 && strings.Contains("eE", w):
		return s.string(true)
	case after == '\'' && len(w) == 1 && strings.Contains("bBxXnN", w):
		return s.string(false)
	case after == '&' && len(w) == 1 && strings.Contains("uU", w) && s.at+1 < len(s.sql):
		switch s.sql[s.at+1] {
		case '"':
			return token{}, errUnicode
		case '\'':
			s.at++
			return s.string(false)
		}
	}
	return token{word, capitals(w)}, nil
}

// capitals is of ASCII alone, as the server's own reading of keywords is.
func capitals(s string) string {
	return strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' {
			return c - 'a' + 'A'
		}
		return c
	}, s)
}

// string reads a string from its first quote on. With escapes, a backslash takes the next
// byte along.
func (s *scan) string(escapes bool) (token, error) {
	s.at++
	from := s.at
	for s.at < len(s.sql) {
		switch c := s.sql[s.at]; {
		case c == '\\' && escapes:
			s.at++
		case c == '\'' && s.at > from && s.sql[s.at-1] == '\\' && !escapes:
			return token{}, errBackslash
		case c == '\'' && s.at+1 < len(s.sql) && s.sql[s.at+1] == '\'':
			s.at++
		case c == '\'':
			s.at++
			return token{text, s.sql[from : s.at-1]}, nil
		}
		s.at++
	}
	return token{}, errUnclosed
}

func (s *scan) name() (token, error) {
	s.at++
	from := s.at
	for {
		n := strings.IndexByte(s.sql[s.at:], '"')
		if n < 0 {
			return token{}, errUnclosed
		}
		s.at += n + 1
		if s.at == len(s.sql) || s.sql[s.at] != '"' {
			break
		}
		s.at++
	}
	return token{quoted, strings.ReplaceAll(s.sql[from:s.at-1], `""`, `"`)}, nil
}

// dollar reads a string in dollar quotes, or a parameter.
func (s *scan) dollar() (token, error) {
	end := s.at + 1
	for end < len(s.sql) && (begins(s.sql[end]) || end > s.at+1 && digit(s.sql[end])) {
		end++
	}
	if end == len(s.sql) || s.sql[end] != '$' {
		s.at++ // a parameter's sign; its number follows
		return token{sign, "$"}, nil
	}
	quote := s.sql[s.at : end+1]
	n := strings.Index(s.sql[end+1:], quote)
	if n < 0 {
		return token{}, errUnclosed
	}
	body := s.sql[end+1 : end+1+n]
	s.at = end + 1 + n + len(quote)
	return token{text, body}, nil
}
