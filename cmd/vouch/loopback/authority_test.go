package loopback

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// TestAuthorityIsOfNoUseForOtherHosts: with its very key, OpenSSL, Go, Node and Python take
// no other name and no address. (Java does not either: see the tests of real clients.)
func TestAuthorityIsOfNoUseForOtherHosts(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority([]string{"api.example.com", "other.example"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	write(t, ca, a.PEM())
	issuer := filepath.Join(dir, "issuer.pem")
	write(t, issuer, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.issuer.Raw}))
	roots := x509.NewCertPool()
	roots.AddCert(a.root)
	between := x509.NewCertPool()
	between.AddCert(a.issuer)
	for host, want := range map[string]bool{"api.example.com": true, "other.example": true, "evil.example": false, "example.com": false, "127.0.0.1": false} {
		leaf := a.forge(t, host)
		file := filepath.Join(dir, host)
		write(t, file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}))
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host}); (err == nil) != want {
			t.Errorf("Go says of %s: %v", host, err)
		}
		port := serveTLS(t, leaf)
		for name, args := range map[string][]string{
			"OpenSSL": {"openssl", "verify", "-purpose", "sslserver", "-CAfile", ca, "-untrusted", issuer, file},
			"Node":    {"node", "-e", fmt.Sprintf(`require('tls').connect({port: %d, host: '127.0.0.1', servername: %q, ca: require('fs').readFileSync(%q), checkServerIdentity: (h, c) => require('tls').checkServerIdentity(%[2]q, c)}, () => process.exit(0)).on('error', e => {console.log(e.message); process.exit(1)})`, port, name(host), ca, host)},
			"Python":  {"python3", "-c", fmt.Sprintf("import socket, ssl\nc = ssl.create_default_context(cafile=%q)\nc.wrap_socket(socket.create_connection(('127.0.0.1', %d)), server_hostname=%q)", ca, port, host)},
		} {
			out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			if (err == nil) != want {
				t.Errorf("%s says of %s: %s (%v)", name, host, out, err)
			}
		}
	}
}

// name is what a client asks for with SNI, which has no addresses.
func name(host string) string {
	if net.ParseIP(host) != nil {
		return ""
	}
	return host
}

// forge certifies any host or address, as a thief of the key could.
func (a *Authority) forge(t *testing.T, host string) *tls.Certificate {
	t.Helper()
	of := &x509.Certificate{
		SerialNumber: serial(), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		of.IPAddresses = []net.IP{ip}
	} else {
		of.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, of, a.issuer, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.issuer.Raw}, PrivateKey: a.key, Leaf: leaf}
}

// serveTLS serves with a certificate, and returns the port.
func serveTLS(t *testing.T, c *tls.Certificate) int {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*c}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				c.(*tls.Conn).Handshake() // that of a client which does not trust it fails
				c.Read(make([]byte, 1))
				c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// TestHostsAreCertifiedForAnHour: a certificate is replaced when half of it has passed.
func TestHostsAreCertifiedForAnHour(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority([]string{"api.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.leaf("api.example.com")
	if err != nil || time.Until(first.Leaf.NotAfter) > leafLife {
		t.Fatalf("certified until %v: %v", first.Leaf.NotAfter, err)
	}
	if again, err := a.leaf("api.example.com"); err != nil || again != first {
		t.Errorf("certified anew at once: %v", err)
	}
	first.Leaf.NotAfter = time.Now().Add(leafLife/2 - time.Second)
	if again, err := a.leaf("api.example.com"); err != nil || again == first {
		t.Errorf("not certified anew: %v", err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTLSIsEndedForTheHostAndTheHostAlone, by ALPN in HTTP/2 or 1.1.
func TestTLSIsEndedForTheHostAndTheHostAlone(t *testing.T) {
	port, p, _, a := serve(t, "api.example.com", "b.example")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, a.PEM())
	client := func(connect, name, alpn string) (string, error) {
		cmd := exec.Command("openssl", "s_client", "-proxy", fmt.Sprintf("127.0.0.1:%d", port), "-connect", connect, "-servername", name,
			"-CAfile", ca, "-verify_return_error", "-verify_hostname", name, "-quiet", "-alpn", alpn)
		cmd.Stdin = strings.NewReader("you\n")
		out, err := cmd.Output()
		return string(out), err
	}
	for _, alpn := range []string{"h2", "http/1.1"} {
		if out, err := client("api.example.com:443", "api.example.com", alpn); err != nil || !strings.Contains(out, "hello you") {
			t.Errorf("%s: %q (%v)", alpn, out, err)
		}
		if h := <-p.said; h.Door != relay.Connect || h.Host != "api.example.com" || h.Authority != a.Digest() {
			t.Errorf("the proxy is told %+v", h)
		}
	}
	if out, err := client("api.example.com:443", "b.example", "h2"); err == nil || out != "" {
		t.Errorf("for another host: %q (%v)", out, err)
	}
	if h := <-p.said; h.Attempt == nil || h.Attempt.Kind != "tls" || !strings.Contains(h.Attempt.Target, "b.example") {
		t.Errorf("the proxy is told %+v", h)
	}
}

// TestTunnelToAnotherHostIsTheProxysToDecide: the request for it is passed on as it came.
func TestTunnelToAnotherHostIsTheProxysToDecide(t *testing.T) {
	port, p, _, _ := serve(t, "api.example.com")
	script := fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d && printf 'CONNECT evil.example:443 HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\n\r\n' >&3 && head -n 1 <&3`, port)
	out, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil || string(out) != "hello CONNECT evil.example:443 HTTP/1.1\r\n" {
		t.Errorf("%q (%v)", out, err)
	}
	if h := <-p.said; h.Door != relay.Connect || h.Host != "" || h.Authority != "" {
		t.Errorf("the proxy is told %+v", h)
	}
}

func TestStoreHoldsTheBundle(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority([]string{"api.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := a.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Store(bundle); err != nil {
		t.Error(err)
	}
}
