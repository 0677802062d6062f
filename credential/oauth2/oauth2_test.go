package oauth2_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/oauth2"
	"github.com/vouchd/vouchd/state"
)

var id = spiffeid.RequireFromString("spiffe://example.org/agent/crm")

// provider is a real OpenID provider that was told to trust a trust domain.
type provider struct {
	*op.LegacyServer
	*httptest.Server
	store  *store
	caFile string
	fault  func(w http.ResponseWriter, r *http.Request) bool
	mu     sync.Mutex
	forms  []url.Values // that were posted to it
}

// store is the library's storage in memory, with a client of each kind and with
// a trust domain whose JWT-SVIDs may be exchanged.
type store struct {
	*storage.Storage
	domain *credentialtest.Workload
	key    crypto.PublicKey // of the client that authenticates by one
	url    string
}

// client may use every grant.
type client struct {
	*storage.Client
	method oidc.AuthMethod
}

func (c client) AuthMethod() oidc.AuthMethod { return c.method }
func (c client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials, oidc.GrantTypeRefreshToken, oidc.GrantTypeTokenExchange}
}

func (s *store) GetClientByClientID(ctx context.Context, clientID string) (op.Client, error) {
	methods := map[string]oidc.AuthMethod{"public": oidc.AuthMethodNone, "keyed": oidc.AuthMethodPrivateKeyJWT, "secret": oidc.AuthMethodBasic, "workload": oidc.AuthMethodPrivateKeyJWT}
	method, ok := methods[clientID]
	if !ok {
		return nil, errors.New("no such client")
	}
	return client{storage.WebClient(clientID, "pass word+%"), method}, nil
}

func (s *store) AuthorizeClientIDSecret(_ context.Context, clientID, clientSecret string) error {
	if clientID != "secret" || clientSecret != "pass word+%" {
		return errors.New("wrong secret")
	}
	return nil
}

func (s *store) GetKeyByIDAndClientID(_ context.Context, keyID, clientID string) (*jose.JSONWebKey, error) {
	if keyID != "ck" || clientID != "keyed" {
		return nil, errors.New("no such key")
	}
	return &jose.JSONWebKey{Key: s.key, KeyID: keyID, Use: "sig"}, nil
}

func (s *store) ClientCredentialsTokenRequest(_ context.Context, clientID string, scopes []string) (op.TokenRequest, error) {
	return &oidc.JWTTokenRequest{Subject: clientID, Audience: []string{"api"}, Scopes: scopes}, nil
}

// SetUserinfoFromToken accepts tokens of clients too, who are no users.
func (s *store) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, tokenID, subject, origin string) error {
	err := s.Storage.SetUserinfoFromToken(ctx, info, tokenID, subject, origin)
	if err != nil && err.Error() != "user not found" {
		return err
	}
	info.Subject = subject
	return nil
}

func (s *store) VerifyExchangeSubjectToken(_ context.Context, token string, _ oidc.TokenType) (string, string, map[string]any, error) {
	if !s.domain.Verify(token, s.url) {
		return "", "", nil, errors.New("not a JWT-SVID of the trust domain")
	}
	return token, s.domain.ID.String(), nil, nil
}

func (s *store) VerifyExchangeActorToken(context.Context, string, oidc.TokenType) (string, string, map[string]any, error) {
	return "", "", nil, errors.New("no actor here")
}

func (s *store) ValidateTokenExchangeRequest(_ context.Context, r op.TokenExchangeRequest) error {
	if r.GetExchangeSubject() != id.String() {
		return errors.New("no mapping for the subject")
	}
	r.SetSubject("id1") // the account that the workload is mapped to
	var scopes []string
	for _, scope := range r.GetScopes() {
		if scope != "admin" {
			scopes = append(scopes, scope)
		}
	}
	r.SetCurrentScopes(scopes)
	return nil
}

