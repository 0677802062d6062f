package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/proxy"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// A StartProxy runs the process that makes calls (package door), until the context ends,
// with the socket for agents and its end of the link. The file is closed.
type StartProxy func(ctx context.Context, agents *net.UnixListener, link *os.File) error

// proxying keeps a process that makes calls, while there are credentials to make them
// with. Where systemd has the process's socket, systemd starts it; elsewhere the daemon
// does. It may end at any time: nothing else of the daemon's depends on it.
type proxying struct {
	socket  string // for agents
	start   StartProxy
	leases  *leases
	server  *proxy.Server
	changed chan struct{} // definitions may be others
	slog    *slog.Logger

	failed atomic.Pointer[error] // why the process ended, while there is no other
}

func newProxying(socket string, start StartProxy, i *identities, l *leases, logger *slog.Logger) *proxying {
	return &proxying{
		socket: socket, start: start, leases: l, slog: logger, changed: make(chan struct{}, 1),
		server: proxy.New(proxy.Options{
			Gate: i.gate, Recorder: l.recorder, Leases: l.engine, Logger: logger, BootID: l.pins.BootID(), Holder: i.leasing.Holder,
			Dir: filepath.Dir(socket),
		}),
	}
}

// refresh tells of definitions that have been loaded.
func (p *proxying) refresh() {
	select {
	case p.changed <- struct{}{}:
	default: // it will look
	}
}

// proxyRestart is how long a process that has ended is waited with.
const proxyRestart = time.Second

// run returns when the context ends.
func (p *proxying) run(ctx context.Context) error {
	var agents *net.UnixListener
	defer func() {
		p.server.Close()
		if agents != nil {
			agents.Close()
		}
	}()
	for ctx.Err() == nil {
		if !p.needed() {
			select {
			case <-p.changed:
			case <-ctx.Done():
			}
			continue
		}
		err := p.serve(ctx, &agents)
		if ctx.Err() != nil {
			return nil
		}
		p.failed.Store(&err)
		p.slog.Error("the proxy has ended; it is started again", "err", err)
		select {
		case <-time.After(proxyRestart):
		case <-ctx.Done():
		}
	}
	return nil
}

// proxySettles is how long a process has to serve before the last one's end is no longer
// a problem.
const proxySettles = 5 * time.Second

// report says why no calls are made, if so.
func (p *proxying) report(problem problemf) {
	if err := p.failed.Load(); err != nil && p.needed() {
		problem("no calls are made for agents: the proxy ended: %v; see journalctl -u vouchd-proxy", *err)
	}
	for _, err := range p.server.Problems() {
		problem("%v", err)
	}
}

// needed reports whether calls are made with any credential.
func (p *proxying) needed() bool {
	for _, d := range p.leases.engine.Definitions().All() {
		if d.Proxy != nil || d.Database != nil {
			return true
		}
	}
	return false
}

// linkName is the name of the socket, beside that for agents, at which a process that
// systemd starts waits for the daemon.
const linkName = "proxy-link.sock"

// serve decides calls until the process that makes them has ended.
func (p *proxying) serve(ctx context.Context, agents **net.UnixListener) error {
	group, ctx := errgroup.WithContext(ctx)
	var l *link.Conn
	at := filepath.Join(filepath.Dir(p.socket), linkName)
	if info, err := os.Stat(at); err == nil && info.Mode().Type() == fs.ModeSocket {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: at, Net: "unixpacket"})
		if err != nil {
			return fmt.Errorf("calling vouchd-proxy.service: %w", err)
		}
		l = link.New(c)
	} else {
		if p.start == nil {
			return fmt.Errorf("there is no socket %s, and nothing to start the proxy with", at)
		}
		if *agents == nil {
			var err error
			if *agents, err = gate.ListenAt(p.socket, 0o666); err != nil {
				return err
			}
		}
		ours, theirs, err := link.Pair()
		if err != nil {
			return err
		}
		l = ours
		group.Go(func() error { return ended(p.start(ctx, *agents, theirs)) })
	}
	group.Go(func() error {
		served := time.AfterFunc(proxySettles, func() { p.failed.Store(nil) })
		defer served.Stop()
		return ended(p.server.Serve(ctx, l))
	})
	group.Go(func() error {
		for {
			select {
			case <-p.changed:
				p.server.Refresh()
			case <-ctx.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

var errProxyEnded = errors.New("its process exited")

// ended is an error in any case: the other half is to end too.
func ended(err error) error {
	if err == nil {
		return errProxyEnded
	}
	return err
}

// proxied reports whether a credential reaches nobody but the proxy, which opens its value
// anew for each call.
func proxied(d *credential.Definition) bool {
	return d.Deliver == credential.DeliverProxy && d.Traits.Secret != ""
}
