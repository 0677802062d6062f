//go:build vaultsuite

package vault_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openbao/openbao/api/v2"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
	"github.com/vouchd/vouchd/credential/vault"
)

// The suite sets up a real Vault or OpenBao, at VAULT_ADDR with VAULT_TOKEN, and
// a PostgreSQL on this machine for it, and takes what it has set up away again.
// Run it with make test-vault VAULT_ADDR=… VAULT_TOKEN=…, and VAULT_CACERT for a
// server whose certificate the machine does not trust.

// realServer is a server that was set up for the suite.
type realServer struct {
	t      *testing.T
	admin  *api.Client
	pg     *pgtest.Server
	w      *credentialtest.Workload
	prefix string // of every mount and policy
}

func setUp(t *testing.T) *realServer {
	t.Helper()
	address, token := os.Getenv("VAULT_ADDR"), os.Getenv("VAULT_TOKEN")
	if address == "" || token == "" {
		t.Fatal("give VAULT_ADDR and VAULT_TOKEN")
	}
	config := api.NewConfig()
	config.Address, config.DisableEnvironment = address, true
	if caFile := os.Getenv("VAULT_CACERT"); caFile != "" {
		if err := config.ConfigureTLS(&api.TLSConfig{CACert: caFile}); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := api.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	admin.SetToken(token)
	pg, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.Stop)
	s := &realServer{t: t, admin: admin, pg: pg, w: newWorkload(t), prefix: "vouchd-" + strings.ToLower(rand.Text()[:8])}
	s.database()
	s.pki()
	s.ssh()
	s.kv()
	s.write("sys/policies/acl/"+s.prefix, map[string]any{"policy": fmt.Sprintf(`
path "%[1]s-db/creds/readonly" { capabilities = ["read"] }
path "%[1]s-pki/issue/agent" { capabilities = ["update"] }
path "%[1]s-ssh/sign/agent" { capabilities = ["update"] }
path "%[1]s-kv/data/app" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
`, s.prefix)})
	t.Cleanup(func() { admin.Logical().Delete("sys/policies/acl/" + s.prefix) })
	s.jwtAuth()
	s.certAuth()
	return s
}

// with is the same server for a subtest.
func (s *realServer) with(t *testing.T) *realServer {
	in := *s
	in.t = t
	return &in
}

func (s *realServer) write(path string, data map[string]any) *api.Secret {
	s.t.Helper()
	answer, err := s.admin.Logical().Write(path, data)
	if err != nil {
		s.t.Fatalf("setting up %s: %v", path, err)
	}
	return answer
}

// mount mounts an engine, or an auth method, for the time of the suite.
func (s *realServer) mount(at, kind string) {
	s.t.Helper()
	s.write("sys/"+at, map[string]any{"type": kind})
	s.t.Cleanup(func() { s.admin.Logical().Delete("sys/" + at) })
}

func (s *realServer) jwtAuth() {
	at := s.prefix + "-jwt"
	s.mount("auth/"+at, "jwt")
	public, err := x509.MarshalPKIXPublicKey(s.w.Key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("auth/"+at+"/config", map[string]any{
		"jwt_validation_pubkeys": []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))},
		"bound_issuer":           "https://example.org",
		"jwt_supported_algs":     []string{"ES256"},
	})
	s.write("auth/"+at+"/role/research", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_subject": id.String(), "bound_audiences": []string{"vouchd-suite"},
		"token_policies": []string{s.prefix}, "token_ttl": "1m", "token_max_ttl": "1h", "token_type": "service",
	})
}

func (s *realServer) certAuth() {
	at := s.prefix + "-cert"
	s.mount("auth/"+at, "cert")
	authority, err := s.w.Authority()
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("auth/"+at+"/certs/research", map[string]any{
		"certificate":      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority})),
		"allowed_uri_sans": []string{id.String()},
		"token_policies":   []string{s.prefix}, "token_ttl": "15m", "token_max_ttl": "1h", "token_type": "service",
	})
}

