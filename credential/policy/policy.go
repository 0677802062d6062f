package policy

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A Policy is a proxy block as it is in force. It holds no secret, and does not
// change once [Policy.Compile] has returned.
type Policy struct {
	Preset   string   `json:",omitempty"` // that filled it, with its variant
	Upstream string   // base URL; its scheme, host and port are pinned
	Hosts    []string // by which the definition is found, beside its name
	Slot     Slot     // where the credential goes; zero if there is none (broker none)
	Others   []Slot   // where else the API takes one
	Free     []string // headers and keys of the query that carry none here, though they do elsewhere

	Rules    []Rule
	Enforce  bool // or only record what the rules would refuse
	MainOnly bool // the holder alone may call, not the processes it has started

	Window    bool // one record for up to a second of calls
	Cookies   bool // Set-Cookie reaches the caller, and Cookie the upstream
	Slashes   bool // a segment of a path may hold an encoded slash
	WebSocket bool // and other protocols that a request upgrades to

	// Passthrough has TLS to the hosts pass as it is, by CONNECT: nobody looks into it, and
	// no credential is put there.
	Passthrough bool

	Echo   Echo // what becomes of the credential in a response
	Shapes Echo // and of what looks like another secret

	Environment []Variable // for a program that calls by way of vouch exec
	Prefix      string     // of handles, for clients that look at a key's first letters

	CAs       string         `json:",omitempty"` // PEM: the certificates to trust, alone
	Addresses []netip.Prefix // private ones that the upstream may have
	Connect   time.Duration  // for a connection with TLS
	Header    time.Duration  // from the end of the request to the response's header
	Idle      time.Duration  // without a byte in either direction

	base    *url.URL
	each    bool // each host is its own upstream
	roots   *x509.CertPool
	headers map[string]bool // as Places returns them
	keys    map[string]bool
}

// An Echo is what becomes of a secret in a response.
type Echo string

// What there is to do about it.
const (
	Redact Echo = "redact" // it is replaced
	Block  Echo = "block"  // the response ends
	Mark   Echo = "mark"   // it passes, and the record says so
	Off    Echo = "off"    // it passes
)

// A Variable is one of a program's environment. In its value {{url}} stands for where
// the proxy listens, with the path at which it serves the definition, and {{handle}}
// for the handle.
type Variable struct{ Name, Value string }

// The bounds of times that a definition leaves out.
const (
	defaultConnect = 10 * time.Second
	defaultHeader  = 10 * time.Minute
	defaultIdle    = 10 * time.Minute
)

// A Verdict is what the rules say of a request.
type Verdict struct {
	Effect Effect
	Rule   string // that matched; empty if none did
}

// Judge applies the rules: the first that matches counts, and without one the
// request is refused.
func (p *Policy) Judge(q *Request) Verdict {
	if p.Passthrough || q.Method == http.MethodConnect {
		if p.Passthrough && q.Method == http.MethodConnect {
			return Verdict{Effect: Allow}
		}
		return Verdict{Effect: Deny}
	}
	for i := range p.Rules {
		if r := &p.Rules[i]; r.holds(q) {
			return Verdict{r.Effect, r.Name}
		}
	}
	return Verdict{Effect: Deny}
}

// PathOf returns the path of a rule that a target matches, which tells nothing of what is
// in the target but not in the rule.
func (p *Policy) PathOf(rule string, t Target) string {
	for i := range p.Rules {
		for _, path := range p.Rules[i].Paths {
			if p.Rules[i].Name == rule && path.matches(t.Segments) {
				return string(path)
			}
		}
	}
	return ""
}

