package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/proxy/databases"
	"github.com/vouchd/vouchd/workloadapi/proxy/door"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// newProxy is the process that parses what agents and upstreams send. It has nothing of
// the daemon's: neither its user nor a capability, its TPM or its files.
func newProxy(log *slog.Logger) *cobra.Command {
	var inherited bool
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Make calls for agents, with credentials that they do not hold",
		Long: `Proxy serves /run/vouchd/proxy.sock, where agents call the APIs of others without
their keys. systemd starts it when somebody calls (vouchd-proxy.socket); where there
is no systemd, vouchd does. Each request is decided, and recorded, by the running
daemon, which then gives it what the request is made with.`,
		Example: `  vouchd proxy`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := serveProxy(cmd.Context(), log, inherited)
			if err != nil {
				log.Error("the proxy stopped", "err", err)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&inherited, "inherited", false, "serve the descriptors that vouchd passes")
	cmd.Flags().MarkHidden("inherited")
	return cmd
}

func serveProxy(ctx context.Context, log *slog.Logger, inherited bool) error {
	if err := errors.Join(secret.KeepOutOfDumps(), unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); err != nil {
		return err
	}
	o := door.Options{Logger: log, Databases: databases.New(log)}
	if inherited {
		agents, l, err := inheritedSockets()
		if err != nil {
			return err
		}
		once := make(chan *link.Conn, 1)
		once <- l
		close(once)
		o.Listener, o.Link = agents, func(context.Context) (*link.Conn, error) {
			if l := <-once; l != nil {
				return l, nil
			}
			return nil, io.EOF
		}
		return door.Serve(ctx, o)
	}
	sockets, _, err := passed("proxy", "proxy-link")
	if err != nil {
		return err
	}
	links := sockets["proxy-link"]
	if o.Listener = sockets["proxy"]; o.Listener == nil || links == nil {
		return errors.New("systemd passes no sockets; start vouchd-proxy.socket, or let vouchd start the proxy")
	}
	o.Listener.SetUnlinkOnClose(false)
	links.SetUnlinkOnClose(false)
	defer context.AfterFunc(ctx, func() { links.Close() })()
	o.Link = func(context.Context) (*link.Conn, error) {
		c, err := links.AcceptUnix()
		if err != nil {
			return nil, fmt.Errorf("waiting for vouchd: %w", err)
		}
		return link.New(c), nil
	}
	if err := systemd.Ready("Making calls for agents"); err != nil {
		return err
	}
	err = door.Serve(ctx, o)
	systemd.Stopping()
	return err
}

// The descriptors of a proxy that vouchd starts.
const (
	agentsFD = 3
	linkFD   = 4
)

func inheritedSockets() (*net.UnixListener, *link.Conn, error) {
	f := os.NewFile(agentsFD, "agents")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, nil, fmt.Errorf("taking over the socket for agents: %w", err)
	}
	agents, ok := l.(*net.UnixListener)
	if !ok {
		return nil, nil, fmt.Errorf("the socket for agents is a %T", l)
	}
	agents.SetUnlinkOnClose(false)
	c, err := link.FromFile(os.NewFile(linkFD, "link"))
	return agents, c, err
}

// proxyUser is the account of the proxy's unit.
const proxyUser = "vouchd-proxy"

// startProxy runs the proxy as a child, as a user of its own where this one may choose.
func startProxy(ctx context.Context, agents *net.UnixListener, l *os.File) error {
	defer l.Close()
	f, err := agents.File()
	if err != nil {
		return fmt.Errorf("starting the proxy: %w", err)
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "proxy", "--inherited")
	cmd.Args[0] = "vouchd"
	cmd.ExtraFiles = []*os.File{f, l}
	cmd.Stderr = os.Stderr
	cmd.Env = []string{}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = unprivileged()
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 40 * time.Second // longer than it takes to let calls end
	if err := cmd.Run(); ctx.Err() == nil && err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	return nil
}

// unprivileged returns the proxy's own user, or nobody.
func unprivileged() *syscall.Credential {
	const nobody = 65534
	c := &syscall.Credential{Uid: nobody, Gid: nobody}
	if u, err := user.Lookup(proxyUser); err == nil {
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			c.Uid, c.Gid = uint32(uid), uint32(gid)
		}
	}
	return c
}
