// Package oauth2 leases access tokens of an OAuth 2.0 authorization server.
//
// Three grants: exchanging the workload's JWT-SVID (RFC 8693), the daemon's or
// the workload's own credentials (RFC 6749 §4.4, RFC 7523), and a refresh token
// that an administrator has enrolled. The way to prefer is the first with
// client_auth jwt-svid or none: nothing is stored then.
//
// A refresh token is kept sealed. A server that rotates them makes the old one
// worthless, so the new one is durable before the access token is used.
//
// Out of reach: RFC 7009 revocation tells the server. A resource that checks
// only a token's signature goes on accepting it until it expires, so a
// definition claims revocation only for tokens that it says are opaque.
package oauth2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/secret"
)

// A Broker leases access tokens of one client of one server.
type Broker struct {
	settings  settings
	algorithm string // of JWT-SVIDs; empty: the workload's own
	client    *endpoint.Client
	secrets   *credential.Secrets
	now       func() time.Time
}

// Opener returns the [credential.Opener] of this kind of source, which keeps
// refresh tokens in secrets.
func Opener(secrets *credential.Secrets) credential.Opener {
	return func(d *credential.Definition, section config.Section) (credential.Broker, error) {
		s, err := readSettings(d, section)
		if err != nil {
			return nil, err
		}
		return &Broker{settings: s, algorithm: d.JWTAlgorithm, client: endpoint.New(s.CAFile.Value), secrets: secrets, now: time.Now}, nil
	}
}

// Close closes connections that are not in use.
func (b *Broker) Close() { b.client.Close() }

// Traits says that only opaque tokens can be revoked.
func (b *Broker) Traits() credential.Traits {
	t := credential.Traits{Upstream: b.settings.TokenURL.Value, Revocation: credential.Hard, JWTAlgorithm: b.algorithm}
	t.PresentsJWT = b.settings.Grant.Value == tokenExchange || b.settings.ClientAuth.Value == authJWTSVID
	if b.settings.RevocationURL.Value == "" {
		t.Revocation, t.ChoosesTTL = credential.ExpiryOnly, true
	}
	return t
}

// lostAfter is how long a token is taken to live whose answer was lost.
const lostAfter = 24 * time.Hour

// Plan names the token for the log. The server has no name for it.
func (b *Broker) Plan(_ context.Context, r credential.Request) (credential.Plan, error) {
	name := "token-" + r.Tag()
	return credential.Plan{Handle: credential.Handle{Name: name}, NotAfter: b.now().Add(max(lostAfter, r.TTL))}, nil
}

// handle is what revoking a token takes.
type handle struct {
	Token string `json:"token"`
}

// maxHandle is how long a token may be to be kept for its revocation, in bytes.
const maxHandle = 24 << 10

// Issue asks for an access token.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	form, scope, err := b.form(ctx, r)
	if err != nil {
		return credential.Issued{}, err
	}
	asked := b.now()
	var t endpoint.Token
	if b.settings.Grant.Value == refreshToken {
		t, err = b.refresh(ctx, r, form)
	} else {
		t, err = b.ask(ctx, r.Holder.Identity, form, asked)
	}
	if err != nil {
		return credential.Issued{}, err
	}
	return b.issued(t, p, scope)
}

func (b *Broker) issued(t endpoint.Token, p credential.Plan, scope []string) (credential.Issued, error) {
	if !strings.EqualFold(t.Type, "Bearer") && !strings.EqualFold(t.Type, "N_A") { // RFC 8693 §2.2.1
		return credential.Issued{}, fmt.Errorf("%w: the token is of type %q, not Bearer", credential.ErrUpstream, t.Type)
	}
	i := credential.Issued{Fields: []credential.Field{{Name: "access_token", Value: t.Access}}, NotAfter: t.NotAfter, Scope: scope}
	if len(t.Scope) > 0 {
		i.Scope = t.Scope
	}
	for _, a := range b.settings.Audiences {
		i.Audience = append(i.Audience, a.Value)
	}
	if b.settings.RevocationURL.Value == "" {
		return i, nil
	}
	if t.Access.Len() > maxHandle {
		return credential.Issued{}, fmt.Errorf("%w: the token has %d bytes, too many to keep for its revocation", credential.ErrUpstream, t.Access.Len())
	}
	data, err := json.Marshal(handle{string(t.Access.Reveal())})
	if err != nil {
		return credential.Issued{}, err
	}
	i.Handle = &credential.Handle{Name: p.Handle.Name, Data: secret.Of(data)}
	return i, nil
}

