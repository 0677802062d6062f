// Package pgtest runs a real PostgreSQL for a test.
package pgtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Server is a running PostgreSQL with SCRAM for every login, on a Unix socket
// and on TCP with TLS.
type Server struct {
	SocketDir string
	Port      int
	CAFile    string // certifies localhost
	Password  string // of the superuser postgres

	dir string
	uid uint32 // of the server; it refuses to run as root
	cmd *exec.Cmd
}

// Start makes a cluster and starts its server. The caller must Stop it.
func Start() (s *Server, err error) {
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return nil, err
	}
	s = &Server{dir: dir, SocketDir: filepath.Join(dir, "run"), CAFile: filepath.Join(dir, "ca.pem"), Password: rand.Text(), uid: uint32(os.Getuid())}
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	if s.uid == 0 {
		s.uid = 65534 // nobody
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	for _, sub := range []string{"data", "run"} {
		path := filepath.Join(dir, sub)
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chown(path, int(s.uid), -1)); err != nil {
			return nil, err
		}
	}
	if err := s.init(); err != nil {
		return nil, err
	}
	return s, s.Restart()
}

func (s *Server) init() error {
	password := filepath.Join(s.dir, "run", "password")
	if err := s.give(password, []byte(s.Password), 0o600); err != nil {
		return err
	}
	if out, err := s.command("initdb", "-D", s.data(), "-U", "postgres", "-A", "scram-sha-256", "--pwfile", password, "--no-sync", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return errors.Join(
		s.edit("pg_hba.conf", func(rules string) string { return "hostssl all certified all cert\n" + rules }),
		s.edit("postgresql.conf", func(settings string) string { return settings + "ssl_ca_file = 'server.crt'\n" }),
		s.certificate())
}

// edit changes one of the server's files.
func (s *Server) edit(name string, change func(string) string) error {
	path := filepath.Join(s.data(), name)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return s.give(path, []byte(change(string(b))), 0o600)
}

// ClientCertificate returns files with a certificate of the server's authority for a role,
// and its key. The role certified logs in with that alone.
func (s *Server) ClientCertificate(t testing.TB, role string) (cert, key string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(s.data(), "server.crt"), filepath.Join(s.data(), "server.key"))
	must(err)
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: role}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, pair.Leaf, own.Public(), pair.PrivateKey)
	must(err)
	private, err := x509.MarshalPKCS8PrivateKey(own)
	must(err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	must(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	must(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return cert, key
}

// certificate makes the server's certificate, which is its own authority.
func (s *Server) certificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pgtest"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return errors.Join(
		os.WriteFile(s.CAFile, public, 0o644),
		s.give(filepath.Join(s.data(), "server.crt"), public, 0o600),
		s.give(filepath.Join(s.data(), "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

// give writes a file that belongs to the server.
func (s *Server) give(path string, data []byte, mode os.FileMode) error {
	return errors.Join(os.WriteFile(path, data, mode), os.Chown(path, int(s.uid), -1))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// program finds a program of the server: on the PATH, or where Debian and Red Hat
// keep several versions.
func program(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/", "/usr/pgsql-*/bin/"} {
		if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	return name
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(program(name), args...)
	cmd.Dir = s.SocketDir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.uid, Gid: s.uid}
	}
	return cmd
}

// Restart starts the server, after stopping it if it runs, on the same port.
func (s *Server) Restart() error {
	s.Halt()
	if s.Port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.Port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	s.cmd = s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.Port), "-k", s.SocketDir,
		"-c", "listen_addresses=127.0.0.1", "-c", "ssl=on", "-c", "fsync=off", "-c", "log_statement=all", "-c", "max_connections=400")
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stderr = log
	// The kernel ends it if the test dies.
	s.cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	late := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond) // there is nothing to wait on but the socket
	defer tick.Stop()
	for {
		conn, err := s.connect(context.Background())
		if err == nil {
			return conn.Close(context.Background())
		}
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("postgres did not come up: %w", err)
		}
	}
}

// Halt stops the server at once, and keeps its data.
func (s *Server) Halt() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGINT) // fast shutdown: sessions are cut off
	s.cmd.Wait()
	s.cmd = nil
}

// Stop stops the server and removes its data.
func (s *Server) Stop() {
	s.Halt()
	os.RemoveAll(s.dir)
}

// LogFile is the server's log, with every statement in it.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "log") }

func (s *Server) connect(ctx context.Context) (*pgx.Conn, error) {
	return s.Login(ctx, "postgres", s.Password, "postgres")
}

// Login connects over the Unix socket.
func (s *Server) Login(ctx context.Context, user, password, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user='%s' password='%s' dbname='%s' sslmode=disable", s.SocketDir, s.Port, user, password, database))
}

// Admin returns a superuser's connection for the time of the test.
func (s *Server) Admin(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	conn, err := s.Login(context.Background(), "postgres", s.Password, database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}
