package identity

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/config"
)

const (
	maxIDLen   = 2048 // bytes; SPIFFE-ID §2.3
	maxHintLen = 1024 // bytes; Workload API §5.2.1
	maxNameLen = 128  // bytes of a credential's name
)

// A checker finds what the form of an entry does not show.
type checker struct {
	td       spiffeid.TrustDomain
	limits   Limits
	problems config.Errors
	out      config.Errors // of entries that are left out
}

func (c *checker) entry(w *written) Entry {
	c.id(w)
	c.selectors(w)
	if ttl := w.X509TTL; ttl.Pos.Line > 0 && ttl.Value > c.limits.MaxX509TTL {
		c.problems.Add(ttl.Pos, "x509_svid_ttl %s is longer than the issuing CA is sure to live; give it %s or less, or raise authority.issuing_ca_ttl in vouchd.yaml",
			config.FormatDuration(ttl.Value), config.FormatDuration(c.limits.MaxX509TTL))
	}
	if a := w.JWTAlgorithm; a.Value != "" && len(c.limits.JWTAlgorithms) > 0 && !slices.Contains(c.limits.JWTAlgorithms, a.Value) {
		c.problems.Add(a.Pos, "jwt_algorithm %s is not among authority.jwt_algorithms in vouchd.yaml; add it there, which needs authority.jwt_key: sealed, or remove the key here", a.Value)
	}
	if h := w.Hint; len(h.Value) > maxHintLen {
		c.problems.Add(h.Pos, "hint has %d bytes and may have %d; shorten it", len(h.Value), maxHintLen)
	} else if strings.ContainsFunc(h.Value, unicode.IsControl) {
		c.problems.Add(h.Pos, "hint holds a control character; remove it")
	}
	c.dnsNames(w)
	c.commonName(w.CN)
	c.credentials(w)
	c.federatesWith(w)
	return w.entry(c.limits.MaxX509TTL)
}

func (c *checker) id(w *written) {
	id := w.ID.Value
	if c.limits.AnyTrustDomain && c.td.IsZero() {
		c.td = id.TrustDomain()
	}
	switch {
	case id.IsZero(): // a problem already
	case len(id.String()) > maxIDLen:
		c.problems.Add(w.ID.Pos, "spiffe_id has %d bytes and may have %d; shorten it", len(id.String()), maxIDLen)
	case id.TrustDomain() != c.td:
		c.problems.Add(w.ID.Pos, "spiffe_id %s is in trust domain %s, but this host's is %s; begin it with %s/", id, id.TrustDomain(), c.td, c.td.IDString())
	case id.Path() == "": // X509-SVID §3.1
		c.problems.Add(w.ID.Pos, "spiffe_id %s has no path and so names the trust domain itself; add one, such as %s/agent", id, id)
	}
}

const (
	maxDNSNames    = 32
	maxAllDNSNames = 1024 // bytes of an entry's names: the log has them whole
	maxDNSName     = 253  // bytes; RFC 1035 §2.3.4
)

func (c *checker) dnsNames(w *written) {
	if len(w.DNSNames) > maxDNSNames {
		c.problems.Add(w.DNSNames[maxDNSNames].Pos, "dns_names has %d names and may have %d; remove some", len(w.DNSNames), maxDNSNames)
		return
	}
	all := 0
	lines := make(map[string]int)
	for _, name := range w.DNSNames {
		host, wildcard := strings.CutPrefix(name.Value, "*.")
		switch {
		case name.Value == "": // a problem already
		case !isHostName(host) || wildcard && !strings.Contains(host, "."):
			c.problems.Add(name.Pos, "dns_names: %.80q is not a host name; use lower-case letters, digits and dashes between dots, such as db.example.org, and no address", name.Value)
		case wildcard && !w.WildcardDNSNames:
			c.problems.Add(name.Pos, "dns_names: with %.80s the process can pass for every host below; list the hosts, or set wildcard_dns_names: true", name.Value)
		case lines[name.Value] > 0:
			c.problems.Add(name.Pos, "dns_names: %.80s is given again, first in line %d; remove one", name.Value, lines[name.Value])
		}
		lines[name.Value] = name.Pos.Line
		if all += len(name.Value); all > maxAllDNSNames {
			c.problems.Add(name.Pos, "dns_names has more than %d bytes in all; remove some", maxAllDNSNames)
			return
		}
	}
}

var hostLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// isHostName holds a name to RFC 1123 §2.1 in lower case. Its last label has a letter,
// or else it could be an address.
func isHostName(name string) bool {
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if !hostLabel.MatchString(l) {
			return false
		}
	}
	return len(name) <= maxDNSName && strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// commonName keeps what stands for a SPIFFE ID (see [CommonName]) out of names that can
// be chosen.
func (c *checker) commonName(cn config.At[string]) {
	switch name := cn.Value; {
	case name == "": // none, or a problem already
	case utf8.RuneCountInString(name) > maxCommonName:
		c.problems.Add(cn.Pos, "cn has %d characters and may have %d; shorten it", utf8.RuneCountInString(name), maxCommonName)
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		c.problems.Add(cn.Pos, "cn holds a character that does not print; remove it")
	case strings.HasPrefix(strings.ToLower(name), "spiffe:"), digest256.MatchString(name):
		c.problems.Add(cn.Pos, "cn %.80q could be taken for another identity's; choose another name", name)
	}
}

var digest256 = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)

func (c *checker) selectors(w *written) {
	if len(w.Selectors) == 0 {
		c.problems.Add(w.Pos, "entry %s has no selectors; list the facts that identify the process, such as unix:uid:1000", cmp.Or(w.ID.Value.String(), "without a spiffe_id"))
	}
	lines := make(map[attest.Selector]int)
	kinds := make(map[string]attest.Selector)
	for _, s := range w.Selectors {
		if s.Value == (attest.Selector{}) {
			continue // a problem already
		}
		kind := kindOf(s.Value)
		first, again := kinds[kind]
		switch {
		case lines[s.Value] > 0:
			c.problems.Add(s.Pos, "selector %s is given again, first in line %d; remove one", s.Value, lines[s.Value])
		case again && single[kind]:
			c.problems.Add(s.Pos, "no process has both %s and %s, and an entry wants all its selectors; write an entry for each", first, s.Value)
		}
		lines[s.Value] = s.Pos.Line
		kinds[kind] = s.Value
	}
	switch {
	case len(lines) == 0: // a problem already
	case !slices.ContainsFunc(w.Selectors, func(s config.At[attest.Selector]) bool {
		return s.Value != (attest.Selector{}) && !ofNode(s.Value)
	}):
		c.problems.Add(w.Pos, "entry %s asks for the machine only, so every process on it would match; add a fact about the process, such as unix:uid:1000", w.ID.Value)
	default:
		c.anchor(w)
	}
	c.interpreter(w)
}

// anchor refuses an entry that asks for nothing which the kernel or PID 1 alone
// can arrange: programs and scripts are what any user can run, and steer.
func (c *checker) anchor(w *written) {
	for _, s := range w.Selectors {
		if s.Value == (attest.Selector{}) || s.Value.Anchors() {
			return // a problem already, or an anchor
		}
	}
	if !w.AllowUnanchored {
		problems := &c.problems
		if c.limits.LeaveOutUnanchored {
			problems = &c.out
		}
		problems.Add(w.Pos, "entry %s has no anchor: any user of the machine can arrange all that it asks for; add one of unix:uid:…, unix:user:…, systemd:id:…, systemd:main_process:true, cgroup:path:… or container:id:…, or, in a lab, set allow_unanchored: true", w.ID.Value)
	}
}

// ofNode reports whether a selector is about the machine: all its processes
// have it.
func ofNode(s attest.Selector) bool { return s.Type == "tpm" || s.Type == "node" }

// kindOf returns the selector's text without its last part: unix:uid.
func kindOf(s attest.Selector) string {
	key, _, _ := strings.Cut(s.Value, ":")
	return s.Type + ":" + key
}

