package credential

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
)

// Limits are what each identity is held to for one credential.
type Limits struct {
	Rate       Rate     // of grants
	Concurrent int      // leases that have not ended
	Hours      []Window // when it may be granted; none means always
}

type writtenLimits struct {
	Rate       Rate                           `yaml:"rate" default:"60/1m" like:"10/1m"`
	Concurrent int                            `yaml:"concurrent" default:"8" min:"1" max:"100000"`
	Hours      config.At[[]config.At[Window]] `yaml:"hours" like:"mon-fri 08:00-18:00 Europe/Berlin"`
}

// A Rate is a number of grants in a length of time, written 10/1m.
type Rate struct {
	N   int
	Per time.Duration
}

// UnmarshalText parses a rate.
func (r *Rate) UnmarshalText(text []byte) error {
	n, per, ok := strings.Cut(string(text), "/")
	count, err := strconv.ParseUint(n, 10, 31)
	length, err2 := time.ParseDuration(per)
	if !ok || err != nil || err2 != nil {
		return errors.New("is not a number of grants and a length of time")
	}
	if count < 1 || count > 100_000 || length < time.Second || length > 24*time.Hour {
		return errors.New("is out of range; give 1 to 100000 grants in 1s to 24h")
	}
	*r = Rate{int(count), length}
	return nil
}

// String returns the rate as it is written.
func (r Rate) String() string { return strconv.Itoa(r.N) + "/" + config.FormatDuration(r.Per) }

// A Window is the hours of some days of the week, written
// "mon-fri 08:00-18:00 Europe/Berlin". Without a zone it is UTC.
type Window struct {
	days     [7]bool // by time.Weekday
	from, to int     // minutes since midnight; to is exclusive, and up to 24:00
	zone     *time.Location
	text     string
}

var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// UnmarshalText parses a window. Hours past midnight take a second one.
func (w *Window) UnmarshalText(text []byte) error {
	parts := strings.Fields(string(text))
	if len(parts) < 2 || len(parts) > 3 {
		return errors.New("is not days and hours")
	}
	win := Window{zone: time.UTC, text: string(text)}
	if err := win.parseDays(parts[0]); err != nil {
		return err
	}
	from, to, ok := strings.Cut(parts[1], "-")
	var err1, err2 error
	win.from, err1 = minutes(from)
	win.to, err2 = minutes(to)
	switch {
	case !ok || err1 != nil || err2 != nil:
		return fmt.Errorf("has no hours in %.40q", parts[1])
	case win.from >= win.to:
		return errors.New("ends before it begins; write a window for each day")
	}
	if len(parts) == 3 {
		zone, err := time.LoadLocation(parts[2])
		if err != nil || parts[2] == "Local" {
			return fmt.Errorf("names the zone %.40q, which is not on this machine; install tzdata, or name one such as Europe/Berlin", parts[2])
		}
		win.zone = zone
	}
	*w = win
	return nil
}

func (w *Window) parseDays(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, to := slices.Index(days, first), slices.Index(days, last)
		if from < 0 || to < 0 {
			return fmt.Errorf("names a day other than %s in %.40q", strings.Join(days, " "), part)
		}
		for d := from; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == to {
				break
			}
		}
	}
	return nil
}

// minutes parses 08:00; 24:00 is the end of a day.
func minutes(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	if !ok || len(h) != 2 || len(m) != 2 {
		return 0, errors.New("want hours and minutes")
	}
	hour, err1 := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	total := int(hour*60 + minute)
	if err1 != nil || err2 != nil || minute > 59 || total > 24*60 {
		return 0, errors.New("want hours and minutes")
	}
	return total, nil
}

// String returns the window as it is written.
func (w Window) String() string { return w.text }

// end returns when the window that contains t closes, and whether it contains t.
func (w Window) end(t time.Time) (time.Time, bool) {
	local := t.In(w.zone)
	minute := local.Hour()*60 + local.Minute()
	if !w.days[local.Weekday()] || minute < w.from || minute >= w.to {
		return time.Time{}, false
	}
	// On a day when the clocks change, an hour may come twice, or not at all.
	ofDay := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute + time.Duration(local.Second())*time.Second + time.Duration(local.Nanosecond())
	end := t.Add(time.Duration(w.to)*time.Minute - ofDay)
	if l := end.In(w.zone); l.Hour()*60+l.Minute() == w.to%(24*60) {
		return end, true
	}
	y, m, d := local.Date()
	end = time.Date(y, m, d, 0, w.to, 0, 0, w.zone)
	if _, change := local.ZoneBounds(); end.In(w.zone).Minute() != w.to%60 || end.In(w.zone).Hour() != w.to/60%24 {
		end = change // to is in the hour that is left out
	}
	return end, end.After(t)
}

// Open returns until when a credential may be had at t: zero for always. A
// lease does not outlive the hours it is allowed in.
func (l Limits) Open(t time.Time) (until time.Time, err error) {
	if len(l.Hours) == 0 {
		return time.Time{}, nil
	}
	for _, w := range l.Hours {
		if end, ok := w.end(t); ok && end.After(until) {
			until = end
		}
	}
	if until.IsZero() {
		texts := make([]string, len(l.Hours))
		for i, w := range l.Hours {
			texts[i] = w.text
		}
		return time.Time{}, fmt.Errorf("%w: granted %s only", ErrHours, strings.Join(texts, ", "))
	}
	return until, nil
}
