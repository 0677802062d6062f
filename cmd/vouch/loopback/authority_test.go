package loopback

import (
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

// TestAuthorityIsOfNoUseForOtherHosts: with its very key, OpenSSL and Go take no other name
// and no address, as the tests of real clients have Node, Java and Python do.
func TestAuthorityIsOfNoUseForOtherHosts(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority([]string{"api.example.com", "other.example"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	write(t, ca, a.PEM())
	for host, want := range map[string]bool{"api.example.com": true, "other.example": true, "evil.example": false, "example.com": false, "127.0.0.1": false} {
		leaf, err := a.forged(host)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(a.cert)
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); (err == nil) != want {
			t.Errorf("Go says of %s: %v", host, err)
		}
		file := filepath.Join(dir, host)
		write(t, file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}))
		out, err := exec.Command("openssl", "verify", "-purpose", "sslserver", "-CAfile", ca, file).CombinedOutput()
		if (err == nil) != want {
			t.Errorf("OpenSSL says of %s: %s", host, out)
		}
	}
	if left := time.Until(a.leaves["api.example.com"].Leaf.NotAfter); left > leafLife {
		t.Errorf("a host is certified for %v", left)
	}
}

// forged certifies any host or address.
func (a *Authority) forged(host string) (*tls.Certificate, error) {
	return a.leaf(host)
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

// TestStoreIsReadByJava, without the certificates that it could not read.
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

var _ net.Conn = (*buffered)(nil)