func (s *realServer) database() {
	conn := s.pg.Admin(s.t, "postgres")
	if _, err := conn.Exec(s.t.Context(), "CREATE TABLE orders (n int); CREATE ROLE vaultadmin LOGIN SUPERUSER PASSWORD 'suite'"); err != nil {
		s.t.Fatal(err)
	}
	s.mount("mounts/"+s.prefix+"-db", "database")
	s.write(s.prefix+"-db/config/pg", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": []string{"readonly"}, "username": "vaultadmin", "password": "suite",
		"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@127.0.0.1:%d/postgres?sslmode=require", s.pg.Port),
	})
	s.write(s.prefix+"-db/roles/readonly", map[string]any{
		"db_name": "pg", "default_ttl": "5m", "max_ttl": "1h",
		"creation_statements": []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT SELECT ON orders TO "{{name}}";`},
		"revocation_statements": []string{
			`ALTER ROLE "{{name}}" NOLOGIN;`,
			`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}';`,
			`DROP OWNED BY "{{name}}";`, `DROP ROLE IF EXISTS "{{name}}";`,
		},
	})
}

func (s *realServer) pki() {
	s.mount("mounts/"+s.prefix+"-pki", "pki")
	s.write(s.prefix+"-pki/root/generate/internal", map[string]any{"common_name": "suite", "ttl": "2h"})
	s.write(s.prefix+"-pki/roles/agent", map[string]any{"allowed_domains": []string{"example.org"}, "allow_subdomains": true, "max_ttl": "1h", "ttl": "10m"})
}

func (s *realServer) ssh() {
	s.mount("mounts/"+s.prefix+"-ssh", "ssh")
	s.write(s.prefix+"-ssh/config/ca", map[string]any{"generate_signing_key": true})
	s.write(s.prefix+"-ssh/roles/agent", map[string]any{
		"key_type": "ca", "allow_user_certificates": true, "allowed_users": "agent", "default_user": "agent", "ttl": "10m", "max_ttl": "1h",
	})
}

func (s *realServer) kv() {
	at := "mounts/" + s.prefix + "-kv"
	s.write("sys/"+at, map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	s.t.Cleanup(func() { s.admin.Logical().Delete("sys/" + at) })
	// A new mount of version 2 upgrades itself for a moment.
	late := time.After(20 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.admin.Logical().Write(s.prefix+"-kv/data/app", map[string]any{"data": map[string]any{"password": "static", "port": 5432}})
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			s.t.Fatalf("setting up kv: %v", err)
		}
	}
}

// sshKey is a public key as ssh/sign wants it.
func sshKey(t *testing.T) string {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, part := range [][]byte{[]byte("ssh-ed25519"), public} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(b)
}

