package redact

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
)

// filled returns an example of a shape, with runs of the given length, or the shortest.
func filled(of shape, length int) string {
	var b strings.Builder
	for _, p := range of.parts {
		b.WriteString(p.text)
		for i := range min(max(p.min, length), p.max) {
			b.WriteByte("A2B3C4D5"[i%8] | map[bool]byte{true: 0x20}[p.of == lowerHex])
		}
	}
	return b.String()
}

// passed returns what becomes of text that is written in pieces of n bytes.
func passed(text string, n int, replace bool) (string, map[string]int) {
	var out bytes.Buffer
	w := Shapes(&out, replace)
	for len(text) > 0 {
		piece := text[:min(n, len(text))]
		w.Write([]byte(piece))
		text = text[len(piece):]
	}
	w.Close()
	return out.String(), w.Counts()
}

func TestEachShapeIsFoundWhereverItStandsAndHoweverItComes(t *testing.T) {
	t.Parallel()
	for i, s := range shapes {
		for _, length := range []int{0, 1 << 20} {
			secret := filled(s, length)
			if len(secret) < ShortestShape {
				t.Errorf("%s has %d bytes", s.name, len(secret))
			}
			for _, around := range [][2]string{{"", ""}, {"key: ", "\n"}, {`{"key":"`, `"}`}, {`"x\n`, `"`}, {"%22", "%22"}, {`\u003d`, `\u0026`}, {"=", "&x=1"}} {
				text := around[0] + secret + around[1]
				want := around[0] + "[redacted: " + s.name + "]" + around[1]
				for _, n := range []int{1, 7, len(text)} {
					if got, counts := passed(text, n, true); got != want || counts[s.name] != 1 || len(counts) != 1 {
						t.Fatalf("%d: %q in pieces of %d becomes %q, %v", i, text, n, got, counts)
					}
					if got, counts := passed(text, n, false); got != text || counts[s.name] != 1 {
						t.Fatalf("%d: %q in pieces of %d is marked as %v, and becomes %q", i, text, n, counts, got)
					}
				}
			}
		}
	}
}

func TestTextThatIsNoSecretIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"task-" + strings.Repeat("a", 50), "sk-learn and sk-short", "AKIA" + strings.Repeat("A", 17), "xAKIA" + strings.Repeat("A", 16),
		"ghp_" + strings.Repeat("a", 35), "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "eyJhbGciOiJub25lIn0", "eyJhbGciOiJub25lIn0.x.y",
		"-----BEGIN PRIVATE KEY-----\n(see the manual)\n-----END PRIVATE KEY-----", "SG.something", "https://hooks.slack.com/services/", "dapi", "AIza",
		"sk-ant-vouch" + strings.Repeat("a2", 16), "ghp_vouch" + strings.Repeat("a2", 16),
	} {
		for _, n := range []int{1, len(text)} {
			if got, counts := passed(text, n, true); got != text || len(counts) > 0 {
				t.Errorf("%q becomes %q, %v", text, got, counts)
			}
		}
	}
}

func TestTextThatEndsInNoKindIsNotHeldBack(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := Shapes(&out, true)
	for i := range 100 {
		event := fmt.Sprintf("data: {\"delta\":\"word %d gh sk- eyJ\"}\n\n", i)
		w.Write([]byte(event))
		if out.String() != event {
			t.Fatalf("of %q, %q passed", event, out.String())
		}
		out.Reset()
	}
}

func TestWhatIsHeldBackIsBoundedWhateverComes(t *testing.T) {
	t.Parallel()
	for _, piece := range []string{"-eyJ", "eyJ.eyJ", "-----BEGIN PRIVATE KEY-----", "sk-", "-sk-ant-", "\n", "-eyJAAAAAAAAAA.eyJ"} {
		text := strings.Repeat(piece, 1<<20/len(piece))
		var before span
		looked := 0
		w := Shapes(&bytes.Buffer{}, true)
		for i := 0; i < len(text); i += 100 {
			w.Write([]byte(text[i:min(len(text), i+100)]))
			before = w.runs[word][0]
			looked = max(looked, len(w.held))
		}
		if looked > 3*8192+atOnce || before.to > looked {
			t.Errorf("of %q, %d bytes are held", piece, looked)
		}
	}
}

// shapesIn finds the same without a stream and without memory of what it looked at.
func shapesIn(text string) (string, map[string]int) {
	var out strings.Builder
	counts := make(map[string]int)
next:
	for at := 0; at < len(text); {
		if beginsAfter([]byte(text[:at])) {
			for _, s := range shapes {
				end := at
				fits := true
				for _, p := range s.parts {
					if fits = fits && strings.HasPrefix(text[end:], p.text); !fits {
						break
					}
					end += len(p.text)
					from := end
					for p.of != nothing && end < len(text) && kinds[p.of][text[end]] {
						end++
					}
					fits = end-from >= p.min && end-from <= p.max
				}
				if fits && strings.HasPrefix(text[at+len(s.parts[0].text):], handle) {
					break
				}
				if fits {
					fmt.Fprintf(&out, "[redacted: %s]", s.name)
					counts[s.name]++
					at = end
					continue next
				}
			}
		}
		out.WriteByte(text[at])
		at++
	}
	return out.String(), counts
}

func FuzzShapesAreFoundInAStreamAsInAText(f *testing.F) {
	for _, s := range shapes[:20] {
		f.Add(filled(s, 0)+"\n"+filled(shapes[len(shapes)-7], 0), uint8(3))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var b strings.Builder
		for range 6 {
			b.WriteString(filled(shapes[random.IntN(len(shapes))], random.IntN(60)))
			b.WriteString([]string{"", " ", "-", ".", "\\n", "eyJ"}[random.IntN(6)])
		}
		f.Add(b.String(), uint8(random.IntN(40)))
	}
	f.Fuzz(func(t *testing.T, text string, n uint8) {
		want, counts := shapesIn(text)
		got, found := passed(text, int(n)+1, true)
		if got != want || !maps.Equal(found, counts) {
			t.Errorf("%q in pieces of %d becomes %q, %v, want %q, %v", text, int(n)+1, got, found, want, counts)
		}
	})
}
