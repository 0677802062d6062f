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
	"strings"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/loopback"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// socketVariable tells a program where it can call without a base URL of HTTP.
const socketVariable = "VOUCHD_PROXY_SOCKET"

// proxySocket is where calls are made: beside the agent socket, unless the environment
// says otherwise.
func proxySocket(agent string) string {
	if s := os.Getenv(socketVariable); s != "" {
		return s
	}
	return filepath.Join(filepath.Dir(strings.TrimPrefix(cli.Endpoint(agent), "unix://")), "proxy.sock")
}

// A handled credential is one with which vouchd makes the command's calls.
type handled struct {
	*credentialv1.Proxy
	handle string
}

// proxiedOf returns those of the credentials with which calls are made, by name: those
// that are named for it, and those that variables want and nobody is handed. Without any
// that is named, every is all that are granted.
func proxiedOf(ctx context.Context, client *cli.Credentials, vars []variable, named []string, every bool) (map[string]*handled, error) {
	of := make(map[string]*handled)
	if len(vars)+len(named) == 0 && !every {
		return of, nil
	}
	granted, err := client.List(ctx)
	if err != nil {
		return nil, err
	}
	every = every && len(named) == 0
	for _, c := range granted {
		wanted := slices.ContainsFunc(vars, func(v variable) bool { return v.credential == c.Name })
		if c.Proxy == nil || every && c.Proxy.MainOnly || !every && !slices.Contains(named, c.Name) && (!wanted || c.Proxy.Values) {
			continue
		}
		if c.Proxy.MainOnly {
			return nil, fmt.Errorf("%s is for the process that leases it alone (who: main), which would be vouch; have the program lease it itself", c.Name)
		}
		of[c.Name] = &handled{Proxy: c.Proxy}
	}
	for _, name := range named {
		switch {
		case of[name] != nil:
		case slices.ContainsFunc(granted, func(c *credentialv1.Credential) bool { return c.Name == name }):
			return nil, fmt.Errorf("no calls are made with %s: its definition has no proxy block; use --credential %[1]s=VARIABLE, or have one added", name)
		default:
			return nil, fmt.Errorf("%s is not granted to this process; vouch entry explain --self says why", name)
		}
	}
	return of, nil
}

// A caller is what passes the command's calls on to the proxy.
type caller struct {
	of        map[string]*handled
	socket    string
	authority *loopback.Authority // with which TLS of the command is ended; nil: it is not
	relay     *loopback.Relay
	addresses map[string]netip.Addr // in a sandbox, of databases by the credential
}

func newCaller(socket string, of map[string]*handled, intercept bool) (*caller, error) {
	if _, err := os.Stat(socket); err != nil {
		return nil, fmt.Errorf("the proxy does not serve: %w; see vouch doctor", err)
	}
	c := &caller{of: of, socket: socket}
	if intercept {
		hosts, err := interceptedHosts(of)
		if err != nil {
			return nil, err
		}
		if len(hosts) > 0 {
			if c.authority, err = loopback.NewAuthority(hosts); err != nil {
				return nil, err
			}
		}
	}
	handles := make(map[string]string)
	for name, h := range of {
		handles[name] = h.handle
	}
	var err error
	c.relay, err = loopback.New(loopback.Options{
		Socket: socket, Handles: handles, Authority: c.authority,
		Report: func(err error) { fmt.Fprintln(os.Stderr, "vouch: refused", err) },
	})
	return c, err
}

// interceptedHosts are those that are called with one of the credentials, and not passed
// through.
func interceptedHosts(of map[string]*handled) (hosts []string, err error) {
	by := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(of)) {
		for _, host := range of[name].Hosts {
			if other := by[host]; other != "" {
				return nil, fmt.Errorf("both %s and %s are for %s; name one of them with --proxy", other, name, host)
			}
			if by[host] = name; !of[name].Passthrough {
				hosts = append(hosts, host)
			}
		}
	}
	return hosts, nil
}

// environment returns the variables that make the command's clients call where the relay
// listens.
func (c *caller) environment(address net.Addr) (env []string) {
	for _, name := range slices.Sorted(maps.Keys(c.of)) {
		h := c.of[name]
		variables := h.Environment
		at, addressed := c.addresses[name]
		if addressed {
			variables = h.Addressed
		}
		fill := strings.NewReplacer("{{url}}", "http://"+address.String()+"/"+name, "{{handle}}", h.handle, "{{address}}", at.String())
		for _, v := range variables {
			env = append(env, v.Name+"="+fill.Replace(v.Value))
		}
	}
	return append(env, socketVariable+"="+c.socket)
}

// start serves the command on a loopback port until stopped, and returns the variables that
// make its clients call there.
func (c *caller) start(ctx context.Context, intercept bool) (env []string, stop func(), err error) {
	l, err := loopback.Listen()
	if err != nil {
		return nil, nil, err
	}
	env = c.environment(l.Addr())
	forget := func() {}
	if intercept {
		var more []string
		if more, forget, err = c.trust(l.Addr()); err != nil {
			l.Close()
			return nil, nil, err
		}
		env = append(env, more...)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { c.relay.Serve(ctx, l); close(ended) }()
	return env, func() { cancel(); <-ended; forget() }, nil
}
