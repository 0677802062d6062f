package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxLeaf bounds a leaf, in bytes.
const MaxLeaf = 16 << 10

// maxInt is the largest integer in a leaf: what every JSON reader keeps exactly
// (RFC 8785 §3.2.2.3).
const maxInt = 1<<53 - 1

// A codec writes or reads canonical JSON (RFC 8785): one description of the
// fields, in the order of their names, serves both directions, so they cannot
// drift apart. Reading accepts exactly the bytes that writing makes. A field
// with its zero value is absent, unless it is said to be needed.
//
// After an error, writing goes on without meaning and reading finds nothing.
type codec struct {
	b       []byte // written so far; or what is being read
	pos     int    // reading: the next byte
	reading bool
	err     error
}

func (c *codec) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// key deals with the field's name: it writes it if the field is present, or
// reads it if it comes next. It reports whether the value follows.
func (c *codec) key(name string, present bool) bool {
	if c.err != nil {
		return false
	}
	if !c.reading {
		if !present {
			return false
		}
		if c.b[len(c.b)-1] != '{' {
			c.b = append(c.b, ',')
		}
		c.b = append(c.b, '"')
		c.b = append(c.b, name...)
		c.b = append(c.b, '"', ':')
		return true
	}
	rest := c.b[c.pos:]
	n := 0
	if c.b[c.pos-1] != '{' {
		if len(rest) == 0 || rest[0] != ',' {
			return false
		}
		n = 1
	}
	rest = rest[n:]
	if len(rest) < len(name)+3 || rest[0] != '"' || string(rest[1:1+len(name)]) != name ||
		rest[1+len(name)] != '"' || rest[2+len(name)] != ':' {
		return false
	}
	c.pos += n + len(name) + 3
	return true
}

func (c *codec) byte(x byte) {
	switch {
	case c.err != nil:
	case !c.reading:
		c.b = append(c.b, x)
	case c.pos < len(c.b) && c.b[c.pos] == x:
		c.pos++
	default:
		c.fail("byte %d: not the canonical form of a known field", c.pos)
	}
}

// begin opens an object that is the value of a field; end closes it.
func (c *codec) begin(name string, present bool) bool {
	if !c.key(name, present) {
		return false
	}
	c.byte('{')
	return c.err == nil
}

func (c *codec) end() { c.byte('}') }

// text is a string from outside: escaped, and cut at limit bytes of JSON.
func (c *codec) text(name string, v *string, limit int) {
	if !c.key(name, *v != "") {
		return
	}
	if !c.reading {
		c.b = append(c.b, '"')
		c.b = appendText(c.b, *v, limit)
		c.b = append(c.b, '"')
		return
	}
	*v = c.readText()
	if *v == "" {
		c.fail("byte %d: %s is empty", c.pos, name)
	}
}

// needText is text that must be there.
func (c *codec) needText(name string, v *string, limit int) {
	c.text(name, v, limit)
	if *v == "" {
		c.fail("%s is missing", name)
	}
}

func (c *codec) readText() string {
	c.byte('"')
	if c.err != nil {
		return ""
	}
	start, escaped, wide := c.pos, false, false
	for ; c.pos < len(c.b); c.pos++ {
		switch x := c.b[c.pos]; {
		case x == '"':
			raw := c.b[start:c.pos]
			c.pos++
			if wide && !printable(raw) {
				c.fail("byte %d: text that is not escaped", start)
			}
			if !escaped {
				return string(raw)
			}
			return unescapeJSON(raw)
		case x == '\\':
			escaped = true
			c.pos++
			if c.pos == len(c.b) || c.b[c.pos] != '\\' && c.b[c.pos] != '"' {
				c.fail("byte %d: text that is not in canonical form", start)
				return ""
			}
		case x >= utf8.RuneSelf:
			wide = true
		case x < ' ' || x == 0x7f:
			c.fail("byte %d: text that is not escaped", start)
			return ""
		}
	}
	c.fail("byte %d: text without an end", start)
	return ""
}

func printable(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) {
			return false
		}
		b = b[n:]
	}
	return true
}

// unescapeJSON undoes \\ and \", the only two that occur.
func unescapeJSON(raw []byte) string {
	var s strings.Builder
	s.Grow(len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] == '\\' {
			i++
		}
		s.WriteByte(raw[i])
	}
	return s.String()
}

// texts is a list of texts of at most each bytes, and all bytes together. What
// goes beyond is left out and counted in a last element, \[+N more].
func (c *codec) texts(name string, v *[]string, each, all int) {
	if !c.key(name, len(*v) > 0) {
		return
	}
	c.byte('[')
	if c.reading {
		for c.err == nil {
			*v = append(*v, c.readText())
			if c.pos < len(c.b) && c.b[c.pos] == ']' {
				break
			}
			c.byte(',')
		}
	} else {
		c.writeTexts(*v, each, all)
	}
	c.byte(']')
}