// form returns what every grant sends, and the scopes in it.
func (b *Broker) form(ctx context.Context, r credential.Request) (url.Values, []string, error) {
	form := make(url.Values)
	var scopes []string
	for _, s := range b.settings.Scopes {
		scope, err := s.Value.Expand(r.Params, quoteScope)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", credential.ErrParameter, err)
		}
		scopes = append(scopes, scope)
	}
	if len(scopes) > 0 {
		form.Set("scope", strings.Join(scopes, " "))
	}
	for _, a := range b.settings.Audiences {
		form.Add("audience", a.Value)
	}
	for _, resource := range b.settings.Resources {
		form.Add("resource", resource.Value)
	}
	switch b.settings.Grant.Value {
	case clientCredentials:
		form.Set("grant_type", "client_credentials")
	case refreshToken:
		form.Set("grant_type", "refresh_token")
	case tokenExchange:
		subject, err := r.Holder.Identity.JWT(ctx, credential.JWTRequest{Audience: b.settings.SubjectAudience.Value, Algorithm: b.algorithm})
		if err != nil {
			return nil, nil, fmt.Errorf("getting a JWT-SVID for %s: %w", b.settings.SubjectAudience.Value, err)
		}
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		form.Set("subject_token", string(subject.Reveal()))
		form.Set("subject_token_type", b.settings.SubjectTokenType)
		form.Set("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
	}
	return form, scopes, nil
}

// quoteScope lets a value be part of one scope and no more (RFC 6749 §3.3).
func quoteScope(_, value string) (string, error) {
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' || r == ',' }) {
		return "", errors.New("holds a character that a scope may not have")
	}
	return value, nil
}

func (b *Broker) ask(ctx context.Context, identity credential.Identity, form url.Values, asked time.Time) (endpoint.Token, error) {
	header, err := b.authenticate(ctx, identity, form)
	if err != nil {
		return endpoint.Token{}, err
	}
	body, err := b.client.Form(ctx, b.settings.TokenURL.Value, form, header)
	if err != nil {
		return endpoint.Token{}, err
	}
	return endpoint.ParseToken(body, asked)
}

// Renew is asking for the next token, which callers do themselves.
func (b *Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, fmt.Errorf("%w: access tokens are not renewed", credential.ErrRefused)
}

// Revoke tells the server that the token has ended (RFC 7009). A server answers
// a token that it does not know as one that it has revoked.
func (b *Broker) Revoke(ctx context.Context, h credential.Handle) (credential.Use, error) {
	if b.settings.RevocationURL.Value == "" {
		return credential.Use{}, credential.ErrOnlyExpires
	}
	var kept handle
	if err := json.Unmarshal(h.Data.Reveal(), &kept); err != nil || kept.Token == "" {
		return credential.Use{}, fmt.Errorf("handle %s holds no token", h.Name)
	}
	form := url.Values{"token": {kept.Token}, "token_type_hint": {"access_token"}}
	header, err := b.authenticate(ctx, nil, form)
	if err != nil {
		return credential.Use{}, err
	}
	_, err = b.client.Form(ctx, b.settings.RevocationURL.Value, form, header)
	return credential.Use{}, err
}

// Recover finds nothing: a token whose answer was lost has no name to find it by.
func (b *Broker) Recover(context.Context, credential.Handle) error { return credential.ErrOnlyExpires }

// authenticate adds what authenticates the client to a request.
func (b *Broker) authenticate(ctx context.Context, identity credential.Identity, form url.Values) (http.Header, error) {
	s := b.settings
	if s.ClientID != "" {
		form.Set("client_id", s.ClientID)
	}
	switch s.ClientAuth.Value {
	case authSecret:
		password, err := credential.ReadSecret(s.ClientSecretFile.Value)
		if err != nil {
			return nil, err
		}
		// RFC 6749 §2.3.1 encodes both before joining them.
		r := http.Request{Header: make(http.Header)}
		r.SetBasicAuth(url.QueryEscape(s.ClientID), url.QueryEscape(string(password.Reveal())))
		return r.Header, nil
	case authPrivateKey:
		return nil, b.assert(form)
	case authJWTSVID:
		svid, err := identity.JWT(ctx, credential.JWTRequest{Audience: b.audience(), Algorithm: b.algorithm})
		if err != nil {
			return nil, fmt.Errorf("getting a JWT-SVID for %s: %w", b.audience(), err)
		}
		setAssertion(form, string(svid.Reveal()))
	}
	return nil, nil
}

func (b *Broker) audience() string {
	if b.settings.AssertionAudience != "" {
		return b.settings.AssertionAudience
	}
	return b.settings.TokenURL.Value
}

// setAssertion authenticates by a JWT (RFC 7523 §2.2).
func setAssertion(form url.Values, assertion string) {
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", assertion)
}
