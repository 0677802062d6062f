package oauth2_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/zitadel/oidc/v3/pkg/oidc"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/oauth2"
	"github.com/vouchd/vouchd/credential/oauth2/oauth2test"
	"github.com/vouchd/vouchd/state"
)

var id = spiffeid.RequireFromString("spiffe://example.org/agent/crm")

// env is a provider, a workload that it trusts, and the daemon's files.
type env struct {
	*oauth2test.Provider
	workload *credentialtest.Workload
	dir      string
	secrets  *credential.Secrets
	files    credential.Files
}

func newEnv(t *testing.T) *env {
	t.Helper()
	domain := credentialtest.NewWorkload(t, id)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(token, audience string) string {
		if !domain.Verify(token, audience) {
			return ""
		}
		return domain.ID.String()
	}
	e := &env{Provider: oauth2test.Start(t, id.String(), verify, key.Public()), workload: domain, dir: t.TempDir()}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	e.write(t, "client.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	e.write(t, "client.secret", []byte(oauth2test.Secret+"\n"))
	dir, err := state.Open(filepath.Join(e.dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	e.files = dir
	e.secrets = credential.NewSecrets(dir, credentialtest.Machine(1))
	return e
}

func (e *env) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (e *env) open(t *testing.T, settings string) credential.Broker {
	t.Helper()
	text := strings.NewReplacer("URL", e.URL, "CA", e.CAFile, "DIR", e.dir).Replace(`
credentials:
  - name: crm
    broker: oauth2
    max_ttl: 1h
    parameters: [{name: object, pattern: "[a-z \"]+", default: contacts}]
    oauth2: {token_url: "URL/oauth/token", ca_file: CA, scopes: ["crm.{{object}}.read", admin], ` + settings + `}
`)
	return credentialtest.Broker(t, "oauth2", oauth2.Opener(e.secrets), text)
}

func (e *env) issue(t *testing.T, b credential.Broker) (credential.Issued, error) {
	t.Helper()
	return e.issueFor(t, b, "contacts")
}

func (e *env) issueFor(t *testing.T, b credential.Broker, object string) (credential.Issued, error) {
	t.Helper()
	r := credential.Request{LeaseID: "LEASEIDLONGER", Holder: credential.Holder{ID: id, Identity: e.workload}, Params: map[string]string{"object": object}, TTL: time.Minute}
	p, err := b.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return b.Issue(t.Context(), r, p)
}

const (
	exchange = `grant: token-exchange, subject_audience: "URL", `
	keyed    = `client_id: keyed, client_auth: private-key-jwt, client_key_file: DIR/client.key, client_key_id: ck, assertion_audience: "URL"`
	password = `client_id: secret, client_auth: secret, client_secret_file: DIR/client.secret`
	revoked  = `, tokens: opaque, revocation_url: "URL/revoke"`
)

func TestEachGrantAndClientGetsATokenThatTheServerAccepts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, settings, subject string
	}{
		{"token exchange without any stored key", exchange + "client_auth: jwt-svid", "id1"},
		{"token exchange of a public client", exchange + "client_auth: none, client_id: public", "id1"},
		{"token exchange of a client with a key", exchange + keyed, "id1"},
		{"token exchange of a client with a secret", exchange + password, "id1"},
		{"client credentials by a JWT-SVID", "grant: client-credentials, client_auth: jwt-svid", "workload"},
		{"client credentials by a key", "grant: client-credentials, " + keyed, "keyed"},
		{"client credentials by a secret", "grant: client-credentials, " + password, "secret"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			b := e.open(t, tt.settings)
			issued, err := e.issue(t, b)
			if err != nil {
				t.Fatal(err)
			}
			if len(issued.Fields) != 1 || issued.Fields[0].Name != "access_token" || issued.NotAfter.Before(time.Now()) {
				t.Errorf("issued %+v", issued)
			}
			if got := e.Subject(t, string(issued.Fields[0].Value.Reveal())); got != tt.subject {
				t.Errorf("the token is of %q, want %q", got, tt.subject)
			}
			if form := e.Forms()[0]; form.Get("scope") != "crm.contacts.read admin" {
				t.Errorf("asked for scope %q", form.Get("scope"))
			}
			if strings.HasPrefix(tt.settings, exchange) && slices.Contains(issued.Scope, "admin") {
				t.Errorf("scope %q, though the server left admin out", issued.Scope)
			}
			if tr := b.Traits(); tr.Revocation != credential.ExpiryOnly {
				t.Errorf("claims %s of tokens that are checked by signature", tr.Revocation)
			}
		})
	}
}

func TestServerRefusesAnotherTrustDomainsWorkload(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.workload = credentialtest.NewWorkload(t, id)
	for _, settings := range []string{exchange + "client_auth: none, client_id: public", exchange + "client_auth: jwt-svid", "grant: client-credentials, client_auth: jwt-svid"} {
		if _, err := e.issue(t, e.open(t, settings)); !errors.Is(err, credential.ErrRefused) || strings.Contains(err.Error(), "eyJ") {
			t.Errorf("%s: %v", settings, err)
		}
	}
}

