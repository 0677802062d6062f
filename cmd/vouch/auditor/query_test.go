package auditor

import (
	"testing"
	"time"
)

func TestTimesOfAQuery(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("CET", 3600)
	ten := time.Date(2026, 11, 26, 10, 0, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"2026-11-26 10:00":              ten,
		"2026-11-26 10:00:00":           ten,
		"2026-11-26T10:00:00":           ten,
		"2026-11-26T09:00:00Z":          ten,
		"2026-11-26T11:00:00+02:00":     ten,
		"2026-11-26 11:00+02:00":        ten,
		"2026-11-26 10:00:00.500+01:00": ten.Add(time.Second / 2), // as show prints it
		"2026-11-26":                    ten.Add(-10 * time.Hour),
	} {
		if got, err := parseTime("--from", text, zone); err != nil || !got.Equal(want) {
			t.Errorf("%s is %v, want %v: %v", text, got, want, err)
		}
	}
	for _, text := range []string{"", "10:00", "26.11.2026", "yesterday", "2026-02-30 10:00", "2026-11-26 25:00"} {
		if got, err := parseTime("--from", text, zone); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestDateIsToldWhereItIsAnother(t *testing.T) {
	t.Parallel()
	q := query{zone: time.FixedZone("CET", 3600)}
	ten := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	for at, want := range map[time.Time]string{
		ten.Add(time.Hour):           "12:00:00",
		ten.Add(13 * time.Hour):      "2026-11-27 00:00:00+01:00", // a day on in the zone, not in UTC
		ten.Add(90 * 24 * time.Hour): "2027-02-24 11:00:00+01:00",
	} {
		if got := q.near(at, ten); got != want {
			t.Errorf("%v beside %v is %q, want %q", at, ten, got, want)
		}
	}
}
