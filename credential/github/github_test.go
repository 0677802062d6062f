package github_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/github"
	"github.com/vouchd/vouchd/credential/githubtest"
	"github.com/vouchd/vouchd/state"
)

// machine returns the keys in a TPM.
func machine(t *testing.T) *node.Node {
	t.Helper()
	tpm, err := node.Open(t.Context(), tpmtest.Start(t).Address)
	must(t, err)
	t.Cleanup(func() { tpm.Close() })
	dir, err := state.Open(t.TempDir())
	must(t, err)
	t.Cleanup(func() { dir.Close() })
	n, err := node.Load(t.Context(), tpm, dir)
	must(t, err)
	return n
}

func appKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	return key
}

// keyFile writes a key as GitHub gives it.
func keyFile(t *testing.T, path string, key *rsa.PrivateKey) {
	t.Helper()
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
}

// newApp returns an app that GitHub knows, with its key in a file.
func newApp(t *testing.T) (v *githubtest.Server, file string) {
	t.Helper()
	key := appKey(t)
	file = filepath.Join(t.TempDir(), "app.pem")
	keyFile(t, file, key)
	return githubtest.Start(t, &key.PublicKey), file
}

func open(t *testing.T, keys github.Keys, v *githubtest.Server, file, more string) credential.Broker {
	t.Helper()
	if more == "" {
		more = `repositories: ["{{repo}}"], permissions: [contents:read]`
	}
	return credentialtest.Broker(t, "github", github.Opener(keys), fmt.Sprintf(`
credentials:
  - name: site
    broker: github
    parameters: [{name: repo, pattern: ".+", default: site}]
    github: {api_url: %q, ca_file: %s, app_id: %s, installation_id: 42, app_key_file: %s, %s}
`, v.URL, v.CAFile, githubtest.App, file, more))
}

func issue(t *testing.T, b credential.Broker, repo string) (credential.Plan, credential.Issued, error) {
	t.Helper()
	r := credential.Request{
		LeaseID: "LEASE", RequestID: "request-7", TTL: 5 * time.Minute, Params: map[string]string{"repo": repo},
		Holder: credential.Holder{ID: spiffeid.RequireFromString("spiffe://example.org/agent")},
	}
	p, err := b.Plan(t.Context(), r)
	must(t, err)
	i, err := b.Issue(t.Context(), r, p)
	return p, i, err
}

func field(i credential.Issued, name string) string {
	for _, f := range i.Fields {
		if f.Name == name {
			return string(f.Value.Reveal())
		}
	}
	return ""
}

func TestTokenIsForWhatTheDefinitionNamesAndEndsWithItsLease(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	b := open(t, machine(t), v, file, "")
	p, i, err := issue(t, b, "docs")
	must(t, err)
	token := field(i, "token")
	sum := sha256.Sum256([]byte(token))
	if v.Living() != 1 || field(i, "username") != "x-access-token" || i.Handle.Name != "sha256 "+base64.StdEncoding.EncodeToString(sum[:]) {
		t.Errorf("token %q, handle %q", token, i.Handle.Name)
	}
	if !slices.Equal(i.Scope, []string{"repository=docs", "contents:read"}) || time.Until(i.NotAfter) > time.Hour || p.NotAfter.Before(i.NotAfter) {
		t.Errorf("scope %q until %v, and the plan says %v", i.Scope, i.NotAfter, p.NotAfter)
	}
	if tr := b.Traits(); tr.Revocation != credential.Hard || tr.Renews || !strings.HasSuffix(tr.Upstream, githubtest.InstallationPath) {
		t.Errorf("traits %+v", tr)
	}
	for range 2 { // a second time finds it gone
		if _, err := b.Revoke(t.Context(), *i.Handle); err != nil {
			t.Errorf("revoking: %v", err)
		}
	}
	if v.Living() != 0 {
		t.Error("the token lives on")
	}
	if _, err := b.Revoke(t.Context(), p.Handle); !errors.Is(err, credential.ErrOnlyExpires) {
		t.Errorf("revoking a token that was lost: %v", err)
	}
	if err := b.Recover(t.Context(), p.Handle); !errors.Is(err, credential.ErrOnlyExpires) {
		t.Errorf("recovering one: %v", err)
	}
}

