package auditor

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newLogShow(o *cli.Options) *cobra.Command {
	var q query
	var follow bool
	cmd := &cobra.Command{
		Use:   "show [LOG]",
		Short: "Print records",
		Long: `Show prints the log's records, one per line, exactly as logged with --output json, or
as a table with --output csv. LOG is a directory or an archive. Times are in the local
zone, or in UTC with --utc, and say so; a time that is given without a zone is in the
same.

It checks the records' form only; vouch log verify checks the proofs.`,
		Example: `  vouch log show --since 1h
  vouch log show --from "2026-11-26 10:00" --until "2026-11-26 11:00" --credential warehouse log.tar
  vouch log show --event x509_svid --spiffe-id spiffe://example.org/agent --outcome denied
  vouch log show --follow --output json | jq .`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.resolve(time.Now(), o.Output); err != nil {
				return err
			}
			fsys, _, done, err := OpenLog(o, args)
			if err != nil {
				return err
			}
			defer done()
			from, err := q.first(fsys)
			if err != nil {
				return err
			}
			records := reader.Records(cmd.Context(), fsys, from)
			if follow {
				records = reader.Follow(cmd.Context(), fsys, from, time.Second/4)
			}
			print := q.printer(cmd.OutOrStdout(), o.Output)
			for e, err := range records {
				if err != nil {
					return stopped(cmd.Context(), err)
				}
				if !q.Wants(&e.Leaf) {
					continue
				}
				if err := print(&e); err != nil {
					return err
				}
			}
			return nil
		},
	}
	q.flags(cmd)
	cmd.Flags().StringVar(&q.Event, "event", "", "only events that begin with this `prefix`, such as jwt_svid")
	cmd.Flags().StringVar(&q.Request, "request", "", "only records of this request `ID`, which the error of a refused call gives")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing new records until interrupted")
	outputs(o, cmd)
	return cmd
}

// stopped is nil if it was the user who ended the command.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// printer returns what prints one record in a format.
func (q *query) printer(w io.Writer, format string) func(*reader.Entry) error {
	switch format {
	case "json":
		return func(e *reader.Entry) error {
			_, err := fmt.Fprintf(w, "%s\n", e.Raw)
			return err
		}
	case "csv":
		t := csv.NewWriter(w)
		t.Write(columns)
		return func(e *reader.Entry) error {
			t.Write(row(&e.Leaf))
			t.Flush()
			return t.Error()
		}
	}
	return func(e *reader.Entry) error {
		_, err := fmt.Fprintln(w, q.line(&e.Leaf))
		return err
	}
}

// line is one record for people: when, what, how it went, about whom, and who
// asked. The leaf's texts are escaped already.
func (q *query) line(l *audit.Leaf) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d  %s  %-7s  %s", l.Index, l.Time.In(q.zone).Format("2006-01-02 15:04:05.000Z07:00"), analyst.Word(l), l.Event)
	if l.SPIFFEID != "" {
		fmt.Fprintf(&b, "  %s", l.SPIFFEID)
	}
	if s := l.SVID; s != nil && s.ID != "" {
		fmt.Fprintf(&b, "  %s", s.ID)
		if names := slices.DeleteFunc(slices.Concat([]string{s.CommonName}, s.DNSNames), func(n string) bool { return n == "" }); len(names) > 0 {
			fmt.Fprintf(&b, " named %s", strings.Join(slices.Compact(names), ","))
		}
		if !s.NotAfter.IsZero() {
			fmt.Fprintf(&b, " until %s", q.near(s.NotAfter, l.Time))
		}
		if s.Offline {
			b.WriteString(" while the SPIRE server was away")
		}
	}
	if l.Credential != nil {
		b.WriteString(q.credential(l))
	}
	if l.Call != nil {
		fmt.Fprintf(&b, "  %s", analyst.Call(l))
	}
	if k := l.Key; k != nil {
		fmt.Fprintf(&b, "  key %s", k.KeyID)
	}
	if f := l.Federation; f != nil {
		fmt.Fprintf(&b, "  %s from %s", f.TrustDomain, f.Source)
		if f.SHA256 != "" {
			fmt.Fprintf(&b, "  sequence %d, %s, %s", f.Sequence, cli.Count(uint64(f.Roots), "root", "roots"), cli.Count(uint64(f.Keys), "key", "keys"))
		}
	}
	if l.SPIRE != nil {
		b.WriteString(q.spire(l))
	}
	if w := l.Workload; w != nil {
		fmt.Fprintf(&b, "  pid %d uid %d %s", w.PID, w.UID, w.Path)
	}
	if l.Log != nil && l.Event == audit.EventAnchor {
		b.WriteString("  covers " + cli.Count(l.Log.Size, "record", "records"))
	}
	if reason := analyst.Reason(l); reason != "" {
		fmt.Fprintf(&b, "  (%s)", reason)
	}
	return b.String()
}

