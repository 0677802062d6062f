package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What follows finds secrets the slow way, by the decoders of the standard library.

// reference returns text without the secrets, and how many there were.
func reference(text string, secrets ...string) (string, int) {
	var found []span
	for from := range text {
		to := 0
		for _, s := range secrets {
			to = max(to, from+longestForm(text[from:], s))
		}
		if to > from {
			found = append(found, span{from, to})
		}
	}
	var b strings.Builder
	at, n := 0, 0
	for _, f := range found {
		if f.from >= at {
			b.WriteString(text[at:f.from] + Mark)
			n++
		}
		at = max(at, f.to)
	}
	return b.String() + text[at:], n
}

// longestForm returns how much of text, from its beginning, is a form of a secret.
func longestForm(text, s string) int {
	longest := longestOf(text, s, readings)
	if h := hex.EncodeToString([]byte(s)); len(text) >= len(h) && strings.EqualFold(text[:len(h)], h) {
		longest = max(longest, len(h))
	}
	for shift := range 3 {
		longest = max(longest, longestOf(text, sameWhateverStandsAround(s, shift), readingsOfBase64))
	}
	return longest
}

func sameWhateverStandsAround(s string, shift int) string {
	around := func(c byte) string {
		fill := bytes.Repeat([]byte{c}, 3)
		return base64.RawStdEncoding.EncodeToString(slices.Concat(fill[:shift], []byte(s), fill))
	}
	a, b := around(0), around(0xff)
	from, to := 0, len(a)-1
	for a[from] != b[from] {
		from++
	}
	for a[to] != b[to] {
		to--
	}
	return a[from : to+1]
}

// A reading is what the beginning of a text may stand for.
type reading struct {
	n  int
	as string
}

// longestOf returns how much of text, from its beginning, can be read as want.
func longestOf(text, want string, readings func(string) []reading) int {
	type point struct{ text, want int }
	seen := map[point]bool{}
	longest := 0
	var read func(p point)
	read = func(p point) {
		if seen[p] {
			return
		}
		seen[p] = true
		if p.want == len(want) {
			longest = max(longest, p.text)
			return
		}
		for _, r := range readings(text[p.text:]) {
			if strings.HasPrefix(want[p.want:], r.as) {
				read(point{p.text + r.n, p.want + len(r.as)})
			}
		}
	}
	read(point{})
	return longest
}

