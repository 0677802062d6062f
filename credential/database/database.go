package database

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Protocol is what a database speaks.
type Protocol string

// The protocols that there are.
const (
	Postgres Protocol = "postgres" // PostgreSQL's, version 3
	Redis    Protocol = "redis"    // RESP 2 and 3
)

// A Definition is a database block as it is in force. It holds no secret, and does not
// change once [Definition.Compile] has returned.
type Definition struct {
	Protocol Protocol
	Upstream string         // URL; host, port and database are pinned
	Clear    bool           `json:",omitempty"` // no TLS: to this machine alone
	CAs      string         `json:",omitempty"` // PEM: the certificates to trust, alone
	User     string         `json:",omitempty"` // to log in as, where the credential does not say
	MD5      bool           `json:",omitempty"` // the server may ask for an MD5 password
	Address  []netip.Prefix // private ones that the upstream may have
	Connect  time.Duration  // for a connection, with TLS and the login
	MainOnly bool           `json:",omitempty"` // the holder alone, not the processes it has started

	Statements []string `json:",omitempty"` // commands that may be sent; empty: all
	ReadOnly   bool     `json:",omitempty"`

	Environment []Variable `json:",omitempty"` // for a program that connects by way of vouch exec

	// Of the client's certificate. The daemon reads the files for each connection.
	CertFile, KeyFile string `json:"-"`

	host, port, name string
	socket           bool
	roots            *x509.CertPool
	allowed          map[string]bool
}

// A Variable is one of a program's environment. In its value {{socket}} stands for where
// the database's socket is (for PostgreSQL its directory), {{database}} for the database's
// name, {{handle}} for the handle, and {{url}} for a URL with all three.
type Variable struct{ Name, Value string }

const defaultConnect = 10 * time.Second

var ports = map[Protocol]string{Postgres: "5432", Redis: "6379"}

// Compile checks a definition, fills in defaults and prepares it for use. The error says
// everything that is wrong.
func (d *Definition) Compile() error {
	if d.Connect == 0 {
		d.Connect = defaultConnect
	}
	problems := []error{d.compileUpstream(), d.compileStatements(), d.compileEnvironment()}
	if d.CAs != "" {
		d.roots = x509.NewCertPool()
		if !d.roots.AppendCertsFromPEM([]byte(d.CAs)) {
			problems = append(problems, errors.New("ca_file has no certificate"))
		}
	}
	if d.Protocol != Postgres && d.MD5 {
		problems = append(problems, errors.New("allow_md5 is of PostgreSQL; remove it"))
	}
	if strings.ContainsFunc(d.User, func(c rune) bool { return c < ' ' || c == 0x7f }) || len(d.User) > 128 {
		problems = append(problems, fmt.Errorf("user %.40q is not a name of at most 128 bytes", d.User))
	}
	return errors.Join(problems...)
}

func (d *Definition) compileUpstream() error {
	like := map[Protocol]string{Postgres: "postgres://db.example:5432/warehouse", Redis: "redis://cache.example:6379/0"}[d.Protocol]
	if like == "" {
		return fmt.Errorf("protocol %.40q is neither postgres nor redis", d.Protocol)
	}
	if d.Upstream == "" {
		return fmt.Errorf("upstream is missing; add it, like %s", like)
	}
	u, err := url.Parse(d.Upstream)
	if err != nil {
		return fmt.Errorf("upstream %.80q is not a URL", d.Upstream)
	}
	query, err := url.ParseQuery(u.RawQuery)
	scheme := u.Scheme == string(d.Protocol) || u.Scheme == "postgresql" && d.Protocol == Postgres
	if u.User != nil {
		return fmt.Errorf("upstream has a user in it, who comes from the credential; write it like %s", like)
	}
	if err != nil || !scheme || u.Fragment != "" || u.Opaque != "" {
		return fmt.Errorf("upstream %.80q is not like %s", d.Upstream, like)
	}
	d.host, d.port, d.name = u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/")
	if d.port == "" {
		d.port = ports[d.Protocol]
	}
	switch at := query.Get("host"); {
	case len(query) > 1 || len(query) == 1 && (at == "" || len(query["host"]) > 1):
		return fmt.Errorf("upstream %.80q has more behind the question mark than host, for a Unix socket", d.Upstream)
	case at != "" && (u.Hostname() != "" || !path.IsAbs(at) || path.Clean(at) != at):
		return fmt.Errorf("upstream %.80q names a host and a socket, or a socket without its whole path", d.Upstream)
	case at != "":
		d.host, d.socket = at, true
	case d.host == "":
		return fmt.Errorf("upstream %.80q has no host in it; write it like %s, or with ?host=/DIRECTORY for a Unix socket", d.Upstream, like)
	case d.host != strings.ToLower(d.host) || strings.ContainsAny(d.host, ", _/"):
		return fmt.Errorf("upstream %.80q does not have one host in lower case", d.Upstream)
	}
	if n, err := strconv.ParseUint(d.port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("upstream %.80q has no port in it", d.Upstream)
	}
	if err := d.checkName(); err != nil {
		return err
	}
	addr, addrErr := netip.ParseAddr(d.host)
	switch local := d.socket || d.host == "localhost" || addrErr == nil && addr.IsLoopback(); {
	case d.socket && !d.Clear:
		d.Clear = true // nothing else is spoken there
	case d.Clear && !local:
		return fmt.Errorf("tls is off for %s, which is another machine; remove the key, and let the server present a certificate", d.host)
	}
	return nil
}

