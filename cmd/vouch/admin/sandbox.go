package admin

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/sandbox"
	"github.com/vouchd/vouchd/systemd"
)

func newSandbox(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Keep services from reaching anything but the proxy",
		Long: `The sandbox commands are for units of systemd. A command at a terminal is started with
vouch exec --sandbox.`,
	}
	cmd.AddCommand(newSandboxUnit(o))
	return cmd
}

func newSandboxUnit(o *cli.Options) *cobra.Command {
	var proxies []string
	var write bool
	cmd := &cobra.Command{
		Use:   "unit NAME",
		Short: "Print a drop-in that puts a service into a sandbox",
		Long: `Unit prints a drop-in for a service of systemd, by which vouch exec --sandbox starts its
command. The service has a network of its own then, in which every name and address leads
to vouchd's proxy, and no Unix sockets. --write puts the drop-in into place; it counts after
systemctl daemon-reload and a restart of the service.

The drop-in holds the service's command as it is now: remove it, reload, and make it again
when ExecStart= changes.`,
		Example: `  vouch sandbox unit agent --proxy openai,github
  vouch sandbox unit agent.service --proxy openai --write && systemctl daemon-reload && systemctl restart agent`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if !strings.Contains(name, ".") {
				name += ".service"
			}
			if strings.Contains(name, "/") || !strings.HasSuffix(name, ".service") {
				return cli.Usagef("%q is not the name of a service", args[0])
			}
			if !systemd.IsManager() {
				return fmt.Errorf("%s requires systemd as PID 1", cmd.CommandPath())
			}
			var units systemd.Units
			defer units.Close()
			unit, err := units.Unit(cmd.Context(), name)
			if err != nil {
				return err
			}
			text, err := sandbox.DropIn(unit, "/usr/bin/vouch", proxies)
			if err != nil {
				return err
			}
			if write {
				return writeDropIn(cmd, "/etc/systemd/system", unit.Name, text)
			}
			return o.Print(cmd, map[string]string{"unit": unit.Name, "drop_in": text}, func(w io.Writer) { fmt.Fprint(w, text) })
		},
	}
	cmd.Flags().StringSliceVar(&proxies, "proxy", nil, "let it make calls with the credential `NAME`; several with commas; all that is granted without it")
	cmd.Flags().BoolVar(&write, "write", false, "write it to /etc/systemd/system/NAME.service.d/50-vouch-sandbox.conf")
	return cmd
}

// writeDropIn puts a unit's drop-in into place.
func writeDropIn(cmd *cobra.Command, dir, unit, text string) error {
	path := filepath.Join(dir, unit+".d", "50-vouch-sandbox.conf")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "vouch: wrote %s; run: systemctl daemon-reload && systemctl restart %s\n", path, unit)
	return nil
}
