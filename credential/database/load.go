package database

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
)

// written is a database block as a file has it.
type written struct {
	Protocol  config.At[string]   `yaml:"protocol" required:"true" oneof:"postgres redis"`
	Upstream  config.At[string]   `yaml:"upstream" required:"true" like:"postgres://db.example:5432/warehouse"`
	TLS       string              `yaml:"tls" default:"verify-full" oneof:"verify-full off"`
	CAFile    config.At[string]   `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`
	CertFile  config.At[string]   `yaml:"client_cert_file" like:"/etc/vouchd/warehouse.pem"`
	KeyFile   config.At[string]   `yaml:"client_key_file" like:"/etc/vouchd/secrets/warehouse.key"`
	User      string              `yaml:"user" like:"reporting"`
	MD5       config.At[bool]     `yaml:"allow_md5" default:"false"`
	Addresses []config.At[string] `yaml:"allow_addresses" like:"10.1.0.0/16"`
	Connect   time.Duration       `yaml:"connect_timeout" min:"100ms" max:"2m"`
	Who       string              `yaml:"who" default:"tree" oneof:"tree main"`

	Statements config.At[[]config.At[string]] `yaml:"statements" like:"SELECT"`
	Commands   config.At[[]config.At[string]] `yaml:"commands" like:"GET"`
	ReadOnly   config.At[bool]                `yaml:"read_only" default:"false"`

	Environment []writtenVariable `yaml:"environment"`

	Pos config.Pos
}

type writtenVariable struct {
	Name  string `yaml:"name" required:"true" like:"DATABASE_URL"`
	Value string `yaml:"value" required:"true" like:"{{url}}"`

	Pos config.Pos
}

// Load reads a database block. Problems come as [config.Errors], in the document's lines.
// The file that it names for certificates is read.
func Load(section config.Section) (*Definition, error) {
	var w written
	if err := section.Decode(&w); err != nil {
		return nil, err
	}
	var problems config.Errors
	d := w.definition(&problems)
	if len(problems) == 0 {
		if err := d.Compile(); err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				problems.Add(section.Pos, "database: %s", line)
			}
		}
	}
	return d, problems.Err()
}

func (w *written) definition(problems *config.Errors) *Definition {
	d := &Definition{
		Protocol: Protocol(w.Protocol.Value), Upstream: w.Upstream.Value, Clear: w.TLS == "off", User: w.User, MD5: w.MD5.Value,
		Connect: w.Connect, MainOnly: w.Who == "main", ReadOnly: w.ReadOnly.Value, CertFile: w.CertFile.Value, KeyFile: w.KeyFile.Value,
	}
	list, other, name := w.Statements, w.Commands, "commands"
	if d.Protocol == Redis {
		list, other, name = w.Commands, w.Statements, "statements"
	}
	if other.Pos.Line > 0 {
		problems.Add(other.Pos, "%s is not of protocol %s; use %s", name, d.Protocol, map[Protocol]string{Postgres: "statements", Redis: "commands"}[d.Protocol])
	}
	if list.Pos.Line > 0 && len(list.Value) == 0 {
		problems.Add(list.Pos, "the list is empty, which could mean none or all; list what may be sent, or remove the key for all")
	}
	for _, s := range list.Value {
		d.Statements = append(d.Statements, strings.ToUpper(s.Value))
	}
	for _, v := range w.Environment {
		d.Environment = append(d.Environment, Variable{v.Name, v.Value})
	}
	for _, a := range w.Addresses {
		prefix, err := netip.ParsePrefix(a.Value)
		if err != nil || prefix.Masked() != prefix {
			problems.Add(a.Pos, "allow_addresses: %.60q is not a network, written like 10.1.0.0/16 or 127.0.0.1/32", a.Value)
		}
		d.Address = append(d.Address, prefix)
	}
	w.files(d, problems)
	return d
}

// files checks the files of TLS, and reads the certificates to trust.
func (w *written) files(d *Definition, problems *config.Errors) {
	for _, f := range []struct {
		key string
		at  config.At[string]
	}{{"ca_file", w.CAFile}, {"client_cert_file", w.CertFile}, {"client_key_file", w.KeyFile}} {
		switch {
		case f.at.Value == "":
		case !filepath.IsAbs(f.at.Value):
			problems.Add(f.at.Pos, "%s %.80q is not an absolute path; write it from /", f.key, f.at.Value)
		case d.Clear:
			problems.Add(f.at.Pos, "%s has no effect without tls; remove it", f.key)
		}
	}
	if (w.CertFile.Value == "") != (w.KeyFile.Value == "") {
		problems.Add(w.Pos, "client_cert_file and client_key_file go together; give both or neither")
	}
	if at := w.CAFile; at.Value != "" {
		pem, err := readCAs(at.Value)
		if err != nil {
			problems.Add(at.Pos, "ca_file: %v", err)
		}
		d.CAs = pem
	}
}

// maxCAs is what fits into a message to the other process beside the rest, in bytes.
const maxCAs = 128 << 10

func readCAs(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCAs {
		return "", fmt.Errorf("%s is not a file of at most %d KiB", path, maxCAs>>10)
	}
	pem, err := os.ReadFile(path)
	return string(pem), err
}
