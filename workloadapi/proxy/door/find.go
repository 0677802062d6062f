package door

import (
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// A target is which definition a request is for, and what of it.
type target struct {
	names  []string // of definitions
	policy *policy.Policy
	raw    string // the request's target, without the definition's name
	host   string // of CONNECT, with its port
	target policy.Target
}

// nowhere is where a request is for, if no definition is.
type nowhere relay.Attempt

func (n nowhere) Error() string { return "no credential leads to " + n.Target }

// find tells from a request which definition it is for: by its host, or by the first
// segment of its path. Of a relay's connection, what that says of it counts too.
func find(r *http.Request, in *routes, says *relay.Hello) (*target, error) {
	if r.Method == http.MethodTrace || strings.ContainsFunc(r.Method, func(c rune) bool { return c < 'A' || c > 'Z' }) {
		return nil, refuse(http.StatusMethodNotAllowed, "method_not_allowed", "method %.20q is not served", r.Method)
	}
	if r.Method == http.MethodConnect {
		return findTunnel(r, in, says)
	}
	host, raw, err := split(r)
	if err != nil {
		return nil, err
	}
	if says != nil && says.Host != "" && host != says.Host {
		return nil, nowhere{Kind: "host", Target: host + " over TLS to " + says.Host}
	}
	if names := prefer(says, in.byHost[host]); len(names) > 0 {
		return &target{names: names, policy: in.byName[names[0]], raw: raw}, nil
	}
	if !strings.HasPrefix(r.RequestURI, "/") || says != nil && (says.Host != "" || says.Door == relay.Sandbox) {
		return nil, nowhere{Kind: "http", Target: host}
	}
	name, rest := raw[1:], "/"
	if i := strings.IndexAny(name, "/?"); i >= 0 {
		name, rest = name[:i], name[i:]
		if rest[0] == '?' {
			rest = "/" + rest
		}
	}
	p := in.byName[name]
	if p == nil {
		return nil, refuse(http.StatusNotFound, "unknown_credential",
			"no credential named %.60q is used by the proxy, nor one for host %.60q; vouch get --list shows what this process is granted", name, r.Host)
	}
	return &target{names: []string{name}, policy: p, raw: rest}, nil
}

// hostOf returns a host without the port that goes without saying.
func hostOf(host string) string {
	if of, ok := strings.CutSuffix(host, ":443"); ok {
		return of
	}
	return strings.TrimSuffix(host, ":80")
}

// split returns the host that a request is for, without a port that goes without saying,
// and its target in origin form (RFC 9112 §3.2).
func split(r *http.Request) (host, raw string, err error) {
	if strings.HasPrefix(r.RequestURI, "/") {
		return hostOf(r.Host), r.RequestURI, nil
	}
	rest, ok := strings.CutPrefix(r.RequestURI, "http://")
	if !ok {
		rest, ok = strings.CutPrefix(r.RequestURI, "https://")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	if !ok || authority == "" || strings.ContainsAny(authority, "@#\\") {
		return "", "", refuse(http.StatusBadRequest, "target", "the request's target is neither a path nor the URL of a host (RFC 9112 §3.2)")
	}
	if raw = rest[end:]; !strings.HasPrefix(raw, "/") {
		raw = "/" + raw
	}
	return hostOf(authority), raw, nil
}

// findTunnel tells which definition CONNECT is for (RFC 9110 §9.3.6).
func findTunnel(r *http.Request, in *routes, says *relay.Hello) (*target, error) {
	if r.ProtoMajor != 1 {
		return nil, refuse(http.StatusMethodNotAllowed, "no_tunnels", "CONNECT is served over HTTP/1.1 alone")
	}
	host, port, err := net.SplitHostPort(r.RequestURI)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "target", "CONNECT is for a host and a port (RFC 9110 §9.3.6)")
	}
	names := prefer(says, in.byHost[host])
	if len(names) == 0 || says != nil && says.Host != "" {
		return nil, nowhere{Kind: "connect", Target: r.RequestURI}
	}
	p := in.byName[names[0]]
	if _, own, _ := net.SplitHostPort(p.TunnelTo(host)); port != "443" && port != own {
		return nil, nowhere{Kind: "connect", Target: r.RequestURI}
	}
	return &target{names: names, policy: p, host: r.RequestURI}, nil
}

// prefer leaves of definitions those whose handle a relay holds, if it does hold one.
func prefer(says *relay.Hello, names []string) []string {
	if says == nil {
		return names
	}
	held := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return says.Handles[name] == "" })
	if len(held) == 0 {
		return names
	}
	return held
}

// which has the daemon say which of several definitions the caller is granted.
func which(daemon *client, r *http.Request, over *conn, t *target) error {
	a, _, err := daemon.ask(r.Context(), nil, over, &link.Ask{Conn: over.id, Definitions: t.names, HTTP2: over.challenged(r)})
	switch {
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	case a.Refused != nil:
		return &refusal{*a.Refused}
	}
	known, err := daemon.inForce(r.Context())
	if err != nil {
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	}
	p := known.byName[a.Definition]
	if p == nil {
		return refuse(http.StatusServiceUnavailable, "changed", "the credentials changed meanwhile; send the request again")
	}
	t.names, t.policy = []string{a.Definition}, p
	return nil
}

func (t *target) parse() (err error) {
	if t.target, err = policy.ParseTarget(t.raw, t.policy.Slashes); err != nil {
		return refuse(http.StatusBadRequest, "target", "%v", err)
	}
	return nil
}
