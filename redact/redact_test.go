package redact

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vouchd/vouchd/secret"
)

const canary = `sk-live_canary/7c1f+9e42="d8`

func compile(t testing.TB, values ...string) *Secrets {
	t.Helper()
	var of []secret.Bytes
	for _, v := range values {
		of = append(of, secret.Of([]byte(v)))
	}
	s, err := Compile(of...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// spellings are ways in which programs repeat a secret.
func spellings(s string) map[string]string {
	each := func(format string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			fmt.Fprintf(&b, format, c)
		}
		return b.String()
	}
	std, web := base64.StdEncoding, base64.RawURLEncoding
	return map[string]string{
		"plain":                s,
		"a query":              url.QueryEscape(s),
		"a path":               url.PathEscape(s),
		"percent":              each("%%%02x"),
		"PERCENT":              each("%%%02X"),
		"JSON":                 jsonOf(s),
		"JSON with slashes":    strings.ReplaceAll(jsonOf(s), "/", `\/`),
		"JSON escapes":         each(`\u%04x`),
		"JSON ESCAPES":         each(`\u%04X`),
		"a script":             each(`\x%02x`),
		"HTML":                 html.EscapeString(s),
		"HTML numbers":         each("&#%d;"),
		"HTML hexadecimal":     each("&#x%X;"),
		"HTML of PHP":          strings.NewReplacer("&", "&amp;", `"`, "&quot;", "'", "&#039;").Replace(s),
		"JSON inside JSON":     strings.ReplaceAll(strings.ReplaceAll(jsonOf(s), `\`, `\\`), `"`, `\"`),
		"hexadecimal":          hex.EncodeToString([]byte(s)),
		"HEXADECIMAL":          strings.ToUpper(hex.EncodeToString([]byte(s))),
		"base64":               std.EncodeToString([]byte(s)),
		"base64 after 1":       std.EncodeToString([]byte("x" + s + "yz")),
		"base64 after 2":       std.EncodeToString([]byte("xy" + s + "z")),
		"basic authentication": std.EncodeToString([]byte("user:" + s)),
		"base64url":            web.EncodeToString([]byte("user:" + s)),
		"base64 in a query":    url.QueryEscape(std.EncodeToString([]byte(s))),
		"base64 in JSON":       strings.ReplaceAll(std.EncodeToString([]byte("a"+s)), "/", `\/`),
		"mixed":                fmt.Sprintf("%%%02x%s\\u%04x%s", s[0], s[1:4], s[4], s[5:]),
	}
}

// jsonOf is s inside a string of JSON, as far as JSON can have it.
func jsonOf(s string) string {
	if !utf8.ValidString(s) {
		return s
	}
	text, _ := json.Marshal(s) // of a string
	return string(text[1 : len(text)-1])
}

// left is what of a secret can be read in text that it should not be in: it has to be
// short whatever the way.
func left(text, spelling string) bool {
	const most = 12 // characters in a row
	for i := 0; i+most <= len(spelling); i++ {
		if strings.Contains(text, spelling[i:i+most]) {
			return true
		}
	}
	return false
}

func TestSecretIsTakenOutInEverySpelling(t *testing.T) {
	t.Parallel()
	s := compile(t, canary)
	for name, spelling := range spellings(canary) {
		for _, around := range []string{"%s", "key=%s&more", "a\n%s\nb", strings.Repeat("x", 1000) + "%s" + strings.Repeat("y", 1000)} {
			text, n := s.String(fmt.Sprintf(around, spelling))
			if n != 1 || left(text, spelling) || !strings.Contains(text, Mark) {
				t.Errorf("%s in %.10q: %d found, left is %.100q", name, around, n, text)
			}
		}
	}
}

func TestSecretIsTakenOutHoweverTheStreamIsCut(t *testing.T) {
	t.Parallel()
	s := compile(t, canary)
	r := rand.New(rand.NewPCG(1, 2))
	for name, spelling := range spellings(canary) {
		in := "before " + spelling + " between " + spelling + spelling + "after"
		want, _ := s.String(in)
		for cut := range len(in) {
			var b bytes.Buffer
			w := s.Writer(&b)
			io.WriteString(w, in[:cut])
			io.WriteString(w, in[cut:])
			w.Close()
			if b.String() != want {
				t.Fatalf("%s cut at %d: %q, want %q", name, cut, b.String(), want)
			}
		}
		for range 20 {
			var b bytes.Buffer
			w := s.Writer(&b)
			for rest := in; len(rest) > 0; {
				n := min(len(rest), 1+r.IntN(9))
				io.WriteString(w, rest[:n])
				rest = rest[n:]
			}
			w.Close()
			if b.String() != want {
				t.Fatalf("%s in pieces: %q, want %q", name, b.String(), want)
			}
		}
	}
}

func TestSecretsThatOverlapAreOne(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		secrets []string
		in, out string
		n       int
	}{
		{[]string{"abcdefgh", "abcdefghij"}, "-abcdefghij-", "-[redacted]-", 1},
		{[]string{"abcdefgh", "abcdefghij"}, "-abcdefghi-", "-[redacted]i-", 1},
		{[]string{"abcdefgh", "efghijkl"}, "-abcdefghijkl-", "-[redacted]-", 1},
		{[]string{"abcdefgh", "bcdefghijk"}, "abcdefghijk", "[redacted]", 1},
		{[]string{"aaaaaaaa"}, "aaaaaaaaaaaa", "[redacted]", 1},
		{[]string{"abababab"}, "xabababababx", "x[redacted]x", 1},
		{[]string{"abcdefgh"}, "abcdefghabcdefgh", "[redacted][redacted]", 2},
		{nil, "abcdefgh", "abcdefgh", 0},
	} {
		if out, n := compile(t, tt.secrets...).String(tt.in); out != tt.out || n != tt.n {
			t.Errorf("%q in %s: %q, %d, want %q, %d", tt.secrets, tt.in, out, n, tt.out, tt.n)
		}
	}
}

func TestWhatIsNoSecretPassesByteForByte(t *testing.T) {
	t.Parallel()
	s := compile(t, canary)
	r := rand.New(rand.NewPCG(3, 4))
	binary := make([]byte, 1<<20)
	for i := range binary {
		binary[i] = byte(r.Uint32())
	}
	almost := []byte(strings.Repeat(canary[:len(canary)-1], 100) + strings.Repeat(canary[1:], 100))
	for _, in := range [][]byte{binary, almost, nil} {
		var b bytes.Buffer
		w := s.Writer(&b)
		for rest := in; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(5000))
			w.Write(rest[:n])
			rest = rest[n:]
		}
		w.Close()
		if w.Count() != 0 || !bytes.Equal(b.Bytes(), in) {
			t.Errorf("%d bytes come out as %d, with %d found", len(in), b.Len(), w.Count())
		}
	}
}

