// Package oauth2test runs a real OpenID provider for a test.
package oauth2test

import (
	"context"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A Provider is a real OpenID provider that was told to trust a trust domain. Its
// clients are "public", "secret" and "keyed"; a workload is one by its JWT-SVID.
type Provider struct {
	*op.LegacyServer
	*httptest.Server
	Storage *storage.Storage
	CAFile  string                                            // certifies the server
	Fault   func(w http.ResponseWriter, r *http.Request) bool // answers in its place where it returns true; nil for none

	store *store
	mu    sync.Mutex   // guards forms
	forms []url.Values // that were posted to it
}

// A Verifier returns whose JWT-SVID a token is for the audience, "" if it is none.
type Verifier func(token, audience string) (spiffeID string)

// Secret is that of the client "secret".
const Secret = "pass word+%"

// Account is what the one workload is mapped to that may exchange tokens.
const Account = "id1"

// store is the library's storage in memory, with a client of each kind and with
// a trust domain whose JWT-SVIDs may be exchanged.
type store struct {
	*storage.Storage
	mapped string // SPIFFE ID of the workload that is mapped to Account
	verify Verifier
	key    crypto.PublicKey // of the client that authenticates by one; nil: there is none
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
	return client{storage.WebClient(clientID, Secret), method}, nil
}

func (s *store) AuthorizeClientIDSecret(_ context.Context, clientID, clientSecret string) error {
	if clientID != "secret" || clientSecret != Secret {
		return errors.New("wrong secret")
	}
	return nil
}

func (s *store) GetKeyByIDAndClientID(_ context.Context, keyID, clientID string) (*jose.JSONWebKey, error) {
	if keyID != "ck" || clientID != "keyed" || s.key == nil {
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
	id := s.verify(token, s.url)
	if id == "" {
		return "", "", nil, errors.New("not a JWT-SVID of the trust domain")
	}
	return token, id, nil, nil
}

func (s *store) VerifyExchangeActorToken(context.Context, string, oidc.TokenType) (string, string, map[string]any, error) {
	return "", "", nil, errors.New("no actor here")
}

func (s *store) ValidateTokenExchangeRequest(_ context.Context, r op.TokenExchangeRequest) error {
	if r.GetExchangeSubject() != s.mapped {
		return errors.New("no mapping for the subject")
	}
	r.SetSubject(Account)
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
func (p *Provider) VerifyClient(ctx context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	if r.Data.ClientAssertion == "" {
		if r.Data.ClientID == "secret" {
			if err := p.store.AuthorizeClientIDSecret(ctx, r.Data.ClientID, r.Data.ClientSecret); err != nil {
				return nil, oidc.ErrInvalidClient()
			}
			return p.store.GetClientByClientID(ctx, "secret")
		}
		return p.LegacyServer.VerifyClient(ctx, r)
	}
	if p.store.verify(r.Data.ClientAssertion, p.URL+"/oauth/token") != "" {
		return p.store.GetClientByClientID(ctx, "workload")
	}
	c, err := op.AuthorizePrivateJWTKey(ctx, r.Data.ClientAssertion, p.Provider().(op.JWTAuthorizationGrantExchanger))
	if err != nil {
		return nil, oidc.ErrInvalidClient()
	}
	return c, nil
}

// Start starts a provider for the time of the test. The workload of that SPIFFE ID
// may exchange tokens, and key is that of the client "keyed", if there is to be
// one.
func Start(t testing.TB, workload string, verify Verifier, key crypto.PublicKey) *Provider {
	t.Helper()
	s := &store{Storage: storage.NewStorage(storage.NewUserStore("http://x")), mapped: workload, verify: verify, key: key}
	p := &Provider{Storage: s.Storage, store: s}
	var handler http.Handler
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.Fault != nil && p.Fault(w, r) {
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
	p.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(p.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// Forms returns what was posted so far.
func (p *Provider) Forms() []url.Values {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.forms)
}

// Subject asks the provider whether an access token is good, and returns for what
// subject; "" if it is not.
func (p *Provider) Subject(t testing.TB, token string) (subject string) {
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
