package auditor

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newLogRestart(o *cli.Options) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "restart --reason TEXT",
		Short: "Begin a new log when the old one is lost or damaged",
		Long: `Restart has the stopped daemon begin a new log, with a new key, at its next start. Use it
when the daemon refuses to start because the log is missing, damaged or an older state,
and no copy can be restored.

Whatever is left of the old log is moved to log-ended-TIME in the state directory;
nothing is deleted. The new log records the reason, the old log's key and how many
records it is known to have had. vouch log verify reports that as a warning for good.`,
		Example: `  systemctl stop vouchd
  sudo -u vouchd vouch log restart --reason 'disk replaced, ticket 4711'
  systemctl start vouchd`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if strings.TrimSpace(reason) == "" {
				return errors.New("say why with --reason; the new log records it")
			}
			c, err := o.Load()
			if err != nil {
				return err
			}
			dir, err := cli.OpenState(c.StateDir, cmd.CommandPath())
			if err != nil {
				return err
			}
			defer dir.Close()
			b, err := audit.RestartRequest{Reason: reason}.Encode()
			if err != nil {
				return err
			}
			if err := dir.Save(audit.RestartFile, 1, b); err != nil {
				return err
			}
			return o.Print(cmd, map[string]bool{"restart": true}, func(w io.Writer) {
				fmt.Fprintln(w, "The daemon begins a new log when it starts, and keeps the old one beside it.")
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, as `TEXT`; it is recorded in the new log")
	return cmd
}
