package inventory

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vouchd/vouchd/redact"
)

// mostShown bounds a name that is shown, in bytes: no path is longer.
const mostShown = 4096

// Printable is a name from outside as it may be shown: without what moves a terminal's
// cursor or is no UTF-8, which is written as Go escapes it, without text in the shape of
// a secret, and of a length that a name can have.
func Printable(name string) string {
	cut := ""
	if len(name) > mostShown {
		name, cut = name[:mostShown], "…"
	}
	var b strings.Builder
	for rest := name; rest != ""; {
		r, n := utf8.DecodeRuneInString(rest)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, rest[0])
		case !unicode.IsPrint(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(rest[:n])
		}
		rest = rest[n:]
	}
	text := b.String()
	found := redact.Find([]byte(text))
	if len(found) == 0 {
		return text + cut
	}
	b.Reset()
	at := 0
	for _, f := range found {
		b.WriteString(text[at:f.Start] + "[redacted: " + f.Shape + "]")
		at = f.End
	}
	return b.String() + text[at:] + cut
}

// ShellQuote is a path as a POSIX shell reads it, or bash where it has bytes that no
// terminal shows.
func ShellQuote(path string) string {
	safe, printable := true, utf8.ValidString(path)
	for _, r := range path {
		safe = safe && (r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("/._-+:@,%=", r))
		printable = printable && unicode.IsPrint(r)
	}
	switch {
	case strings.HasPrefix(path, "-"):
		return ShellQuote("./" + path)
	case safe && path != "":
		return path
	case printable:
		return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	var b strings.Builder
	for _, c := range []byte(path) {
		if c < ' ' || c >= 0x7f || c == '\'' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return "$'" + b.String() + "'"
}