func TestRevokedTokenIsRefusedByTheServer(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	b := e.open(t, exchange+password+revoked)
	if tr := b.Traits(); tr.Revocation != credential.Hard {
		t.Errorf("traits %+v", tr)
	}
	issued, err := e.issue(t, b)
	if err != nil {
		t.Fatal(err)
	}
	token := string(issued.Fields[0].Value.Reveal())
	if e.Subject(t, token) != "id1" {
		t.Fatal("the token does not work to begin with")
	}
	if issued.Handle == nil || !strings.Contains(string(issued.Handle.Data.Reveal()), token) {
		t.Fatal("the handle does not say what to revoke")
	}
	for range 2 { // it may be asked again
		if _, err := b.Revoke(t.Context(), *issued.Handle); err != nil {
			t.Fatal(err)
		}
	}
	if form := e.Forms()[len(e.Forms())-1]; form.Get("token") != token || form.Get("token_type_hint") != "access_token" {
		t.Errorf("the server was told %v", form)
	}
	if e.Subject(t, token) != "" {
		t.Error("the token works on")
	}
	if err := b.Recover(t.Context(), credential.Handle{Name: "token-x"}); !errors.Is(err, credential.ErrOnlyExpires) {
		t.Errorf("Recover: %v", err)
	}
}

// enrol makes the server give out a refresh token, as a person's consent would.
func (e *env) enrol(t *testing.T) string {
	t.Helper()
	request := &oidc.AuthRequest{ClientID: "keyed", Scopes: oidc.SpaceDelimitedArray{"openid", "offline_access", "crm.contacts.read", "admin"}}
	auth, err := e.Storage.CreateAuthRequest(t.Context(), request, "id1")
	if err != nil {
		t.Fatal(err)
	}
	_, refresh, _, err := e.Storage.CreateAccessAndRefreshTokens(t.Context(), auth, "")
	if err != nil {
		t.Fatal(err)
	}
	return refresh
}

const refreshing = "grant: refresh-token, refresh_token_file: DIR/refresh, " + keyed

func TestRotatedRefreshTokenIsKeptAcrossRestarts(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	first := e.enrol(t)
	e.write(t, "refresh", []byte(first+"\n"))
	used := make(map[string]bool)
	for i := range 3 {
		if i == 2 {
			os.Remove(filepath.Join(e.dir, "refresh")) // it may go once it is enrolled
		}
		b := e.open(t, refreshing) // as after a restart
		if _, err := e.issue(t, b); err != nil {
			t.Fatalf("time %d: %v", i, err)
		}
		used[e.Forms()[len(e.Forms())-1].Get("refresh_token")] = true
	}
	if len(used) != 3 || !used[first] {
		t.Errorf("%d refresh tokens were used, want a new one each time", len(used))
	}
	files, err := os.ReadDir(filepath.Join(e.dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(e.dir, "state", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for token := range used {
			if strings.Contains(string(b), token) {
				t.Errorf("%s holds a refresh token in clear", f.Name())
			}
		}
	}
	second := e.enrol(t)
	e.write(t, "refresh", []byte(second))
	if _, err := e.issue(t, e.open(t, refreshing)); err != nil || e.Forms()[len(e.Forms())-1].Get("refresh_token") != second {
		t.Errorf("after enrolling another: %v", err)
	}
}

// full is a state directory that writes nothing while it is full.
type full struct {
	credential.Files
	yes bool
}

func (f *full) Save(name string, version int, data []byte) error {
	if f.yes {
		return errors.New("no space left on device")
	}
	return f.Files.Save(name, version, data)
}

func TestAccessTokenIsNotUsedBeforeTheRotatedRefreshTokenIsDurable(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.write(t, "refresh", []byte(e.enrol(t)))
	files := &full{Files: e.files}
	e.secrets = credential.NewSecrets(files, credentialtest.Machine(1))
	b := e.open(t, refreshing)
	if _, err := e.issue(t, b); err != nil {
		t.Fatal(err)
	}
	files.yes = true
	for range 2 {
		if issued, err := e.issue(t, b); !errors.Is(err, credential.ErrUnrecorded) || issued.Fields != nil {
			t.Errorf("with a full disk: %+v, %v", issued, err)
		}
	}
	files.yes = false
	if _, err := e.issue(t, b); err != nil {
		t.Errorf("once there is space again, the token that was rotated meanwhile is lost: %v", err)
	}
}

func TestConcurrentRefreshesUseEachTokenOnce(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.write(t, "refresh", []byte(e.enrol(t)))
	b := e.open(t, refreshing)
	errs := make(chan error)
	for range 8 {
		go func() { _, err := e.issue(t, b); errs <- err }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestServerFaults(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	b := e.open(t, exchange+password+revoked)
	issued, err := e.issue(t, b)
	if err != nil {
		t.Fatal(err)
	}
	for status, want := range map[int]error{500: credential.ErrUpstream, 503: credential.ErrUpstream, 302: credential.ErrUpstream, 429: credential.ErrUpstream, 403: credential.ErrRefused} {
		e.Fault = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Location", "/elsewhere")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprint(w, `{"error":"nope","error_description":"canary-4f1b"}`)
			return true
		}
		if _, err := e.issue(t, b); !errors.Is(err, want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("issuing with status %d: %v", status, err)
		}
		if _, err := b.Revoke(t.Context(), *issued.Handle); !errors.Is(err, want) {
			t.Errorf("revoking with status %d: %v", status, err)
		}
	}
	e.Fault = nil
	if _, err := b.Revoke(t.Context(), *issued.Handle); err != nil {
		t.Error(err)
	}
}

func TestCallersValueIsPartOfOneScope(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	b := e.open(t, exchange+password)
	for _, object := range []string{"a admin", `a"b`, "a,admin"} {
		if _, err := e.issueFor(t, b, object); !errors.Is(err, credential.ErrParameter) {
			t.Errorf("%q: %v", object, err)
		}
	}
}