// checkName checks the database's name, which for Redis is a number.
func (d *Definition) checkName() error {
	switch {
	case d.Protocol == Postgres && (d.name == "" || len(d.name) > 63 || strings.ContainsAny(d.name, "/\x00")):
		return fmt.Errorf("upstream %.80q does not name a database, which every connection is pinned to; add it behind the host", d.Upstream)
	case d.Protocol == Redis:
		if d.name == "" {
			d.name = "0"
		}
		if n, err := strconv.ParseUint(d.name, 10, 16); err != nil || strconv.FormatUint(n, 10) != d.name {
			return fmt.Errorf("upstream %.80q does not end with the number of a database", d.Upstream)
		}
	}
	return nil
}

func (d *Definition) compileEnvironment() error {
	for _, v := range d.Environment {
		if v.Name == "" || strings.ContainsFunc(v.Name, func(c rune) bool {
			return c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
		}) {
			return fmt.Errorf("environment variable %.40q is not a name", v.Name)
		}
	}
	if len(d.Environment) > 0 {
		return nil
	}
	d.Environment = []Variable{{"REDIS_URL", "{{url}}"}}
	if d.Protocol == Postgres {
		d.Environment = []Variable{{"DATABASE_URL", "{{url}}"}, {"PGHOST", "{{socket}}"}, {"PGDATABASE", "{{database}}"}, {"PGUSER", "{{handle}}"}}
	}
	return nil
}

// Same reports whether another definition says the same.
func (d *Definition) Same(e *Definition) bool {
	a, errA := json.Marshal(d)
	b, errB := json.Marshal(e)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// Host returns the host to connect to, or for a Unix socket its path: for PostgreSQL that
// of its directory.
func (d *Definition) Host() string { return d.host }

// Port returns the port, which for PostgreSQL is part of a Unix socket's name too.
func (d *Definition) Port() string { return d.port }

// Name returns the database's name, or its number.
func (d *Definition) Name() string { return d.name }

// OnSocket reports whether the upstream is a Unix socket.
func (d *Definition) OnSocket() bool { return d.socket }

// Place is where the upstream is, to show.
func (d *Definition) Place() string {
	if d.socket {
		return d.host
	}
	return net.JoinHostPort(d.host, d.port)
}

// Roots returns the certificates to trust; nil for the system's.
func (d *Definition) Roots() *x509.CertPool { return d.roots }

// SocketOf returns the path of the socket at which agents connect to a database, below the
// directory in which the proxy's own socket is. Clients of PostgreSQL are given the path's
// directory.
func SocketOf(dir string, p Protocol, name string) string {
	if p == Postgres {
		return path.Join(dir, "pg", name, ".s.PGSQL.5432")
	}
	return path.Join(dir, "redis", name+".sock")
}

// Filled returns the variables for a program that connects by a socket of [SocketOf], with
// all in place but the handle.
func (d *Definition) Filled(socket string) []Variable {
	url := "unix://:{{handle}}@" + socket + "?db=" + d.name
	if d.Protocol == Postgres {
		socket = path.Dir(socket)
		url = "postgresql://{{handle}}@" + strings.TrimPrefix(URLOf(socket, d.name), "postgresql://")
	}
	return d.filled(url, socket)
}

// Addressed returns the variables for a program that has no Unix sockets and connects to
// the protocol's port of an address, with all in place but {{address}} and the handle.
func (d *Definition) Addressed() []Variable {
	if d.Protocol == Postgres {
		return d.filled("postgresql://{{handle}}@{{address}}/"+url.PathEscape(d.name)+"?sslmode=disable", "{{address}}")
	}
	return d.filled("redis://:{{handle}}@{{address}}/"+d.name, "{{address}}")
}

func (d *Definition) filled(url, socket string) []Variable {
	fill := strings.NewReplacer("{{url}}", url, "{{socket}}", socket, "{{database}}", d.name)
	filled := make([]Variable, 0, len(d.Environment))
	for _, v := range d.Environment {
		filled = append(filled, Variable{v.Name, fill.Replace(v.Value)})
	}
	return filled
}

// URLOf returns the URL of a database of PostgreSQL's whose socket is in a directory.
func URLOf(dir, name string) string { return "postgresql:///" + url.PathEscape(name) + "?host=" + dir }

// compileStatements checks the commands against the vocabulary.
func (d *Definition) compileStatements() error {
	var known map[string]bool
	switch d.Protocol {
	case Postgres:
		known = vocabulary
	case Redis:
		if d.ReadOnly {
			return errors.New("read_only is of PostgreSQL; list the commands that read, or give the login no others")
		}
	}
	d.allowed = make(map[string]bool)
	var problems []error
	for _, s := range d.Statements {
		switch {
		case d.allowed[s]:
			problems = append(problems, fmt.Errorf("statements: %.40q is given twice", s))
		case known != nil && !known[s]:
			problems = append(problems, fmt.Errorf("statements: %.40q is not a command that can be allowed; there are %s", s, strings.Join(words(), ", ")))
		case known == nil && !commandName(s):
			problems = append(problems, fmt.Errorf("commands: %.40q is not a command in capitals", s))
		case known == nil && refusedCommands[s]:
			problems = append(problems, fmt.Errorf("commands: %s is for the server's administrators, and is refused in any case", s))
		case d.ReadOnly && !reading[s]:
			problems = append(problems, fmt.Errorf("statements: %s may write, and read_only is set; remove one", s))
		}
		d.allowed[s] = true
	}
	if d.ReadOnly && len(d.Statements) == 0 {
		for s := range reading {
			d.allowed[s] = true
		}
	}
	return errors.Join(problems...)
}

func words() []string {
	var list []string
	for s := range vocabulary {
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}
