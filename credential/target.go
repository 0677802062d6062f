package credential

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vouchd/vouchd/config"
)

// A Target is a place for which a tool asks its credential helper. It is
// comparable, and one place has one form.
type Target struct {
	Tool     string // one of those below
	Location string // as [NewTarget] has it
}

// The tools.
const (
	Git        = "git"        // a URL, of a server or of all repositories below a path
	Docker     = "docker"     // a registry: host or host:port
	Kubernetes = "kubernetes" // the URL of a cluster's API server
)

const maxLocation = 2048 // bytes

// NewTarget returns the target of a tool at a place, in whichever form the tool
// writes that.
func NewTarget(tool, location string) (Target, error) {
	odd := func(r rune) bool { return r > unicode.MaxASCII || unicode.IsControl(r) || r == ' ' }
	if tool == Git { // whose paths are people's words
		odd = func(r rune) bool { return !unicode.IsPrint(r) }
	}
	if len(location) > maxLocation || !utf8.ValidString(location) || strings.ContainsFunc(location, odd) {
		return Target{}, errors.New("is not a place that a tool asks for")
	}
	var text string
	var err error
	switch tool {
	case Git:
		text, err = plainURL(location, true)
	case Kubernetes:
		text, err = plainURL(location, false)
	case Docker:
		text, err = registry(location)
	default:
		err = errors.New("is of no tool that is known")
	}
	return Target{tool, text}, err
}

// plainURL returns a URL in one form: lower-case host, no default port, no slash
// at the end. Its path is as it reads once it is decoded, and may have been
// written with escapes, if words is true.
func plainURL(s string, words bool) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("is not a plain URL; write it like https://host/path")
	}
	steps := strings.TrimRight(u.Path, "/")
	switch {
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return "", errors.New("is not a plain URL; write it like https://host/path")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return "", errors.New("is not https, and another machine's; the secret would pass in clear")
	case u.Scheme != "https" && u.Scheme != "http":
		return "", errors.New("is not https")
	case u.RawPath != "" && (!words || hiddenStep.MatchString(u.RawPath)) || steps != "" && path.Clean(steps) != steps,
		!utf8.ValidString(steps) || strings.ContainsFunc(steps, func(r rune) bool { return !unicode.IsPrint(r) || r == '\\' }):
		return "", errors.New("has a path with escapes, empty steps or dots")
	}
	host, err := plainHost(u.Host, map[string]string{"https": "443", "http": "80"}[u.Scheme])
	if err != nil {
		return "", err
	}
	return u.Scheme + "://" + host + steps, nil
}

// hiddenStep is an escape that decoded would be another step of a path, or part
// of one on some servers.
var hiddenStep = regexp.MustCompile(`(?i)%2f|%5c|%00`)

// registry returns a registry's host. Docker writes some with a scheme and an
// API version, and its own hub by three names.
func registry(s string) (string, error) {
	rest, clear := strings.CutPrefix(s, "http://")
	host, apiPath, _ := strings.Cut(strings.TrimPrefix(rest, "https://"), "/")
	if !slices.Contains([]string{"", "v1", "v2"}, strings.Trim(apiPath, "/")) {
		return "", errors.New("is not a registry; write its host alone")
	}
	if u := (&url.URL{Host: host}); clear && !loopback(u.Hostname()) {
		return "", errors.New("is not https, and another machine's; the secret would pass in clear")
	}
	host, err := plainHost(host, "443")
	if slices.Contains([]string{"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}, host) {
		host = "docker.io"
	}
	return host, err
}

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// plainHost returns host or host:port in one form.
func plainHost(s, defaultPort string) (string, error) {
	u := url.URL{Host: strings.ToLower(s)}
	host, port := u.Hostname(), u.Port()
	addr, err := netip.ParseAddr(host)
	if (err != nil || addr.Zone() != "") && (!hostName.MatchString(host) || len(host) > 253) || strings.HasSuffix(s, ":") {
		return "", errors.New("has no host in it")
	}
	if port == "" || port == defaultPort {
		if addr.Is6() {
			return "[" + host + "]", nil
		}
		return host, nil
	}
	return net.JoinHostPort(host, port), nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// Covers reports whether a credential for t is one for what a tool asks for. That
// is the same place or, for git, one below it; a path is never guessed.
func (t Target) Covers(asked Target) bool {
	if t == asked {
		return t.Tool != ""
	}
	return t.Tool == Git && asked.Tool == Git && strings.HasPrefix(asked.Location, t.Location+"/")
}

// An Offer is a target that a credential is for, as its definition says.
type Offer struct {
	Target
	Username string // that goes with the secret; empty: the credential's own
}

// writtenOffer is one element of a definition's "for".
type writtenOffer struct {
	Git        config.At[string] `yaml:"git" like:"https://github.com/acme"`
	Docker     config.At[string] `yaml:"docker" like:"registry.example.com"`
	Kubernetes config.At[string] `yaml:"kubernetes" like:"https://k8s.internal:6443"`
	Username   config.At[string] `yaml:"username" like:"oauth2"`

	Pos config.Pos
}

const (
	maxOffers   = 64
	maxUsername = 255 // bytes
)

func (w *writtenOffer) offer(problems *config.Errors) Offer {
	var given []Offer
	for tool, at := range map[string]config.At[string]{Git: w.Git, Docker: w.Docker, Kubernetes: w.Kubernetes} {
		if at.Value == "" {
			continue
		}
		t, err := NewTarget(tool, at.Value)
		if err != nil {
			problems.Add(at.Pos, "for: %s %.80q %v", tool, at.Value, err)
		}
		given = append(given, Offer{t, w.Username.Value})
	}
	if u := w.Username; len(u.Value) > maxUsername || strings.ContainsFunc(u.Value, func(r rune) bool { return r == ':' || !unicode.IsPrint(r) }) {
		problems.Add(u.Pos, "username %.80q is not one", u.Value)
	}
	if len(given) != 1 {
		problems.Add(w.Pos, "for: each element names one of git, docker and kubernetes")
		return Offer{}
	}
	return given[0]
}

// offers checks what tools may ask a definition for.
func (l *loader) offers(d *Definition, w *written) {
	if len(w.For) > maxOffers {
		l.problems.Add(w.For[maxOffers].Pos, "credential %s is for %d places and may be for %d; remove some", d.Name, len(w.For), maxOffers)
		return
	}
	for i := range w.For {
		o := w.For[i].offer(&l.problems)
		if o.Location == "" {
			continue // a problem already
		}
		if slices.ContainsFunc(d.For, func(p Offer) bool { return p.Target == o.Target }) {
			l.problems.Add(w.For[i].Pos, "for: %s is given again; remove one", o.Location)
		}
		d.For = append(d.For, o)
	}
}

// helps checks that a tool gets something from its helper. It has to work once
// the helper has exited, which it does before the tool continues; and a tool
// chooses no parameters.
func (d *Definition) helps() error {
	if d.Bind == BindProcess && d.Traits.Revocation != ExpiryOnly && d.Traits.Revocation != Unrevocable {
		return fmt.Errorf("credential %s would end with the tool's helper, before the tool has used it; give it bind: lease or bind: unit, and a short ttl", d.Name)
	}
	for _, p := range d.Parameters {
		if p.Default == "" {
			return fmt.Errorf("credential %s has parameter %s without a default, and a tool chooses none; give it one", d.Name, p.Name)
		}
	}
	return nil
}
