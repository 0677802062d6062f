package admin

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newIdentity(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "identity",
		Short: "Disable and re-enable identities",
		Long: `The identity commands cut an identity off on this host and restore it. They leave the
files in entries.d alone.`,
	}
	cmd.AddCommand(newIdentityDisable(o), newIdentityEnable(o))
	return cmd
}

func newIdentityDisable(o *cli.Options) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "disable SPIFFE-ID",
		Short: "Disable an identity at once, until it is re-enabled",
		Long: `Disable cuts an identity off without changing any file: vouchd issues nothing under
it, ends its open streams and revokes its leases. The identity stays disabled across
restarts of the daemon. The command waits a short while for each source of credentials to
confirm its revocations. If some are still unconfirmed, the daemon keeps trying and the
command exits 1.

SVIDs issued earlier stay valid until they expire, within an hour or a few minutes
(x509_svid_ttl and jwt_svid_ttl). vouchd cannot recall them.`,
		Example: `  vouch identity disable spiffe://example.org/agent/research --reason 'incident 4211'
  vouch identity enable spiffe://example.org/agent/research`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, client, err := identityArgument(o, args[0])
			if err != nil {
				return err
			}
			done, err := client.Disable(cmd.Context(), id, reason)
			if err != nil {
				return err
			}
			if err := o.Print(cmd, done, func(w io.Writer) {
				again := ""
				if !done.Changed {
					again = ", as before"
				}
				fmt.Fprintf(w, "%s is disabled%s; %s ended or ending\n", done.SPIFFEID, again, cli.Count(done.Leases, "lease", "leases"))
			}); err != nil {
				return err
			}
			if done.Unfinished != "" {
				return errors.New(done.Unfinished)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why: one `line`, for the log and for vouch entry list")
	return cmd
}

func newIdentityEnable(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:     "enable SPIFFE-ID",
		Short:   "Re-enable a disabled identity",
		Example: `  vouch identity enable spiffe://example.org/agent/research`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, client, err := identityArgument(o, args[0])
			if err != nil {
				return err
			}
			done, err := client.Enable(cmd.Context(), id)
			if err != nil {
				return err
			}
			return o.Print(cmd, done, func(w io.Writer) {
				if done.Changed {
					fmt.Fprintf(w, "%s is enabled\n", done.SPIFFEID)
				} else {
					fmt.Fprintf(w, "%s was not disabled\n", done.SPIFFEID)
				}
			})
		},
	}
}

// identityArgument parses a SPIFFE ID and returns a client to send it with.
func identityArgument(o *cli.Options, arg string) (spiffeid.ID, *cli.Admin, error) {
	id, err := spiffeid.FromString(arg)
	if err != nil {
		return id, nil, cli.Usagef("%.80q is not a SPIFFE ID: %w", arg, err)
	}
	client, err := o.Admin()
	return id, client, err
}

// disabledNote says that an entry's identity is cut off, behind the entry.
func disabledNote(e view.Entry) string {
	d := e.Disabled
	if d == nil {
		return ""
	}
	note := fmt.Sprintf("  DISABLED since %s by user %d", cli.Time(d.Since), d.By)
	if d.Reason != "" {
		note += ": " + d.Reason
	}
	return note
}
