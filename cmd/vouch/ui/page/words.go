package page

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// number is a count with its thousands set apart.
func number(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// count is a number of things.
func count(n uint64, one, many string) string {
	return number(n) + " " + things(n, one, many)
}

func things(n uint64, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// size is a number of bytes.
func size(n uint64) string {
	f, unit := float64(n), ""
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if f < 1000 {
			break
		}
		f, unit = f/1000, next
	}
	switch {
	case unit == "":
		return count(n, "byte", "bytes")
	case f < 10:
		return fmt.Sprintf("%.1f %s", f, unit)
	}
	return fmt.Sprintf("%.0f %s", f, unit)
}

// span is a duration in its largest unit.
func span(d time.Duration) string {
	for _, u := range []struct {
		d    time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if d >= 2*u.d || d >= u.d && (d%u.d == 0 || u.d == time.Second) {
			return fmt.Sprintf("%d %s", d/u.d, u.name)
		}
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// ago is how long ago something was.
func ago(now, t time.Time) string {
	switch d := now.Sub(t); {
	case t.IsZero():
		return "never"
	case d < 2*time.Second:
		return "now"
	default:
		return span(d) + " ago"
	}
}

// clock is a time of the second, with the day where that is not today.
func clock(now, t time.Time) string {
	t = t.In(now.Location())
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format("2 Jan 15:04:05")
}

// name is a SPIFFE ID without its trust domain, where that is the host's.
func name(id, domain string) string {
	switch rest, ok := strings.CutPrefix(id, "spiffe://"+domain+"/"); {
	case id == "":
		return "no agent"
	case ok && domain != "":
		return rest
	}
	return id
}

// long are digests that say no more in full.
var long = regexp.MustCompile("[0-9a-f]{24,}")

// shorter is a text with its digests cut.
func shorter(s string) string { return long.ReplaceAllStringFunc(s, short) }

// short is the beginning of a digest.
func short(digest string) string {
	if len(digest) > 16 {
		return digest[:16] + "…"
	}
	return digest
}
