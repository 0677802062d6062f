// Package tool speaks the credential protocols of git, Docker and kubectl, as
// their helpers do.
//
// It parses what a tool says and writes what it wants to hear, and knows nothing
// of where a credential comes from. What a tool says is bounded and never
// trusted to name a credential: it names a place, which is matched against what
// definitions are for.
package tool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/credential"
)

// A Login is a credential as tools want it: a secret, and who it is of.
type Login struct {
	Username string
	Secret   []byte // the credential's; not a copy
}

// secretFields are what brokers and engines call the secret of a login, in the
// order of preference.
var secretFields = []string{"password", "token", "access_token", "service_account_token", "value"}

// LoginOf finds the login among a credential's fields. The user name is the one
// given, or else the field of that name.
func LoginOf(fields []credential.Field, username string) (l Login, err error) {
	l.Username = username
	for _, f := range fields {
		if f.Name == "username" && l.Username == "" {
			l.Username = string(f.Value.Reveal())
		}
	}
	if l.Secret, err = secretOf(fields); err != nil {
		return Login{}, err
	}
	return l, nil
}

func secretOf(fields []credential.Field) ([]byte, error) {
	for _, name := range secretFields {
		if i := slices.IndexFunc(fields, func(f credential.Field) bool { return f.Name == name && !f.Public }); i >= 0 {
			return fields[i].Value.Reveal(), nil
		}
	}
	var names []string
	for _, f := range fields {
		names = append(names, f.Name)
	}
	return nil, fmt.Errorf("it has the fields %s, and none of %s", strings.Join(names, ", "), strings.Join(secretFields, ", "))
}

// readAll reads what a tool says, of at most so many bytes.
func readAll(r io.Reader, most int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("reading standard input: %w", err)
	}
	if len(b) > most {
		return nil, fmt.Errorf("standard input has more than %d bytes", most)
	}
	return b, nil
}

// errLine is why a value cannot be written where a line ends it.
var errLine = errors.New("holds a line end or a zero byte, which the protocol cannot carry")

// errText is why a value cannot be written as JSON.
var errText = errors.New("it is not UTF-8, which the protocol cannot carry")

func oneLine(b []byte) bool { return !bytes.ContainsAny(b, "\n\r\x00") }
