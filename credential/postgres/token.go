package postgres

import (
	"crypto/rand"
	"errors"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/credential"
)

// checkPlaces returns an error unless each place of a statement is a token of its
// own. Inside of quotes, a comment or a prefixed literal, what quote does to a
// value would end the quotes there, and the rest of the value would be SQL.
func checkPlaces(statement credential.Template) error {
	names := rand.Text() // nothing else in the statement is called so
	places := make(map[string]string)
	places["role"] = names
	for _, name := range statement.Names() {
		places[name] = names
	}
	var wanted []string
	text, err := statement.Expand(places, func(verb, value string) (string, error) {
		quoted, err := quote(verb, value)
		wanted = append(wanted, quoted)
		return quoted, err
	})
	if err != nil {
		return err
	}
	found, err := tokens(text)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(token string) bool { return !slices.Contains(wanted, token) })
	if !slices.Equal(found, wanted) {
		return errors.New("has a place inside of quotes, dollar quotes or a comment, or right beside a string; write {{literal name}} for a whole string, and {{name}} for a whole name")
	}
	return nil
}

var (
	errUnclosed  = errors.New("ends inside of quotes or a comment; close it")
	errContinued = errors.New("goes on with a string where another has ended; write it as one")
)

// tokens splits a statement as PostgreSQL does ("Lexical Structure"), as far as
// quotes go: what is not quoted may come in pieces. Comments and space are left
// out. It relies on standard_conforming_strings, as literal does.
func tokens(s string) (list []string, err error) {
	afterString := false
	for s != "" {
		n, kind := 1, byte(0)
		switch c := s[0]; {
		case isSpace(c):
			s = s[1:]
			continue
		case strings.HasPrefix(s, "--"):
			n = strings.IndexAny(s, "\r\n")
			if n < 0 {
				return nil, errUnclosed
			}
			s = s[n:]
			continue
		case strings.HasPrefix(s, "/*"):
			if n = blockComment(s); n < 0 {
				return nil, errUnclosed
			}
			s = s[n:]
			continue
		case c == '\'' || c == '"':
			n, kind = quoted(s, c, false), c
		case strings.ContainsRune("eEbBxXnN", rune(c)) && strings.HasPrefix(s[1:], "'"):
			if n, kind = quoted(s[1:], '\'', c == 'e' || c == 'E'), '\''; n >= 0 {
				n++
			}
		case (c == 'u' || c == 'U') && len(s) > 2 && s[1] == '&' && (s[2] == '\'' || s[2] == '"'):
			if n, kind = quoted(s[2:], s[2], false), s[2]; n >= 0 {
				n += 2
			}
		case c == '$':
			if n = dollar(s); n == 0 {
				return nil, errors.New("has a $ that begins no string")
			}
		case isLetter(c):
			for n < len(s) && (isLetter(s[n]) || isDigit(s[n]) || s[n] == '$') {
				n++
			}
		case isDigit(c):
			for n < len(s) && isDigit(s[n]) {
				n++
			}
			if n < len(s) && s[n] == '$' {
				return nil, errors.New("has a $ after a number")
			}
		}
		if n < 0 {
			return nil, errUnclosed
		}
		if kind == '\'' && afterString {
			return nil, errContinued // in the quotes of the first (E'…' newline '…')
		}
		afterString = kind == '\''
		list = append(list, s[:n])
		s = s[n:]
	}
	return list, nil
}

// quoted returns the length of what begins with a quote, or -1 if nothing ends it.
func quoted(s string, quote byte, escapes bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case escapes && s[i] == '\\':
			i++
		case s[i] == quote && i+1 < len(s) && s[i+1] == quote:
			i++
		case s[i] == quote:
			return i + 1
		}
	}
	return -1
}

// dollar returns the length of a dollar-quoted string, or of a parameter such as
// $1; 0 if it is neither, and -1 if nothing ends the string.
func dollar(s string) int {
	n := 1
	for n < len(s) && (isLetter(s[n]) || n > 1 && isDigit(s[n])) {
		n++
	}
	if n < len(s) && s[n] == '$' {
		end := strings.Index(s[n+1:], s[:n+1])
		if end < 0 {
			return -1
		}
		return n + 1 + end + n + 1
	}
	for n = 1; n < len(s) && isDigit(s[n]); n++ {
	}
	if n == 1 || n < len(s) && (isLetter(s[n]) || s[n] == '$') {
		return 0
	}
	return n
}

// blockComment returns the length of a comment, in which there may be others; -1
// if nothing ends it.
func blockComment(s string) int {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
		}
		if depth == 0 {
			return i + 1
		}
	}
	return -1
}

func isSpace(c byte) bool  { return strings.IndexByte(" \t\n\r\f\v", c) >= 0 }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || c >= 0x80 }
