package page

import (
	"fmt"
	"html/template"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vouchd/vouchd/audit"
)

// Lengths of labels, in characters.
const (
	shortLabel = 48
	nameLabel  = 80
	lineLabel  = 160
	textLabel  = 600
)

// maxMarks is how many marks a letter may have. More are of no language, and would be drawn
// over what is above and below.
const maxMarks = 3

// label is a text from outside as HTML of at most so many characters. What does not print is
// escaped as in the log, and set apart; what is cut says so. Its direction is its own.
func label(s string, most int) template.HTML {
	if s == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString("<bdi>")
	marks := 0
	for n := 0; s != ""; n++ {
		if n == most {
			fmt.Fprintf(&b, `<span class="cut">… %d more</span>`, utf8.RuneCountInString(s))
			break
		}
		r, size := utf8.DecodeRuneInString(s)
		if unicode.In(r, unicode.Mn, unicode.Me) {
			marks++
		} else {
			marks = 0
		}
		switch n := escaped(s); {
		case n > 0:
			set(&b, s[:n])
			size = n
		case r == utf8.RuneError && size == 1, r != ' ' && !strconv.IsPrint(r):
			set(&b, audit.Escape(s[:size]))
		case marks > maxMarks:
			set(&b, fmt.Sprintf(`\u%04x`, r))
		default:
			b.WriteString(template.HTMLEscapeString(s[:size]))
			if r == '/' {
				b.WriteString("<wbr>")
			}
		}
		s = s[size:]
	}
	b.WriteString("</bdi>")
	return template.HTML(b.String())
}

// set sets an escape apart from text that looks the same.
func set(b *strings.Builder, escape string) {
	fmt.Fprintf(b, `<span class="esc">%s</span>`, template.HTMLEscapeString(escape))
}

// escaped returns the length of the escape that a text of the log begins with; 0 if there is
// none.
func escaped(s string) int {
	if len(s) < 2 || s[0] != '\\' {
		return 0
	}
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[1]]
	switch {
	case s[1] == '\\':
		return 2
	case digits > 0 && len(s) >= 2+digits && isHex(s[2:2+digits]):
		return 2 + digits
	}
	return len(cutMark.FindString(s))
}

// cutMark is what the log puts where it has cut a text or a list.
var cutMark = regexp.MustCompile(`^\\\[\+\d{1,20} (bytes|more)\]`)

func isHex(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}

// plain is a text from outside where there can be no markup: in a title or a name for screen
// readers.
func plain(s string, most int) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r != ' ' && !strconv.IsPrint(r) }) || !utf8.ValidString(s) {
		s = audit.Escape(s)
	}
	if utf8.RuneCountInString(s) > most {
		s = string([]rune(s)[:most]) + "…"
	}
	return s
}

// maxCommand is longer than a command is.
const maxCommand = 1 << 20

// command is a command line for people to run, quoted for a shell.
func command(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if printed := plain(a, maxCommand); printed != a { // bash and zsh read what is escaped like this
			quoted[i] = "$'" + strings.ReplaceAll(printed, "'", `\'`) + "'"
			continue
		}
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return r > '~' || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-", r)
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}