func TestAppKeyIsNeededOnceAndStaysInTheTPM(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	keys := machine(t)
	b := open(t, keys, v, file, "")
	_, _, err := issue(t, b, "site")
	must(t, err)
	must(t, os.Remove(file))
	if _, _, err := issue(t, b, "site"); err != nil {
		t.Errorf("once the file is gone: %v", err)
	}
	if _, _, err := issue(t, open(t, keys, v, file, ""), "site"); err != nil {
		t.Errorf("for another definition of the app: %v", err)
	}
	// Another key of the app takes its place.
	next := appKey(t)
	keyFile(t, file, next)
	v.SetKey(&next.PublicKey)
	if _, _, err := issue(t, b, "site"); err != nil {
		t.Errorf("with the next key: %v", err)
	}
	must(t, os.Remove(file))
	if _, _, err := issue(t, b, "site"); err != nil {
		t.Errorf("with the next key once its file is gone: %v", err)
	}
}

func TestWrongAppKeyIsToldSo(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	keys := machine(t)
	keyFile(t, file, appKey(t))
	_, _, err := issue(t, open(t, keys, v, file, ""), "site")
	if !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "does not accept the key of app "+githubtest.App) || strings.Contains(err.Error(), "eyJ") {
		t.Errorf("another app's key: %v", err)
	}
	for name, tt := range map[string]struct {
		write func(path string) error
		want  string
	}{
		"no file at all": {os.Remove, ""}, // the key from before is still there
		"what is no PEM": {func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) }, "is not a PEM file"},
		"what is no key": {func(p string) error {
			return os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: []byte("x")}), 0o600)
		}, "holds no RSA private key"},
		"a file others read":  {func(p string) error { return errors.Join(os.WriteFile(p, []byte("x"), 0o644), os.Chmod(p, 0o644)) }, "chmod 600"},
		"a key of 3072 bits":  {func(p string) error { return writeLong(t, p) }, "3072 bits, and a TPM takes 2048"},
		"a file of no length": {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "0 bytes"},
	} {
		must(t, os.RemoveAll(file))
		must(t, os.WriteFile(file, []byte("x"), 0o600))
		must(t, tt.write(file))
		if _, _, err := issue(t, open(t, keys, v, file, ""), "site"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, os.RemoveAll(file))
	if _, _, err := issue(t, open(t, machine(t), v, file, ""), "site"); !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "has no key in the TPM yet; put the one") {
		t.Errorf("never a key: %v", err)
	}
	if v.Living() != 0 {
		t.Error("a token was given")
	}
}

func writeLong(t *testing.T, path string) error {
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return err
	}
	keyFile(t, path, key)
	return nil
}

