package auditor

import (
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// A query is the flags that say which records a command is about, and in which
// zone it tells times.
type query struct {
	analyst.Query
	from, until, since string
	utc                bool
	zone               *time.Location
}

func (q *query) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&q.from, "from", "", "only from this `time` on, such as \"2026-11-26 10:00\" or 2026-11-26T10:00:00+01:00")
	f.StringVar(&q.until, "until", "", "only before this `time`")
	f.StringVar(&q.since, "since", "", "only the last `duration`, such as 1h")
	f.StringVar(&q.SPIFFEID, "spiffe-id", "", "only records about this `identity`")
	f.StringVar(&q.Credential, "credential", "", "only records about this `credential`")
	f.StringVar(&q.Outcome, "outcome", "", "only records that went so: `one` of "+strings.Join(analyst.Outcomes(), ", "))
	f.BoolVar(&q.utc, "utc", false, "read and print times in UTC instead of the local zone")
	cmd.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions(analyst.Outcomes(), cobra.ShellCompDirectiveNoFileComp))
}

// empty tells whether nothing was asked for.
func (q *query) empty() bool { return q.Query == analyst.Query{} }

// resolve reads the flags. Times without a zone are in the one that times are
// printed in. JSON and CSV are for programs, and always in UTC.
func (q *query) resolve(now time.Time, output string) error {
	q.zone = time.Local
	if q.utc {
		q.zone = time.UTC
	}
	if q.Outcome != "" && !slices.Contains(analyst.Outcomes(), q.Outcome) {
		return cli.Usagef("--outcome %q: want one of %s", q.Outcome, strings.Join(analyst.Outcomes(), ", "))
	}
	if q.since != "" && q.from != "" {
		return cli.Usagef("--since and --from both say where to begin; give one")
	}
	var err error
	if q.since != "" {
		d, err := time.ParseDuration(q.since)
		if err != nil || d <= 0 {
			return cli.Usagef("--since %q: want a duration such as 1h; for a time, give --from", q.since)
		}
		q.From = now.Add(-d)
	}
	if q.from != "" {
		if q.From, err = parseTime("--from", q.from, q.zone); err != nil {
			return err
		}
	}
	if q.until != "" {
		if q.Until, err = parseTime("--until", q.until, q.zone); err != nil {
			return err
		}
	}
	if !q.Until.IsZero() && !q.From.Before(q.Until) {
		return cli.Usagef("--until %s is not after %s, where the time begins", q.Until.In(q.zone).Format(time.RFC3339), q.From.In(q.zone).Format(time.RFC3339))
	}
	if output != "text" {
		q.zone = time.UTC
	}
	return nil
}

// timeForms are RFC 3339's, and what people write, with a zone or without.
var timeForms = []string{
	time.RFC3339, "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02",
}

func parseTime(flag, text string, zone *time.Location) (time.Time, error) {
	for _, form := range timeForms {
		if t, err := time.ParseInLocation(form, text, zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, cli.Usagef("%s %q is not a time: want one such as \"2026-11-26 10:00\", or with its zone, 2026-11-26T10:00:00+01:00", flag, text)
}

// stamp is a time of the second, with its zone.
func (q *query) stamp(t time.Time) string { return t.In(q.zone).Format("2006-01-02 15:04:05Z07:00") }

// near is a time as it is told beside another: without the date where that is the
// same.
func (q *query) near(t, other time.Time) string {
	t, other = t.In(q.zone), other.In(q.zone)
	if t.Format(time.DateOnly) == other.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return q.stamp(t)
}

// outputs are the formats of what can be a table.
func outputs(o *cli.Options, cmd *cobra.Command) {
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return o.CheckOutput("text", "json", "csv") }
}

// first returns the index of the first record that can be of the time asked for.
func (q *query) first(fsys fs.FS) (uint64, error) {
	if q.From.IsZero() {
		return 0, nil
	}
	return reader.Since(fsys, q.From)
}
