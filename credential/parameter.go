package credential

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vouchd/vouchd/config"
)

const (
	maxParameters = 32
	maxValueLen   = 512 // bytes of a parameter's value
	maxPatternLen = 512 // bytes
)

// A Parameter is something that the caller chooses about a credential, within
// an allow-list or a pattern.
type Parameter struct {
	Name    string
	OneOf   []string
	Pattern *regexp.Regexp // of the whole value; nil if OneOf is given
	Default string         // for callers who do not choose; "" if they must
}

type writtenParameter struct {
	Name    config.At[string]   `yaml:"name" required:"true" like:"schema"`
	OneOf   []config.At[string] `yaml:"one_of"`
	Pattern config.At[string]   `yaml:"pattern"`
	Default config.At[string]   `yaml:"default"`

	Pos config.Pos
}

var parameterName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

func (w *writtenParameter) parameter(problems *config.Errors) Parameter {
	p := Parameter{Name: w.Name.Value, Default: w.Default.Value}
	if n := w.Name.Value; n != "" && !parameterName.MatchString(n) {
		problems.Add(w.Name.Pos, "parameters: %.80q is not a name; use lower-case letters, digits and underscores, at most 64", n)
	}
	before := len(*problems)
	switch {
	case (len(w.OneOf) > 0) == (w.Pattern.Value != ""):
		problems.Add(w.Pos, "parameter %s needs one_of or pattern, and not both; say what a caller may choose", w.Name.Value)
	case w.Pattern.Value != "":
		p.Pattern = w.pattern(problems)
	}
	for _, v := range w.OneOf {
		if err := plainValue(v.Value); err != nil {
			problems.Add(v.Pos, "parameter %s: %.80q %v", w.Name.Value, v.Value, err)
		}
		p.OneOf = append(p.OneOf, v.Value)
	}
	if w.Default.Value != "" && len(*problems) == before {
		if err := p.allows(w.Default.Value); err != nil {
			problems.Add(w.Default.Pos, "default of parameter %s: %v", w.Name.Value, err)
		}
	}
	return p
}

// pattern is matched against the whole value: a pattern that matches somewhere
// inside is not what an allow-list means.
func (w *writtenParameter) pattern(problems *config.Errors) *regexp.Regexp {
	if len(w.Pattern.Value) > maxPatternLen {
		problems.Add(w.Pattern.Pos, "pattern of parameter %s has %d bytes and may have %d; shorten it", w.Name.Value, len(w.Pattern.Value), maxPatternLen)
		return nil
	}
	// The pattern must compile alone: a|b) would close the group around it.
	if _, err := regexp.Compile(w.Pattern.Value); err != nil {
		problems.Add(w.Pattern.Pos, "pattern of parameter %s is not a regular expression (RE2): %v", w.Name.Value, err)
		return nil
	}
	re := regexp.MustCompile(`^(?:` + w.Pattern.Value + `)\z`)
	if re.MatchString("") {
		problems.Add(w.Pattern.Pos, "pattern of parameter %s matches the empty text; write + where it has *", w.Name.Value)
	}
	return re
}

// allows reports why a value is not allowed, in words for the caller.
func (p Parameter) allows(value string) error {
	if err := plainValue(value); err != nil {
		return fmt.Errorf("%.80q %w", value, err)
	}
	switch {
	case p.Pattern != nil && !p.Pattern.MatchString(value):
		return fmt.Errorf("%.80q does not match %s", value, strings.TrimSuffix(strings.TrimPrefix(p.Pattern.String(), "^(?:"), `)\z`))
	case p.Pattern == nil && !slices.Contains(p.OneOf, value):
		return fmt.Errorf("%.80q is not one of %s", value, strings.Join(p.OneOf, ", "))
	}
	return nil
}

// plainValue is what every value must satisfy, whatever the pattern says.
func plainValue(v string) error {
	switch {
	case v == "":
		return fmt.Errorf("is empty")
	case len(v) > maxValueLen:
		return fmt.Errorf("has %d bytes and may have %d", len(v), maxValueLen)
	case !utf8.ValidString(v):
		return fmt.Errorf("is not UTF-8")
	case strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("holds a character that does not print")
	}
	return nil
}

// Choose returns a value for every parameter, from what the caller gave and
// the defaults.
func (d *Definition) Choose(given map[string]string) (map[string]string, error) {
	for name := range given {
		if !slices.ContainsFunc(d.Parameters, func(p Parameter) bool { return p.Name == name }) {
			return nil, fmt.Errorf("%w: credential %s has no parameter %.80q; it has %s", ErrParameter, d.Name, name, d.parameterNames())
		}
	}
	chosen := make(map[string]string, len(d.Parameters))
	for _, p := range d.Parameters {
		value, ok := given[p.Name]
		if !ok {
			value = p.Default
		}
		if value == "" && !ok {
			return nil, fmt.Errorf("%w: credential %s needs parameter %s", ErrParameter, d.Name, p.Name)
		}
		if err := p.allows(value); err != nil {
			return nil, fmt.Errorf("%w: parameter %s of credential %s: %w", ErrParameter, p.Name, d.Name, err)
		}
		chosen[p.Name] = value
	}
	return chosen, nil
}

func (d *Definition) parameterNames() string {
	if len(d.Parameters) == 0 {
		return "none"
	}
	names := make([]string, len(d.Parameters))
	for i, p := range d.Parameters {
		names[i] = p.Name
	}
	return strings.Join(names, ", ")
}
