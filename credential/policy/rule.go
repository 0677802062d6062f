package policy

import (
	"fmt"
	"mime"
	"regexp"
	"slices"
	"strings"
)

// An Effect is what becomes of a request that a rule matches.
type Effect string

// The effects.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// A Rule matches requests. A condition that is left out holds for every request;
// a rule without a path is not one.
type Rule struct {
	Name    string
	Effect  Effect
	Methods []string
	Paths   []Pattern
	Query   []Condition // on a key of the query, as its At says
	Types   []string    // media types of the content
	MaxSize int64       // bytes of the content; 0: the definition's
	JSON    []Condition // on a value of the content, as its At says (RFC 6901)
}

// A Condition is on one value of a request. A value that is missing, or there
// twice, fulfils none.
type Condition struct {
	At      string   // the key, or the JSON pointer
	OneOf   []string // the text, number, true, false or null that it may be
	Matches string   // RE2 of the whole text
	Max     *float64 // the largest number
	Absent  bool     // it is not there

	matches *regexp.Regexp
}

// A Request is what rules look at.
type Request struct {
	Method string
	Target Target
	Type   string // media type of the content; empty without one
	Size   int64  // of the content in bytes; -1 if that is not known yet
	// JSON has the values of the content that [Policy.Pointers] names, as [ReadJSON]
	// returns them. It is nil if the content is no JSON that all readers read alike.
	JSON map[string]Value
}

// A Value is one JSON value that is neither an object nor a list.
type Value struct {
	Text   string // as JSON has it, but a string without its quotes and escapes
	Number float64
	Kind   Kind
}

// A Kind is what a JSON value is.
type Kind byte

// The kinds.
const (
	String Kind = iota
	Number
	Other   // true, false, null; and anything that holds values, which is equal to nothing
	Missing // it was looked for, and is not there
)

// holds reports whether a request fulfils all of a rule's conditions. Where the
// content cannot be read, or a value in it was not looked for, as when the rules have
// changed since, conditions on it fail for a rule that allows, and hold for one that
// denies.
func (r *Rule) holds(q *Request) bool {
	return slices.Contains(r.Methods, q.Method) &&
		slices.ContainsFunc(r.Paths, func(p Pattern) bool { return p.matches(q.Target.Segments) }) &&
		r.queryHolds(q) && r.typeHolds(q) && r.sizeHolds(q) && r.jsonHolds(q)
}

func (r *Rule) queryHolds(q *Request) bool {
	return !slices.ContainsFunc(r.Query, func(c Condition) bool {
		var values []string
		for _, p := range q.Target.Query {
			if p.Key == c.At {
				values = append(values, p.Value)
			}
		}
		switch len(values) {
		case 0:
			return !c.Absent
		case 1:
			return !c.holds(Value{Text: values[0]})
		}
		return r.Effect == Allow // twice: servers differ on which counts
	})
}

func (r *Rule) typeHolds(q *Request) bool {
	if len(r.Types) == 0 {
		return true
	}
	media, _, err := mime.ParseMediaType(q.Type)
	if err != nil {
		return r.Effect == Deny
	}
	return slices.Contains(r.Types, media)
}

func (r *Rule) sizeHolds(q *Request) bool {
	return r.MaxSize == 0 || q.Size >= 0 && q.Size <= r.MaxSize || q.Size < 0 && r.Effect == Deny
}

func (r *Rule) jsonHolds(q *Request) bool {
	if len(r.JSON) == 0 {
		return true
	}
	if q.JSON == nil {
		return r.Effect == Deny
	}
	return !slices.ContainsFunc(r.JSON, func(c Condition) bool {
		v, ok := q.JSON[c.At]
		switch {
		case !ok:
			return r.Effect == Allow
		case v.Kind == Missing:
			return !c.Absent
		}
		return !c.holds(v)
	})
}

// holds reports whether a value that is there fulfils the condition.
func (c *Condition) holds(v Value) bool {
	switch {
	case c.Absent:
		return false
	case c.Max != nil:
		return v.Kind == Number && v.Number <= *c.Max
	case c.matches != nil:
		return v.Kind == String && c.matches.MatchString(v.Text)
	}
	return slices.Contains(c.OneOf, v.Text)
}

// A Pattern is a path in which ** is the rest, even none, and * one segment or, beside
// other text, a part of one that is not empty.
type Pattern string

// check returns an error if the pattern could not match what it seems to.
func (p Pattern) check() error {
	rest, ok := strings.CutPrefix(string(p), "/")
	if !ok {
		return fmt.Errorf("path %q does not begin with a slash", p)
	}
	parts := strings.Split(rest, "/")
	for i, part := range parts {
		switch {
		case part == "**" && i < len(parts)-1:
			return fmt.Errorf("path %q has ** before its end; it stands for the rest", p)
		case part == "*" || part == "**":
		case strings.Count(part, "*") > 1:
			return fmt.Errorf("path %q has * twice in a segment", p)
		case part == "" && i < len(parts)-1, part == ".", part == "..":
			return fmt.Errorf("path %q has a segment that no request has", p)
		case strings.ContainsAny(part, "%?#"):
			return fmt.Errorf("path %q has an escape or a query; write the segment as it is decoded", p)
		}
	}
	return nil
}

func (p Pattern) matches(segments []string) bool {
	rest := string(p[1:])
	for {
		if rest == "**" {
			return true
		}
		part, after, more := strings.Cut(rest, "/")
		if len(segments) == 0 {
			return part == "" && !more
		}
		if !matchesSegment(part, segments[0]) {
			return false
		}
		segments = segments[1:]
		if !more {
			return len(segments) == 0
		}
		if rest = after; len(segments) == 0 {
			return rest == "**"
		}
	}
}

func matchesSegment(pattern, segment string) bool {
	before, after, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == segment
	}
	return len(segment) > len(before)+len(after) && strings.HasPrefix(segment, before) && strings.HasSuffix(segment, after)
}

// covers reports whether p matches every path that q does.
func (p Pattern) covers(q Pattern) bool {
	a, b := strings.Split(string(p[1:]), "/"), strings.Split(string(q[1:]), "/")
	for i, part := range a {
		switch {
		case part == "**":
			return true
		case i >= len(b), b[i] == "**":
			return false
		case part != b[i] && (part != "*" || b[i] == ""):
			return false
		}
	}
	return len(a) == len(b)
}

// covers reports whether r matches every request that s does, as far as methods and
// paths tell: then s is never reached.
func (r *Rule) covers(s *Rule) bool {
	if len(r.Query)+len(r.Types)+len(r.JSON) > 0 || r.MaxSize > 0 {
		return false
	}
	return !slices.ContainsFunc(s.Methods, func(m string) bool { return !slices.Contains(r.Methods, m) }) &&
		!slices.ContainsFunc(s.Paths, func(q Pattern) bool {
			return !slices.ContainsFunc(r.Paths, func(p Pattern) bool { return p.covers(q) })
		})
}

// compile prepares a condition and says what is wrong with it.
func (c *Condition) compile() error {
	given := 0
	for _, is := range []bool{len(c.OneOf) > 0, c.Matches != "", c.Max != nil, c.Absent} {
		if is {
			given++
		}
	}
	if given != 1 {
		return fmt.Errorf("the condition on %s needs one of one_of, matches, max and absent", c.At)
	}
	if c.Matches == "" {
		return nil
	}
	var err error
	if c.matches, err = regexp.Compile(`^(?:` + c.Matches + `)$`); err != nil {
		return fmt.Errorf("the condition on %s: %w", c.At, err)
	}
	return nil
}
