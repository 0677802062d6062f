package analyst

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// WriteText writes the usage for people, with times in a zone.
func (u *Usage) WriteText(w io.Writer, zone *time.Location) error {
	t := usageText{zone: zone}
	t.printf("%s\nrecords: %d, identities: %d, requests of processes that matched no entry: %d\n",
		u.period(zone), u.Records, len(u.Identities), u.Unmatched)
	t.boot(u)
	for _, id := range u.Identities {
		t.identity(id)
	}
	for _, s := range u.Secrets {
		t.printf("\n%s\n", s.text(u.end, zone))
	}
	t.static(u)
	if u.Left > 0 {
		t.printf("\n%d records are left out: there are more identities or leases than this report holds\n", u.Left)
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// period is what the usage is about.
func (u *Usage) period(zone *time.Location) string {
	switch {
	case u.From.IsZero() && u.Until.IsZero():
		return "The whole log, times in " + zoneName(u.end, zone)
	case u.From.IsZero():
		return "Until " + stamp(u.Until, zone)
	case u.Until.IsZero():
		return "From " + stamp(u.From, zone)
	}
	return "From " + stamp(u.From, zone) + " until " + stamp(u.Until, zone)
}

// zoneName is a zone for people, with its offset where it is not UTC.
func zoneName(t time.Time, zone *time.Location) string {
	if zone == time.UTC {
		return "UTC"
	}
	return t.In(zone).Format("MST (Z07:00)")
}

type usageText struct {
	b    strings.Builder
	zone *time.Location
}

func (t *usageText) printf(format string, args ...any) { fmt.Fprintf(&t.b, format, args...) }
func (t *usageText) time(at time.Time) string          { return stamp(at, t.zone) }

func (t *usageText) boot(u *Usage) {
	if len(u.Boot) == 0 {
		t.printf("boot state: no record of it\n")
		return
	}
	for _, s := range u.Boot {
		if len(s.Changed) > 0 {
			t.printf("  ! changed at %s (record %d): %s\n", t.time(s.Time), s.Index, strings.Join(s.Changed, ", "))
			continue
		}
		t.printf("boot state: PCRs %s, reset count %d, since %s (record %d)\n", or(s.PCRSHA256, "not recorded"), s.Resets, t.time(s.Time), s.Index)
		if !s.Passed {
			t.printf("  ! the machine does not satisfy its policy: %s\n", s.Reason)
		}
	}
	if len(u.Boot) == 1 {
		t.printf("  unchanged\n")
	}
	if u.BootLeft > 0 {
		t.printf("  %d more changes are left out\n", u.BootLeft)
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (t *usageText) identity(id *IdentityUsage) {
	span := "no record of its own"
	if !id.First.IsZero() {
		span = t.time(id.First) + " to " + t.time(id.Last)
	}
	t.printf("\n%s\n  %s; X509-SVIDs: %d, JWT-SVIDs: %d, credentials: %d, denied: %d, errors: %d, programs: %d\n",
		id.SPIFFEID, span, id.X509SVIDs, id.JWTSVIDs, id.Granted, id.Denied, id.Errors, len(id.Programs))
	if id.WITSVIDs > 0 {
		t.printf("  WIT-SVIDs: %d\n", id.WITSVIDs)
	}
	if len(id.Audiences) > 0 {
		t.printf("  audiences: %s\n", strings.Join(id.Audiences, ", "))
	}
	for _, c := range id.Credentials {
		t.credential(c)
	}
	for _, a := range id.Anomalies {
		t.printf("  ! %s\n", a)
	}
}

// static is what an inventory has of secrets that nobody has changed for long.
func (t *usageText) static(u *Usage) {
	if u.Inventory.IsZero() {
		return
	}
	t.printf("\nstatic secrets outside of vouchd that are older than %d days, or %d if shared or broad: %d (inventory of %s)\n",
		staticDays, broadDays, len(u.Static), t.time(u.Inventory))
	for i := range u.Static {
		t.printf("%s\n", u.Static[i].text())
	}
}

// credential is what was granted, what became of it, and how it was used.
func (t *usageText) credential(c *CredentialUsage) {
	granted := []string{"granted " + Times(c.Grants)}
	if c.Grants == 0 {
		granted[0] = "not granted"
	}
	for _, part := range []struct {
		n    uint64
		what string
	}{{c.Earlier, "held from before"}, {c.Denied, "denied"}, {c.Errors, "failed"}} {
		if part.n > 0 {
			granted = append(granted, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	t.printf("  credential %s: %s; %s\n", c.Name, strings.Join(granted, ", "), t.use(c))
	if became := c.became(); became != "" {
		t.printf("    of the grants: %s\n", became)
	}
	if len(c.Scopes) > 0 {
		t.printf("    scopes: %s\n", strings.Join(c.Scopes, ", "))
	}
	for _, g := range c.Unused {
		t.printf("    never used: %s, granted at %s (record %d)\n", or(g.Handle, "a lease"), t.time(g.Time), g.Index)
	}
}

func (t *usageText) use(c *CredentialUsage) string {
	if c.Calls != nil {
		return c.Calls.said()
	}
	s := "used " + Times(c.Uses)
	switch {
	case c.Uses == 0 && c.Unseen > 0:
		return "use unknown: nobody could see it; cost not recorded"
	case c.Uses == 0 && c.NeverUsed > 0 && c.Held == 0:
		return "never used"
	case c.Uses == 0:
		return "no use recorded"
	}
	s += ", " + t.time(c.FirstUse) + " to " + t.time(c.LastUse)
	if c.UsesInPart {
		s += " (some of it outside of the time)"
	}
	if c.Unseen > 0 {
		s += ", and " + Count(c.Unseen, "lease") + " whose use nobody could see"
	}
	return s + "; cost not recorded"
}

// became is what became of the grants.
func (c *CredentialUsage) became() string {
	var parts []string
	for _, how := range []End{EndRevoked, EndExpired, EndReleased} {
		if n := c.Ended[how]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, how))
		}
	}
	if c.Held > 0 {
		parts = append(parts, fmt.Sprintf("%d held", c.Held))
	}
	return strings.Join(parts, ", ")
}

// WriteCSV writes the usage as a table, a row for what an identity got of each
// kind.
func (u *Usage) WriteCSV(w io.Writer) error {
	t := csv.NewWriter(w)
	t.Write([]string{
		"spiffe_id", "what", "granted", "denied", "failed", "revoked", "expired", "released", "held", "leases_from_before",
		"uses", "uses_in_part", "uses_nobody_saw", "never_used", "first_use", "last_use", "broader_than_asked", "scopes",
	})
	for _, id := range u.Identities {
		for _, svid := range []struct {
			what string
			n    uint64
		}{{"x509_svid", id.X509SVIDs}, {"jwt_svid", id.JWTSVIDs}, {"wit_svid", id.WITSVIDs}} {
			if svid.n > 0 {
				t.Write(slices.Concat(cells(id.SPIFFEID, svid.what), numbers(svid.n), make([]string, 15)))
			}
		}
		for _, c := range id.Credentials {
			t.Write(slices.Concat(
				cells(id.SPIFFEID, "credential "+c.Name),
				numbers(c.Grants, c.Denied, c.Errors, c.Ended[EndRevoked], c.Ended[EndExpired], c.Ended[EndReleased], c.Held, c.Earlier, c.Uses),
				[]string{strconv.FormatBool(c.UsesInPart)}, numbers(c.Unseen, c.NeverUsed),
				cells(cellTime(c.FirstUse), cellTime(c.LastUse)), numbers(c.BroaderBy), cells(strings.Join(c.Scopes, ", ")),
			))
		}
	}
	t.Flush()
	return t.Error()
}

func numbers(all ...uint64) (s []string) {
	for _, n := range all {
		s = append(s, strconv.FormatUint(n, 10))
	}
	return s
}

func cellTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func cells(all ...string) []string { return Cells(all) }

// Cells keeps a spreadsheet from taking texts from outside for formulas, in a row
// of a table.
func Cells(row []string) []string {
	for i, s := range row {
		if s != "" && strings.ContainsRune("=+-@", rune(s[0])) {
			row[i] = "'" + s
		}
	}
	return row
}