// spire says what passed between this host and its SPIRE server.
func (q *query) spire(l *audit.Leaf) string {
	var b strings.Builder
	s := l.SPIRE
	switch l.Event {
	case audit.EventSPIREAttest:
		fmt.Fprintf(&b, "  %s at %s by %s", s.Agent, s.Server, s.Attestor)
	case audit.EventSPIREBundle:
		fmt.Fprintf(&b, "  %s  sequence %d, %s", s.TrustDomain, s.Sequence, cli.Count(uint64(len(s.Authorities)), "authority", "authorities"))
		if len(s.Tainted) > 0 {
			fmt.Fprintf(&b, ", tainted: %s", strings.Join(s.Tainted, " "))
		}
	case audit.EventSPIREEntries:
		fmt.Fprintf(&b, "  %s: %d added, %d removed, %d changed", cli.Count(uint64(s.Entries), "entry", "entries"), len(s.Added), len(s.Removed), len(s.Changed))
	case audit.EventSPIRESign:
		fmt.Fprintf(&b, "  entry %s revision %d", s.Entry, s.Revision)
	case audit.EventSPIREOffline, audit.EventSPIREOnline:
		fmt.Fprintf(&b, "  %s", s.Server)
	}
	if !s.NotAfter.IsZero() {
		fmt.Fprintf(&b, " until %s", q.near(s.NotAfter, l.Time))
	}
	return b.String()
}

// credential says which lease a record is about, and what of it.
func (q *query) credential(l *audit.Leaf) string {
	var b strings.Builder
	c, u := l.Credential, l.Use
	for _, of := range []struct{ name, value string }{
		{"", c.Name}, {"as ", c.Handle}, {"at ", c.Upstream}, {"asked for ", c.ScopeAsked}, {"scope ", c.ScopeGranted}, {"in ", c.Exposure},
	} {
		if of.value != "" {
			fmt.Fprintf(&b, "  %s%s", of.name, of.value)
		}
	}
	if !c.NotAfter.IsZero() && analyst.Ending(l) == "" {
		fmt.Fprintf(&b, "  until %s", q.near(c.NotAfter, l.Time))
	}
	switch {
	case u == nil:
	case u.Source == "unknown":
		b.WriteString("  use unknown")
	case u.Count == 0:
		fmt.Fprintf(&b, "  not used, as seen by %s", u.Source)
	default:
		fmt.Fprintf(&b, "  used %s, as seen by %s", analyst.Times(u.Count), u.Source)
	}
	return b.String()
}

// columns are those of a table of records.
var columns = []string{
	"record", "time", "event", "outcome", "spiffe_id", "credential", "kind", "upstream", "handle", "lease", "scope", "not_after",
	"uses", "first_use", "last_use", "seen_by", "svid", "audience", "pid", "uid", "program", "unit", "request", "reason",
	"method", "path", "rule", "status", "sent", "received", "redacted", "calls", "shapes", "rows", "statements",
}

func row(l *audit.Leaf) []string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	cells := make([]string, 0, len(columns))
	add := func(s ...string) { cells = append(cells, s...) }
	add(strconv.FormatUint(l.Index, 10), at(l.Time), string(l.Event), analyst.Word(l), l.SPIFFEID)
	c, u, s, w := l.Credential, l.Use, l.SVID, l.Workload
	if c == nil {
		c = new(audit.Credential)
	}
	add(c.Name, c.Kind, c.Upstream, c.Handle, c.Lease, cmp.Or(c.ScopeGranted, c.ScopeAsked), at(c.NotAfter))
	switch {
	case u == nil:
		add("", "", "", "")
	case u.Source == "unknown":
		add("", "", "", u.Source)
	default:
		add(strconv.FormatUint(u.Count, 10), at(u.First), at(u.Last), u.Source)
	}
	if s == nil {
		s = new(audit.SVID)
	}
	add(s.ID, strings.Join(append(s.Audience, c.Audience...), " "))
	if w == nil {
		add("", "", "", "")
	} else {
		add(strconv.Itoa(w.PID), strconv.FormatUint(uint64(w.UID), 10), w.Path, w.Unit)
	}
	add(l.RequestID, analyst.Reason(l))
	k := l.Call
	if k == nil {
		k = new(audit.Call)
	}
	add(k.Method, k.Path, k.Rule)
	for _, n := range []uint64{k.Status, k.Sent, k.Received, k.Redacted, k.Count} {
		if n == 0 {
			add("")
		} else {
			add(strconv.FormatUint(n, 10))
		}
	}
	add(k.Shapes)
	if k.Rows == 0 {
		add("")
	} else {
		add(strconv.FormatUint(k.Rows, 10))
	}
	add(k.Statements)
	return analyst.Cells(cells)
}
