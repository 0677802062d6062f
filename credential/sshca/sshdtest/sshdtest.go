// Package sshdtest runs OpenSSH's server for tests.
package sshdtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Principal is the principal that the server lets in, as root.
const Principal = "deploy"

// sshd is the server's program, which insists on being started by its whole path.
const sshd = "/usr/sbin/sshd"

// A Server lets in who has a certificate of an authority, and nobody else. Each
// connection has an sshd of its own, as inetd would start it, so that no port
// has to be guessed and nothing is left behind.
type Server struct {
	Dir  string // of its files, and of the client's known_hosts
	Port int    // on 127.0.0.1

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// Start starts a server that trusts the authorities whose public keys are given,
// for the time of the test.
func Start(t testing.TB, authorities string) *Server {
	t.Helper()
	if _, err := os.Stat(sshd); err != nil {
		t.Fatalf("%v; install Debian's openssh-server: packaging/install-missing openssh-server", err)
	}
	s := &Server{Dir: t.TempDir()}
	must(t, os.MkdirAll("/run/sshd", 0o755)) // what sshd shuts itself into; the package makes it at boot
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.path("host")).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	s.write(t, "authorities", authorities)
	s.write(t, "principals", Principal+"\n")
	s.write(t, "sshd_config", fmt.Sprintf(`HostKey %s
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
AuthenticationMethods publickey
TrustedUserCAKeys %s
AuthorizedKeysFile none
AuthorizedPrincipalsFile %s
LogLevel VERBOSE
`, s.path("host"), s.path("authorities"), s.path("principals")))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.Port = listener.Addr().(*net.TCPAddr).Port
	key, err := os.ReadFile(s.path("host.pub"))
	must(t, err)
	s.write(t, "known_hosts", fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, key))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.serve(conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { listener.Close(); serving.Wait() })
	return s
}

func (s *Server) serve(conn *net.TCPConn) {
	f, err := conn.File()
	conn.Close()
	if err != nil {
		return
	}
	defer f.Close()
	cmd := exec.Command(sshd, "-i", "-e", "-f", s.path("sshd_config"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, s
	cmd.Run() // how it ends is what its log says
}

// Write takes what the server logs.
func (s *Server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// Log returns what the server has logged.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Args are what ssh needs to run a command there, with options before it.
func (s *Server) Args(options []string, command ...string) []string {
	args := append([]string{
		"-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + s.path("known_hosts"),
		"-p", strconv.Itoa(s.Port),
	}, options...)
	return append(append(args, "root@127.0.0.1"), command...)
}

func (s *Server) path(name string) string { return filepath.Join(s.Dir, name) }

func (s *Server) write(t testing.TB, name, content string) {
	t.Helper()
	must(t, os.WriteFile(s.path(name), []byte(strings.TrimLeft(content, "\n")), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
