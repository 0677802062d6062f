package policy

import (
	"errors"
	"fmt"
	"strings"
)

const (
	maxTarget   = 8 << 10 // bytes of a path with its query
	maxSegments = 128
	maxQuery    = 256 // keys
)

// ErrTarget means a request target that two readers could take for different ones.
var ErrTarget = errors.New("the request target is not in canonical form")

// A Target is the path and the query of a request, in the one form that rules see
// and the upstream gets.
type Target struct {
	Path     string   // as sent: begins with a slash
	Segments []string // of the path, decoded; "/a/" has "a" and ""
	RawQuery string   // as sent, without the question mark
	Query    []Pair   // decoded, in order
}

// A Pair is one key of a query with its value.
type Pair struct{ Key, Value string }

// ParseTarget reads a target in origin form (RFC 9112 §3.2.1). The error wraps
// [ErrTarget] and says what is not canonical. With slashes, a segment may hold an
// encoded slash (%2F), as the paths of some APIs do; rules see it as part of its
// segment.
func ParseTarget(s string, slashes bool) (Target, error) {
	if len(s) > maxTarget {
		return Target{}, fmt.Errorf("%w: it has %d bytes and may have %d", ErrTarget, len(s), maxTarget)
	}
	path, query, asked := strings.Cut(s, "?")
	if asked && query == "" {
		return Target{}, fmt.Errorf("%w: it ends with an empty query", ErrTarget)
	}
	t := Target{Path: path, RawQuery: query}
	var err error
	if t.Segments, err = segments(path, slashes); err != nil {
		return Target{}, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	if t.Query, err = pairs(query); err != nil {
		return Target{}, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	return t, nil
}

// String returns the target as it is sent.
func (t Target) String() string {
	if t.RawQuery == "" {
		return t.Path
	}
	return t.Path + "?" + t.RawQuery
}

// segments splits a path and decodes its parts.
func segments(path string, slashes bool) ([]string, error) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, errors.New("the path does not begin with a slash")
	}
	if rest == "" {
		return nil, nil
	}
	raw := strings.Split(rest, "/")
	if len(raw) > maxSegments {
		return nil, fmt.Errorf("the path has %d segments and may have %d", len(raw), maxSegments)
	}
	for i, s := range raw {
		if s == "" && i < len(raw)-1 {
			return nil, errors.New("the path has an empty segment")
		}
		segment, err := decodeSegment(s, slashes)
		if err != nil {
			return nil, err
		}
		if segment == "." || segment == ".." {
			return nil, errors.New("the path has a dot segment")
		}
		raw[i] = segment
	}
	return raw, nil
}

// decodeSegment decodes one segment whose encoding is the only one there is: what
// may stand for itself does (RFC 3986 §2.3, §6.2.2.2).
func decodeSegment(s string, slashes bool) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			x, err := decodeByte(s[i:])
			if err != nil {
				return "", err
			}
			if err := maySegmentHold(x, s[i+3:], slashes); err != nil {
				return "", err
			}
			b.WriteByte(x)
			i += 2
		case c == ';':
			return "", errors.New("the path has parameters after a semicolon")
		case unreserved(c) || strings.IndexByte("!$&'()*+,=:@", c) >= 0:
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("the path has the byte %#02x, which is to be encoded", c)
		}
	}
	return b.String(), nil
}

// maySegmentHold says whether an encoded byte, before rest, could be taken for
// something else.
func maySegmentHold(x byte, rest string, slashes bool) error {
	switch {
	case unreserved(x):
		return fmt.Errorf("the path encodes %q, which stands for itself", x)
	case x == '/' && !slashes, x == '\\', x == ';':
		return fmt.Errorf("the path has an encoded %q", x)
	case x < ' ' || x == 0x7f:
		return fmt.Errorf("the path has the control character %#02x", x)
	case x == '%' && len(rest) >= 2 && hexDigit(rest[0]) >= 0 && hexDigit(rest[1]) >= 0:
		return errors.New("the path is encoded twice")
	}
	return nil
}

// pairs splits a query as HTML forms are encoded. A key has one spelling, as rules
// name it; of values it is only known that every reader decodes them to the same.
func pairs(query string) ([]Pair, error) {
	if query == "" {
		return nil, nil
	}
	parts := strings.Split(query, "&")
	if len(parts) > maxQuery {
		return nil, fmt.Errorf("the query has %d keys and may have %d", len(parts), maxQuery)
	}
	list := make([]Pair, 0, len(parts))
	for _, part := range parts {
		k, v, _ := strings.Cut(part, "=")
		if k == "" {
			return nil, errors.New("the query has a value without a key")
		}
		key, err := decodeQuery(k)
		if err != nil {
			return nil, err
		}
		value, err := decodeQuery(v)
		if err != nil {
			return nil, err
		}
		for i := 0; i+2 < len(k); i++ {
			if x, err := decodeByte(k[i:]); k[i] == '%' && err == nil && unreserved(x) {
				return nil, fmt.Errorf("the query encodes %q in a key, where it stands for itself", x)
			}
		}
		list = append(list, Pair{key, value})
	}
	return list, nil
}

func decodeQuery(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%':
			x, err := decodeByte(s[i:])
			if err != nil {
				return "", err
			}
			if x < ' ' && x != '\n' && x != '\r' && x != '\t' || x == 0x7f {
				return "", fmt.Errorf("the query has the control character %#02x", x)
			}
			b.WriteByte(x)
			i += 2
		case c == '+':
			b.WriteByte(' ')
		case c == ';', c == '#', c <= ' ', c >= 0x7f, c == '"', c == '<', c == '>', c == '\\':
			return "", fmt.Errorf("the query has the byte %#02x, which is to be encoded", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// decodeByte decodes the escape that s begins with.
func decodeByte(s string) (byte, error) {
	if len(s) < 3 || hexDigit(s[1]) < 0 || hexDigit(s[2]) < 0 {
		return 0, errors.New("it has a % without two hexadecimal digits after it")
	}
	return byte(hexDigit(s[1])<<4 | hexDigit(s[2])), nil
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// unreserved reports whether c always stands for itself (RFC 3986 §2.3).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}
