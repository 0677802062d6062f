package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/systemd"
)

func newRun(o *cli.Options) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "run NAME [-- ARGUMENT...]",
		Short: "Start a program that the administrator has defined, with an identity as strong as a service's",
		Long: `Run has a program of /etc/vouchd/programs.d started as a transient unit of systemd,
on this terminal: standard streams, signals and the exit code are passed through.
What runs, as which user and with which variables, the definition says, not the
caller. Where systemd is not PID 1 there is no vouch run.`,
		Example: `  vouch run research
  vouch run research -- --topic tides`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeProgram(o),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !systemd.IsManager() {
				return errors.New("vouch run needs systemd as PID 1, which it is not here; there is no weaker way")
			}
			if socket == "" {
				socket = runSocket(o)
			}
			exit, err := programs.Run(cmd.Context(), socket, args[0], args[1:], os.Environ(), [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: no program is defined here, or vouchd-programs.path is not started", err)
			}
			if err != nil {
				return err
			}
			if code := exit.Code(); code != 0 {
				return cli.ExitError(code)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&socket, "socket", "", "where to ask: a `path` other than the configuration's run_socket")
	return cmd
}

// completeProgram offers the programs that are defined, whoever may start them.
func completeProgram(o *cli.Options) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := o.Load()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defined, _ := programs.Load(c.ProgramsDir, true)
		return slices.Sorted(maps.Keys(defined)), cobra.ShellCompDirectiveNoFileComp
	}
}

// runSocket is the configured one, or where the packages put it: an ordinary
// user may not be able to read the configuration.
func runSocket(o *cli.Options) string {
	if c, err := o.Load(); err == nil {
		return c.RunSocket
	}
	return "/run/vouchd/run.sock"
}
