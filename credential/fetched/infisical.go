package fetched

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
)

// infisicalSettings are the keys of a definition's infisical section.
type infisicalSettings struct {
	SiteURL     config.At[string]              `yaml:"site_url" default:"https://app.infisical.com" like:"https://infisical.internal"`
	Audience    config.At[string]              `yaml:"audience" required:"true" like:"https://app.infisical.com"`
	IdentityID  config.At[string]              `yaml:"identity_id" required:"true"`
	ProjectID   config.At[string]              `yaml:"project_id" required:"true"`
	Environment config.At[string]              `yaml:"environment" required:"true" like:"prod"`
	Path        config.At[string]              `yaml:"path" default:"/" like:"/warehouse"`
	Secret      config.At[credential.Template] `yaml:"secret" required:"true" like:"DATABASE_PASSWORD"`
	Fields      []config.At[string]            `yaml:"fields" like:"password"`
	CAFile      config.At[string]              `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`
}

var infisicalID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// OpenInfisical is the [credential.Opener] of secrets in Infisical.
func OpenInfisical(d *credential.Definition, section config.Section) (credential.Broker, error) {
	var s infisicalSettings
	if err := section.Decode(&s); err != nil {
		return nil, err
	}
	var problems config.Errors
	c := common{s.Audience, s.Secret, s.Fields, s.CAFile}
	c.check(d, &problems)
	checkURLs(&problems, map[string]config.At[string]{"site_url": s.SiteURL})
	for key, at := range map[string]config.At[string]{"identity_id": s.IdentityID, "project_id": s.ProjectID, "environment": s.Environment} {
		if !infisicalID.MatchString(at.Value) {
			problems.Add(at.Pos, "%s %.80q holds characters that have no place in it", key, at.Value)
		}
	}
	if p := s.Path; !path.IsAbs(p.Value) || path.Clean(p.Value) != p.Value {
		problems.Add(p.Pos, "path %.80q is not a folder's; write it from /", p.Value)
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return newBroker(&infisical{settings: s, algorithm: d.JWTAlgorithm, client: endpoint.New(s.CAFile.Value)}, c, d.JWTAlgorithm), nil
}

// infisical is Infisical's REST API: OIDC Auth v1, and secrets v4.
type infisical struct {
	settings  infisicalSettings
	algorithm string // of JWT-SVIDs
	client    *endpoint.Client
}

func (i *infisical) upstream() string { return strings.TrimSuffix(i.settings.SiteURL.Value, "/") }

func (i *infisical) close() { i.client.Close() }

func (i *infisical) read(ctx context.Context, r credential.Request, _ credential.Plan, name string) ([]byte, string, error) {
	token, err := i.logIn(ctx, r.Holder.Identity)
	if err != nil {
		return nil, "", err
	}
	defer i.logOut(ctx, token)
	query := url.Values{"projectId": {i.settings.ProjectID.Value}, "environment": {i.settings.Environment.Value}, "secretPath": {i.settings.Path.Value}}
	to := i.upstream() + "/api/v4/secrets/" + url.PathEscape(name) + "?" + query.Encode()
	answer, err := i.client.Ask(ctx, http.MethodGet, to, nil, http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		return nil, "", err
	}
	defer clear(answer)
	var v struct {
		Secret struct {
			Value   *string `json:"secretValue"`
			Hidden  bool    `json:"secretValueHidden"`
			Version int     `json:"version"`
		} `json:"secret"`
	}
	if err := json.Unmarshal(answer, &v); err != nil || v.Secret.Value == nil {
		return nil, "", fmt.Errorf("%w: the answer is not a secret of Infisical", credential.ErrUpstream)
	}
	if v.Secret.Hidden {
		return nil, "", fmt.Errorf("%w: the identity may see that the secret is there, and not its value; give it the permission to read values", credential.ErrRefused)
	}
	return []byte(*v.Secret.Value), strconv.Itoa(v.Secret.Version), nil
}

func (i *infisical) logIn(ctx context.Context, id credential.Identity) (token string, err error) {
	assertion, err := id.JWT(ctx, credential.JWTRequest{Audience: i.settings.Audience.Value, Algorithm: i.algorithm})
	if err != nil {
		return "", fmt.Errorf("getting a JWT-SVID for %s: %w", i.settings.Audience.Value, err)
	}
	answer, err := i.client.JSON(ctx, i.upstream()+"/api/v1/auth/oidc-auth/login", map[string]string{
		"identityId": i.settings.IdentityID.Value,
		"jwt":        string(assertion.Reveal()),
	}, nil)
	if err != nil {
		return "", err
	}
	defer clear(answer)
	var v struct {
		AccessToken string `json:"accessToken"`
	}
	if err := json.Unmarshal(answer, &v); err != nil || !endpoint.IsToken(v.AccessToken) {
		return "", fmt.Errorf("%w: the answer has no access token", credential.ErrUpstream)
	}
	return v.AccessToken, nil
}

// logOut ends the access token, which could live for a month. That it could not
// be ended is no reason to withhold the secret: nobody but this function has it.
func (i *infisical) logOut(ctx context.Context, token string) {
	i.client.JSON(ctx, i.upstream()+"/api/v1/auth/token/revoke", map[string]string{"accessToken": token}, nil)
}
