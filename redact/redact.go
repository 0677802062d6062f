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

// Secrets are what to look for. They do not change, and are safe for concurrent use. They
// hold the values in another form, for as long as they are referred to.
type Secrets struct{ a *automaton }

// Compile returns what finds the values, of 8 bytes to 16 KiB each. Without values,
// nothing is found.
func Compile(values ...secret.Bytes) (*Secrets, error) {
	var forms []form
	for i, v := range values {
		if n := v.Len(); n < MinLen || n > MaxLen {
			return nil, fmt.Errorf("a secret of %d bytes cannot be told from other text; want %d to %d", n, MinLen, MaxLen)
		}
		if !isAmong(values[:i], v) {
			forms = append(forms, formsOf(v.Reveal())...)
		}
	}
	a, err := newAutomaton(forms)
	if err != nil {
		return nil, err
	}
	return &Secrets{a}, nil
}

func isAmong(values []secret.Bytes, v secret.Bytes) bool {
	for _, other := range values {
		if other.Equal(v) {
			return true
		}
	}
	return false
}

// Size returns about how much memory they take, in bytes.
func (s *Secrets) Size() int { return s.a.size() }

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
