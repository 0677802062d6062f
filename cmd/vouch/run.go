package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/programs"
)

func newRun(o *options) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "run NAME [-- ARGUMENT...]",
		Short: "Start a program that the administrator has defined, with an identity as strong as a service's",
		Long: `Run has the daemon start a program of /etc/vouchd/programs.d as a transient unit of
systemd, on this terminal: standard streams, signals and the exit code are passed
through. What runs, as which user and with which variables, the definition says,
not the caller.`,
		Example: `  vouch run research
  vouch run research -- --topic tides`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if socket == "" {
				socket = o.runSocket()
			}
			exit, err := programs.Run(cmd.Context(), socket, args[0], args[1:], os.Environ(), [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
			if err != nil {
				return fmt.Errorf("%w; it is there only where systemd is PID 1, see vouch doctor", err)
			}
			if code := exit.Code(); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&socket, "socket", "", "the daemon's run `socket`")
	return cmd
}

// runSocket is the configured one, or where the packages put it: an ordinary
// user may not be able to read the configuration.
func (o *options) runSocket() string {
	if c, err := config.Load(o.config); err == nil {
		return c.RunSocket
	}
	return "/run/vouchd/run.sock"
}

// An exitError ends vouch with the exit code of the program it ran, which has
// said for itself what is wrong.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }
