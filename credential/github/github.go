// Package github leases installation tokens of a GitHub App, each for exactly the
// repositories and permissions that a definition names.
//
// The app's private key is moved into the TPM at first use, and cannot be extracted again;
// the file from GitHub can be deleted then. A token ends with its lease: GitHub is told, by
// the token itself.
//
// Out of reach: what was read with a token stays read, and anyone who has kept a copy of the
// key's file, or made another key of the app, can do whatever the app can.
package github

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/secret"
)

// apiVersion is the REST API's that this was written from.
const apiVersion = "2022-11-28"

// lostSlack is by how much longer than it should a lost token may live.
const lostSlack = time.Minute

// A Broker gets tokens for one definition.
type Broker struct {
	settings settings
	keys     Keys
	client   *endpoint.Client
	now      func() time.Time

	mu sync.Mutex // held while the app's key is looked up or imported
}

// Opener returns the [credential.Opener] of this kind of source. Keys may be nil
// where nothing is issued.
func Opener(keys Keys) credential.Opener {
	return func(d *credential.Definition, section config.Section) (credential.Broker, error) {
		s, err := readSettings(d, section)
		if err != nil {
			return nil, err
		}
		return &Broker{settings: s, keys: keys, client: endpoint.New(s.CAFile.Value), now: time.Now}, nil
	}
}

// Close closes connections that are not in use.
func (b *Broker) Close() { b.client.Close() }

// Traits says that tokens are revoked.
func (b *Broker) Traits() credential.Traits {
	return credential.Traits{Upstream: b.settings.installation(), Revocation: credential.Hard}
}

// Plan asks nothing of GitHub, which has no name for a token before it exists.
func (b *Broker) Plan(_ context.Context, r credential.Request) (credential.Plan, error) {
	return credential.Plan{
		Handle:   credential.Handle{Name: "request " + r.RequestID},
		NotAfter: b.now().Add(tokenLife + lostSlack),
	}, nil
}

// Issue gets a token. GitHub's audit log calls it by its handle, as hashed_token.
func (b *Broker) Issue(ctx context.Context, r credential.Request, _ credential.Plan) (credential.Issued, error) {
	repositories, err := b.repositories(r.Params)
	if err != nil {
		return credential.Issued{}, err
	}
	ask, err := json.Marshal(map[string]any{"repositories": repositories, "permissions": b.permissions()})
	if err != nil {
		return credential.Issued{}, err
	}
	assertion, err := b.assertion(ctx)
	if err != nil {
		return credential.Issued{}, err
	}
	body, err := b.client.Ask(ctx, http.MethodPost, b.settings.installation()+"/access_tokens", ask, header(assertion))
	if err != nil {
		return credential.Issued{}, b.explain(err)
	}
	t, err := parseToken(body)
	if err != nil {
		return credential.Issued{}, err
	}
	if err := b.noMore(t, repositories); err != nil {
		// What is not handed out should not be left alive either.
		return credential.Issued{}, errors.Join(err, b.end(ctx, t.Token))
	}
	return b.issued(t, repositories), nil
}

func (b *Broker) issued(t token, repositories []string) credential.Issued {
	sum := sha256.Sum256([]byte(t.Token))
	var scope []string
	for _, r := range repositories {
		scope = append(scope, "repository="+r)
	}
	for _, p := range b.settings.Permissions {
		scope = append(scope, p.Value.String())
	}
	return credential.Issued{
		Fields: []credential.Field{
			{Name: "username", Value: secret.Of([]byte("x-access-token")), Public: true}, // for git over https
			{Name: "token", Value: secret.Of([]byte(t.Token))},
		},
		Handle:   &credential.Handle{Name: "sha256 " + base64.StdEncoding.EncodeToString(sum[:]), Data: secret.Of([]byte(t.Token))},
		NotAfter: t.ExpiresAt,
		Scope:    scope,
	}
}

func (b *Broker) repositories(params map[string]string) (names []string, err error) {
	for _, t := range b.settings.Repositories {
		name, err := t.Value.Expand(params, quoteRepository)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", credential.ErrParameter, err)
		}
		names = append(names, name)
	}
	return names, nil
}

func (b *Broker) permissions() map[string]string {
	m := make(map[string]string)
	for _, p := range b.settings.Permissions {
		m[p.Value.name] = p.Value.access
	}
	return m
}

