package migrate

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/secret"
)

// connect finds the databases that --database names for variables, and the URLs by which
// programs reach them without a password.
func (m *envFile) connect() error {
	m.urls = make(map[string]string)
	if len(m.databases) == 0 {
		return nil
	}
	c, err := m.Load()
	if err != nil {
		return err
	}
	defs, err := credential.LoadDefinitions(c.CredentialsDir, brokers.All(brokers.Deps{}), true)
	if err != nil {
		return err
	}
	defer defs.Close()
	for _, pair := range m.databases {
		variable, name, ok := strings.Cut(pair, "=")
		if !ok || variable == "" || name == "" {
			return cli.Usagef("--database %q: want VARIABLE=CREDENTIAL", pair)
		}
		d, ok := defs.Get(name)
		if !ok || d.Database == nil {
			return fmt.Errorf("%s has no credential %s with a database block; see docs/databases.md", c.CredentialsDir, name)
		}
		socket := database.SocketOf(filepath.Dir(c.ProxySocket), d.Database.Protocol, name)
		m.urls[variable] = "unix://" + socket + "?db=" + d.Database.Name()
		if d.Database.Protocol == database.Postgres {
			m.urls[variable] = database.URLOf(filepath.Dir(socket), d.Database.Name())
		}
	}
	return nil
}

// databaseBlock returns the block of a definition for a value that is the URL of a database,
// with a password. Its lines are indented as in a definition.
func databaseBlock(variable string, v secret.Bytes) (block string, ok bool) {
	u, err := url.Parse(strings.TrimSpace(string(v.Reveal())))
	if err != nil || u.User == nil || u.Hostname() == "" {
		return "", false
	}
	if _, has := u.User.Password(); !has {
		return "", false
	}
	d := &database.Definition{Protocol: database.Postgres}
	secure := true
	switch u.Scheme {
	case "postgres", "postgresql":
		secure = u.Query().Get("sslmode") != "disable"
	case "redis", "rediss":
		d.Protocol, secure = database.Redis, u.Scheme == "rediss"
	default:
		return "", false
	}
	at := url.URL{Scheme: string(d.Protocol), Host: u.Host, Path: u.Path}
	d.Upstream = at.String()
	addr, err := netip.ParseAddr(u.Hostname())
	literal := err == nil
	d.Clear = !secure && (u.Hostname() == "localhost" || literal && addr.IsLoopback())
	if d.Compile() != nil {
		return "", false
	}
	block = fmt.Sprintf("    database: # vouchd logs in: the program never has the password (docs/databases.md)\n      protocol: %s\n      upstream: %s\n", d.Protocol, d.Upstream)
	switch {
	case d.Clear:
		block += "      tls: \"off\"\n"
	case !secure:
		block += "      # Was used without TLS, which vouchd does only on this machine.\n"
	}
	switch {
	case u.Hostname() == "localhost":
		block += "      allow_addresses: [127.0.0.1/32, \"::1/128\"]\n"
	case literal:
		block += fmt.Sprintf("      allow_addresses: [%q]\n", netip.PrefixFrom(addr, addr.BitLen()))
	default:
		block += "      # allow_addresses: [10.0.0.0/8] # if the server's address is a private one\n"
	}
	if !slices.ContainsFunc(d.Environment, func(v database.Variable) bool { return v.Name == variable }) {
		block += fmt.Sprintf("      environment: [{name: %s, value: \"{{url}}\"}]\n", variable)
	}
	return block, true
}
