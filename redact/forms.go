package redact

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A form is a way to write a secret: for each of its characters, the texts that may stand
// there.
type form [][]text

// A text is one way to write characters.
type text struct {
	bytes string
	folds bool // in either case
	more  int  // characters after the first that it stands for as well
}

// formsOf returns the forms of a secret.
func formsOf(secret []byte) []form {
	forms := []form{withRunes(written(string(secret), everyWay), secret), folded(hex.EncodeToString(secret))}
	for shift := range 3 {
		forms = append(forms, written(interior(secret, shift), inBase64))
	}
	return forms
}

// interior is the part of a secret's base64 that is the same whatever stands around it,
// if that many bytes stand before it (RFC 4648 §4): the characters that hold nothing but
// its bits.
func interior(secret []byte, before int) string {
	all := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), secret...))
	from, to := (8*before+5)/6, 8*(before+len(secret))/6
	return all[from:to]
}

func written(s string, ways func(c byte) []text) form {
	f := make(form, len(s))
	for i := range len(s) {
		f[i] = append(ways(s[i]), text{bytes: s[i : i+1]})
	}
	return f
}

func folded(s string) form {
	f := make(form, len(s))
	for i := range len(s) {
		f[i] = []text{{bytes: s[i : i+1], folds: true}}
	}
	return f
}

// everyWay is how a byte is escaped in URLs (RFC 3986 §2.1), JSON (RFC 8259 §7), scripts
// and HTML.
func everyWay(c byte) []text {
	ways := []text{
		{bytes: fmt.Sprintf("%%%02x", c), folds: true},
		{bytes: fmt.Sprintf(`\u%04x`, c), folds: true},
		{bytes: fmt.Sprintf(`\x%02x`, c), folds: true},
		{bytes: fmt.Sprintf("&#%d;", c)},
		{bytes: fmt.Sprintf("&#x%x;", c), folds: true},
	}
	if name, ok := entities[c]; ok {
		ways = append(ways, text{bytes: name})
	}
	if i := strings.IndexByte(escaped, c); i >= 0 {
		ways = append(ways, text{bytes: `\` + letters[i:i+1]})
	}
	if c == ' ' {
		ways = append(ways, text{bytes: "+"})
	}
	if !alphanumeric(c) {
		ways = append(ways, moreWays(c, ways)...)
	}
	return ways
}

// moreWays is what happens to punctuation alone: HTML numbers have a zero before them,
// and JSON is inside a string of JSON, as arguments of tools are.
func moreWays(c byte, ways []text) (more []text) {
	if c < 100 {
		more = append(more, text{bytes: fmt.Sprintf("&#%03d;", c)})
	}
	for _, w := range ways {
		if w.bytes[0] == '\\' && w.bytes[1] != 'x' {
			w.bytes = inString.Replace(w.bytes)
			more = append(more, w)
		}
	}
	return more
}

var inString = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// The characters that a backslash and a letter stand for, and the letters.
const (
	escaped = "\"\\/'\b\f\n\r\t"
	letters = "\"\\/'bfnrt"
)

var entities = map[byte]string{'&': "&amp;", '<': "&lt;", '>': "&gt;", '"': "&quot;", '\'': "&apos;"}

// inBase64 is a character of base64url as well (RFC 4648 §5), and escapes what is not a
// letter or digit: nobody escapes those of base64.
func inBase64(c byte) []text {
	switch c {
	case '+':
		return append(everyWay(c), text{bytes: "-"})
	case '/':
		return append(everyWay(c), text{bytes: "_"})
	}
	return nil
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// withRunes adds the ways to escape a character of several bytes of UTF-8 as one.
func withRunes(f form, secret []byte) form {
	for i := 0; i < len(secret); {
		r, n := utf8.DecodeRune(secret[i:])
		if n > 1 {
			units := ""
			for _, u := range utf16.Encode([]rune{r}) {
				units += fmt.Sprintf(`\u%04x`, u)
			}
			f[i] = append(f[i], text{units, true, n - 1}, text{fmt.Sprintf("&#%d;", r), false, n - 1}, text{fmt.Sprintf("&#x%x;", r), true, n - 1})
		}
		i += n
	}
	return f
}
