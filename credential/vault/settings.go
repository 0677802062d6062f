package vault

import (
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
)

// settings are the keys of a definition's vault section.
type settings struct {
	Address   config.At[string]              `yaml:"address" required:"true" like:"https://vault.internal:8200"`
	CAFile    config.At[string]              `yaml:"ca_file" like:"/etc/vouchd/vault-ca.pem"`
	Namespace string                         `yaml:"namespace"`
	Auth      config.At[string]              `yaml:"auth" default:"jwt" oneof:"cert jwt"`
	Mount     config.At[string]              `yaml:"auth_mount" like:"jwt"` // left out, Auth
	Role      string                         `yaml:"role" required:"true" like:"research"`
	Audience  config.At[string]              `yaml:"audience" like:"https://vault.internal:8200"` // of the JWT-SVID; left out, Address
	Path      config.At[credential.Template] `yaml:"path" required:"true" like:"database/creds/readonly"`
	Leased    config.At[bool]                `yaml:"leased" default:"true"`
	Static    config.At[bool]                `yaml:"static" default:"false"` // the same value for every workload, as in kv
	Data      []argument                     `yaml:"data"`                   // makes it a write, as pki/issue and ssh/sign want
}

// argument is one value of a write.
type argument struct {
	Name  config.At[string]              `yaml:"name" required:"true" like:"common_name"`
	Value config.At[credential.Template] `yaml:"value" required:"true" like:"{{host}}.example.org"`
}

// plainPath is what mounts and paths are made of, without an empty step or one
// of dots.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$`)

func readSettings(d *credential.Definition, section config.Section) (s settings, err error) {
	if err := section.Decode(&s); err != nil {
		return s, err
	}
	var problems config.Errors
	u, err := url.Parse(s.Address.Value)
	switch {
	case err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		problems.Add(s.Address.Pos, "address %.80q is not that of a server; write it like https://vault.internal:8200", s.Address.Value)
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		problems.Add(s.Address.Pos, "address %.80q is not https, and another machine's; secrets would pass in clear", s.Address.Value)
	}
	if f := s.CAFile; f.Value != "" && !filepath.IsAbs(f.Value) {
		problems.Add(f.Pos, "ca_file %.80q is not an absolute path; write it from /", f.Value)
	}
	if m := s.Mount; m.Value != "" && !plainPath.MatchString(m.Value) {
		problems.Add(m.Pos, "auth_mount %.80q is not a mount's path", m.Value)
	}
	if s.Auth.Value == "cert" && s.Audience.Value != "" {
		problems.Add(s.Audience.Pos, "audience is for auth jwt; remove it")
	}
	if s.Static.Value {
		if s.Leased.Pos.Line > 0 && s.Leased.Value {
			problems.Add(s.Leased.Pos, "leased does not go with static: a value that is there for everybody has no lease; remove one")
		}
		if len(s.Data) > 0 {
			problems.Add(s.Data[0].Name.Pos, "data does not go with static, which reads; remove one")
		}
		s.Leased.Value = false
	}
	if err := s.Path.Value.Check(d, nil); err != nil {
		problems.Add(s.Path.Pos, "path %v", err)
	} else {
		s.checkPath(d, &problems)
	}
	for _, a := range s.Data {
		if err := a.Value.Value.Check(d, nil); err != nil {
			problems.Add(a.Value.Pos, "value of %s %v", a.Name.Value, err)
		}
	}
	return s, problems.Err()
}

// checkPath looks at the path with something put in for the caller's values.
func (s *settings) checkPath(d *credential.Definition, problems *config.Errors) {
	values := make(map[string]string)
	for _, p := range d.Parameters {
		values[p.Name] = "x"
	}
	path, err := s.Path.Value.Expand(values, quotePath)
	if err != nil || !plainPath.MatchString(path) {
		problems.Add(s.Path.Pos, "path %.80q is not one of a secret; write it like database/creds/readonly", s.Path.Value.String())
	}
	if step, _, _ := strings.Cut(s.Path.Value.String(), "/"); strings.Contains(step, "{{") {
		problems.Add(s.Path.Pos, "path %.80q lets the caller choose the engine; write its mount out", s.Path.Value.String())
	}
	for _, own := range []string{"cubbyhole/", "sys/", "auth/"} {
		if strings.HasPrefix(path, own) {
			problems.Add(s.Path.Pos, "path %.80q holds no secret; name one of an engine's", s.Path.Value.String())
		}
	}
	for _, static := range []string{"kv/", "secret/"} {
		if strings.HasPrefix(path, static) && !s.Static.Value {
			problems.Add(s.Path.Pos, "path %.80q holds a value that nothing ends, neither time nor revocation; use an engine that makes one for each lease, or say that it is meant with static: true", s.Path.Value.String())
		}
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
