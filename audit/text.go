package audit

import (
	"strconv"
	"unicode/utf8"
)

// Text from outside is made safe twice. First the value: a backslash is
// doubled, and whatever does not print (controls, line ends, bidirectional
// marks, bytes that are not UTF-8) becomes \xNN, \uNNNN or \UNNNNNNNN, as in a
// Go string literal. The result is printable on any terminal and keeps every
// byte of the original. Then JSON's own escaping, of which only \\ and \"
// can still occur. Text beyond its limit is cut, and ends in \[+N bytes],
// which no escaped text contains.

// cutRoom is what the mark of a cut takes at most, in JSON.
const cutRoom = len(`\\[+18446744073709551615 bytes]`)

// appendText appends s as a JSON string, without quotation marks, of at most
// limit bytes.
func appendText(b []byte, s string, limit int) []byte {
	start := len(b)
	cutAt, cutFrom := start, 0 // where a cut would go, in b and in s
	for i := 0; i < len(s); {
		if n := plainPrefix(s[i:]); n > 0 {
			if room := limit - cutRoom - (len(b) - start); room > 0 {
				k := min(n, room)
				cutAt, cutFrom = len(b)+k, i+k
			}
			b = append(b, s[i:i+n]...)
			i += n
		} else {
			if len(b)-start <= limit-cutRoom {
				cutAt, cutFrom = len(b), i
			}
			r, n := utf8.DecodeRuneInString(s[i:])
			b = appendEscaped(b, s[i:i+n], r)
			i += n
		}
		if len(b)-start > limit {
			b = append(b[:cutAt], `\\[+`...)
			b = strconv.AppendInt(b, int64(len(s)-cutFrom), 10)
			return append(b, ` bytes]`...)
		}
	}
	return b
}

// plainPrefix returns how many bytes at the start of s stand for themselves.
func plainPrefix(s string) int {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '\\' || c == '"' {
			return i
		}
	}
	return len(s)
}

// appendEscaped appends one rune, whose bytes are raw, as it stands in JSON.
func appendEscaped(b []byte, raw string, r rune) []byte {
	const hex = "0123456789abcdef"
	switch {
	case r == utf8.RuneError && len(raw) == 1, r < ' ', r == 0x7f:
		return append(b, '\\', '\\', 'x', hex[raw[0]>>4], hex[raw[0]&15])
	case r == '\\':
		return append(b, `\\\\`...)
	case r == '"':
		return append(b, `\"`...)
	case strconv.IsPrint(r):
		return append(b, raw...)
	case r > 0xffff:
		b = append(b, `\\U`...)
		for s := 28; s >= 0; s -= 4 {
			b = append(b, hex[r>>s&15])
		}
		return b
	default:
		b = append(b, `\\u`...)
		for s := 12; s >= 0; s -= 4 {
			b = append(b, hex[r>>s&15])
		}
		return b
	}
}

// Escape returns s as the log keeps text: printable on any terminal, with
// every byte of the original still told apart. It is how a caller searches the
// log for a path or another text from outside.
func Escape(s string) string {
	if plainPrefix(s) == len(s) {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '"':
			b = append(b, '"')
		case r == '\\':
			b = append(b, `\\`...)
		default:
			at := len(b)
			b = appendEscaped(b, s[i:i+n], r)
			if b[at] == '\\' { // JSON's doubling does not belong to the value
				b = append(b[:at], b[at+1:]...)
			}
		}
		i += n
	}
	return string(b)
}