// manager starts the daemon's part, over the journal in dir.
func (s *realServer) manager(dir string) *lease.Manager {
	s.t.Helper()
	server := fmt.Sprintf("address: %q, role: research", s.admin.Address())
	if caFile := os.Getenv("VAULT_CACERT"); caFile != "" {
		server += ", ca_file: " + caFile
	}
	jwt := server + fmt.Sprintf(", auth: jwt, auth_mount: %s-jwt, audience: vouchd-suite", s.prefix)
	cert := server + fmt.Sprintf(", auth: cert, auth_mount: %s-cert", s.prefix)
	text := fmt.Sprintf(`
credentials:
  - {name: db-jwt, broker: vault, ttl: 2m, max_ttl: 10m, renewable: true, vault: {%[1]s, path: %[3]s-db/creds/readonly}}
  - {name: db-cert, broker: vault, ttl: 2m, max_ttl: 10m, vault: {%[2]s, path: %[3]s-db/creds/readonly}}
  - {name: pki, broker: vault, max_ttl: 1h, vault: {%[1]s, path: %[3]s-pki/issue/agent, leased: false, data: [{name: common_name, value: a.example.org}]}}
  - {name: ssh, broker: vault, max_ttl: 1h, vault: {%[1]s, path: %[3]s-ssh/sign/agent, leased: false, data: [{name: public_key, value: %[4]q}]}}
  - {name: kv, broker: vault, max_ttl: 1h, vault: {%[1]s, path: %[3]s-kv/data/app, static: true}}
`, jwt, cert, s.prefix, sshKey(s.t))
	definitions := filepath.Join(dir, "credentials.d")
	if err := os.MkdirAll(definitions, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(definitions, "a.yaml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	defs, err := credential.LoadDefinitions(definitions, credential.Brokers{"vault": vault.Open}, true)
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := lease.Open(s.t.Context(), lease.Config{
		Journal: filepath.Join(dir, "leases"), Sealer: credentialtest.Machine(1), Recorder: discard{}, Processes: credentialtest.NoProcess{}, Definitions: defs,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(m.Close)
	return m
}

func (s *realServer) grant(m *lease.Manager, name string) (*credential.Grant, map[string]string, chan struct{}) {
	s.t.Helper()
	exit := make(chan struct{})
	h := credential.Holder{ID: id, Process: credential.Process{PID: 1, BootID: rand.Text()}, Exit: exit, Identity: s.w}
	g, err := m.Grant(s.t.Context(), h, credential.Ask{Name: name, Granted: []string{name}})
	if err != nil {
		s.t.Fatalf("granting %s: %v", name, err)
	}
	fields := make(map[string]string)
	for _, f := range g.Fields {
		fields[f.Name] = string(f.Value.Reveal())
	}
	return g, fields, exit
}

// ends checks that a login is refused within a second of leave, and that its
// open session is gone.
func (s *realServer) ends(fields map[string]string, leave func()) {
	s.t.Helper()
	ctx := context.Background()
	session, err := s.pg.Login(ctx, fields["username"], fields["password"], "postgres")
	if err != nil {
		s.t.Fatalf("the login does not work: %v", err)
	}
	defer session.Close(ctx)
	if _, err := session.Exec(ctx, "SELECT * FROM orders"); err != nil {
		s.t.Fatal(err)
	}
	leave()
	late := time.After(time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		again, err := s.pg.Login(ctx, fields["username"], fields["password"], "postgres")
		if err != nil {
			break
		}
		again.Close(ctx)
		select {
		case <-tick.C:
		case <-late:
			s.t.Fatal("the login works a second after the end")
		}
	}
	if _, err := session.Exec(ctx, "SELECT 1"); err == nil {
		s.t.Error("the open session outlived the login")
	}
}

func TestRealServer(t *testing.T) {
	s := setUp(t)
	for _, name := range []string{"db-jwt", "db-cert"} {
		if name == "db-cert" && strings.HasPrefix(s.admin.Address(), "http:") {
			t.Log("not tried: auth by certificate, which needs a server with TLS (-dev-tls, and VAULT_CACERT)")
			continue
		}
		t.Run(name+" ends with its process", func(t *testing.T) {
			s := s.with(t)
			m := s.manager(t.TempDir())
			_, fields, exit := s.grant(m, name)
			s.ends(fields, func() { close(exit) })
		})
		t.Run(name+" ends at the next start", func(t *testing.T) {
			s := s.with(t)
			dir := t.TempDir()
			m := s.manager(dir)
			_, fields, _ := s.grant(m, name)
			m.Close()
			s.ends(fields, func() { s.manager(dir) })
		})
	}
	t.Run("a lease is renewed", func(t *testing.T) {
		s := s.with(t)
		m := s.manager(t.TempDir())
		exit := make(chan struct{})
		h := credential.Holder{ID: id, Process: credential.Process{PID: 1, BootID: "b"}, Exit: exit, Identity: s.w}
		g, err := m.Grant(t.Context(), h, credential.Ask{Name: "db-jwt", Granted: []string{"db-jwt"}})
		if err != nil {
			t.Fatal(err)
		}
		l, err := m.Renew(t.Context(), h, credential.Renewal{Lease: g.Lease.ID, TTL: 8 * time.Minute})
		if err != nil || !l.Expires.After(g.Lease.Expires) {
			t.Errorf("renewed to %v, %v; was %v", l.Expires, err, g.Lease.Expires)
		}
		close(exit)
	})
	for _, name := range []string{"pki", "ssh"} {
		t.Run(name+" only expires", func(t *testing.T) {
			s := s.with(t)
			g, fields, _ := s.grant(s.manager(t.TempDir()), name)
			if left := time.Until(g.Lease.Expires); left < 5*time.Minute || left > 15*time.Minute || g.Lease.Revocation != credential.ExpiryOnly {
				t.Errorf("lease %+v ends in %v, want the role's 10m", g.Lease, left)
			}
			if fields["private_key"] == "" && fields["signed_key"] == "" {
				t.Errorf("fields %v", g.Fields)
			}
		})
	}
	t.Run("kv is not said to end", func(t *testing.T) {
		s := s.with(t)
		g, fields, _ := s.grant(s.manager(t.TempDir()), "kv")
		if fields["password"] != "static" || fields["port"] != "5432" || g.Lease.Revocation != credential.Unrevocable {
			t.Errorf("fields %v of lease %+v", g.Fields, g.Lease)
		}
	})
}

type discard struct{}

func (discard) Record(context.Context, credential.Event) error { return nil }
