package redact

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// A form is a way to write a secret: for each of its characters, the texts that may stand
// there. The letters of hexadecimal digits in them stand for both cases.
type form [][]text

// A text is one way to write a character.
type text struct {
	bytes string
	folds bool // in either case
}

// formsOf returns the forms of a secret.
func formsOf(secret []byte) []form {
	forms := []form{written(string(secret), everyWay), folded(hex.EncodeToString(secret))}
	for shift := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			inside := interior(encoding, secret, shift)
			if encoding == base64.RawURLEncoding && inside == interior(base64.RawStdEncoding, secret, shift) {
				continue
			}
			forms = append(forms, written(inside, specials))
		}
	}
	return forms
}

// interior is the part of a secret's base64 that is the same whatever stands around it,
// if that many bytes stand before it (RFC 4648 §4): the characters that hold nothing but
// its bits.
func interior(e *base64.Encoding, secret []byte, before int) string {
	all := e.EncodeToString(append(make([]byte, before), secret...))
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
		f[i] = []text{{s[i : i+1], true}}
	}
	return f
}

// everyWay is how a byte is escaped in URLs (RFC 3986 §2.1), JSON (RFC 8259 §7), scripts
// and HTML.
func everyWay(c byte) []text {
	ways := []text{
		{fmt.Sprintf("%%%02x", c), true}, {fmt.Sprintf(`\u%04x`, c), true}, {fmt.Sprintf(`\x%02x`, c), true},
		{fmt.Sprintf("&#%d;", c), false}, {fmt.Sprintf("&#x%x;", c), true},
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
	return ways
}

// The characters that a backslash and a letter stand for, and the letters.
const (
	escaped = "\"\\/'\b\f\n\r\t"
	letters = "\"\\/'bfnrt"
)

var entities = map[byte]string{'&': "&amp;", '<': "&lt;", '>': "&gt;", '"': "&quot;", '\'': "&apos;"}

// specials escapes what is not a letter or digit: nobody escapes those of base64.
func specials(c byte) []text {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
		return nil
	}
	return everyWay(c)
}