// Pointers returns the JSON pointers that rules for this method and path look at;
// without any, the content need not be read.
func (p *Policy) Pointers(method string, t Target) (list []string) {
	for i := range p.Rules {
		r := &p.Rules[i]
		if len(r.JSON) == 0 || !slices.Contains(r.Methods, method) ||
			!slices.ContainsFunc(r.Paths, func(p Pattern) bool { return p.matches(t.Segments) }) {
			continue
		}
		for _, c := range r.JSON {
			list = append(list, c.At)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Same reports whether another policy says the same.
func (p *Policy) Same(q *Policy) bool {
	a, errA := json.Marshal(p)
	b, errB := json.Marshal(q)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// Base returns the upstream's URL.
func (p *Policy) Base() *url.URL { return p.base }

// Roots returns the certificates to trust; nil for the system's.
func (p *Policy) Roots() *x509.CertPool { return p.roots }

// Compile checks a policy, fills in defaults and prepares it for use. The error says
// everything that is wrong.
func (p *Policy) Compile() error {
	if p.Echo == "" {
		p.Echo = Redact
	}
	if p.Shapes == "" {
		p.Shapes = Mark
	}
	for _, t := range []struct {
		of *time.Duration
		is time.Duration
	}{{&p.Connect, defaultConnect}, {&p.Header, defaultHeader}, {&p.Idle, defaultIdle}} {
		if *t.of == 0 {
			*t.of = t.is
		}
	}
	problems := []error{p.compileUpstream()}
	if p.Passthrough {
		problems = append(problems, p.checkPassthrough())
	} else {
		if p.Slot != (Slot{}) { // the definition says whether it needs one
			problems = append(problems, p.Slot.check())
		}
		problems = append(problems, p.compileRules())
	}
	for i := range p.Others {
		problems = append(problems, p.Others[i].checkPlace())
	}
	problems = append(problems, p.compileEnvironment())
	if p.CAs != "" {
		p.roots = x509.NewCertPool()
		if !p.roots.AppendCertsFromPEM([]byte(p.CAs)) {
			problems = append(problems, errors.New("ca_file has no certificate"))
		}
	}
	p.headers, p.keys = p.places()
	return errors.Join(problems...)
}

func (p *Policy) checkPassthrough() error {
	switch {
	case len(p.Hosts) == 0:
		return errors.New("passthrough needs hosts, which is what passes; add them")
	case p.Slot != (Slot{}) || len(p.Others) > 0 || len(p.Rules) > 0:
		return errors.New("passthrough looks into nothing, so that slot, others and rules have no effect; remove them")
	case p.base != nil && p.base.Scheme != "https":
		return errors.New("passthrough is of TLS; write upstream with https, or leave it out")
	}
	return nil
}

func (p *Policy) compileUpstream() error {
	upstream := p.Upstream
	if p.each = upstream == "" && p.Passthrough && len(p.Hosts) > 0; p.each {
		upstream = "https://" + p.Hosts[0]
	}
	if upstream == "" {
		return errors.New("upstream is missing; add it, like https://api.example.com, or a preset")
	}
	u, err := url.Parse(upstream)
	if err != nil {
		return fmt.Errorf("upstream %.80q is not a URL", p.Upstream)
	}
	host := u.Hostname()
	addr, addrErr := netip.ParseAddr(host)
	switch {
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "", u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return fmt.Errorf("upstream %.80q is not like https://api.example.com/v1", p.Upstream)
	case u.Scheme == "http" && !(host == "localhost" || addrErr == nil && addr.IsLoopback()):
		return fmt.Errorf("upstream %.80q is not https, and the credential would pass in clear", p.Upstream)
	case addrErr != nil && !validHost(host):
		return fmt.Errorf("upstream %.80q has no host in it; write it in lower case", p.Upstream)
	case strings.HasSuffix(u.Path, "/"):
		return fmt.Errorf("upstream %.80q ends with a slash; remove it", p.Upstream)
	}
	if u.Path != "" {
		if _, err := ParseTarget(u.EscapedPath(), false); err != nil {
			return fmt.Errorf("upstream %.80q: %w", p.Upstream, err)
		}
	}
	for _, h := range p.Hosts {
		if !validHost(h) {
			return fmt.Errorf("host %.80q is not a host name in lower case", h)
		}
	}
	p.base = u
	return nil
}

// validHost reports whether a host is a plain name: lower-case, without a port or a
// dot at its end. Such a name has one spelling.
func validHost(s string) bool {
	if s == "" || len(s) > 253 || strings.HasSuffix(s, ".") {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

const maxRules = 256

func (p *Policy) compileRules() error {
	if len(p.Rules) == 0 {
		return errors.New("rules is empty, so that every call would be refused; add a rule")
	}
	if len(p.Rules) > maxRules {
		return fmt.Errorf("%d rules are more than %d", len(p.Rules), maxRules)
	}
	var problems []error
	for i := range p.Rules {
		r := &p.Rules[i]
		if err := r.compile(); err != nil {
			problems = append(problems, fmt.Errorf("rule %s: %w", r.Name, err))
			continue
		}
		for j := range p.Rules[:i] {
			earlier := &p.Rules[j]
			if earlier.Name == r.Name {
				problems = append(problems, fmt.Errorf("rule %s is there twice; rename one", r.Name))
			}
			if earlier.covers(r) {
				problems = append(problems, fmt.Errorf("rule %s is never reached: rule %s matches all that it does; move it up or remove it", r.Name, earlier.Name))
			}
		}
	}
	return errors.Join(problems...)
}

func (r *Rule) compile() error {
	var problems []error
	if r.Name == "" || len(r.Name) > 64 || strings.ContainsFunc(r.Name, func(c rune) bool { return c <= ' ' || c > '~' }) {
		problems = append(problems, fmt.Errorf("name %.40q is not one word", r.Name))
	}
	if r.Effect != Allow && r.Effect != Deny {
		problems = append(problems, fmt.Errorf("effect %.40q is neither allow nor deny", r.Effect))
	}
	if len(r.Methods) == 0 || len(r.Paths) == 0 {
		problems = append(problems, errors.New("methods or paths is missing"))
	}
	for _, m := range r.Methods {
		if m == "" || strings.ContainsFunc(m, func(c rune) bool { return c < 'A' || c > 'Z' }) || m == "CONNECT" || m == "TRACE" {
			problems = append(problems, fmt.Errorf("method %.40q cannot be allowed", m))
		}
	}
	for _, path := range r.Paths {
		problems = append(problems, path.check())
	}
	for i := range r.Query {
		problems = append(problems, r.Query[i].compile())
	}
	for i := range r.JSON {
		problems = append(problems, r.JSON[i].compile())
		if at := r.JSON[i].At; !strings.HasPrefix(at, "/") {
			problems = append(problems, fmt.Errorf("JSON pointer %.80q does not begin with a slash", at))
		}
	}
	return errors.Join(problems...)
}

func (p *Policy) compileEnvironment() error {
	for _, v := range p.Environment {
		if v.Name == "" || strings.ContainsFunc(v.Name, func(c rune) bool {
			return c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
		}) {
			return fmt.Errorf("environment variable %.40q is not a name", v.Name)
		}
	}
	if strings.ContainsFunc(p.Prefix, func(c rune) bool { return c <= ' ' || c > '~' }) || len(p.Prefix) > 32 {
		return fmt.Errorf("handle_prefix %.40q is not one word of at most 32 letters", p.Prefix)
	}
	return nil
}

// UpstreamHost returns the upstream's host, with its port where that is not the
// scheme's.
func (p *Policy) UpstreamHost() string { return p.base.Host }

// TunnelTo returns where TLS to one of the hosts passes.
func (p *Policy) TunnelTo(host string) string {
	if p.each {
		return net.JoinHostPort(host, "443")
	}
	return p.UpstreamPort()
}

// UpstreamPort returns the host and port to connect to.
func (p *Policy) UpstreamPort() string {
	port := p.base.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[p.base.Scheme]
	}
	return net.JoinHostPort(p.base.Hostname(), port)
}