// single are the kinds of which a process has one value at a time.
var single = map[string]bool{
	"systemd:id":  true,
	"unix:gid":    true,
	"unix:group":  true,
	"unix:path":   true,
	"unix:sha256": true,
	"unix:uid":    true,
	"unix:user":   true,
}

// interpreter refuses an entry whose program is an interpreter, which runs
// whatever it is given. A unit or a control group says what it was given; a
// hash alone may be an interpreter's too, but that can't be told from the file.
func (c *checker) interpreter(w *written) {
	if w.AllowInterpreter {
		return
	}
	var program *config.At[attest.Selector]
	for i, s := range w.Selectors {
		switch kindOf(s.Value) {
		case "systemd:id", "cgroup:path", "script:path", "script:sha256", "script:tree_sha256":
			return
		case "unix:path":
			program = &w.Selectors[i]
		}
	}
	if program == nil {
		return
	}
	_, file, _ := strings.Cut(program.Value.Value, ":")
	if Interpreter(file) {
		c.problems.Add(program.Pos, "%s is an interpreter and runs any script, so it identifies no program; add a selector for its unit, such as systemd:id:agent.service, or set allow_interpreter: true",
			program.Value)
	}
}

// Interpreter reports whether a program of this path runs whatever script it is
// given, by its name.
func Interpreter(program string) bool { return interpreters.MatchString(path.Base(program)) }

// interpreters matches the file names, with and without versions, of programs
// that run other programs in their own process: language runtimes, shells, the
// dynamic loader, multi-call binaries and emulators.
var interpreters = regexp.MustCompile(`^(` +
	`python[0-9.]*(dm?|m|td?)?|` + // debug, pymalloc and free-threaded builds
	`(pypy|perl|ruby|node|nodejs|deno|bun|php|php-cgi|php-fpm|lua|luajit|tclsh|wish|expect|` +
	`R|julia|guile|racket|sbcl|erl|beam\.smp|escript|ocaml|ocamlrun|ghc|runghc|` +
	`java|dotnet|mono|mono-sgen|pwsh|awk|gawk|mawk|` +
	`sh|bash|rbash|dash|ash|zsh|ksh|mksh|csh|tcsh|fish|busybox|toybox)[-.0-9]*|` +
	`ld-(linux|musl)[-_a-z0-9]*\.so[.0-9]*|ld-[0-9.]+\.so|ld\.so[.0-9]*|` +
	`qemu-[a-z0-9_]+(-static)?|wine(64)?(-preloader)?` +
	`)$`)

func (c *checker) credentials(w *written) {
	lines := make(map[string]int)
	for _, cred := range w.Credentials {
		switch {
		case cred.Value == "": // a problem already
		case !credentialName.MatchString(cred.Value) || len(cred.Value) > maxNameLen:
			c.problems.Add(cred.Pos, "credentials: %.80q is not a name; use letters, digits, dots, dashes and underscores, at most %d", cred.Value, maxNameLen)
		case lines[cred.Value] > 0:
			c.problems.Add(cred.Pos, "credentials: %s is given again, first in line %d; remove one", cred.Value, lines[cred.Value])
		}
		lines[cred.Value] = cred.Pos.Line
	}
}

var credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// maxFederatesWith bounds an entry's bundles, all of which are in one answer.
const maxFederatesWith = 12

// federatesWith does not know which trust domains are configured: an entry may name one
// before it is, and is given its bundle once it is.
func (c *checker) federatesWith(w *written) {
	if len(w.FederatesWith) > maxFederatesWith {
		c.problems.Add(w.FederatesWith[maxFederatesWith].Pos, "federates_with has %d trust domains and may have %d; remove some", len(w.FederatesWith), maxFederatesWith)
		return
	}
	lines := make(map[spiffeid.TrustDomain]int)
	for _, td := range w.FederatesWith {
		switch {
		case td.Value.IsZero(): // a problem already
		case td.Value == c.td:
			c.problems.Add(td.Pos, "federates_with: %s is this host's own trust domain, whose bundle every entry has; remove it", td.Value)
		case lines[td.Value] > 0:
			c.problems.Add(td.Pos, "federates_with: %s is given again, first in line %d; remove one", td.Value, lines[td.Value])
		}
		lines[td.Value] = td.Pos.Line
	}
}

