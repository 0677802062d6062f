package vault_test

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vouchd/vouchd/credential/credentialtest"
)

// fake is a protocol fake of the parts of Vault's HTTP API that the broker
// uses, written from its documents. It verifies JWT-SVIDs and client
// certificates, knows tokens, leases and what hangs on what, and refuses what a
// policy without sys/leases/revoke would.
type fake struct {
	*httptest.Server
	t      *testing.T
	domain *credentialtest.Workload
	caFile string

	mu          sync.Mutex
	tokens      map[string]time.Time // until when
	byCert      map[string]bool      // tokens that were got by certificate
	leases      map[string]string    // of which token
	logins      []string             // who logged in, and how
	maySync     bool                 // the policy allows sys/leases/revoke
	mayRevoke   bool                 // and auth/token/revoke-self
	mayLookUp   bool                 // and auth/token/lookup-self
	noAccessor  bool
	unrenewable bool
	fault       func(w http.ResponseWriter, r *http.Request) bool
}

func newFake(t *testing.T, domain *credentialtest.Workload) *fake {
	f := &fake{t: t, domain: domain, tokens: make(map[string]time.Time), byCert: make(map[string]bool), leases: make(map[string]string), mayRevoke: true, mayLookUp: true}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	f.StartTLS()
	t.Cleanup(f.Close)
	f.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(f.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil && f.fault(w, r) {
		return
	}
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	token := r.Header.Get("X-Vault-Token")
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	switch path {
	case "auth/jwt/login":
		f.login(w, f.verifyJWT(body), "jwt")
		return
	case "auth/cert/login":
		f.login(w, body["name"] == "research" && verifyCert(r), "cert")
		return
	}
	if until, ok := f.tokens[token]; !ok || time.Now().After(until) {
		refuse(w, 403)
		return
	}
	switch {
	case path == "auth/token/renew-self" && f.byCert[token]:
		refuse(w, 400) // without the certificate of the login
	case path == "auth/token/renew-self":
		seconds, _ := body["increment"].(float64)
		f.tokens[token] = time.Now().Add(time.Duration(seconds) * time.Second)
		answer(w, map[string]any{"auth": map[string]any{"client_token": token, "accessor": "a", "lease_duration": int(seconds), "renewable": true}})
	case path == "auth/token/lookup-self" && f.mayLookUp:
		answer(w, map[string]any{"data": map[string]any{"id": token}})
	case path == "auth/token/revoke-self" && f.mayRevoke:
		delete(f.tokens, token)
		for lease, of := range f.leases {
			if of == token {
				delete(f.leases, lease)
			}
		}
		w.WriteHeader(204)
	case path == "sys/leases/revoke" && f.maySync:
		if body["sync"] != true || f.leases[body["lease_id"].(string)] != token {
			refuse(w, 400)
			return
		}
		delete(f.leases, body["lease_id"].(string))
		w.WriteHeader(204)
	case path == "sys/leases/renew":
		if f.leases[body["lease_id"].(string)] != token || f.unrenewable {
			refuse(w, 400)
			return
		}
		answer(w, map[string]any{"lease_id": body["lease_id"], "lease_duration": body["increment"], "renewable": true})
	case path == "database/creds/readonly" && r.Method == "GET":
		lease := path + "/" + rand.Text()
		f.leases[lease] = token
		answer(w, map[string]any{"lease_id": lease, "lease_duration": 3600, "renewable": true, "data": map[string]any{"username": "v-1", "password": canary}})
	case path == "pki/issue/agent" && r.Method == "PUT" && body["common_name"] == "db1.example.org":
		answer(w, map[string]any{"lease_id": "", "data": map[string]any{
			"certificate": "pem", "private_key": canary, "ca_chain": []string{"x"}, "expiration": time.Now().Add(30 * time.Minute).Unix(),
		}})
	case path == "secret/data/app" && r.Method == "GET": // kv, version 2
		answer(w, map[string]any{"lease_id": "", "lease_duration": 0, "renewable": false, "data": map[string]any{
			"data":     map[string]any{"password": canary, "port": 5432, "username": "app"},
			"metadata": map[string]any{"created_time": "2026-03-22T02:24:06Z", "version": 2, "destroyed": false},
		}})
	case path == "kv/app" && r.Method == "GET": // version 1, which suggests when to look again
		answer(w, map[string]any{"lease_id": "", "lease_duration": 2764800, "renewable": false, "data": map[string]any{"password": canary}})
	case path == "secret/data/empty":
		answer(w, map[string]any{"data": map[string]any{"data": nil, "metadata": map[string]any{"deletion_time": "2026-03-22T02:24:06Z"}}})
	case path == "database/creds/leaseless":
		answer(w, map[string]any{"data": map[string]any{"password": canary}})
	default:
		refuse(w, 403)
	}
}

func (f *fake) verifyJWT(body map[string]any) bool {
	token, _ := body["jwt"].(string)
	return body["role"] == "research" && f.domain.Verify(token, f.URL)
}

// verifyCert wants the workload's X509-SVID with a common name, which cert auth
// needs for the alias of the identity.
func verifyCert(r *http.Request) bool {
	if len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	c := r.TLS.PeerCertificates[0]
	return c.Subject.CommonName == id.String() && len(c.URIs) == 1 && c.URIs[0].String() == id.String()
}

func (f *fake) login(w http.ResponseWriter, ok bool, how string) {
	if !ok {
		refuse(w, 400)
		return
	}
	f.logins = append(f.logins, how)
	token, accessor := "hvs."+canary+rand.Text(), rand.Text()
	if f.noAccessor {
		accessor = ""
	}
	f.tokens[token] = time.Now().Add(time.Minute)
	f.byCert[token] = how == "cert"
	answer(w, map[string]any{"auth": map[string]any{"client_token": token, "accessor": accessor, "lease_duration": 60, "renewable": true, "policies": []string{"default"}}})
}

func (f *fake) left() (tokens, leases int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.tokens), len(f.leases)
}

func (f *fake) set(change func(f *fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": slices.Repeat([]string{"permission denied " + canary}, 1)})
}