func header(bearer string) http.Header {
	return http.Header{
		"Accept":               {"application/vnd.github+json"},
		"Content-Type":         {"application/json"},
		"Authorization":        {"Bearer " + bearer},
		"X-Github-Api-Version": {apiVersion},
	}
}

// A token is GitHub's answer.
type token struct {
	Token        string            `json:"token"`
	ExpiresAt    time.Time         `json:"expires_at"`
	Permissions  map[string]string `json:"permissions"`
	Selection    string            `json:"repository_selection"`
	Repositories []struct {
		Name string `json:"name"`
	} `json:"repositories"`
}

func parseToken(body []byte) (t token, err error) {
	defer clear(body)
	if err := json.Unmarshal(body, &t); err != nil || !endpoint.IsToken(t.Token) || len(t.Token) > maxToken || t.ExpiresAt.IsZero() {
		return token{}, fmt.Errorf("%w: the answer is not an installation token", credential.ErrUpstream)
	}
	return t, nil
}

// maxToken bounds a token, in bytes: a lease's handle holds it.
const maxToken = 16 << 10

// noMore holds the answer to what was asked for. GitHub adds that a repository's
// metadata may be read.
func (b *Broker) noMore(t token, repositories []string) error {
	asked := b.permissions()
	for name, access := range t.Permissions {
		if name == "metadata" && access == "read" {
			continue
		}
		if most := slices.Index(accesses, asked[name]); slices.Index(accesses, access) > most || !slices.Contains(accesses, access) {
			return fmt.Errorf("%w: GitHub gave permission %.64q where %q was asked for", credential.ErrUpstream, name+":"+access, asked[name])
		}
	}
	if t.Selection != "selected" || len(t.Repositories) == 0 {
		return fmt.Errorf("%w: GitHub gave a token that is not for selected repositories", credential.ErrUpstream)
	}
	for _, r := range t.Repositories {
		if !slices.ContainsFunc(repositories, func(name string) bool { return strings.EqualFold(name, r.Name) }) {
			return fmt.Errorf("%w: GitHub gave repository %.100q, which was not asked for", credential.ErrUpstream, r.Name)
		}
	}
	return nil
}

// explain says what GitHub's refusals mean.
func (b *Broker) explain(err error) error {
	status, ok := errors.AsType[*endpoint.StatusError](err)
	if !ok {
		return err
	}
	var hint string
	switch status.Status {
	case http.StatusUnauthorized:
		hint = fmt.Sprintf("it does not accept the key of app %s: the key is another app's, or was deleted there, or the clocks differ; put a key of the app into %s", b.settings.AppID.Value, b.settings.AppKeyFile.Value)
	case http.StatusForbidden:
		hint = "the installation is suspended, or may not be used from this address"
	case http.StatusNotFound:
		hint = fmt.Sprintf("app %s has no installation %d", b.settings.AppID.Value, b.settings.InstallationID.Value)
	case http.StatusUnprocessableEntity:
		hint = "the installation does not have all of the repositories and permissions that the definition names"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// Renew is asking for the next token, which callers do themselves.
func (b *Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, fmt.Errorf("%w: installation tokens are not renewed", credential.ErrRefused)
}

// Revoke ends a token. It is the token that says so, and needs no key.
func (b *Broker) Revoke(ctx context.Context, h credential.Handle) (credential.Use, error) {
	if h.Data.Len() == 0 {
		return credential.Use{}, credential.ErrOnlyExpires
	}
	return credential.Use{}, b.end(ctx, string(h.Data.Reveal()))
}

func (b *Broker) end(ctx context.Context, token string) error {
	answer, err := b.client.Ask(ctx, http.MethodDelete, b.settings.base()+"/installation/token", nil, header(token))
	if status, ok := errors.AsType[*endpoint.StatusError](err); ok && status.Status == http.StatusUnauthorized && status.Message == "Bad credentials" {
		return nil // it is not a token, or no longer one
	}
	if err == nil && len(answer) > 0 {
		return fmt.Errorf("%w: the answer to revoking the token is not GitHub's, which is empty", credential.ErrUpstream)
	}
	return err
}

// Recover finds nothing: a token whose answer was lost has no name, and ends
// within an hour.
func (b *Broker) Recover(context.Context, credential.Handle) error { return credential.ErrOnlyExpires }