// TestWhatPassesWhenTellsNothingOfAGuess: two inputs of which neither has the secret, and
// that have a line feed at the same places, pass in the same pieces, however much of the
// secret one of them has.
func TestWhatPassesWhenTellsNothingOfAGuess(t *testing.T) {
	t.Parallel()
	s := compile(t, canary)
	r := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		n := 50 + r.IntN(3000)
		wrong, guess := make([]byte, n), make([]byte, n)
		for i := range n {
			wrong[i], guess[i] = 'x', canary[i%(len(canary)-1)] // all but its last letter, again and again
			if r.IntN(300) == 0 {
				wrong[i], guess[i] = '\n', '\n'
			}
		}
		var cuts []int
		for left := n; left > 0; {
			c := min(left, 1+r.IntN(200))
			cuts = append(cuts, c)
			left -= c
		}
		if a, b := pieces(s, wrong, cuts), pieces(s, guess, cuts); !slices.Equal(a, b) {
			t.Fatalf("of %d bytes, a wrong guess passes as %v and a better one as %v", n, a, b)
		}
	}
}

// pieces returns how much passed after each write.
func pieces(s *Secrets, in []byte, cuts []int) (lengths []int) {
	var b bytes.Buffer
	w := s.Writer(&b)
	for _, n := range cuts {
		w.Write(in[:n])
		in = in[n:]
		lengths = append(lengths, b.Len())
	}
	return lengths
}

// TestEventIsNotDelayed: all of it has passed with the line feed that ends it.
func TestEventIsNotDelayed(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := compile(t, canary).Writer(&b)
	for i := range 10 {
		event := fmt.Sprintf("data: {\"delta\":\"word %d\"}\n\n", i)
		io.WriteString(w, event)
		if !strings.HasSuffix(b.String(), event) {
			t.Fatalf("after the event %q, %q has passed", event, b.String())
		}
	}
}

