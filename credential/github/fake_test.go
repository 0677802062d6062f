package github_test

import (
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

const (
	app          = "Iv23liTESTTESTTEST"
	installation = "/app/installations/42"
)

// vendor is a fake of GitHub's REST API, written from its documents: it
// verifies the app's JWT, holds a token to what the installation has, and knows
// which tokens it has given and ended.
type vendor struct {
	*httptest.Server
	caFile string

	mu       sync.Mutex                                        // guards the fields below
	key      *rsa.PublicKey                                    // of the app
	has      map[string]string                                 // permissions of the installation
	repos    []string                                          // of the installation
	tokens   map[string]bool                                   // that live
	asked    []string                                          // method and path
	more     func(answer map[string]any)                       // what GitHub would not do
	override func(w http.ResponseWriter, r *http.Request) bool // a fault
}

func newVendor(t *testing.T, key *rsa.PublicKey) *vendor {
	t.Helper()
	v := &vendor{
		key: key, has: map[string]string{"contents": "write", "issues": "read"}, repos: []string{"site", "docs", "secrets"},
		tokens: make(map[string]bool),
	}
	v.Server = httptest.NewTLSServer(http.HandlerFunc(v.answer))
	v.Config.ErrorLog = nil
	t.Cleanup(v.Close)
	v.caFile = filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(v.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw}), 0o644))
	return v
}

func (v *vendor) answer(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, r.Method+" "+r.URL.Path)
	if v.override != nil && v.override(w, r) {
		return
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch r.Method + " " + r.URL.Path {
	case "POST " + installation + "/access_tokens":
		if !v.isApp(bearer) {
			refuse(w, 401, "A JSON web token could not be decoded: "+bearer)
			return
		}
		v.give(w, r)
	case "DELETE /installation/token":
		if !v.tokens[bearer] {
			refuse(w, 401, "Bad credentials")
			return
		}
		delete(v.tokens, bearer)
		w.WriteHeader(204)
	default:
		refuse(w, 404, "Not Found")
	}
}

// isApp checks a JWT as GitHub says that it does: RS256, iss, and exp no more
// than ten minutes ahead.
func (v *vendor) isApp(token string) bool {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return false
	}
	var c jwt.Claims
	if err := parsed.Claims(v.key, &c); err != nil || c.IssuedAt == nil || c.Expiry == nil || c.Issuer != app {
		return false
	}
	now := time.Now()
	return !c.IssuedAt.Time().After(now) && c.Expiry.Time().After(now) && c.Expiry.Time().Before(now.Add(10*time.Minute))
}

func (v *vendor) give(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Repositories []string          `json:"repositories"`
		Permissions  map[string]string `json:"permissions"`
	}
	if json.NewDecoder(r.Body).Decode(&ask) != nil || r.Header.Get("X-GitHub-Api-Version") != "2022-11-28" || r.Header.Get("Accept") != "application/vnd.github+json" {
		refuse(w, 400, "Problems parsing JSON")
		return
	}
	given := map[string]any{"metadata": "read"}
	order := []string{"read", "write", "admin"}
	for name, access := range ask.Permissions {
		if slices.Index(order, access) > slices.Index(order, v.has[name]) || v.has[name] == "" {
			refuse(w, 422, "The permissions requested are not granted to this installation.")
			return
		}
		given[name] = access
	}
	selection, repos := "selected", []map[string]any{}
	for _, name := range ask.Repositories {
		if !slices.Contains(v.repos, name) {
			refuse(w, 422, "There is at least one repository that does not exist or is not accessible to the parent installation.")
			return
		}
		repos = append(repos, map[string]any{"id": 1, "name": name, "full_name": "acme/" + name})
	}
	if len(repos) == 0 {
		selection = "all"
	}
	token := "ghs_" + credentialtest.Canary
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

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest"})
}

// living returns how many tokens live.
func (v *vendor) living() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.tokens)
}
