package config

import (
	"cmp"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Config is vouchd.yaml: the daemon's own settings, with the defaults filled
// in and every value in its range.
type Config struct {
	TrustDomain    spiffeid.TrustDomain `yaml:"trust_domain" required:"true" like:"example.org"`
	TPM            string               `yaml:"tpm" default:"/dev/tpmrm0"` // a device, or unix: and the path of an swtpm socket
	StateDir       string               `yaml:"state_dir" default:"/var/lib/vouchd"`
	AgentSocket    string               `yaml:"agent_socket" default:"/run/vouchd/agent.sock"`
	AdminSocket    string               `yaml:"admin_socket" default:"/run/vouchd/admin.sock"`
	EntriesDir     string               `yaml:"entries_dir" default:"/etc/vouchd/entries.d"`
	CredentialsDir string               `yaml:"credentials_dir" default:"/etc/vouchd/credentials.d"`
	FederationDir  string               `yaml:"federation_dir" default:"/etc/vouchd/federation.d"`
	GrantsDir      string               `yaml:"grants_dir" default:"/etc/vouchd/grants.d"`
	ProgramsDir    string               `yaml:"programs_dir" default:"/etc/vouchd/programs.d"`
	ProgramsSocket string               `yaml:"programs_socket" was:"run_socket" default:"/run/vouchd/run.sock"`
	SystemdSocket  string               `yaml:"systemd_socket" default:"/run/vouchd/systemd.sock"`
	ProxySocket    string               `yaml:"proxy_socket" default:"/run/vouchd/proxy.sock"`
	Contact        string               `yaml:"contact" default:"this host's administrator"`
	Metrics        string               `yaml:"metrics" default:"none"` // or a loopback address, or unix: and a path
	Authority      Authority            `yaml:"authority"`
	Log            Log                  `yaml:"log"`
	Node           Node                 `yaml:"node"`

	Warnings []string // one for each deprecated key that is used
}

// Authority is how the trust domain's keys are kept and how long they live.
type Authority struct {
	Mode            string        `yaml:"mode" default:"standalone" oneof:"standalone enrolled vault spire"`
	IssuingCATTL    time.Duration `yaml:"issuing_ca_ttl" default:"4h" min:"2m" max:"168h"`
	RotationOverlap time.Duration `yaml:"rotation_overlap" min:"1m" max:"84h"` // left out: half of IssuingCATTL
	JWTIssuer       string        `yaml:"jwt_issuer" like:"https://example.org"`
	JWTKey          string        `yaml:"jwt_key" default:"sealed" oneof:"sealed tpm"`
	JWTKeyTTL       time.Duration `yaml:"jwt_key_ttl" default:"24h" min:"2h" max:"2160h"`
	JWTAlgorithms   []string      `yaml:"jwt_algorithms" oneof:"ES256 RS256"` // left out: all that JWTKey can sign, ES256 first
	Vault           Vault         `yaml:"vault"`
	SPIRE           SPIRE         `yaml:"spire"`
}

// SPIRE is the server whose agent this host is, where Mode is spire.
type SPIRE struct {
	Server     string        `yaml:"server" like:"spire.example.org:8081"` // HOST:PORT
	BundleFile string        `yaml:"bundle_file" default:"/etc/vouchd/spire-bundle.pem"`
	Attestor   string        `yaml:"attestor" default:"x509pop" oneof:"x509pop join_token vouchd"`
	TokenFile  string        `yaml:"token_file" like:"/var/lib/vouchd/spire-join-token"` // left out: spire-join-token in StateDir
	MaxStale   time.Duration `yaml:"max_stale" min:"1m" max:"8784h"`                     // left out: the longest TTL of the entries
	Downstream bool          `yaml:"downstream" default:"false"`
}

// Vault is the PKI engine of a Vault or OpenBao that certifies the node key, where Mode is
// vault.
type Vault struct {
	Address   string        `yaml:"address" like:"https://vault.example.org:8200"`
	Namespace string        `yaml:"namespace"`
	CAFile    string        `yaml:"ca_file" like:"/etc/vouchd/vault-ca.pem"` // left out: the machine's roots
	Mount     string        `yaml:"mount" default:"pki"`
	Auth      string        `yaml:"auth" default:"cert" oneof:"cert jwt"`
	AuthMount string        `yaml:"auth_mount" like:"cert"` // left out: Auth
	Role      string        `yaml:"role" like:"vouchd"`
	Audience  string        `yaml:"audience" like:"https://vault.example.org:8200"` // left out: Address
	RootFile  string        `yaml:"root_file" like:"/etc/vouchd/root.pem"`
	TTL       time.Duration `yaml:"ttl" default:"168h" min:"1h" max:"8784h"`
}

// Log is how the attestation log is anchored, bounded and handed on.
type Log struct {
	AnchorEvery time.Duration `yaml:"anchor_every" default:"1m" min:"1s" max:"24h"`
	MaxMiB      int           `yaml:"max_mib" default:"4096" min:"64" max:"1048576"`
	KeepFor     time.Duration `yaml:"keep_for" default:"2160h" min:"1h" max:"87600h"`
	OCSF        bool          `yaml:"ocsf" default:"false"`
	Journal     bool          `yaml:"journal" default:"false"`
	OTLP        bool          `yaml:"otlp" default:"false"`
	Witnesses   []Witness     `yaml:"witnesses"`
}

// Witness is one that cosigns the log's checkpoints.
type Witness struct {
	URL      string        `yaml:"url" required:"true" like:"https://witness.example.org"`
	Key      string        `yaml:"key" required:"true" like:"witness.example.org+8d66cf3f+BCVZ…"`
	Interval time.Duration `yaml:"interval" default:"1m" min:"10s" max:"24h"`
	Timeout  time.Duration `yaml:"timeout" default:"10s" min:"1s" max:"1m"`
}

// Node is what this machine is held to.
type Node struct {
	Policy        string        `yaml:"policy" default:"/etc/vouchd/node-policy.yaml"` // missing: the machine is not appraised
	AppraiseEvery time.Duration `yaml:"appraise_every" default:"1h" min:"1m" max:"24h"`
	EKChainDir    string        `yaml:"ek_chain_dir" default:"/etc/vouchd/ek-chain.d"`
}

// ModeEnrolled is the value of Mode where an organisation's root is that of the
// trust domain.
const ModeEnrolled = "enrolled"

// ModeVault is the value of Mode where a Vault or OpenBao certifies this host.
const ModeVault = "vault"

// ModeSPIRE is the value of Mode where this host is the agent of a SPIRE server.
const ModeSPIRE = "spire"

// The values of SPIRE.Attestor: how a host proves to the server which one it is.
const (
	AttestorX509POP   = "x509pop"
	AttestorJoinToken = "join_token"
	AttestorVouchd    = "vouchd" // by the plug-in vouchd-spire at the server
)

// The values of JWTAlgorithms: what signs JWT-SVIDs (RFC 7518 §3.1).
const (
	ES256 = "ES256"
	RS256 = "RS256" // for relying parties that take nothing else
)

// JWTKeyTPM is the value of JWTKey for a key that never leaves the TPM.
const JWTKeyTPM = "tpm"

// MaxX509TTL is the longest lifetime an X509-SVID may have: the rotation
// overlap, which is what the issuing CA is sure to have left when it signs, so
// that no SVID outlives the certificate that signed it.
func (a Authority) MaxX509TTL() time.Duration { return a.RotationOverlap }

const (
	maxSocketPath = 107  // bytes of a path in sockaddr_un, before its zero byte (unix(7))
	maxPath       = 4095 // bytes of any path, before its zero byte
)

// Load reads vouchd.yaml as [ReadFile] does and parses it as [Parse] does.
func Load(path string, overrides ...string) (*Config, error) {
	data, err := readFile(path, guarding) // every command reads it, also as a user whom the kernel tells of no writers
	if err != nil {
		return nil, err
	}
	return Parse(path, data, overrides...)
}

// Parse parses vouchd.yaml. File is the name that problems are reported under;
// an error is of type [Errors]. Each override is a key and its value, such as
// authority.issuing_ca_ttl=1h, and stands in for what the file says.
func Parse(file string, data []byte, overrides ...string) (*Config, error) {
	d := decoder{file: file, set: make(map[string]string), places: make(map[string]Pos)}
	keys, written := Keys(Config{}), make(map[string]string)
	for _, o := range overrides {
		name, value, ok := strings.Cut(o, "=")
		pos := Pos{File: "--set " + clip(name)}
		if !ok {
			d.problems.Add(pos, "has no value; write it as key=value")
			continue
		}
		k := keyOf(name, keys)
		if k == nil {
			d.problems.Add(pos, "unknown key; the nearest known is %s", nearest(name, keys))
			continue
		}
		if name == k.Was {
			d.warnings.Add(pos, "%s is deprecated; use %s", k.Was, k.Name)
		}
		if before := written[k.Name]; before != "" && before != name {
			d.problems.Add(pos, "%s is the old name of %s; set %[2]s alone", k.Was, k.Name)
		}
		d.set[k.Name], written[k.Name] = value, name
	}
	var c Config
	d.document(data, &c)
	c.relate(func(key, format string, args ...any) {
		d.problems.Add(cmp.Or(d.places[key], Pos{File: file}), key+" "+format, args...)
	})
	if err := d.problems.Err(); err != nil {
		return nil, err
	}
	for _, w := range d.warnings {
		c.Warnings = append(c.Warnings, w.Error())
	}
	return &c, nil
}

// relate fills the defaults that follow from other keys, and checks what the
// form of a value does not show. A value that is zero is a problem already.
func (c *Config) relate(problem func(key, format string, args ...any)) {
	if n := len(c.TrustDomain.Name()); n > 255 { // SPIFFE-ID §2.3
		problem("trust_domain", "has %d bytes and may have 255; shorten it", n)
	}
	if n := len(c.Contact); n > maxContact || strings.ContainsFunc(c.Contact, func(r rune) bool { return !unicode.IsPrint(r) }) {
		problem("contact", "is not one line of at most %d bytes; shorten it", maxContact)
	}
	a := &c.Authority
	if a.RotationOverlap == 0 {
		a.RotationOverlap = a.IssuingCATTL / 2
	}
	if a.IssuingCATTL > 0 && a.RotationOverlap > a.IssuingCATTL/2 {
		problem("authority.rotation_overlap", "%s is more than half of authority.issuing_ca_ttl; give it %s or less",
			FormatDuration(a.RotationOverlap), FormatDuration(a.IssuingCATTL/2))
	}
	if a.RotationOverlap > a.JWTKeyTTL/2 {
		problem("authority.jwt_key_ttl", "%s is less than twice authority.rotation_overlap; give it %s or more",
			FormatDuration(a.JWTKeyTTL), FormatDuration(2*a.RotationOverlap))
	}
	a.relateAlgorithms(problem)
	if a.SPIRE.TokenFile == "" && filepath.IsAbs(c.StateDir) {
		a.SPIRE.TokenFile = filepath.Join(c.StateDir, "spire-join-token")
	}
	switch a.Mode {
	case ModeVault:
		a.relateVault(problem)
	case ModeSPIRE:
		a.relateSPIRE(problem)
	}
	if a.JWTIssuer == "" && !c.TrustDomain.IsZero() {
		a.JWTIssuer = "https://" + c.TrustDomain.Name()
	}
	if a.JWTIssuer != "" && !isIssuer(a.JWTIssuer) {
		problem("authority.jwt_issuer", "%q is not an https URL without user, query and fragment; write it like https://example.org", clip(a.JWTIssuer))
	}
	if n := len(c.Log.Witnesses); n > maxWitnesses {
		problem("log.witnesses", "has %d witnesses and may have %d; remove some", n, maxWitnesses)
	}
	for _, w := range c.Log.Witnesses {
		if w.URL != "" && !isWitnessURL(w.URL) {
			problem("log.witnesses", "%q is not an https URL without user, query and fragment; write it like https://witness.example.org (http may lead to this machine alone)", clip(w.URL))
		}
	}
	for _, p := range []struct {
		key, path string
		most      int
	}{
		{"tpm", c.TPM, maxPath},
		{"state_dir", c.StateDir, maxPath},
		{"agent_socket", c.AgentSocket, maxSocketPath},
		{"admin_socket", c.AdminSocket, maxSocketPath},
		{"programs_socket", c.ProgramsSocket, maxSocketPath},
		{"systemd_socket", c.SystemdSocket, maxSocketPath},
		{"proxy_socket", c.ProxySocket, maxSocketPath},
		{"entries_dir", c.EntriesDir, maxPath},
		{"programs_dir", c.ProgramsDir, maxPath},
		{"federation_dir", c.FederationDir, maxPath},
		{"grants_dir", c.GrantsDir, maxPath},
		{"authority.spire.bundle_file", a.SPIRE.BundleFile, maxPath},
		{"authority.spire.token_file", a.SPIRE.TokenFile, maxPath},
		{"credentials_dir", c.CredentialsDir, maxPath},
		{"node.policy", c.Node.Policy, maxPath},
		{"node.ek_chain_dir", c.Node.EKChainDir, maxPath},
	} {
		if p.path == "" {
			continue
		}
		if socket, ok := strings.CutPrefix(p.path, "unix:"); ok && p.key == "tpm" {
			p.path, p.most = socket, maxSocketPath
		}
		if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path || strings.ContainsRune(p.path, 0) {
			problem(p.key, "%q is not a plain absolute path; write it from / without . and .. and without / at its end", clip(p.path))
		}
		if len(p.path) > p.most {
			problem(p.key, "has %d bytes and may have %d; choose a shorter path", len(p.path), p.most)
		}
	}
	if c.AgentSocket != "" && c.AgentSocket == c.AdminSocket {
		problem("admin_socket", "is the agent_socket too; give each its own path")
	}
	if c.EntriesDir != "" && c.EntriesDir == c.CredentialsDir {
		problem("credentials_dir", "is the entries_dir too; give each its own directory")
	}
}

// relateAlgorithms fills in JWTAlgorithms, and holds them to what JWTKey can sign.
func (a *Authority) relateAlgorithms(problem func(key, format string, args ...any)) {
	const key = "authority.jwt_algorithms"
	switch {
	case len(a.JWTAlgorithms) == 0 && a.JWTKey == JWTKeyTPM:
		a.JWTAlgorithms = []string{ES256}
	case len(a.JWTAlgorithms) == 0:
		a.JWTAlgorithms = []string{ES256, RS256}
	case len(slices.Compact(slices.Sorted(slices.Values(a.JWTAlgorithms)))) < len(a.JWTAlgorithms):
		problem(key, "names an algorithm twice; remove one")
	case a.JWTKey == JWTKeyTPM && slices.Contains(a.JWTAlgorithms, RS256):
		problem(key, "has RS256, but authority.jwt_key is tpm, whose key signs ES256 alone; remove it, or set authority.jwt_key: sealed")
	}
}

var plainMount = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$`)

// relateVault holds the settings of a Vault to what it takes to ask one.
func (a *Authority) relateVault(problem func(key, format string, args ...any)) {
	v := &a.Vault
	v.AuthMount, v.Audience = cmp.Or(v.AuthMount, v.Auth), cmp.Or(v.Audience, v.Address)
	for _, of := range []struct{ key, value, like string }{
		{"address", v.Address, "https://vault.example.org:8200"}, {"role", v.Role, "vouchd"}, {"root_file", v.RootFile, "/etc/vouchd/root.pem"},
	} {
		if of.value == "" {
			problem("authority.vault."+of.key, "is missing, and authority.mode is vault; add it, such as %s", of.like)
		}
	}
	if u, err := url.Parse(v.Address); v.Address != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(v.Address, "?#")) {
		problem("authority.vault.address", "%q is not the https URL of a server; write it like https://vault.example.org:8200", clip(v.Address))
	}
	for _, of := range []struct{ key, value string }{{"mount", v.Mount}, {"auth_mount", v.AuthMount}} {
		if of.value != "" && !plainMount.MatchString(of.value) {
			problem("authority.vault."+of.key, "%q is not a mount's path; write it like pki", clip(of.value))
		}
	}
	for _, of := range []struct{ key, value string }{{"ca_file", v.CAFile}, {"root_file", v.RootFile}} {
		if of.value != "" && !filepath.IsAbs(of.value) {
			problem("authority.vault."+of.key, "%q is not an absolute path; write it from /", clip(of.value))
		}
	}
	if v.Auth == "jwt" && a.JWTKey != JWTKeyTPM {
		problem("authority.vault.auth", "is jwt, but authority.jwt_key is not tpm: Vault is told the key once, and those of jwt_key: sealed change; set authority.jwt_key: tpm, or auth: cert")
	}
	if a.RotationOverlap > v.TTL/4 && v.TTL > 0 {
		problem("authority.vault.ttl", "%s is less than four times authority.rotation_overlap; give it %s or more", FormatDuration(v.TTL), FormatDuration(4*a.RotationOverlap))
	}
}

// relateSPIRE holds the settings of a SPIRE server to what it takes to reach one.
func (a *Authority) relateSPIRE(problem func(key, format string, args ...any)) {
	const key, like = "authority.spire.server", "spire.example.org:8081"
	switch host, port, err := net.SplitHostPort(a.SPIRE.Server); {
	case a.SPIRE.Server == "":
		problem(key, "is missing, and authority.mode is spire; add it, such as %s", like)
	case err != nil || host == "" || !isPort(port) || strings.ContainsAny(host, "/@ "):
		problem(key, "%q is not a host and its port; write it like %s", clip(a.SPIRE.Server), like)
	}
	if a.JWTKey == JWTKeyTPM {
		problem("authority.jwt_key", "is tpm, but authority.mode is spire: the server signs JWT-SVIDs; remove it")
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

const (
	maxWitnesses = 16
	maxContact   = 120 // bytes; agents are told it with each refusal
)

// isWitnessURL allows plain http to a witness on this machine. What is sent is not
// secret, but an attacker in between could make the log look like a forked one.
func isWitnessURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || strings.ContainsAny(s, "?#") {
		return false
	}
	at, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && err == nil && at.IsLoopback()
}

// isIssuer holds an issuer to what OpenID Connect Discovery 1.0 §3 asks of
// one, since that is how relying parties find the keys.
func isIssuer(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && !strings.ContainsAny(s, "?#")
}