func TestGitHubsRefusalsSayWhatToDo(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	keys := machine(t)
	for name, tt := range map[string]struct {
		settings, repo, want string
	}{
		"a repository that the installation lacks": {"", "other", "does not have all of the repositories and permissions"},
		"a permission that it lacks":               {`repositories: [site], permissions: [administration:read]`, "site", "does not have all"},
		"more of one than it has":                  {`repositories: [site], permissions: [issues:write]`, "site", "does not have all"},
	} {
		_, _, err := issue(t, open(t, keys, v, file, tt.settings), tt.repo)
		if !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for status, want := range map[int]string{403: "suspended", 404: "has no installation 42", 500: "status 500", 429: "status 429"} {
		v.SetFault(func(w http.ResponseWriter, _ *http.Request) bool { githubtest.Refuse(w, status, "x"); return true })
		_, _, err := issue(t, open(t, keys, v, file, ""), "site")
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, credential.ErrUpstream) != (status >= 429) {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

func TestCallersValueIsOneRepository(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	b := open(t, machine(t), v, file, "")
	for _, bad := range []string{"acme/site", "..", "*", "a b", `a","b`, strings.Repeat("a", 101)} {
		if _, _, err := issue(t, b, bad); !errors.Is(err, credential.ErrParameter) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if n := v.Asked(); n != 0 {
		t.Errorf("GitHub was asked %d times", n)
	}
}

func TestTokenForMoreThanWasAskedIsEndedAndNotHandedOut(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	b := open(t, machine(t), v, file, "")
	for name, more := range map[string]func(map[string]any){
		"another permission":   func(a map[string]any) { a["permissions"] = map[string]any{"contents": "read", "issues": "read"} },
		"a higher one":         func(a map[string]any) { a["permissions"] = map[string]any{"contents": "write"} },
		"an unknown one":       func(a map[string]any) { a["permissions"] = map[string]any{"contents": "all"} },
		"every repository":     func(a map[string]any) { a["repository_selection"] = "all" },
		"another repository":   func(a map[string]any) { a["repositories"] = []any{map[string]any{"name": "secrets"}} },
		"unknown repositories": func(a map[string]any) { delete(a, "repositories") },
	} {
		v.SetMore(more)
		_, i, err := issue(t, b, "site")
		if !errors.Is(err, credential.ErrUpstream) || len(i.Fields) != 0 || v.Living() != 0 {
			t.Errorf("%s: %v, %d tokens live", name, err, v.Living())
		}
	}
}

func TestGitHubFaults(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	b := open(t, machine(t), v, file, "")
	answer := func(status int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			io.WriteString(w, body)
			return true
		}
	}
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"nothing":               answer(201, ""),
		"no token":              answer(201, `{"expires_at":"2099-01-01T00:00:00Z"}`),
		"no end":                answer(201, `{"token":"ghs_x"}`),
		"a token of two lines":  answer(201, `{"token":"a\nb","expires_at":"2099-01-01T00:00:00Z"}`),
		"a token too long":      answer(201, `{"token":"`+strings.Repeat("a", 17<<10)+`","expires_at":"2099-01-01T00:00:00Z"}`),
		"an answer without end": answer(201, strings.Repeat(" ", 2<<20)),
		"a redirect":            answer(307, ""),
		"a cut connection":      func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
	} {
		v.SetFault(fault)
		if _, i, err := issue(t, b, "site"); !errors.Is(err, credential.ErrUpstream) || len(i.Fields) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	v.SetFault(nil)
	_, i, err := issue(t, b, "site")
	must(t, err)
	v.SetFault(answer(503, ""))
	if _, err := b.Revoke(t.Context(), *i.Handle); !errors.Is(err, credential.ErrUpstream) {
		t.Errorf("revoking while it is down: %v", err)
	}
}

func TestAnswerOfSomethingBesideGitHubConfirmsNoRevocation(t *testing.T) {
	t.Parallel()
	v, file := newApp(t)
	b := open(t, machine(t), v, file, "")
	_, i, err := issue(t, b, "site")
	must(t, err)
	for name, fault := range map[string]struct {
		status int
		body   string
	}{
		"a proxy's login":     {401, `{"message":"Authentication required"}`},
		"a page":              {401, "<html>"},
		"a portal's welcome":  {200, "<html>"},
		"a forbidden request": {403, `{"message":"Bad credentials"}`},
	} {
		v.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(fault.status)
			io.WriteString(w, fault.body)
			return true
		})
		if _, err := b.Revoke(t.Context(), *i.Handle); err == nil {
			t.Errorf("%s was taken for the token's end", name)
		}
	}
	v.SetFault(nil)
	if _, err := b.Revoke(t.Context(), *i.Handle); err != nil || v.Living() != 0 {
		t.Errorf("GitHub's own answer: %v, %d live", err, v.Living())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
