package inventory

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/scan"
)

// A news says whether a finding is new.
type news func(f *inventory.Finding) bool

// parseSince reads --since: a duration, which may have days, a date, or the name of an
// earlier run's JSON.
func parseSince(cmd *cobra.Command, since string, now time.Time) (news, error) {
	if since == "" {
		return func(*inventory.Finding) bool { return true }, nil
	}
	if at, ok := instant(since, now); ok {
		return func(f *inventory.Finding) bool { return f.Modified.IsZero() || !f.Modified.Before(at) }, nil
	}
	data, err := cli.ReadDocument(cmd, since, scan.MaxResult)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("--since %q: want a duration such as 24h or 90d, a date such as 2026-11-26, or the file of an earlier run, and there is no such file", since)
	}
	if err != nil {
		return nil, err
	}
	before, err := scan.ParseResult(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", inventory.Printable(since), err)
	}
	type known struct{ print, path, item string }
	seen := make(map[known]bool)
	for _, f := range before.Findings {
		seen[known{f.Fingerprint, pathOf(&f), f.Item}] = true
	}
	return func(f *inventory.Finding) bool { return !seen[known{f.Fingerprint, pathOf(f), f.Item}] }, nil
}

// pathOf is the path of a finding, without the number of a process, which changes.
func pathOf(f *inventory.Finding) string {
	if f.Kind == inventory.Process {
		return f.Owner
	}
	return f.Path
}

func instant(text string, now time.Time) (time.Time, bool) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), true
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(-d), true
	}
	for _, form := range []string{time.RFC3339, "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, text, time.Local); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