func (c *codec) writeTexts(list []string, each, all int) {
	start := len(c.b)
	for i, s := range list {
		before := len(c.b)
		if i > 0 {
			c.b = append(c.b, ',')
		}
		c.b = append(c.b, '"')
		c.b = appendText(c.b, s, each)
		c.b = append(c.b, '"')
		room := all
		if i < len(list)-1 {
			room -= cutRoom + 3
		}
		if len(c.b)-start > room {
			c.b = c.b[:before]
			if i > 0 {
				c.b = append(c.b, ',')
			}
			c.b = append(c.b, `"\\[+`...)
			c.b = strconv.AppendInt(c.b, int64(len(list)-i), 10)
			c.b = append(c.b, ` more]"`...)
			return
		}
	}
}

// uint is an integer that is absent when zero.
func (c *codec) uint(name string, v *uint64) {
	if c.integer(name, v, *v != 0) && *v == 0 {
		c.fail("byte %d: %s is written out though it is zero", c.pos, name)
	}
}

// needUint is an integer that is always there.
func (c *codec) needUint(name string, v *uint64) {
	if !c.integer(name, v, true) {
		c.fail("%s is missing", name)
	}
}

func (c *codec) integer(name string, v *uint64, present bool) bool {
	if !c.key(name, present) {
		return false
	}
	if !c.reading {
		if *v > maxInt {
			c.fail("%s is %d, more than a leaf can hold", name, *v)
		}
		c.b = strconv.AppendUint(c.b, *v, 10)
		return true
	}
	start := c.pos
	var n uint64
	for c.pos < len(c.b) && c.b[c.pos] >= '0' && c.b[c.pos] <= '9' && c.pos-start < 16 {
		n = n*10 + uint64(c.b[c.pos]-'0')
		c.pos++
	}
	if c.pos == start || n > maxInt || c.b[start] == '0' && c.pos > start+1 {
		c.fail("byte %d: %s is not an integer in canonical form", start, name)
	}
	*v = n
	return true
}

// flag is absent when false.
func (c *codec) flag(name string, v *bool) {
	if !c.key(name, *v) {
		return
	}
	for _, x := range []byte("true") {
		c.byte(x)
	}
	*v = true
}

// decimal is an integer of 64 bits, which JSON carries as text.
func (c *codec) decimal(name string, v *uint64) {
	if !c.key(name, *v != 0) {
		return
	}
	if !c.reading {
		c.b = append(c.b, '"')
		c.b = strconv.AppendUint(c.b, *v, 10)
		c.b = append(c.b, '"')
		return
	}
	s := c.readText()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		c.fail("byte %d: %s is not an integer in canonical form", c.pos, name)
	}
	*v = n
}

// micros is a duration in microseconds, absent when zero or negative.
func (c *codec) micros(name string, v *time.Duration) {
	n := uint64(max(0, v.Microseconds()))
	c.uint(name, &n)
	if c.reading {
		*v = time.Duration(min(n, uint64(maxDuration))) * time.Microsecond
	}
}

const maxDuration = int64(1<<63-1) / int64(time.Microsecond)

// The forms of time: of records in microseconds, of validity in seconds.
const (
	timeMicros  = "2006-01-02T15:04:05.000000Z"
	timeSeconds = "2006-01-02T15:04:05Z"
)

// time is a UTC time (RFC 3339) in one fixed layout, absent when zero.
func (c *codec) time(name string, v *time.Time, layout string) {
	if !c.key(name, !v.IsZero()) {
		return
	}
	if !c.reading {
		u := v.UTC()
		if y := u.Year(); y < 0 || y > 9999 {
			c.fail("%s is in the year %d", name, y)
			return
		}
		c.b = append(c.b, '"')
		c.b = u.AppendFormat(c.b, layout)
		c.b = append(c.b, '"')
		return
	}
	at := c.pos + 1
	s := c.readText()
	t, err := time.Parse(layout, s)
	var again [len(timeMicros)]byte
	if err != nil || string(t.AppendFormat(again[:0], layout)) != s || t.IsZero() {
		c.fail("byte %d: %s is not a time in canonical form", at, name)
	}
	*v = t
}

// bytes is binary data in base64, absent when empty. It is never cut.
func (c *codec) bytes(name string, v *[]byte) {
	if !c.key(name, len(*v) > 0) {
		return
	}
	if !c.reading {
		if base64.StdEncoding.EncodedLen(len(*v)) > MaxLeaf {
			c.fail("%s of %d bytes does not fit a leaf", name, len(*v))
			return
		}
		c.b = append(c.b, '"')
		c.b = base64.StdEncoding.AppendEncode(c.b, *v)
		c.b = append(c.b, '"')
		return
	}
	data, err := base64.StdEncoding.Strict().DecodeString(c.readText())
	if err != nil || len(data) == 0 {
		c.fail("byte %d: %s is not base64 in canonical form", c.pos, name)
	}
	*v = data
}

var errTrailing = errors.New("an unknown field, or one out of order")
