package redact

import (
	"fmt"
	"io"
	"strings"

	"github.com/vouchd/vouchd/secret"
)

// MinLen is the shortest secret that can be told from other text, in bytes.
const MinLen = 8

// MaxLen is the longest, in bytes: what is held back is a multiple of it.
const MaxLen = 16 << 10

// Mark stands in place of a secret.
const Mark = "[redacted]"

// Secrets are what to look for. They do not change, and are safe for concurrent use.
type Secrets struct{ a *automaton }

// Compile returns what finds the values, of 8 bytes to 16 KiB each. Without values,
// nothing is found.
func Compile(values ...secret.Bytes) (*Secrets, error) {
	var forms []form
	for _, v := range values {
		if n := v.Len(); n < MinLen || n > MaxLen {
			return nil, fmt.Errorf("a secret of %d bytes cannot be told from other text; want %d to %d", n, MinLen, MaxLen)
		}
		forms = append(forms, formsOf(v.Reveal())...)
	}
	return &Secrets{newAutomaton(forms)}, nil
}

// String returns text without the secrets, and how many there were.
func (s *Secrets) String(text string) (string, int) {
	var b strings.Builder
	w := s.Writer(&b)
	io.WriteString(w, text) // a strings.Builder takes everything
	w.Close()
	if w.Count() == 0 {
		return text, 0
	}
	return b.String(), w.Count()
}

// Format keeps the secrets from being printed.
func (s *Secrets) Format(f fmt.State, _ rune) { io.WriteString(f, "[secrets]") }

// A Writer passes on what is written to it, without the secrets. The last bytes stay with
// it until enough others follow, or one that is in no form of a secret.
type Writer struct {
	secrets *Secrets
	to      io.Writer
	at      *state
	held    []byte // not passed on yet
	open    int    // bytes of held up to which a mark stands for what was before
	found   []span // in held, in order and apart
	count   int
	err     error
}

// A span is a part of what is held.
type span struct{ from, to int }

// Writer returns a writer to w.
func (s *Secrets) Writer(w io.Writer) *Writer { return &Writer{secrets: s, to: w, at: s.a.start} }

// Count returns how many secrets were taken out.
func (w *Writer) Count() int { return w.count }

// Write implements [io.Writer].
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	a, at := w.secrets.a, w.at
	from := len(w.held)
	w.held = append(w.held, p...)
	free := 0 // bytes before this are in no secret that is yet to end
	for i := from; i < len(w.held); i++ {
		c := w.held[i]
		if a.class[c] == neither {
			at = a.start
			free = i + 1
			continue
		}
		if at = a.after(at, c); at.ends {
			w.find(i + 1)
		}
	}
	w.at = at
	w.pass(max(free, len(w.held)-max(0, a.longest-1)))
	return len(p), w.err
}

// Close passes on the rest. It does not close what is written to.
func (w *Writer) Close() error {
	w.pass(len(w.held))
	w.at = w.secrets.a.start
	return w.err
}

// find notes the secret that ends there. One that overlaps another is one with it.
func (w *Writer) find(end int) {
	of := span{w.secrets.a.begins(w.held[:end]), end}
	for n := len(w.found); n > 0 && w.found[n-1].to > of.from; n-- {
		of.from = min(of.from, w.found[n-1].from)
		w.found = w.found[:n-1]
		w.count--
	}
	w.found = append(w.found, of)
	w.count++
}

// pass passes on what is held up to there, with marks for what was found in it.
func (w *Writer) pass(end int) {
	if end <= 0 || w.err != nil {
		return
	}
	at := min(w.open, end) // before it, a mark stands already
	for len(w.found) > 0 && w.found[0].from < end {
		f := w.found[0]
		if f.from >= w.open {
			w.write(w.held[at:f.from])
			w.write([]byte(Mark))
		}
		at, w.open = f.to, f.to
		w.found = w.found[1:]
	}
	if at < end {
		w.write(w.held[at:end])
	}
	n := copy(w.held, w.held[end:])
	clear(w.held[n:])
	w.held = w.held[:n]
	w.open = max(0, w.open-end)
	for i := range w.found {
		w.found[i].from -= end
		w.found[i].to -= end
	}
}

func (w *Writer) write(b []byte) {
	if len(b) > 0 && w.err == nil {
		_, w.err = w.to.Write(b)
	}
}
