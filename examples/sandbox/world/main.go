// Command world is what the agent of this demo knows of the world, on this machine: a model
// that has been told to steal, a host of Git and a registry of npm.
//
//	world DIR ORDERS
//
// It serves HTTPS on loopback, with ca.pem and address in DIR. The model answers each
// question with the next line of ORDERS. Git is served from DIR/git.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: world DIR ORDERS")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "world:", err)
		os.Exit(1)
	}
}

func serve(dir, orders string) error {
	text, err := os.ReadFile(orders)
	if err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	m := &model{key: strings.TrimSpace(string(key)), orders: strings.Split(strings.TrimSpace(string(text)), "\n")}
	r, err := newRegistry()
	if err != nil {
		return err
	}
	git := &cgi.Handler{
		Path: "/usr/lib/git-core/git-http-backend",
		Env:  []string{"GIT_PROJECT_ROOT=" + filepath.Join(dir, "git"), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=agent"},
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", m)
	mux.Handle("/left-pad", r)
	mux.Handle("/left-pad/", r)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+m.key))
		if r.Header.Get("Authorization") != want {
			http.Error(w, "no key", http.StatusUnauthorized)
			return
		}
		git.ServeHTTP(w, r)
	})
	l, err := listen(dir)
	if err != nil {
		return err
	}
	return http.Serve(l, mux)
}

// A model tells what to do next to whoever brings its key.
type model struct {
	key string

	mu     sync.Mutex // guards the fields below
	orders []string
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+m.key {
		http.Error(w, "no key", http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/v1/echo" { // as a careless API might
		fmt.Fprintln(w, "you sent", r.Header.Get("Authorization"))
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // vouchd has ended the call: the content is not what it may be
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := ""
	if len(m.orders) > 0 {
		next, m.orders = m.orders[0], m.orders[1:]
	}
	json.NewEncoder(w).Encode(map[string]string{"run": next})
}

// A registry has one package.
type registry struct{ archive []byte }

func newRegistry() (*registry, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	const manifest = `{"name":"left-pad","version":"1.3.0"}`
	if err := t.WriteHeader(&tar.Header{Name: "package/package.json", Mode: 0o644, Size: int64(len(manifest))}); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(t, manifest); err != nil {
		return nil, err
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return nil, err
	}
	return &registry{b.Bytes()}, nil
}

func (reg *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, ".tgz") {
		w.Write(reg.archive)
		return
	}
	fmt.Fprint(w, `{"name":"left-pad","dist-tags":{"latest":"1.3.0"},"versions":{"1.3.0":{"name":"left-pad","version":"1.3.0","dist":{"tarball":"https://registry.example/left-pad/-/left-pad-1.3.0.tgz"}}}}`)
}

// listen serves TLS with a certificate of its own.
func listen(dir string) (net.Listener, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, key.Public(), key)
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{
		"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "address": []byte(l.Addr().String()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".new"), text, 0o644); err != nil {
			return nil, err
		}
		if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return l, nil
}
