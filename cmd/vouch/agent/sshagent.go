package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential/sshagent"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func newSSHAgent(*cli.Options) *cobra.Command {
	var l leaser
	var name, listen string
	cmd := &cobra.Command{
		Use:   "ssh-agent --credential NAME {-- COMMAND [ARGUMENT...] | --listen PATH}",
		Short: "Serve as an ssh-agent whose key vouchd certifies",
		Long: `Ssh-agent creates a key in memory, has vouchd certify it for a few minutes at a time,
and signs with it for ssh. Given a command after --, it runs that with SSH_AUTH_SOCK
set, exits when it does, and returns its exit code as exec does. With --listen, it
serves on a socket at that path, which must not exist yet, until it is stopped; as a
service it supports Type=notify.

A new certificate is requested when ssh needs one and the last has aged. The key never
leaves memory; keys cannot be added, and the agent cannot be locked. Only processes of
the same user can connect.`,
		Example: `  vouch ssh-agent --credential web-ssh -- ssh deploy@web1
  vouch ssh-agent --credential web-ssh --param host=web1 -- rsync -a site/ deploy@web1:/srv/site
  vouch ssh-agent --credential web-ssh --listen $XDG_RUNTIME_DIR/vouch-ssh.sock`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case name == "":
				return cli.Usagef("--credential is required")
			case (len(args) > 0) == (listen != ""):
				return cli.Usagef("give either --listen PATH or a command after --")
			}
			if len(args) > 0 {
				return l.sshAgentFor(cmd.Context(), name, args)
			}
			return l.sshAgentAt(cmd.Context(), name, listen, cmd.OutOrStdout())
		},
	}
	l.flags(cmd)
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&name, "credential", "", "`name` of a credential of the ssh broker")
	cmd.Flags().StringArrayVar(&l.params, "param", nil, "choose a parameter, as `key=value`; may be repeated")
	cmd.Flags().StringVar(&listen, "listen", "", "serve on a socket at this `path`")
	return cmd
}

// sshAgentFor serves a command for as long as it runs.
func (l *leaser) sshAgentFor(ctx context.Context, name string, args []string) error {
	dir, err := os.MkdirTemp("", "vouch-ssh-") // which nobody else may enter
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	agent, err := l.newSSHAgent(ctx, name)
	if err != nil {
		return err
	}
	defer agent.client.Close()
	socket := filepath.Join(dir, "agent.sock")
	listener, err := listenAlone(socket)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- agent.Serve(serving, listener) }()
	err = runCommand(args, []string{"SSH_AUTH_SOCK=" + socket}, signals, nil, onRevokeIgnore)
	stop()
	return errors.Join(err, <-ended)
}

// sshAgentAt serves at a path until ctx ends.
func (l *leaser) sshAgentAt(ctx context.Context, name, socket string, out io.Writer) error {
	agent, err := l.newSSHAgent(ctx, name)
	if err != nil {
		return err
	}
	defer agent.client.Close()
	listener, err := listenAlone(socket)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "SSH_AUTH_SOCK=%s; export SSH_AUTH_SOCK;\n", shellQuote(socket)); err != nil {
		listener.Close()
		return err
	}
	if err := systemd.Ready("Serving on " + socket); err != nil {
		listener.Close()
		return err
	}
	return agent.Serve(ctx, listener)
}

// listenAlone listens where only this user may connect, and where nothing is
// yet.
func listenAlone(path string) (*net.UnixListener, error) {
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s exists; if no agent serves it, remove it", path)
	}
	return l, err
}

// An sshAgent is an agent and the connection by which it is kept certified.
type sshAgent struct {
	*sshagent.Agent
	client *cli.Credentials
}

// newSSHAgent returns an agent with its first certificate: a refusal is reported
// by vouch, not by an SSH server.
func (l *leaser) newSSHAgent(ctx context.Context, name string) (*sshAgent, error) {
	client, err := l.client()
	if err != nil {
		return nil, err
	}
	source := &certificates{leaser: l, client: client, name: name}
	a, err := sshagent.New(source, func(err error) { fmt.Fprintf(os.Stderr, "vouch: ssh-agent: %v\n", err) })
	if err == nil {
		_, err = a.Certificate(ctx)
	}
	if err != nil {
		client.Close()
		return nil, err
	}
	return &sshAgent{a, client}, nil
}

// certificates leases certificates. It is a [sshagent.Source].
type certificates struct {
	leaser *leaser
	client *cli.Credentials
	name   string
}

// Certificate leases one for a key.
func (c *certificates) Certificate(ctx context.Context, publicKey string) ([]byte, error) {
	req, err := c.leaser.request(c.name, credentialv1.Exposure_EXPOSURE_MEMORY)
	if err != nil {
		return nil, err
	}
	req.Parameters["public_key"] = publicKey
	ctx, cancel := context.WithTimeout(ctx, c.leaser.timeout)
	defer cancel()
	_, fields, err := c.client.Grant(ctx, req)
	if err != nil {
		return nil, err
	}
	return fieldNamed(c.name, fields, "certificate")
}
