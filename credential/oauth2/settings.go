package oauth2

import (
	"path/filepath"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
)

// settings are the keys of a definition's oauth2 section.
type settings struct {
	Grant         config.At[string] `yaml:"grant" required:"true" oneof:"client-credentials refresh-token token-exchange"`
	TokenURL      config.At[string] `yaml:"token_url" required:"true" like:"https://login.example.com/oauth/token"`
	RevocationURL config.At[string] `yaml:"revocation_url" like:"https://login.example.com/oauth/revoke"`
	Tokens        config.At[string] `yaml:"tokens" default:"self-contained" oneof:"opaque self-contained"`
	CAFile        config.At[string] `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`

	ClientID          string            `yaml:"client_id" like:"vouchd"`
	ClientAuth        config.At[string] `yaml:"client_auth" required:"true" oneof:"jwt-svid none private-key-jwt secret"`
	ClientKeyFile     config.At[string] `yaml:"client_key_file" like:"/etc/vouchd/secrets/client.key"`
	ClientKeyID       string            `yaml:"client_key_id"`
	ClientSecretFile  config.At[string] `yaml:"client_secret_file" like:"/etc/vouchd/secrets/client"`
	AssertionAudience string            `yaml:"assertion_audience"` // of what authenticates the client; left out, TokenURL

	SubjectAudience  config.At[string] `yaml:"subject_audience" like:"https://login.example.com"` // of the JWT-SVID that is exchanged
	SubjectTokenType string            `yaml:"subject_token_type" default:"urn:ietf:params:oauth:token-type:jwt"`
	RefreshTokenFile config.At[string] `yaml:"refresh_token_file" like:"/etc/vouchd/secrets/refresh-token"`

	Scopes    []config.At[credential.Template] `yaml:"scopes" like:"crm.contacts.read"`
	Audiences []config.At[string]              `yaml:"audiences"` // RFC 8693 §2.1
	Resources []config.At[string]              `yaml:"resources"` // RFC 8707
}

const (
	clientCredentials = "client-credentials"
	refreshToken      = "refresh-token"
	tokenExchange     = "token-exchange"

	authJWTSVID    = "jwt-svid"
	authNone       = "none"
	authPrivateKey = "private-key-jwt"
	authSecret     = "secret"
)

func readSettings(d *credential.Definition, section config.Section) (s settings, err error) {
	if err := section.Decode(&s); err != nil {
		return s, err
	}
	var problems config.Errors
	for _, u := range []struct {
		key string
		at  config.At[string]
	}{{"token_url", s.TokenURL}, {"revocation_url", s.RevocationURL}} {
		if u.at.Value == "" {
			continue
		}
		if err := endpoint.CheckURL(u.at.Value); err != nil {
			problems.Add(u.at.Pos, "%s %.80q %v", u.key, u.at.Value, err)
		}
	}
	s.files(&problems)
	s.related(section, &problems)
	for _, scope := range s.Scopes {
		if err := scope.Value.Check(d, nil); err != nil {
			problems.Add(scope.Pos, "scopes: %v", err)
		}
	}
	return s, problems.Err()
}

// files checks the keys that name files.
func (s *settings) files(problems *config.Errors) {
	for _, f := range []struct {
		key, with string
		needed    bool
		at        config.At[string]
	}{
		{"ca_file", "", false, s.CAFile},
		{"client_key_file", "client_auth private-key-jwt", s.ClientAuth.Value == authPrivateKey, s.ClientKeyFile},
		{"client_secret_file", "client_auth secret", s.ClientAuth.Value == authSecret, s.ClientSecretFile},
		{"refresh_token_file", "grant refresh-token", s.Grant.Value == refreshToken, s.RefreshTokenFile},
	} {
		switch {
		case f.at.Value == "" && f.needed:
			problems.Add(s.Grant.Pos, "%s needs %s; add it", f.with, f.key)
		case f.at.Value != "" && !f.needed && f.with != "":
			problems.Add(f.at.Pos, "%s is for %s; remove it", f.key, f.with)
		case f.at.Value != "" && !filepath.IsAbs(f.at.Value):
			problems.Add(f.at.Pos, "%s %.80q is not an absolute path; write it from /", f.key, f.at.Value)
		}
	}
}

// related checks keys that only make sense with others.
func (s *settings) related(section config.Section, problems *config.Errors) {
	if s.ClientID == "" && s.ClientAuth.Value != authJWTSVID {
		problems.Add(section.Pos, "client_auth %s needs client_id; add it", s.ClientAuth.Value)
	}
	if s.Grant.Value == clientCredentials && s.ClientAuth.Value == authNone {
		problems.Add(s.ClientAuth.Pos, "client-credentials without a client's credentials would be anybody's; choose jwt-svid or private-key-jwt")
	}
	if (s.Grant.Value == tokenExchange) != (s.SubjectAudience.Value != "") {
		problems.Add(section.Pos, "subject_audience goes with grant token-exchange: it is the audience of the JWT-SVID that is exchanged")
	}
	if s.Tokens.Value == "opaque" && s.RevocationURL.Value == "" {
		problems.Add(s.Tokens.Pos, "tokens opaque without a revocation_url makes no difference; add one, or remove the key")
	}
	if s.Tokens.Value != "opaque" && s.RevocationURL.Value != "" {
		problems.Add(s.RevocationURL.Pos, "revoking a self-contained token does not stop who checks only its signature; set tokens: opaque if every use is checked with the server, or remove revocation_url")
	}
	if s.RevocationURL.Value != "" && s.ClientAuth.Value == authJWTSVID {
		problems.Add(s.RevocationURL.Pos, "a lease may end after its workload, which could not authenticate then; choose another client_auth, or remove revocation_url")
	}
}