// among checks entries against each other. One identity may be given to
// several kinds of process, by an entry each, and is then the same for all.
func (c *checker) among(list []Entry) {
	first := make(map[spiffeid.ID]Entry)
	same := make(map[string]config.Pos)  // an identity and its selectors
	hosts := make(map[string]Entry)      // by DNS name
	hints := make(map[string]config.Pos) // a hint and its selectors
	for _, e := range list {
		if e.ID.IsZero() || len(e.Selectors) == 0 || e.X509TTL == 0 || e.JWTTTL == 0 {
			continue // a problem already
		}
		if f, ok := first[e.ID]; !ok {
			first[e.ID] = e
		} else if what := difference(f, e); what != "" {
			c.problems.AddBetween(e.Pos, f.Pos, "entry %s has %s, unlike its entry at %v; make them the same", e.ID, what, f.Pos)
		}
		for _, name := range e.Names.DNS {
			if f, ok := hosts[name]; !ok {
				hosts[name] = e
			} else if f.ID != e.ID {
				c.problems.AddBetween(e.Pos, f.Pos, "entry %s has the DNS name %s of %s at %v, which could then pass for each other; give it to one", e.ID, name, f.ID, f.Pos)
			}
		}
		set := selectorSet(e)
		if pos, ok := same[e.ID.String()+"\n"+set]; ok {
			c.problems.AddBetween(e.Pos, pos, "entry %s with the same selectors is at %v; remove one", e.ID, pos)
			continue
		}
		same[e.ID.String()+"\n"+set] = e.Pos
		if e.Hint == "" {
			continue
		}
		if pos, ok := hints[e.Hint+"\n"+set]; ok { // Workload API §5.2.1: unique in a response
			c.problems.AddBetween(e.Pos, pos, "hint %.80q is that of the entry with the same selectors at %v too; give each its own", e.Hint, pos)
		}
		hints[e.Hint+"\n"+set] = e.Pos
	}
	for _, e := range list { // a client that finds no DNS name goes by the common name
		if f, ok := hosts[e.Names.Common]; ok && f.ID != e.ID && !slices.Contains(e.Names.DNS, e.Names.Common) {
			c.problems.AddBetween(e.Pos, f.Pos, "entry %s has a cn that is the DNS name %s of %s at %v; choose another name", e.ID, e.Names.Common, f.ID, f.Pos)
		}
	}
}

// difference names the first setting of b that is not a's.
func difference(a, b Entry) string {
	switch {
	case a.X509TTL != b.X509TTL:
		return "x509_svid_ttl " + config.FormatDuration(b.X509TTL)
	case a.JWTTTL != b.JWTTTL:
		return "jwt_svid_ttl " + config.FormatDuration(b.JWTTTL)
	case a.JWTAlgorithm != b.JWTAlgorithm:
		return fmt.Sprintf("jwt_algorithm %q", b.JWTAlgorithm)
	case !slices.Equal(a.Names.DNS, b.Names.DNS):
		return "other dns_names"
	case a.Names.Common != b.Names.Common:
		return fmt.Sprintf("cn %.80q", b.Names.Common)
	case a.Hint != b.Hint:
		return fmt.Sprintf("hint %.80q", b.Hint)
	case !slices.Equal(sorted(a.Credentials), sorted(b.Credentials)):
		return "other credentials"
	case !slices.Equal(domains(a), domains(b)):
		return "other trust domains in federates_with"
	}
	return ""
}

// selectorSet is the same text for the same set; no selector holds a newline.
func selectorSet(e Entry) string { return strings.Join(sorted(e.Selectors.Strings()), "\n") }

// domains are the names of the trust domains that an entry federates with, in order.
func domains(e Entry) (names []string) {
	for _, td := range e.FederatesWith {
		names = append(names, td.Name())
	}
	return sorted(names)
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
