package admin

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newEntry(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "entry",
		Short: "List, explain and write registration entries",
	}
	cmd.AddCommand(newEntryList(o), newEntryExplain(o), newEntryNew(o),
		cli.Deprecated(newIdentityDisable(o), "vouch identity disable"), cli.Deprecated(newIdentityEnable(o), "vouch identity enable"))
	return cmd
}

func newEntryList(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the registration entries in force",
		Example: `  vouch entry list
  vouch entry list --output json | jq -r '.[].spiffe_id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			entries, err := client.Entries(cmd.Context())
			if err != nil {
				return err
			}
			return o.Print(cmd, entries, func(w io.Writer) {
				for _, e := range entries {
					printEntry(w, e)
				}
			})
		},
	}
}

func printEntry(w io.Writer, e view.Entry) {
	fmt.Fprintf(w, "%s  (%s)%s\n", e.SPIFFEID, e.Position, disabledNote(e))
	for _, s := range e.Selectors {
		fmt.Fprintf(w, "    %s\n", s)
	}
	printNames(w, "    ", e)
	if e.Unanchored {
		fmt.Fprintln(w, "    unanchored: any user of this machine can have it")
	}
	if e.Container {
		fmt.Fprintln(w, "    container processes only")
	}
}

// printNames says what the certificate has beside the SPIFFE ID, who else is trusted, and
// what signs tokens.
func printNames(w io.Writer, indent string, e view.Entry) {
	if len(e.DNSNames) > 0 {
		fmt.Fprintf(w, "%sDNS names: %s\n", indent, strings.Join(e.DNSNames, ", "))
	}
	if e.CommonName != "" {
		fmt.Fprintf(w, "%scommon name: %s\n", indent, e.CommonName)
	}
	if len(e.FederatesWith) > 0 {
		fmt.Fprintf(w, "%sfederates with: %s\n", indent, strings.Join(e.FederatesWith, ", "))
	}
	if e.JWTAlgorithm != "" {
		fmt.Fprintf(w, "%sJWT-SVIDs signed with %s\n", indent, e.JWTAlgorithm)
	}
}

func newEntryExplain(o *cli.Options) *cobra.Command {
	var self bool
	cmd := &cobra.Command{
		Use:   "explain PID|--self",
		Short: "Explain which entries a process matches, and why",
		Long: `Explain attests a process as if it had asked for its identity. It prints the process's
selectors and what vouches for each, the entries that match, and what is missing for
those that nearly match. It exits 1 unless an entry with an enabled identity matches.`,
		Example: `  vouch entry explain $$
  vouch entry explain --self
  vouch entry explain $(systemctl show -p MainPID --value agent.service)`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if self == (len(args) == 1) {
				return cli.Usagef("give a PID, or --self")
			}
			pid := os.Getpid()
			if !self {
				var err error
				if pid, err = strconv.Atoi(args[0]); err != nil || pid <= 0 {
					return cli.Usagef("%q is not a process ID", args[0])
				}
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			x, err := client.Explain(cmd.Context(), pid)
			if err != nil {
				return err
			}
			if err := o.Print(cmd, x, func(w io.Writer) { printExplanation(w, x) }); err != nil {
				return err
			}
			if !slices.ContainsFunc(x.Matches, func(e view.Entry) bool { return e.Disabled == nil }) {
				return cli.ErrSaid
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&self, "self", false, "explain this process")
	return cmd
}

func printExplanation(w io.Writer, x view.Explanation) {
	fmt.Fprintf(w, "process %d runs %s\n\nselectors:\n", x.PID, x.Path)
	for _, s := range x.Selectors {
		fmt.Fprintf(w, "  %-17s %s\n", s.Trust, s.Selector)
	}
	for _, gap := range x.Gaps {
		fmt.Fprintf(w, "  unknown: %s\n", gap)
	}
	if len(x.Matches) == 0 {
		fmt.Fprint(w, "\nmatches no entry\n")
	} else {
		fmt.Fprint(w, "\nmatches:\n")
	}
	for _, e := range x.Matches {
		fmt.Fprintf(w, "  %s  (%s)%s\n", e.SPIFFEID, e.Position, disabledNote(e))
		printNames(w, "    ", e)
	}
	if x.HeldBack != "" {
		fmt.Fprintf(w, "\nnewer entries are not in force:\n  %s\n", x.HeldBack)
	}
	for _, m := range x.Nearest {
		fmt.Fprintf(w, "\nalmost %s  (%s), but it has no\n  %s\n", m.SPIFFEID, m.Position, strings.Join(m.Missing, "\n  "))
	}
}
