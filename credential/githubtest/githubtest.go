// Package githubtest is a fake of GitHub's REST API for tests, written from its
// documents. What GitHub does beyond them, it does not show.
package githubtest

import (
	"crypto/rand"
	"crypto/rsa"
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

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/vouchd/vouchd/credential/credentialtest"
)

// The app that the server knows, and its one installation.
const (
	App          = "Iv23liTESTTESTTEST"
	Installation = 42

	InstallationPath = "/app/installations/42"
)

// A Server verifies the app's JWT, holds a token to what the installation has,
// and knows which tokens it has given and ended.
type Server struct {
	*httptest.Server
	CAFile string

	mu       sync.Mutex                  // guards the fields below
	key      *rsa.PublicKey              // of the app
	has      map[string]string           // permissions of the installation
	repos    []string                    // of the installation
	tokens   map[string]bool             // that live
	asked    []string                    // method and path
	more     func(answer map[string]any) // what GitHub would not do
	override Fault
}

// A Fault answers in the place of the server if it returns true.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// Start starts a server that knows the app's key, for the time of the test.
func Start(t testing.TB, key *rsa.PublicKey) *Server {
	t.Helper()
	v := &Server{
		key: key, has: map[string]string{"contents": "write", "issues": "read"}, repos: []string{"site", "docs", "secrets"},
		tokens: make(map[string]bool), CAFile: filepath.Join(t.TempDir(), "ca.pem"),
	}
	v.Server = httptest.NewTLSServer(http.HandlerFunc(v.answer))
	t.Cleanup(v.Close)
	if err := os.WriteFile(v.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return v
}

// SetKey lets the app have another key.
func (v *Server) SetKey(key *rsa.PublicKey) { v.set(func() { v.key = key }) }

// SetFault lets every request be answered by f; nil for none.
func (v *Server) SetFault(f Fault) { v.set(func() { v.override = f }) }

// SetMore lets answers with a token be changed to say what GitHub would not.
func (v *Server) SetMore(more func(answer map[string]any)) { v.set(func() { v.more = more }) }

func (v *Server) set(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

// Lives reports whether a token is one that the server takes.
func (v *Server) Lives(token string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tokens[token]
}

// Living returns how many tokens live.
func (v *Server) Living() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.tokens)
}

// Asked returns how many requests there were.
func (v *Server) Asked() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.asked)
}

func (v *Server) answer(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, r.Method+" "+r.URL.Path)
	if v.override != nil && v.override(w, r) {
		return
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch r.Method + " " + r.URL.Path {
	case "POST " + InstallationPath + "/access_tokens":
		if !v.isApp(bearer) {
			Refuse(w, 401, "A JSON web token could not be decoded: "+bearer)
			return
		}
		v.give(w, r)
	case "DELETE /installation/token":
		if !v.tokens[bearer] {
			Refuse(w, 401, "Bad credentials")
			return
		}
		delete(v.tokens, bearer)
		w.WriteHeader(204)
	default:
		Refuse(w, 404, "Not Found")
	}
}

// isApp checks a JWT as GitHub says that it does: RS256, iss, and exp no more
// than ten minutes ahead.
func (v *Server) isApp(token string) bool {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return false
	}
	var c jwt.Claims
	if err := parsed.Claims(v.key, &c); err != nil || c.IssuedAt == nil || c.Expiry == nil || c.Issuer != App {
		return false
	}
	now := time.Now()
	return !c.IssuedAt.Time().After(now) && c.Expiry.Time().After(now) && c.Expiry.Time().Before(now.Add(10*time.Minute))
}

func (v *Server) give(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Repositories []string          `json:"repositories"`
		Permissions  map[string]string `json:"permissions"`
	}
	if json.NewDecoder(r.Body).Decode(&ask) != nil || r.Header.Get("X-GitHub-Api-Version") != "2022-11-28" || r.Header.Get("Accept") != "application/vnd.github+json" {
		Refuse(w, 400, "Problems parsing JSON")
		return
	}
	given := map[string]any{"metadata": "read"}
	order := []string{"read", "write", "admin"}
	for name, access := range ask.Permissions {
		if slices.Index(order, access) > slices.Index(order, v.has[name]) || v.has[name] == "" {
			Refuse(w, 422, "The permissions requested are not granted to this installation.")
			return
		}
		given[name] = access
	}
	selection, repos := "selected", []map[string]any{}
	for _, name := range ask.Repositories {
		if !slices.Contains(v.repos, name) {
			Refuse(w, 422, "There is at least one repository that does not exist or is not accessible to the parent installation.")
			return
		}
		repos = append(repos, map[string]any{"id": 1, "name": name, "full_name": "acme/" + name})
	}
	if len(repos) == 0 {
		selection = "all"
	}
	token := "ghs_" + credentialtest.Canary + rand.Text()
	v.tokens[token] = true
	answer := map[string]any{
		"token": token, "expires_at": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		"permissions": given, "repository_selection": selection, "repositories": repos,
	}
	if v.more != nil {
		v.more(answer)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(201)
	json.NewEncoder(w).Encode(answer)
}

// Refuse answers as GitHub does when it says no.
func Refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest"})
}
