package databasetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// RedisPassword is what the daemon holds, and nobody else is to see but the server.
const RedisPassword = "canary-f81c7be0d2a94b"

// A RedisHost is a [daemontest.Host] with a Redis, which speaks TLS and wants a password.
type RedisHost struct {
	*daemontest.Host
	Port int
	Log  string // file
}

// NewRedis returns a host with the credential "cache", which this user is granted; its
// daemon is not started. More is keys of the database block.
func NewRedis(t testing.TB, more ...string) *RedisHost {
	t.Helper()
	h := &RedisHost{Host: daemontest.New(t)}
	h.Configure("proxy_socket: " + h.Path("proxy.sock") + "\n")
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [cache]}\n", os.Getuid()))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.serve()
	h.Define(more...)
	return h
}

// Define writes the definition of "cache".
func (h *RedisHost) Define(more ...string) {
	h.Write("credentials.d/cache.yaml", fmt.Sprintf(`credentials:
  - name: cache
    broker: static
    ttl: 1h
    limits: {rate: 100000/1m, concurrent: 1000}
    static: {secret: cache-password}
    database:
      protocol: redis
      upstream: redis://localhost:%d/2
      user: agent
      ca_file: %s
      allow_addresses: [127.0.0.1/32, "::1/128"]
      %s
`, h.Port, h.Path("redis-ca.pem"), strings.Join(more, "\n      ")))
}

// Start starts the daemon in this process, and seals the password.
func (h *RedisHost) Start() {
	h.T.Helper()
	h.Host.Start()
	h.Seal()
}

// Seal seals the password, and waits until the daemon connects.
func (h *RedisHost) Seal() {
	h.T.Helper()
	if _, stderr, code := h.VouchReads([]byte(RedisPassword), "secret", "seal", "cache-password"); code != 0 {
		h.T.Fatalf("sealing: %s", stderr)
	}
	daemontest.Eventually(h.T, "the database's socket is there", func() bool {
		c, err := net.Dial("unix", h.Socket())
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// Socket is the database's socket.
func (h *RedisHost) Socket() string { return h.Path("redis/cache.sock") }

// CLI runs redis-cli, with commands to read from its standard input.
func (h *RedisHost) CLI(input string, args ...string) string {
	h.T.Helper()
	cmd := exec.Command("redis-cli", append([]string{"-s", h.Socket()}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		h.T.Fatal(err)
	}
	return string(out)
}

// serve starts the server, for the time of the test.
func (h *RedisHost) serve() {
	t := h.T
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h.Port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	h.certificate()
	h.Log = h.Path("redis.log")
	h.Write("redis.conf", fmt.Sprintf(`port 0
tls-port %d
bind 127.0.0.1
tls-cert-file %s
tls-key-file %s
tls-ca-cert-file %s
tls-auth-clients no
save ""
dir %s
logfile %s
user default off
user agent on >%s ~* &* +@all
`, h.Port, h.Path("redis-ca.pem"), h.Path("redis-key.pem"), h.Path("redis-ca.pem"), h.Dir, h.Log, RedisPassword))
	cmd := exec.Command("redis-server", h.Path("redis.conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	daemontest.Eventually(t, "redis-server listens", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.Port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// certificate makes the server's certificate, which is its own authority.
func (h *RedisHost) certificate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(h.T, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(h.T, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(h.T, err)
	h.Write("redis-ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	h.Write("redis-key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	must(h.T, os.Chmod(filepath.Clean(h.Path("redis-key.pem")), 0o600))
}
