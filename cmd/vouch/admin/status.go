package admin

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/doctor"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newStatus(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon's status and any problems",
		Long: `Status asks the running daemon. It exits 1 if the daemon cannot be reached or reports
a problem. Problems come first, each with how to fix it. Digests are cut short; JSON has
them whole.`,
		Example: `  vouch status
  vouch status --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if err := o.Print(cmd, st, func(w io.Writer) { printStatus(w, st) }); err != nil {
				return err
			}
			if len(st.Problems) > 0 {
				return cli.ErrSaid
			}
			return nil
		},
	}
}

// printStatus says what is wrong first, and then what there is.
func printStatus(w io.Writer, st view.Status) {
	for _, p := range st.Problems {
		fmt.Fprintln(w, cli.Wrap(w, "problem: "+p, "         "))
	}
	for _, r := range st.Reminders {
		fmt.Fprintln(w, cli.Wrap(w, "reminder: "+r, "          "))
	}
	if len(st.Problems)+len(st.Reminders) > 0 {
		fmt.Fprintln(w)
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintln(w, cli.Wrap(w, fmt.Sprintf("%-14s", name)+fmt.Sprintf(format, args...), strings.Repeat(" ", 14)))
	}
	row("trust domain", "%s", st.TrustDomain)
	row("version", "%s, up %s", st.Version, cli.Ago(st.Started))
	row("TPM", "%s, EK %s", st.TPM.Address, cli.Short(st.TPM.EKSHA256))
	for _, object := range st.TPM.Ignored {
		row("", "ignored %s", object)
	}
	row("node", "%s", doctor.NodeLine(st.Node))
	if e := st.Node.Enrolment; e != nil {
		row("enrolled", "by root %s until %s", cli.Short(e.RootSHA256), cli.Time(e.NotAfter))
	}
	if a := st.Node.Agent; a != nil {
		row("agent's leaf", "%s, by root %s until %s", a.Agent, cli.Short(a.RootSHA256), cli.Time(a.NotAfter))
	}
	for _, root := range st.Authority.RootSHA256 {
		row("root", "%s", root)
	}
	if v := st.Authority.Vault; v != nil && v.Serial != "" {
		row("certified", "by %s until %s, next %s", v.Address, cli.Time(v.NotAfter), cli.Time(v.Next))
	}
	if s := st.Authority.SPIRE; s != nil {
		printSPIRE(row, s)
	} else {
		printKeys(row, st.Authority)
	}
	disabled := ""
	if n := st.Entries.Disabled; n > 0 {
		disabled = fmt.Sprintf("; %s disabled, see vouch entry list", cli.Count(n, "identity", "identities"))
	}
	row("entries", "%d from %s, loaded %s ago%s", st.Entries.Count, st.Entries.Dir, cli.Ago(st.Entries.Loaded), disabled)
	for _, f := range st.Federation.TrustDomains {
		printForeign(row, f)
	}
	row("credentials", "%d from %s, %s", st.Credentials.Count, st.Credentials.Dir, cli.Count(st.Credentials.Leases, "lease", "leases"))
	row("secrets", "%d sealed to this machine, %d due to be rotated", st.Secrets.Count, st.Secrets.Due)
	row("streams", "%d open", st.Streams)
	row("log", "%s in %s, %d anchored in the TPM, last %s ago", cli.Count(st.Log.Records, "record", "records"), st.Log.Dir, st.Log.Anchored, cli.Ago(st.Log.LastAnchor))
	for _, x := range st.Log.Witnesses {
		row("witness", "%s signed %s, last %s ago", x.Name, cli.Count(x.Records, "record", "records"), cli.Ago(x.Time))
	}
}

// printKeys says which keys of this host's sign.
func printKeys(row func(name, format string, args ...any), a view.AuthorityStatus) {
	row("issuing CA", "%s until %s", cli.Short(a.IssuingCAKeyID), cli.Time(a.IssuingCANotAfter))
	switch {
	case a.JWTKeyID == "":
		row("JWT key", "being made")
	case a.JWTKeyUntil.IsZero():
		row("JWT key", "%s in the TPM", cli.Short(a.JWTKeyID))
	default:
		row("JWT key", "%s signs until %s", cli.Short(a.JWTKeyID), cli.Time(a.JWTKeyUntil))
	}
}

// printSPIRE says how it stands with the server, and what happens if that stays away.
func printSPIRE(row func(name, format string, args ...any), s *view.SPIREStatus) {
	how := "away"
	if s.Online {
		how = "online"
	}
	if !s.Since.IsZero() {
		how += " since " + cli.Time(s.Since)
	}
	if !s.LastSync.IsZero() {
		how += ", last sync " + cli.Ago(s.LastSync) + " ago"
	}
	row("SPIRE server", "%s, %s", s.Server, how)
	if s.Agent == "" {
		row("agent", "not attested, by %s", s.Attestor)
		return
	}
	row("agent", "%s, by %s, until %s", s.Agent, s.Attestor, cli.Time(s.AgentNotAfter))
	until := func(t time.Time) string {
		if t.IsZero() {
			return "no longer"
		}
		return "until " + cli.Time(t)
	}
	if !s.DownstreamUntil.IsZero() {
		row("own CA", "below the SPIRE server's, until %s", cli.Time(s.DownstreamUntil))
	}
	row("without it", "X509-SVIDs are served %s, kept JWT-SVIDs %s, anything new %s", until(s.X509Until), until(s.JWTUntil), until(s.EntriesUntil))
}

// printForeign says what is known of another trust domain, from where, and until when.
func printForeign(row func(name, format string, args ...any), f view.ForeignStatus) {
	if f.Since.IsZero() {
		row("federation", "%s: no bundle, for %s", f.TrustDomain, cli.Count(f.Entries, "entry", "entries"))
	} else {
		row("federation", "%s: sequence %d, %s, %s, for %s", f.TrustDomain, f.Sequence, cli.Count(len(f.RootSHA256), "root", "roots"),
			cli.Count(f.Keys, "JWT key", "JWT keys"), cli.Count(f.Entries, "entry", "entries"))
	}
	for _, root := range f.RootSHA256 {
		row("", "%s", root) // whole, to be compared with what the other host says
	}
	if f.Endpoint == "" {
		row("", "from %s", f.File)
	} else {
		row("", "from %s (%s)", f.Endpoint, f.Profile)
		next := ""
		if !f.Next.IsZero() {
			next = ", next " + cli.Time(f.Next)
		}
		row("", "last fetched %s%s", fetched(f), next)
	}
	if f.Error != "" {
		row("", "error: %s", f.Error)
	}
}

func fetched(f view.ForeignStatus) string {
	if f.Fetched.IsZero() {
		return "never"
	}
	return cli.Time(f.Fetched)
}
