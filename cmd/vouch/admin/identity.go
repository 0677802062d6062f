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

func newEntryDisable(o *cli.Options) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "disable SPIFFE-ID",
		Short: "Cut an identity off, at once and until it is enabled again",
		Long: `Disable cuts an identity off without touching the files of entries: nothing is
issued under it any more, open streams under it end, and its leases are revoked. It
waits a while for the sources of credentials to confirm; what they have not confirmed
by then goes on, and it exits 1. That outlives restarts of the daemon.

SVIDs that were issued before are valid until they expire: an hour or a few minutes,
see x509_svid_ttl and jwt_svid_ttl. Whoever relies on them can be told by other means
only.`,
		Example: `  vouch entry disable spiffe://example.org/agent/research --reason 'incident 4211'
  vouch entry enable spiffe://example.org/agent/research`,
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
				fmt.Fprintf(w, "%s is disabled%s; %d leases ended or ending\n", done.SPIFFEID, again, done.Leases)
			}); err != nil {
				return err
			}
			if done.Unfinished != "" {
				return errors.New(done.Unfinished)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the log and for those who list entries; one `line`")
	return cmd
}

func newEntryEnable(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:     "enable SPIFFE-ID",
		Short:   "Take an identity up again that was disabled",
		Example: `  vouch entry enable spiffe://example.org/agent/research`,
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

// identity reads an argument, and returns a client to say it to.
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
