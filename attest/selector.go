// Package attest holds what attestation produces: selectors.
//
// A selector is one fact about a process or a machine that the process could
// not have forged, written type:value with SPIRE's names where SPIRE has one.
// The package is plain values. How facts are gathered is in attest/process and
// attest/node; what they entitle to is in identity.
package attest

import (
	"fmt"
	"slices"
	"strings"
)

// MaxSelectorLen bounds a selector's text, in bytes. The longest natural one
// is a path, which Linux limits to 4096.
const MaxSelectorLen = 4096 + 64

// A Selector is one attested fact. Selectors are comparable; two are the same
// fact exactly if they are equal.
type Selector struct {
	Type  string // "unix", "systemd"
	Value string // "uid:1000", "id:agent.service"
}

// ParseSelector parses type:value. It refuses a kind that this version does not know and a
// value that no process could ever have: a typing error is then an error, not an entry that
// silently never matches.
func ParseSelector(s string) (Selector, error) {
	if len(s) > MaxSelectorLen {
		return Selector{}, fmt.Errorf("selector of %d bytes is longer than %d", len(s), MaxSelectorLen)
	}
	k, arg, err := kindOf(s)
	if err != nil {
		return Selector{}, err
	}
	if err := k.check(arg); err != nil {
		return Selector{}, fmt.Errorf("selector %q: %w", s, err)
	}
	typ, value, _ := strings.Cut(s, ":")
	return Selector{Type: typ, Value: value}, nil
}

// Trust returns who vouches for the fact.
func (s Selector) Trust() Trust {
	k, _, err := kindOf(s.String())
	if err != nil {
		return Weak
	}
	return k.Trust
}

// String returns the selector as it is written in an entry.
func (s Selector) String() string { return s.Type + ":" + s.Value }

// MarshalText returns String.
func (s Selector) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses as [ParseSelector] does.
func (s *Selector) UnmarshalText(text []byte) error {
	p, err := ParseSelector(string(text))
	if err != nil {
		return err
	}
	*s = p
	return nil
}

// SameKind reports whether text was meant to be a selector of the same kind as an example,
// which then helps if text is not one.
func (*Selector) SameKind(text, example string) bool {
	k, _, err := kindOf(example)
	return err == nil && strings.HasPrefix(text, k.Prefix)
}

// Selectors is a set of facts.
type Selectors []Selector

// Has reports whether s is among the facts.
func (ss Selectors) Has(s Selector) bool { return slices.Contains(ss, s) }

// Covers reports whether every wanted selector is among the facts. Nothing
// wanted is covered by nothing: an empty list never matches.
func (ss Selectors) Covers(want Selectors) bool {
	return len(want) > 0 && len(ss.Missing(want)) == 0
}

// Missing returns the wanted selectors that are not among the facts.
func (ss Selectors) Missing(want Selectors) Selectors {
	var missing Selectors
	for _, w := range want {
		if !ss.Has(w) {
			missing = append(missing, w)
		}
	}
	return missing
}

// Strings returns each selector's text.
func (ss Selectors) Strings() []string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = s.String()
	}
	return out
}
