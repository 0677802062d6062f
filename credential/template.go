package credential

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Template is text of a definition with places for values, such as
// "GRANT SELECT ON {{table}} TO {{role}}". Who expands it says how a value is
// quoted there; nothing that a caller chose goes in as it is.
type Template struct {
	parts []part
	text  string
}

type part struct {
	text string
	verb string // before the name, such as "literal"; "" for the plain form
	name string // "" for plain text
}

// UnmarshalText parses {{name}} and {{verb name}}. Other braces are plain text.
func (t *Template) UnmarshalText(text []byte) error {
	parsed := Template{text: string(text)}
	rest := parsed.text
	for {
		before, after, found := strings.Cut(rest, "{{")
		if before != "" {
			parsed.parts = append(parsed.parts, part{text: before})
		}
		if !found {
			*t = parsed
			return nil
		}
		inside, after, closed := strings.Cut(after, "}}")
		words := strings.Fields(inside)
		if !closed || len(words) < 1 || len(words) > 2 {
			return errors.New("has {{ without a name and }} after it")
		}
		p := part{name: words[len(words)-1]}
		if len(words) == 2 {
			p.verb = words[0]
		}
		if !parameterName.MatchString(p.name) {
			return fmt.Errorf("names %.40q, which cannot be a parameter", p.name)
		}
		parsed.parts = append(parsed.parts, p)
		rest = after
	}
}

// String returns the template as it is written.
func (t Template) String() string { return t.text }

// Check returns an error if the template uses a verb other than those given or
// a value that is neither a parameter of d nor among the broker's own.
func (t Template) Check(d *Definition, own []string, verbs ...string) error {
	known := append([]string{}, own...)
	for _, p := range d.Parameters {
		known = append(known, p.Name)
	}
	for _, p := range t.parts {
		if p.name == "" {
			continue
		}
		if !slices.Contains(known, p.name) {
			fix := "declare it"
			if len(known) > 0 {
				fix += ", or use " + strings.Join(known, ", ")
			}
			return fmt.Errorf("uses {{%s}}, which is no parameter; %s", p.name, fix)
		}
		if p.verb != "" && !slices.Contains(verbs, p.verb) {
			return fmt.Errorf("uses {{%s %s}}, and %q is not known here", p.verb, p.name, p.verb)
		}
	}
	return nil
}

// Names returns the name at each place, in their order.
func (t Template) Names() (names []string) {
	for _, p := range t.parts {
		if p.name != "" {
			names = append(names, p.name)
		}
	}
	return names
}

// Uses reports whether the template has a place for the value.
func (t Template) Uses(name string) bool {
	return slices.Contains(t.Names(), name)
}

// Expand puts values in. Quote is given the verb and the value, and returns
// what stands in the text.
func (t Template) Expand(values map[string]string, quote func(verb, value string) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			b.WriteString(p.text)
			continue
		}
		value, ok := values[p.name]
		if !ok {
			return "", fmt.Errorf("%q has no value for %s", t.text, p.name)
		}
		quoted, err := quote(p.verb, value)
		if err != nil {
			return "", fmt.Errorf("value of %s in %q: %w", p.name, t.text, err)
		}
		b.WriteString(quoted)
	}
	return b.String(), nil
}
