// Package vaultcatest is a protocol fake of the parts of Vault's HTTP API by which a host is
// certified, written from its documents: the cert and jwt auth methods, the PKI engine's
// root/sign-intermediate, and auth/token/revoke-self. It verifies certificates, tokens and
// requests as those do, and signs with a key of its own.
package vaultcatest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// A Server is the fake. Its fields may be changed under Lock.
type Server struct {
	*httptest.Server
	sync.Mutex
	CAFile   string            // of the server's TLS
	RootFile string            // of the PKI engine
	Root     *x509.Certificate // the same
	Key      crypto.Signer     // of Root

	Clients  *x509.CertPool     // whose certificates may log in by cert
	JWTKeys  []crypto.PublicKey // by which tokens may log in by jwt
	Subject  string             // that tokens have to begin with
	Audience string

	OldServer bool                                          // knows nothing of permitted_uri_domains
	Fault     func(w http.ResponseWriter, path string) bool // answers in its place
	Change    func(*x509.Certificate)                       // of what is about to be signed
	Life      time.Duration                                 // 0: what is asked for

	Logins []string // how each came in
	Signed int
	tokens map[string]bool
}

// New returns a server that the test ends.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{tokens: make(map[string]bool), Clients: x509.NewCertPool()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	s.Key = key
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	s.Root, err = x509.ParseCertificate(der)
	must(t, err)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	dir := t.TempDir()
	s.CAFile, s.RootFile = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "root.pem")
	must(t, os.WriteFile(s.CAFile, encode(s.Certificate().Raw), 0o644))
	must(t, os.WriteFile(s.RootFile, encode(s.Root.Raw), 0o644))
	return s
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.Lock()
	defer s.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if s.Fault != nil && s.Fault(w, path) {
		return
	}
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	token := r.Header.Get("X-Vault-Token")
	switch {
	case path == "auth/cert/login" && body["name"] == "vouchd" && s.isClient(r):
		s.logIn(w, "cert")
	case path == "auth/jwt/login" && body["role"] == "vouchd" && s.isNode(body["jwt"]):
		s.logIn(w, "jwt")
	case !s.tokens[token]:
		w.WriteHeader(http.StatusForbidden)
	case path == "auth/token/revoke-self":
		delete(s.tokens, token)
		w.WriteHeader(http.StatusNoContent)
	case path == "pki/root/sign-intermediate":
		s.sign(w, body)
	default:
		w.WriteHeader(http.StatusForbidden)
	}
}

// Tokens returns how many logins have not ended.
func (s *Server) Tokens() int {
	s.Lock()
	defer s.Unlock()
	return len(s.tokens)
}

func (s *Server) logIn(w http.ResponseWriter, how string) {
	token := rand.Text()
	s.tokens[token] = true
	s.Logins = append(s.Logins, how)
	answer(w, map[string]any{"auth": map[string]any{"client_token": token, "lease_duration": 60}})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// isClient holds the client's certificate to what the cert auth method asks of one.
func (s *Server) isClient(r *http.Request) bool {
	if len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	between := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := r.TLS.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: s.Clients, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

func (s *Server) isNode(text any) bool {
	compact, _ := text.(string)
	token, err := jwt.ParseSigned(compact, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return false
	}
	for _, key := range s.JWTKeys {
		var c jwt.Claims
		if token.Claims(key, &c) == nil {
			return strings.HasPrefix(c.Subject, s.Subject) && c.Expiry != nil && c.ValidateWithLeeway(jwt.Expected{AnyAudience: jwt.Audience{s.Audience}, Time: time.Now()}, time.Minute) == nil
		}
	}
	return false
}

// sign signs an intermediate as root/sign-intermediate does.
func (s *Server) sign(w http.ResponseWriter, body map[string]any) {
	text, _ := body["csr"].(string)
	b, _ := pem.Decode([]byte(text))
	if b == nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	ttl, _ := body["ttl"].(string)
	life, err := time.ParseDuration(ttl)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if s.Life > 0 {
		life = s.Life
	}
	san, _ := body["uri_sans"].(string)
	uri, err := url.Parse(san)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	length, _ := body["max_path_length"].(float64)
	id := sha1.Sum(csr.RawSubjectPublicKeyInfo) // as the engine makes them (RFC 5280 §4.2.1.2)
	s.Signed++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(int64(1 + s.Signed)), Subject: pkix.Name{CommonName: body["common_name"].(string)}, SubjectKeyId: id[:],
		NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(life), URIs: []*url.URL{uri}, PublicKey: csr.PublicKey,
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: int(length), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if permitted, ok := body["permitted_uri_domains"].(string); ok && !s.OldServer {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{permitted}, true
	}
	if s.Change != nil {
		s.Change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, s.Root, c.PublicKey, s.Key)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	root := string(encode(s.Root.Raw))
	answer(w, map[string]any{"data": map[string]any{"certificate": string(encode(der)), "issuing_ca": root, "ca_chain": []string{root}}})
}
