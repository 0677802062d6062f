package postgres

import (
	"net"
	"path/filepath"
	"strings"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
)

// settings are the keys of a definition's postgres section.
type settings struct {
	Host            config.At[string]                `yaml:"host" required:"true" like:"db.internal"`
	Port            int                              `yaml:"port" default:"5432" min:"1" max:"65535"`
	Database        string                           `yaml:"database" required:"true" like:"warehouse"`
	User            string                           `yaml:"user" required:"true" like:"vouchd"`
	PasswordFile    config.At[string]                `yaml:"password_file" like:"/etc/vouchd/secrets/warehouse"`
	TLS             config.At[string]                `yaml:"tls" default:"verify-full" oneof:"verify-full off"`
	CAFile          config.At[string]                `yaml:"ca_file" like:"/etc/vouchd/warehouse-ca.pem"`
	CertFile        config.At[string]                `yaml:"client_cert_file" like:"/etc/vouchd/warehouse.pem"`
	KeyFile         config.At[string]                `yaml:"client_key_file" like:"/etc/vouchd/secrets/warehouse.key"`
	ConnectionLimit int                              `yaml:"connection_limit" default:"4" min:"1" max:"1000"`
	Heir            string                           `yaml:"heir" like:"vouch_heir"`
	Grants          []config.At[credential.Template] `yaml:"grants" like:"GRANT SELECT ON sales.orders TO {{role}}"`
}

// literalVerb makes a value a string in SQL; without it, it is an identifier.
const literalVerb = "literal"

// own are the values that grants may use besides the definition's parameters.
var own = []string{"role"}

func readSettings(d *credential.Definition, section config.Section) (settings, error) {
	var s settings
	var problems config.Errors
	if err := section.Decode(&s); err != nil {
		return s, err
	}
	onSocket := strings.HasPrefix(s.Host.Value, "/")
	local := onSocket || s.Host.Value == "localhost" || isLoopback(s.Host.Value)
	switch {
	case onSocket && s.TLS.Pos.Line > 0 && s.TLS.Value != "off":
		problems.Add(s.TLS.Pos, "tls is not spoken on the Unix socket in %s; remove the key", s.Host.Value)
	case onSocket:
		s.TLS.Value = "off"
	case s.TLS.Value == "off" && !local:
		problems.Add(s.TLS.Pos, "tls is off for %s, which is another machine; remove the key, and let the server present a certificate", s.Host.Value)
	}
	if !onSocket && strings.ContainsAny(s.Host.Value, "/,@:?# ") && net.ParseIP(s.Host.Value) == nil {
		problems.Add(s.Host.Pos, "host %.80q is not one host name, address or socket directory", s.Host.Value)
	}
	for _, f := range []struct {
		key string
		at  config.At[string]
	}{{"password_file", s.PasswordFile}, {"ca_file", s.CAFile}, {"client_cert_file", s.CertFile}, {"client_key_file", s.KeyFile}} {
		if f.at.Value != "" && !filepath.IsAbs(f.at.Value) {
			problems.Add(f.at.Pos, "%s %.80q is not an absolute path; write it from /", f.key, f.at.Value)
		}
		if f.at.Value != "" && s.TLS.Value == "off" && f.key != "password_file" {
			problems.Add(f.at.Pos, "%s has no effect without tls; remove it", f.key)
		}
	}
	if (s.CertFile.Value == "") != (s.KeyFile.Value == "") {
		problems.Add(section.Pos, "client_cert_file and client_key_file go together; give both or neither")
	}
	if len(s.Grants) == 0 {
		problems.Add(section.Pos, "grants is empty, so the role could do nothing; list statements such as GRANT SELECT ON sales.orders TO {{role}}")
	}
	for _, g := range s.Grants {
		if err := g.Value.Check(d, own, literalVerb); err != nil {
			problems.Add(g.Pos, "grants: %v", err)
		} else if err := checkPlaces(g.Value); err != nil {
			problems.Add(g.Pos, "grants: %.80q %v", g.Value.String(), err)
		}
	}
	for _, p := range d.Parameters {
		if p.Name == "role" {
			problems.Add(section.Pos, "parameter role has the name of the broker's own value; rename it")
		}
	}
	return s, problems.Err()
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
