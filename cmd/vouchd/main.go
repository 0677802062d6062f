// Command vouchd is the daemon: it proves the machine with its TPM and local
// processes with the kernel, and issues them SPIFFE identities over a Unix
// socket.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/systemd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var file string
	var overrides []string
	log := slog.New(systemd.LogHandler(os.Stderr, systemd.JournalSocket, slog.NewTextHandler(os.Stderr, nil)))
	cmd := &cobra.Command{
		Use:   "vouchd",
		Short: "Serve short-lived identities to the processes of this host",
		Long: `vouchd proves with the machine's TPM 2.0 which host this is, asks the kernel what
each local process is, and serves SPIFFE identities over a Unix socket to those
that a registration entry names. It runs in the foreground and logs to standard
error. SIGHUP reloads the entries, which also happens whenever they change.`,
		Example: `  vouchd
  vouchd --config ./vouchd.yaml
  vouchd --set tpm=unix:/run/swtpm.sock --set state_dir=/tmp/vouchd`,
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := secret.KeepOutOfDumps()
			var c *config.Config
			if err == nil {
				c, err = config.Load(file, overrides...)
			}
			if err == nil {
				for _, w := range c.Warnings {
					log.Warn(w)
				}
				err = run(cmd.Context(), log, c)
			}
			if err != nil {
				log.Error("vouchd stopped", "err", err)
			}
			return err
		},
	}
	cmd.SetVersionTemplate(version.Text("vouchd"))
	cmd.CompletionOptions.DisableDefaultCmd = true // systemd starts it
	cmd.AddCommand(newPrograms(log, &file, &overrides), newProxy(log))
	cmd.PersistentFlags().StringVar(&file, "config", "/etc/vouchd/vouchd.yaml", "configuration `file`")
	cmd.PersistentFlags().StringArrayVar(&overrides, "set", nil, "override one configuration key, as `key=value`; may be repeated")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		fmt.Fprintf(os.Stderr, "vouchd: %v; see vouchd --help\n", err)
		os.Exit(2)
		return nil
	})
	return cmd
}

// run runs the daemon until the context ends. SIGHUP is caught first: it would
// end a daemon that is still starting.
func run(ctx context.Context, log *slog.Logger, c *config.Config) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	sockets, files, err := passed("agent", "admin", "systemd")
	if err != nil {
		return err
	}
	return daemon.Run(ctx, daemon.Options{
		Config: c, Logger: log, Sockets: sockets, Measured: files["measured"], Reload: hup, Proxy: startProxy,
	})
}

// passed returns the sockets and files that systemd has opened, by their names.
func passed(names ...string) (map[string]*net.UnixListener, map[string]*os.File, error) {
	sockets, files, err := systemd.Passed()
	for name := range sockets {
		if !slices.Contains(names, name) {
			return nil, nil, fmt.Errorf("systemd passes a socket named %q; the unit's FileDescriptorName must be %s", name, strings.Join(names, " or "))
		}
	}
	return sockets, files, err
}
