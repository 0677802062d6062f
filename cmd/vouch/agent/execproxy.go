package agent

import (
	"context"
	"fmt"
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
// that are named for it, and those that variables want and nobody is handed.
func proxiedOf(ctx context.Context, client *cli.Credentials, vars []variable, named []string) (map[string]*handled, error) {
	of := make(map[string]*handled)
	if len(vars)+len(named) == 0 {
		return of, nil
	}
	granted, err := client.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range granted {
		wanted := slices.ContainsFunc(vars, func(v variable) bool { return v.credential == c.Name })
		if c.Proxy == nil || !slices.Contains(named, c.Name) && (!wanted || c.Proxy.Values) {
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

// call serves the command on a loopback port until stopped, and returns the variables that
// make its clients call there.
func call(ctx context.Context, socket string, of map[string]*handled) (env []string, stop func(), err error) {
	url, stop, err := relay(ctx, socket)
	if err != nil {
		return nil, nil, err
	}
	for name, h := range of {
		fill := strings.NewReplacer("{{url}}", url+"/"+name, "{{handle}}", h.handle)
		for _, v := range h.Environment {
			env = append(env, v.Name+"="+fill.Replace(v.Value))
		}
	}
	return append(env, socketVariable+"="+socket), stop, nil
}

// relay passes on what the command sends to a loopback port, until stopped.
func relay(ctx context.Context, socket string) (url string, stop func(), err error) {
	if _, err := os.Stat(socket); err != nil {
		return "", nil, fmt.Errorf("the proxy does not serve: %w; see vouch doctor", err)
	}
	r, err := loopback.Listen(socket, func(err error) { fmt.Fprintln(os.Stderr, "vouch: refused", err) })
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { r.Serve(ctx); close(ended) }()
	return r.URL(), func() { cancel(); <-ended }, nil
}
