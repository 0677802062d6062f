package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vouchd/vouchd/cmd/vouch/loopback"
	"github.com/vouchd/vouchd/cmd/vouch/sandbox"
	"github.com/vouchd/vouchd/cmd/vouch/sandbox/dns"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// sandboxed runs the command where it reaches nothing but the relay.
func (c *caller) sandboxed(ctx context.Context, args, env []string, signals <-chan os.Signal, revoked <-chan struct{}, how execution) error {
	o := sandbox.Options{Command: args, Write: how.write}
	if c.authority != nil {
		files, err := c.files()
		if err != nil {
			return err
		}
		o.Bundle, o.Store = files[bundleFile], files[storeFile]
	}
	s, err := sandbox.Start(ctx, o)
	if err != nil {
		return err
	}
	defer s.Close()
	c.relay.From(s.Diag)
	c.address()
	ctx, cancel := context.WithCancel(ctx)
	ended := c.serve(ctx, s)
	defer func() { cancel(); s.Close(); <-ended }()
	env = append(env, c.environment(s.Proxy.Addr())...)
	env = append(env, proxyVariables(s.Proxy.Addr())...)
	env = append(env, "TMPDIR=/tmp") // another may be hidden
	if o.Bundle != nil {
		env = append(env, trustIn(filepath.Dir(sandbox.BundlePath), s.Proxy.Addr())...)
	}
	if err := s.Release(append(os.Environ(), env...)); err != nil {
		return err
	}
	return follow(s, signals, revoked, how.onRevoke)
}

// serve serves what the command reaches, and reports what it does not, until the context
// ends and the sandbox is closed.
func (c *caller) serve(ctx context.Context, s *sandbox.Sandbox) (ended <-chan struct{}) {
	var serving []func()
	add := func(serve func(context.Context, net.Listener), l net.Listener) {
		serving = append(serving, func() { serve(ctx, l) })
	}
	add(c.relay.Serve, s.Proxy)
	for _, l := range s.TLS {
		add(c.relay.ServeTLS, l)
	}
	for _, l := range s.HTTP {
		add(c.relay.ServeHTTP, l)
	}
	sockets := make(map[netip.Addr]string)
	for name, at := range c.addresses {
		sockets[at] = c.of[name].Socket
	}
	for _, l := range s.Databases {
		add(func(ctx context.Context, l net.Listener) { c.relay.ServeSockets(ctx, l, sockets) }, l)
	}
	serving = append(serving, func() { c.report(ctx, s) }, func() {
		names := &dns.Server{Names: c.names(), Refused: func(remains string) { s.Report(sandbox.Attempt{Kind: "dns", Target: remains, Count: 1}) }}
		if err := names.Serve(ctx, s.DNS, s.DNSTCP); err != nil {
			fmt.Fprintln(os.Stderr, "vouch:", err)
		}
	})
	done, all := make(chan struct{}), make(chan struct{}, len(serving))
	for _, serve := range serving {
		go func() { serve(); all <- struct{}{} }()
	}
	go func() {
		defer close(done)
		for range serving {
			<-all
		}
	}()
	return done
}

// address gives each database an address of its own, since there are no Unix sockets.
func (c *caller) address() {
	c.addresses = make(map[string]netip.Addr)
	at := netip.AddrFrom4([4]byte{127, 0, 1, 0})
	for _, name := range slices.Sorted(maps.Keys(c.of)) {
		if c.of[name].Socket != "" {
			at = at.Next()
			c.addresses[name] = at
		}
	}
}

// names are the hosts that the command finds.
func (c *caller) names() map[string]bool {
	names := make(map[string]bool)
	for _, h := range c.of {
		for _, host := range h.Hosts {
			names[host] = true
		}
	}
	return names
}

// report tells of what the command tried and could not.
func (c *caller) report(ctx context.Context, s *sandbox.Sandbox) {
	tell := func(a relay.Attempt, by ...relay.Process) {
		// Those that came last are told of too, when the command has ended.
		if err := c.relay.Attempt(context.WithoutCancel(ctx), a, by...); err != nil {
			fmt.Fprintf(os.Stderr, "vouch: an attempt to reach %s %s could not be recorded: %v\n", a.Kind, a.Target, err)
		}
	}
	for a := range s.Attempts() {
		var by []relay.Process
		if p, ok := loopback.ProcessOf(a.PID); ok {
			by = append(by, p)
		}
		tell(relay.Attempt{Kind: a.Kind, Target: a.Target, Count: a.Count}, by...)
	}
	if n := s.LeftOut(); n > 0 {
		tell(relay.Attempt{Kind: "other", Target: "more than are recorded one by one", Count: int(n)})
	}
}

var _ running = (*sandbox.Sandbox)(nil)
