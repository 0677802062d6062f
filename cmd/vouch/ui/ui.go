// Package ui is vouch ui: a page for people that shows what a host's agents may use, do use and
// were refused.
//
// The command serves it itself, as the user who runs it, and asks as the other commands do: the
// daemon on its administrators' socket, and the log's files. It changes nothing. [access] says
// who may look; page makes the pages, of what [source] has gathered.
package ui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// New returns the command.
func New(o *cli.Options) *cobra.Command {
	var listen, socket, dir string
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show agents, leases and refusals on a local page",
		Long: `Ui serves a page on this machine that shows problems, which agents run, what each may
use and did use, what was refused and why, leases, calls under way, and how the machine
and its log are. It prints a link that works once, within 15 minutes; the browser that
opens it may look for up to 8 hours, until the command ends. The page changes nothing.

It is served on a free port of 127.0.0.1, to this user, root and whoever logged in to run
it, and to no other user of the machine. With --socket it is on a Unix socket that only
this user can open. To look from another machine, forward the port or the socket with
ssh -L, as in the examples, and open the link there.

With --dir it shows a log, a copy of one or an archive, and asks no daemon.`,
		Example: `  sudo vouch ui
  sudo vouch ui --listen 127.0.0.1:8300                 # then, on your own machine:
  ssh -L 8300:127.0.0.1:8300 admin@host
  vouch ui --socket /run/user/0/vouch-ui.sock           # as root; then, on your own machine:
  ssh -L 8300:/run/user/0/vouch-ui.sock root@host
  vouch ui --dir ./copy-of/var/lib/vouchd/log`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("listen") && cmd.Flags().Changed("socket") {
				return cli.Usagef("--listen and --socket both say where to serve; give one")
			}
			if o.Output != "text" {
				return cli.Usagef("--output %s: the page is for people; for programs there are vouch status, entry list, lease list and log report", o.Output)
			}
			src, err := newSource(o, dir)
			if err != nil {
				return err
			}
			l, err := listenOn(listen, socket)
			if err != nil {
				return err
			}
			s := server{access: newAccess(time.Now, linkLife, sessionLife), source: src, out: cmd.OutOrStdout(), problems: cmd.ErrOrStderr()}
			return s.run(cmd.Context(), l)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "serve on this `address`: 127.0.0.1 and a port, 0 for a free one")
	cmd.Flags().StringVar(&socket, "socket", "", "serve on a Unix socket at this `path` instead")
	cmd.Flags().StringVar(&dir, "dir", "", "show the log in this `directory` or archive, and ask no daemon")
	return cmd
}

// How long the page is there.
const (
	linkLife    = 15 * time.Minute // of a link that nobody opens
	sessionLife = 8 * time.Hour
)

// A server is one run of the command.
type server struct {
	access        *access
	source        *source
	out, problems io.Writer
}

// run serves until the context ends, the link was not opened in time, or the session is over.
func (s *server) run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	following := make(chan struct{})
	go func() { defer close(following); s.source.follow(ctx) }()
	defer func() { cancel(); <-following }()

	h := &http.Server{
		Handler:           newHandler(s.source, s.access),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          silent,
		ConnContext:       withPeer,
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(guarded(l, s.problems)) }()
	defer h.Close()
	s.announce(l)

	end := time.NewTimer(s.access.linkLife)
	defer end.Stop()
	opened := s.access.opened
	for {
		select {
		case err := <-served:
			return fmt.Errorf("serving on %s: %w", l.Addr(), err)
		case <-ctx.Done():
			return stop(h)
		case by := <-opened:
			opened = nil
			end.Reset(s.access.sessionLife)
			fmt.Fprintf(s.out, "opened by %s; it ends at %s, or with Ctrl-C\n", by, time.Now().Add(s.access.sessionLife).Format("15:04"))
		case <-end.C:
			stop(h)
			if opened != nil {
				return fmt.Errorf("nobody opened the link within %s; run vouch ui again for another", s.access.linkLife)
			}
			fmt.Fprintf(s.out, "%s are over; run vouch ui again for another link\n", s.access.sessionLife)
			return nil
		}
	}
}

// stop lets requests that are being answered end.
func stop(h *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := h.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// announce prints where the page is.
func (s *server) announce(l net.Listener) {
	out := s.out
	host := l.Addr().String()
	if l.Addr().Network() == "unix" {
		host = "127.0.0.1:8300"
		fmt.Fprintf(out, "On your own machine, forward a port to the socket and open the link there:\n\n  ssh -L 8300:%s HOST\n", l.Addr())
	} else {
		fmt.Fprint(out, "Open this link, which works once:\n")
	}
	fmt.Fprintf(out, "\n  http://%s%s\n\n", host, s.access.link())
	fmt.Fprintln(out, "Ctrl-C ends it.")
}

// listenOn listens on a loopback port or a Unix socket.
func listenOn(address, socket string) (net.Listener, error) {
	if socket != "" {
		return listenUnix(socket)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "127.0.0.1" || port == "" || strings.ContainsFunc(port, func(r rune) bool { return r < '0' || r > '9' }) {
		return nil, cli.Usagef("--listen %q: want 127.0.0.1:PORT; the page is served to this machine alone, and ssh -L brings it to another", address)
	}
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w; leave out --listen for a free port", address, err)
	}
	return l, nil
}

// listenUnix makes a socket that this user alone can open. One that a vouch ui which has ended
// left behind is replaced; nothing else is.
func listenUnix(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s exists and is not a socket; name another path", path)
		}
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, fmt.Errorf("something serves on %s already; name another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replacing an old socket: %w", err)
		}
	}
	l, err := private(func() (net.Listener, error) { return net.Listen("unix", path) })
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}