func TestSecretsThatCannotBeToldFromTextAreRefused(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 7, MaxLen + 1} {
		if _, err := Compile(secret.Of(make([]byte, n))); err == nil || !strings.Contains(err.Error(), fmt.Sprint(n, " bytes")) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if text := fmt.Sprintf("%v %+v %s", compile(t, canary), compile(t, canary), compile(t, canary)); strings.Contains(text, "canary") {
		t.Errorf("they print as %s", text)
	}
}

func TestSecretsThatRepeatThemselvesAreFoundOrRefused(t *testing.T) {
	t.Parallel()
	for _, v := range []string{
		strings.Repeat("0", 100), "61" + strings.Repeat("a", 30), "%61" + strings.Repeat("%61a", 10), strings.Repeat(`\`, 40),
	} {
		s, err := Compile(secret.Of([]byte(v)))
		if err != nil {
			if !strings.Contains(err.Error(), "make them random") {
				t.Errorf("%.20q of %d: %v", v, len(v), err)
			}
			continue
		}
		for name, spelling := range spellings(v) {
			if text, n := s.String("[" + spelling + "]"); n != 1 || left(text, spelling) {
				t.Errorf("%.20q of %d, %s: %d found, left is %.100q", v, len(v), name, n, text)
			}
		}
	}
}

func TestLongestRandomSecretIsTakenOut(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(15, 16))
	long := make([]byte, MaxLen)
	for i := range long {
		long[i] = byte(' ' + r.IntN(95))
	}
	if text, n := compile(t, string(long)).String(jsonOf(string(long))); n != 1 || text != Mark {
		t.Errorf("%d found, left is %.100q", n, text)
	}
}

func TestSecretOfAnyBytesIsTakenOut(t *testing.T) {
	t.Parallel()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for name, spelling := range spellings(string(all)) {
		if text, n := compile(t, string(all)).String("a" + spelling + "z"); n != 1 || left(text, spelling) {
			t.Errorf("%s: %d found, left is %.100q", name, n, text)
		}
	}
}

func TestSecretInOtherScriptsIsTakenOut(t *testing.T) {
	t.Parallel()
	const canary = "pässwort-ключ-🔑"
	s := compile(t, canary)
	for _, spelling := range []string{
		`p\u00e4sswort-\u043a\u043b\u044e\u0447-\ud83d\udd11`, `p\u00E4sswort-ключ-\uD83D\uDD11`,
		"p&#228;sswort-&#1082;&#1083;&#1102;&#1095;-&#128273;", "p&#xE4;sswort-ключ-&#x1f511;",
		url.QueryEscape(canary), canary, `p\xc3\xa4sswort-\xd0\xba\xd0\xbb\xd1\x8e\xd1\x87-\xf0\x9f\x94\x91`,
	} {
		if text, n := s.String(`{"key":"` + spelling + `"}`); n != 1 || text != `{"key":"[redacted]"}` {
			t.Errorf("%s: %d found, left is %s", spelling, n, text)
		}
	}
}

// TestWhatLetsPassTellsNothingOfTheSecret: the bytes that let all before them pass are the
// same for secrets that have no control characters.
func TestWhatLetsPassTellsNothingOfTheSecret(t *testing.T) {
	t.Parallel()
	want := compile(t, canary).a.passes
	for _, v := range []string{"aaaaaaaab", `with "quotes", spaces & <tags>`, "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"} {
		if got := compile(t, v).a.passes; got != want {
			t.Errorf("%q lets others pass", v)
		}
	}
	if !want['\n'] {
		t.Error("a line feed lets nothing pass")
	}
	if s := compile(t, "-----BEGIN\nkey-----"); s.a.passes['\n'] || !s.a.passes[0] {
		t.Error("a line feed lets half of a secret of two lines pass")
	}
}

func TestFlushLetsNothingPass(t *testing.T) {
	t.Parallel()
	s := compile(t, canary)
	var b bytes.Buffer
	below := bufio.NewWriter(&b)
	w := s.Writer(below)
	io.WriteString(w, "event\n"+canary[:10])
	if err := w.Flush(); err != nil || b.String() != "event\n" {
		t.Errorf("flushed: %q, %v", b.String(), err)
	}
	io.WriteString(w, canary[10:]+"\n")
	if err := w.Flush(); err != nil || b.String() != "event\n[redacted]\n" {
		t.Errorf("flushed: %q, %v", b.String(), err)
	}
}

func TestResetWriterIsANewOne(t *testing.T) {
	t.Parallel()
	var first, second bytes.Buffer
	w := compile(t, canary).Writer(&first)
	io.WriteString(w, canary+canary[:20])
	w.Reset(&second)
	if held := w.held[:cap(w.held)]; bytes.ContainsFunc(held, func(r rune) bool { return r != 0 }) {
		t.Errorf("it still holds %q", held)
	}
	io.WriteString(w, canary[20:]+" "+canary)
	if err := w.Close(); err != nil || second.String() != canary[20:]+" "+Mark || w.Count() != 1 {
		t.Errorf("%q, %d, %v", second.String(), w.Count(), err)
	}
}

func TestErrorOfTheWriterBelowStays(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	w := compile(t, canary).Writer(writerFunc(func([]byte) (int, error) { return 0, broken }))
	for range 2 {
		if _, err := io.WriteString(w, "text\n"); !errors.Is(err, broken) {
			t.Errorf("Write: %v", err)
		}
	}
	if err := w.Close(); !errors.Is(err, broken) {
		t.Errorf("Close: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestNoFormatShowsWhatIsHeld(t *testing.T) {
	t.Parallel()
	s := compile(t, canary)
	w := s.Writer(io.Discard)
	io.WriteString(w, canary[:20])
	held := struct {
		W *Writer
		w *Writer
		S *Secrets
		s *Secrets
	}{w, w, s, s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{w, s, held, &held} {
			got := fmt.Sprintf(verb, v)
			for _, leak := range []string{canary[:8], fmt.Sprintf("%x", canary[:8]), strings.Trim(fmt.Sprint([]byte(canary[:8])), "[]")} {
				if strings.Contains(got, leak) {
					t.Errorf("Sprintf(%q) shows what is held: %s", verb, got)
				}
			}
		}
	}
	if text, err := json.Marshal(held); err == nil && strings.Contains(string(text), canary[:8]) {
		t.Errorf("as JSON: %s", text)
	}
}

func TestWriteAllocatesNothing(t *testing.T) {
	w := compile(t, canary).Writer(io.Discard)
	text := []byte("data: no secret in " + canary[:20] + " this\n\ndata: nor")
	w.Write(make([]byte, atOnce))
	if n := testing.AllocsPerRun(100, func() { w.Write(text) }); n != 0 {
		t.Errorf("a Write allocates %v times", n)
	}
}

func BenchmarkWriter(b *testing.B) {
	prose := bytes.Repeat([]byte("data: {\"id\":\"chatcmpl-123\",\"choices\":[{\"delta\":{\"content\":\" tides of the sea\"}}]}\n\n"), 400)
	r := rand.New(rand.NewPCG(1, 2))
	binary := make([]byte, 32<<10)
	for i := range binary {
		binary[i] = byte(r.Uint32())
	}
	hard := bytes.Repeat([]byte(canary[:len(canary)-1]), 1200)
	s := compile(b, canary)
	for _, in := range []struct {
		name string
		of   []byte
	}{{"events", prose}, {"binary", binary}, {"almost", hard}} {
		b.Run(in.name, func(b *testing.B) {
			b.SetBytes(int64(len(in.of)))
			b.ReportAllocs()
			w := s.Writer(io.Discard)
			for b.Loop() {
				w.Write(in.of)
			}
		})
		b.Run(in.name+"/shapes", func(b *testing.B) {
			b.SetBytes(int64(len(in.of)))
			b.ReportAllocs()
			w := Shapes(io.Discard, false)
			for b.Loop() {
				w.Write(in.of)
			}
		})
		b.Run(in.name+"/copy", func(b *testing.B) {
			b.SetBytes(int64(len(in.of)))
			to := bytes.NewBuffer(make([]byte, 0, 64<<10))
			for b.Loop() {
				to.Reset()
				to.Write(in.of)
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	v := secret.Of([]byte("sk-proj-" + strings.Repeat("aB3d", 40)))
	for b.Loop() {
		if _, err := Compile(v); err != nil {
			b.Fatal(err)
		}
	}
}
