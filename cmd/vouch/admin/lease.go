package admin

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newLease(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "List and revoke credential leases",
	}
	cmd.AddCommand(newLeaseList(o), newLeaseRevoke(o))
	return cmd
}

func newLeaseList(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List leases that have not ended",
		Long: `List prints every lease that has not ended: its ID in the log, who has which credential
until when, the credential's name at its source, and why a lease that should have ended
has not.`,
		Example: `  vouch lease list
  vouch lease list --output json | jq '.[] | select(.state == "stuck")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			leases, err := client.Leases(cmd.Context())
			if err != nil {
				return err
			}
			return o.Print(cmd, leases, func(out io.Writer) {
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				for _, l := range leases {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\tpid %d\t%s at %s\tuntil %s", l.Lease, l.Credential, l.SPIFFEID, l.State, l.PID, l.Handle, l.Upstream, cli.Time(l.Expires))
					if l.Reason != "" {
						fmt.Fprintf(w, "\t%s, %s failed", l.Reason, cli.Count(l.Attempts, "attempt", "attempts"))
					}
					if l.Failure != "" {
						fmt.Fprintf(w, ", the last with: %s", l.Failure)
					}
					fmt.Fprintln(w)
				}
				w.Flush()
			})
		},
	}
}

func newLeaseRevoke(o *cli.Options) *cobra.Command {
	var identity string
	var where view.Where
	cmd := &cobra.Command{
		Use:   "revoke --identity ID | --credential NAME | --all",
		Short: "Revoke leases now",
		Long: `Revoke ends leases at their sources: those of an identity, of a credential, of both
together, or all. It waits a short while for the sources to confirm. If some have not,
the daemon keeps trying and the command exits 1. A credential that can only expire works
until it does: vouch lease list shows which. A process that is still entitled can ask
again, so remove its entry or disable its identity first.`,
		Example: `  vouch lease revoke --identity spiffe://example.org/agent/research
  vouch lease revoke --credential warehouse-readonly
  vouch lease revoke --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if identity != "" {
				if where.Identity, err = spiffeid.FromString(identity); err != nil {
					return cli.Usagef("--identity %q: %w", identity, err)
				}
			}
			if narrow := identity != "" || where.Credential != ""; narrow == where.All {
				return cli.Usagef("--identity, --credential or both are required, or --all alone")
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			done, err := client.RevokeLeases(cmd.Context(), where)
			if err != nil {
				return err
			}
			if err := o.Print(cmd, done, func(w io.Writer) { fmt.Fprintf(w, "%s ended or ending\n", cli.Count(done.Leases, "lease", "leases")) }); err != nil {
				return err
			}
			if done.Unfinished != "" {
				return errors.New(done.Unfinished)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&identity, "identity", "", "leases of this `SPIFFE ID`")
	cmd.Flags().StringVar(&where.Credential, "credential", "", "leases of this credential, by `name`")
	cmd.Flags().BoolVar(&where.All, "all", false, "every lease")
	return cmd
}
