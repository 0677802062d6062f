package analyst

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// What stands out.
const (
	manyInAMinute = 30               // grants
	fewLeases     = 3                // fewer say nothing about a lifetime
	shortLifetime = 10 * time.Minute // shorter ones are not worth shortening
	muchLonger    = 10               // times
)

// conclude says what somebody should look at.
func (id *IdentityUsage) conclude() {
	id.Credentials, id.Anomalies = nil, nil
	note := func(format string, args ...any) { id.Anomalies = append(id.Anomalies, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(id.credentials)) {
		c := id.credentials[name]
		id.Credentials = append(id.Credentials, c)
		if c.NeverUsed > 0 && c.Uses == 0 && c.Unseen == 0 {
			note("credential %s was granted %s and never used: does it need it?", c.Name, Times(c.Grants))
		}
		if c.AfterTTL > 0 {
			note("credential %s was used %s after its lifetime", c.Name, Times(c.AfterTTL))
		}
		if c.BroaderBy > 0 {
			note("credential %s was granted %s with more than was asked for", c.Name, Times(c.BroaderBy))
		}
		if granted, used, long := c.lifetimes.long(); long {
			note("credential %s is leased for %v and is last used %v after the grant: a shorter lifetime would do", c.Name, granted, used)
		}
		if c.peak.most >= manyInAMinute {
			note("credential %s was granted %s within a minute, at %s", c.Name, Times(c.peak.most), c.peak.at.UTC().Format(time.RFC3339))
		}
	}
	if len(id.Programs) > 1 {
		note("%d different programs had this identity", len(id.Programs))
	}
	if got := id.X509SVIDs + id.JWTSVIDs + id.WITSVIDs + id.Granted; id.Denied > got {
		note("denied %s, served %s", Times(id.Denied), Times(got))
	}
}

// Count is a number of things, such as 1 record or 2 records.
func Count[N int | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Times is how often something was.
func Times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func scopes(s string) []string { return strings.Fields(s) }

// scopesOf is what was granted, without what differs from lease to lease, such as
// the name of a role.
func scopesOf(c *audit.Credential) []string {
	s := c.ScopeGranted
	if s == "" {
		return nil
	}
	if c.Handle != "" {
		s = strings.ReplaceAll(s, c.Handle, "{handle}")
	}
	return []string{s}
}

// broader tells whether more was granted than asked for. The two compare only
// where they are in the same words, so that all that was asked for is in what was
// granted.
func broader(asked, granted []string) bool {
	if len(asked) == 0 {
		return false
	}
	for _, a := range asked {
		if !slices.Contains(granted, a) {
			return false
		}
	}
	return slices.ContainsFunc(granted, func(g string) bool { return !slices.Contains(asked, g) })
}

// lifetimes compares how long leases ran to their end with how long they were of
// use.
type lifetimes struct {
	lease    string        // whose use was recorded last
	use      time.Duration // of that
	n        uint64        // leases that ran until they expired, and whose use was seen
	shortest time.Duration // of them
	longest  time.Duration // use of them
}

func (t *lifetimes) used(lease string, until time.Duration) { t.lease, t.use = lease, max(until, 0) }

// ended takes the end of a lease, which is recorded right after its use.
func (t *lifetimes) ended(c *audit.Credential, how End, after time.Duration) {
	if how != EndExpired || c.Revocation == unrevocable || t.lease != c.Lease {
		return
	}
	if t.n++; t.n == 1 || after < t.shortest {
		t.shortest = after
	}
	t.longest = max(t.longest, t.use)
}

func (t *lifetimes) long() (granted, used time.Duration, long bool) {
	return t.shortest.Round(time.Second), t.longest.Round(time.Second),
		t.n >= fewLeases && t.shortest >= shortLifetime && t.shortest > muchLonger*t.longest
}

// A peak is the minute with the most grants.
type peak struct {
	minute, at time.Time
	n, most    uint64
}

func (p *peak) add(t time.Time) {
	if m := t.Truncate(time.Minute); !m.Equal(p.minute) {
		p.minute, p.n = m, 0
	}
	if p.n++; p.n > p.most {
		p.most, p.at = p.n, p.minute
	}
}