var (
	percent = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`)
	escape  = regexp.MustCompile(`^\\(u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|["\\/bfnrt])`)
	nested  = regexp.MustCompile(`^\\\\(\\\\|\\"|u[0-9A-Fa-f]{4}|[/bfnrt'])`)
	script  = regexp.MustCompile(`^\\(x[0-9A-Fa-f]{2}|')`)
	number  = regexp.MustCompile(`^&#(x[1-9A-Fa-f][0-9A-Fa-f]*|x0|[1-9][0-9]*|0|0[0-9]{2});`)
	entity  = regexp.MustCompile(`^&(amp|lt|gt|quot|apos);`)
)

func readings(text string) (rs []reading) {
	if text == "" {
		return nil
	}
	add := func(n int, as string) { rs = append(rs, reading{n, as}) }
	add(1, text[:1])
	if text[0] == '+' {
		add(1, " ")
	}
	if !strings.ContainsRune(`%\&`, rune(text[0])) {
		return rs
	}
	if m := percent.FindString(text); m != "" {
		as, _ := url.PathUnescape(m)
		add(len(m), as)
	}
	addRune := func(n int, r rune) {
		add(n, string(r))
		if r >= 0x80 && r <= 0xff {
			add(n, string([]byte{byte(r)})) // Latin-1
		}
	}
	if m := escape.FindString(text); m != "" {
		addRune(len(m), []rune(unquote(m))[0])
	}
	if m := script.FindString(text); m == `\'` {
		add(2, "'")
	} else if m != "" {
		c, _ := strconv.ParseUint(m[2:], 16, 8)
		add(4, string([]byte{byte(c)}))
	}
	if m := number.FindStringSubmatch(text); m != nil {
		base, digits := 10, m[1]
		if digits[0] == 'x' {
			base, digits = 16, digits[1:]
		}
		n, _ := strconv.ParseUint(digits, base, 32)
		if padded := len(digits) > 1 && digits[0] == '0'; n < 0x110000 && (!padded || isPunctuation(rune(n))) {
			addRune(len(m[0]), rune(n))
		}
	}
	if m := entity.FindString(text); m != "" {
		add(len(m), html.UnescapeString(m))
	}
	if m := nested.FindString(text); m != "" {
		inner := strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(m)
		r := '\''
		if inner != `\'` {
			r = []rune(unquote(inner))[0]
		}
		if isPunctuation(r) {
			add(len(m), string(r))
		} else if r >= 0x80 && r <= 0xff {
			add(len(m), string([]byte{byte(r)}))
		}
	}
	return rs
}

func isPunctuation(r rune) bool { return r < 0x80 && !alphanumeric(byte(r)) }

func unquote(escape string) (s string) {
	if err := json.Unmarshal([]byte(`"`+escape+`"`), &s); err != nil {
		panic(err)
	}
	return s
}

func readingsOfBase64(text string) (rs []reading) {
	for _, r := range readings(text) {
		switch {
		case r.n == 1 && text[0] == '-':
			r.as = "+"
		case r.n == 1 && text[0] == '_':
			r.as = "/"
		}
		if r.n == 1 || r.as == "+" || r.as == "/" {
			rs = append(rs, r)
		}
	}
	return rs
}

var values = []string{
	canary, "abcdefgh", "abcdefghij", `C:\new\table"x`, "deadbeef00112233", "pä-ключ-🔑", "a b+c%20d&e", "abababab", "00000000", "%61%61%61", "key\nof two\nlines",
}

// madeUp returns text that is made of forms of the secrets, whole and cut.
func madeUp(r *rand.Rand, of []string) string {
	var b strings.Builder
	for range r.IntN(6) {
		v := of[r.IntN(len(of))]
		all := spellings(v)
		names := make([]string, 0, len(all))
		for name := range all {
			names = append(names, name)
		}
		slices.Sort(names)
		s := all[names[r.IntN(len(names))]]
		switch r.IntN(4) {
		case 0: // mixed
			s = ""
			for i := range len(v) {
				ways := everyWay(v[i])
				w := ways[r.IntN(len(ways))].bytes
				if r.IntN(2) == 0 {
					w = v[i : i+1]
				}
				s += w
			}
		case 1:
			s = s[:r.IntN(len(s)+1)]
		case 2:
			s = s[r.IntN(len(s)+1):]
		}
		b.WriteString(s + []string{"", "", " ", "\n", `\`, "%6", "x", "&#", `\u00`}[r.IntN(9)])
	}
	return b.String()
}

func TestWriterFindsWhatTheStandardLibraryReads(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(9, 10))
	for range 60 {
		of := []string{values[r.IntN(len(values))], values[r.IntN(len(values))]}
		s := compile(t, of...)
		for range 8 {
			checkAgainstReference(t, s, madeUp(r, of), r, of)
		}
	}
}

// checkAgainstReference writes text in pieces.
func checkAgainstReference(t *testing.T, s *Secrets, text string, r *rand.Rand, of []string) {
	t.Helper()
	want, n := reference(text, of...)
	var b bytes.Buffer
	w := s.Writer(&b)
	for rest := text; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(40))
		io.WriteString(w, rest[:n])
		rest = rest[n:]
	}
	w.Close()
	if b.String() != want || w.Count() != n {
		t.Fatalf("secrets %q in %q: got %q (%d), want %q (%d)", of, text, b.String(), w.Count(), want, n)
	}
}

// TestSizesTellNothingOfAGuess: two texts without a whole secret, of one length and with
// their separators at the same places, pass in the same pieces, however much of a secret
// each has.
func TestSizesTellNothingOfAGuess(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(11, 12))
	for range 50 {
		of := []string{values[r.IntN(len(values))], values[r.IntN(len(values))]}
		s := compile(t, of...)
		var texts [2][]byte
		for i := range texts {
			for len(texts[i]) < 600 {
				texts[i] = append(texts[i], madeUp(r, of)...)
			}
			texts[i] = texts[i][:600]
			for {
				w := s.Writer(io.Discard)
				whole := slices.IndexFunc(texts[i], func(c byte) bool { w.Write([]byte{c}); return w.Count() > 0 || separator(c) })
				if whole < 0 {
					break
				}
				texts[i][whole] = '~' // in none of the secrets
			}
		}
		for range r.IntN(4) {
			at := r.IntN(600)
			texts[0][at], texts[1][at] = '\r', '\r'
		}
		var sizes [2]string
		for i, text := range texts {
			w := s.Writer(writerFunc(func(p []byte) (int, error) {
				sizes[i] += fmt.Sprint(len(p), " ")
				return len(p), nil
			}))
			for len(text) > 0 {
				n := min(len(text), 37)
				w.Write(text[:n])
				text = text[n:]
				sizes[i] += "| "
			}
		}
		if sizes[0] != sizes[1] {
			t.Fatalf("%q passes as\n%s, and %q as\n%s", texts[0], sizes[0], texts[1], sizes[1])
		}
	}
}

// FuzzWriter: cut anywhere, the result is what the slow way finds.
func FuzzWriter(f *testing.F) {
	r := rand.New(rand.NewPCG(13, 14))
	for i := range values {
		f.Add(madeUp(r, values[i:i+1]), uint64(i), uint8(i))
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64, i uint8) {
		if len(text) > 4096 {
			return
		}
		of := values[int(i)%len(values):][:1]
		checkAgainstReference(t, compile(t, of...), text, rand.New(rand.NewPCG(seed, 0)), of)
	})
}
