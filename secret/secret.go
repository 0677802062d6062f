// Package secret holds bytes that must not be seen.
//
// Bytes prints, logs and encodes as a placeholder, whatever the verb or the encoder, to keep
// private keys and passwords out of errors, log lines and status pages. What stays out of
// reach: Go may have copied the bytes while they were made, and no package can wipe those
// copies.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const placeholder = "[secret]"

// Bytes is a secret. Its zero value is an empty one.
type Bytes struct {
	// A function, because fmt reads the unexported fields of whatever holds
	// a Bytes through reflection, past every method; of a function it can
	// print no more than an address.
	reveal func() []byte
}

// Of takes ownership of b.
func Of(b []byte) Bytes { return Bytes{func() []byte { return b }} }

// Reveal returns the bytes themselves, for the one place that hands them to
// their owner. The caller must not keep or change them.
func (s Bytes) Reveal() []byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// Len returns the number of bytes.
func (s Bytes) Len() int { return len(s.Reveal()) }

// Equal compares in constant time.
func (s Bytes) Equal(t Bytes) bool {
	return subtle.ConstantTimeCompare(s.Reveal(), t.Reveal()) == 1
}

// Wipe overwrites the bytes.
func (s Bytes) Wipe() { clear(s.Reveal()) }

// Format writes a placeholder for every verb.
func (s Bytes) Format(f fmt.State, _ rune) { io.WriteString(f, placeholder) }

// String returns a placeholder.
func (s Bytes) String() string { return placeholder }

// LogValue returns a placeholder.
func (s Bytes) LogValue() slog.Value { return slog.StringValue(placeholder) }

// MarshalText refuses: encoding a secret is always a mistake.
func (s Bytes) MarshalText() ([]byte, error) {
	return nil, errors.New("a secret is not encoded")
}

// GobEncode refuses, as MarshalText does.
func (s Bytes) GobEncode() ([]byte, error) { return s.MarshalText() }