// VerifyClient lets clients authenticate by assertion with every grant, and a
// workload by its JWT-SVID.
func (p *provider) VerifyClient(ctx context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	if r.Data.ClientAssertion == "" {
		if r.Data.ClientID == "secret" {
			if err := p.store.AuthorizeClientIDSecret(ctx, r.Data.ClientID, r.Data.ClientSecret); err != nil {
				return nil, oidc.ErrInvalidClient()
			}
			return p.store.GetClientByClientID(ctx, "secret")
		}
		return p.LegacyServer.VerifyClient(ctx, r)
	}
	if p.store.domain.Verify(r.Data.ClientAssertion, p.URL+"/oauth/token") {
		return p.store.GetClientByClientID(ctx, "workload")
	}
	c, err := op.AuthorizePrivateJWTKey(ctx, r.Data.ClientAssertion, p.Provider().(op.JWTAuthorizationGrantExchanger))
	if err != nil {
		return nil, oidc.ErrInvalidClient()
	}
	return c, nil
}

func newProvider(t *testing.T, domain *credentialtest.Workload, key crypto.PublicKey) *provider {
	t.Helper()
	s := &store{Storage: storage.NewStorage(storage.NewUserStore("http://x")), domain: domain, key: key}
	p := &provider{store: s}
	var handler http.Handler
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.fault != nil && p.fault(w, r) {
			return
		}
		if r.ParseForm() == nil {
			p.mu.Lock()
			p.forms = append(p.forms, r.PostForm)
			p.mu.Unlock()
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Server.Close)
	s.url = p.URL
	provider, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}, AuthMethodPrivateKeyJWT: true, GrantTypeRefreshToken: true},
		s, op.StaticIssuer(p.URL), op.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	p.LegacyServer = op.NewLegacyServer(provider, *op.DefaultEndpoints)
	handler = op.RegisterServer(p, *op.DefaultEndpoints, op.WithFallbackLogger(slog.New(slog.DiscardHandler)), op.WithHTTPMiddleware(op.NewIssuerInterceptor(provider.IssuerFromRequest).Handler))
	p.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(p.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// works asks the provider whether a token is good, and for what subject.
func (p *provider) works(t *testing.T, token string) (subject string) {
	t.Helper()
	req, err := http.NewRequest("GET", p.URL+"/userinfo", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := p.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 {
		return ""
	}
	var user struct{ Sub string }
	if err := json.Unmarshal(body, &user); err != nil {
		t.Fatal(err)
	}
	return user.Sub
}

// env is a provider, a workload that it trusts, and the daemon's files.
type env struct {
	*provider
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
	e := &env{provider: newProvider(t, domain, key.Public()), workload: domain, dir: t.TempDir()}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	e.write(t, "client.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	e.write(t, "client.secret", []byte("pass word+%\n"))
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
	text := strings.NewReplacer("URL", e.URL, "CA", e.caFile, "DIR", e.dir).Replace(`
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
			if got := e.works(t, string(issued.Fields[0].Value.Reveal())); got != tt.subject {
				t.Errorf("the token is of %q, want %q", got, tt.subject)
			}
			if form := e.forms[0]; form.Get("scope") != "crm.contacts.read admin" {
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
	if e.works(t, token) != "id1" {
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
	if form := e.forms[len(e.forms)-1]; form.Get("token") != token || form.Get("token_type_hint") != "access_token" {
		t.Errorf("the server was told %v", form)
	}
	if e.works(t, token) != "" {
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
	auth, err := e.store.CreateAuthRequest(t.Context(), request, "id1")
	if err != nil {
		t.Fatal(err)
	}
	_, refresh, _, err := e.store.CreateAccessAndRefreshTokens(t.Context(), auth, "")
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
		used[e.forms[len(e.forms)-1].Get("refresh_token")] = true
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
	if _, err := e.issue(t, e.open(t, refreshing)); err != nil || e.forms[len(e.forms)-1].Get("refresh_token") != second {
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
		e.fault = func(w http.ResponseWriter, _ *http.Request) bool {
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
	e.fault = nil
	if _, err := b.Revoke(t.Context(), *issued.Handle); err != nil {
		t.Error(err)
	}
}

func TestCallersValueIsPartOfOneScope(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	b := e.open(t, exchange+password)
	for _, object := range []string{"a admin", `a"b`} {
		if _, err := e.issueFor(t, b, object); !errors.Is(err, credential.ErrParameter) {
			t.Errorf("%q: %v", object, err)
		}
	}
}
