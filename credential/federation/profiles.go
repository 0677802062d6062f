package federation

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/secret"
)

// profiles are the vendors, each dated by the version of the vendor's interface
// or else of the document that it was written from. What they ask of a JWT-SVID was
// read again in November 2026; docs/brokers.md has it.
var profiles = map[string]profile{
	// Workload identity token exchange, developers.openai.com, June 2026.
	"openai-2026-06": {
		name: "openai-2026-06", needs: []string{"identity_provider_id", "service_account_id"},
		longest:  time.Hour,
		endpoint: func(*settings) string { return "https://auth.openai.com/oauth/token" },
		exchange: exchangeOpenAI,
	},
	// WIF reference, platform.claude.com; oidc-federation-2026-04-01.
	"anthropic-2026-04": {
		name: "anthropic-2026-04", needs: []string{"federation_rule_id", "organization_id", "service_account_id"}, may: []string{"workspace_id"},
		longest:  24 * time.Hour,
		endpoint: func(*settings) string { return "https://api.anthropic.com/v1/oauth/token" },
		exchange: exchangeAnthropic,
	},
	// AWS Security Token Service API, version 2011-06-15.
	"aws-2011-06-15": {
		name: "aws-2011-06-15", needs: []string{"region", "role_arn"}, may: []string{"session_policy", "policy_arns", "session_tags"},
		shortest: 15 * time.Minute, longest: 12 * time.Hour,
		endpoint: func(s *settings) string {
			if strings.HasPrefix(s.Region.Value, "cn-") {
				return "https://sts." + s.Region.Value + ".amazonaws.com.cn/"
			}
			return "https://sts." + s.Region.Value + ".amazonaws.com/"
		},
		exchange: exchangeAWS,
	},
	// Security Token Service API v1 and IAM Service Account Credentials API v1.
	"gcp-v1": {
		name: "gcp-v1", needs: []string{"provider", "scopes"}, may: []string{"service_account", "iam_endpoint"},
		longest:  time.Hour,
		endpoint: func(*settings) string { return "https://sts.googleapis.com/v1/token" },
		exchange: exchangeGCP,
	},
	// Microsoft identity platform v2.0, client credentials with a federated
	// credential; "Important considerations and restrictions for federated identity
	// credentials": RS256 alone.
	"azure-v2.0": {
		name: "azure-v2.0", needs: []string{"tenant_id", "client_id", "scope"}, algorithm: config.RS256,
		longest: 28 * time.Hour, // with continuous access evaluation
		endpoint: func(s *settings) string {
			return "https://login.microsoftonline.com/" + s.TenantID.Value + "/oauth2/v2.0/token"
		},
		exchange: exchangeAzure,
	},
}

// An exchange is one token asked for.
type exchange struct {
	settings  settings
	client    *endpoint.Client
	endpoint  string
	request   credential.Request
	session   string
	assertion secret.Bytes
	asked     time.Time
}

const (
	tokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	jwtBearer     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	typeJWT       = "urn:ietf:params:oauth:token-type:jwt"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	assertionJWT  = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

func exchangeOpenAI(ctx context.Context, e exchange) (credential.Issued, error) {
	body, err := e.client.JSON(ctx, e.endpoint, map[string]string{
		"grant_type":           tokenExchange,
		"subject_token_type":   typeJWT,
		"subject_token":        string(e.assertion.Reveal()),
		"identity_provider_id": e.settings.IdentityProviderID.Value,
		"service_account_id":   e.settings.ServiceAccountID.Value,
	}, nil)
	return e.bearer(body, err, e.settings.ServiceAccountID.Value)
}

func exchangeAnthropic(ctx context.Context, e exchange) (credential.Issued, error) {
	ask := map[string]string{
		"grant_type":         jwtBearer,
		"assertion":          string(e.assertion.Reveal()),
		"federation_rule_id": e.settings.FederationRuleID.Value,
		"organization_id":    e.settings.OrganizationID.Value,
		"service_account_id": e.settings.ServiceAccountID.Value,
	}
	if w := e.settings.WorkspaceID.Value; w != "" {
		ask["workspace_id"] = w
	}
	// Both are what the vendor's own clients send with this grant.
	header := http.Header{"Anthropic-Beta": {"oauth-2025-04-20,oidc-federation-2026-04-01"}}
	body, err := e.client.JSON(ctx, e.endpoint, ask, header)
	return e.bearer(body, err, e.settings.ServiceAccountID.Value)
}

func exchangeAzure(ctx context.Context, e exchange) (credential.Issued, error) {
	body, err := e.client.Form(ctx, e.endpoint, url.Values{
		"grant_type":            {"client_credentials"},
		"client_id":             {e.settings.ClientID.Value},
		"scope":                 {e.settings.Scope.Value},
		"client_assertion_type": {assertionJWT},
		"client_assertion":      {string(e.assertion.Reveal())},
	}, nil)
	return e.bearer(body, err, e.settings.Scope.Value)
}

// bearer returns a bearer token as the field access_token.
func (e exchange) bearer(body []byte, err error, scope ...string) (credential.Issued, error) {
	if err != nil {
		return credential.Issued{}, err
	}
	t, err := endpoint.ParseToken(body, e.asked)
	if err != nil {
		return credential.Issued{}, err
	}
	if !strings.EqualFold(t.Type, "Bearer") {
		return credential.Issued{}, fmt.Errorf("%w: the token is of type %q, not Bearer", credential.ErrUpstream, t.Type)
	}
	if len(t.Scope) > 0 {
		scope = t.Scope
	}
	return credential.Issued{Fields: []credential.Field{{Name: "access_token", Value: t.Access}}, NotAfter: t.NotAfter, Scope: scope}, nil
}

// exchangeGCP exchanges the JWT-SVID for a federated token, and that for one of
// a service account if the definition names one.
func exchangeGCP(ctx context.Context, e exchange) (credential.Issued, error) {
	var scopes []string
	for _, s := range e.settings.Scopes {
		scopes = append(scopes, s.Value)
	}
	first := strings.Join(scopes, " ")
	if e.settings.ServiceAccount.Value != "" {
		first = "https://www.googleapis.com/auth/iam" // no more than the next step needs
	}
	body, err := e.client.Form(ctx, e.endpoint, url.Values{
		"grant_type":           {tokenExchange},
		"audience":             {e.settings.Provider.Value},
		"scope":                {first},
		"requested_token_type": {typeAccess},
		"subject_token_type":   {typeJWT},
		"subject_token":        {string(e.assertion.Reveal())},
	}, nil)
	federated, err := e.bearer(body, err, scopes...)
	if err != nil || e.settings.ServiceAccount.Value == "" {
		return federated, err
	}
	return e.impersonate(ctx, federated.Fields[0].Value, scopes)
}

func (e exchange) impersonate(ctx context.Context, federated secret.Bytes, scopes []string) (credential.Issued, error) {
	defer federated.Wipe()
	base := e.settings.IAMEndpoint.Value
	if base == "" {
		base = "https://iamcredentials.googleapis.com/v1"
	}
	to := strings.TrimSuffix(base, "/") + "/projects/-/serviceAccounts/" + e.settings.ServiceAccount.Value + ":generateAccessToken"
	body, err := e.client.JSON(ctx, to, map[string]any{
		"scope":    scopes,
		"lifetime": strconv.Itoa(int(min(e.request.TTL, time.Hour).Seconds())) + "s",
	}, http.Header{"Authorization": {"Bearer " + string(federated.Reveal())}})
	if err != nil {
		return credential.Issued{}, err
	}
	var a struct {
		AccessToken string    `json:"accessToken"`
		ExpireTime  time.Time `json:"expireTime"`
	}
	if err := json.Unmarshal(body, &a); err != nil || !endpoint.IsToken(a.AccessToken) || a.ExpireTime.IsZero() {
		return credential.Issued{}, fmt.Errorf("%w: the answer is not an access token of a service account", credential.ErrUpstream)
	}
	return credential.Issued{
		Fields:   []credential.Field{{Name: "access_token", Value: secret.Of([]byte(a.AccessToken))}},
		NotAfter: a.ExpireTime,
		Scope:    append(scopes, e.settings.ServiceAccount.Value),
	}, nil
}

// exchangeAWS calls AssumeRoleWithWebIdentity, which needs no signature.
func exchangeAWS(ctx context.Context, e exchange) (credential.Issued, error) {
	form := url.Values{
		"Action":           {"AssumeRoleWithWebIdentity"},
		"Version":          {"2011-06-15"},
		"RoleArn":          {e.settings.RoleARN.Value},
		"RoleSessionName":  {e.session},
		"WebIdentityToken": {string(e.assertion.Reveal())},
		"DurationSeconds":  {strconv.Itoa(int(max(e.request.TTL, 15*time.Minute).Seconds()))},
	}
	scope := []string{e.settings.RoleARN.Value}
	for i, arn := range e.settings.PolicyARNs {
		form.Set(fmt.Sprintf("PolicyArns.member.%d.arn", i+1), arn.Value)
		scope = append(scope, arn.Value)
	}
	if e.settings.SessionPolicy.Value.String() != "" {
		policy, err := e.settings.SessionPolicy.Value.Expand(e.request.Params, quoteJSON)
		if err != nil {
			return credential.Issued{}, fmt.Errorf("%w: %w", credential.ErrParameter, err)
		}
		form.Set("Policy", policy)
		scope = append(scope, policy)
	}
	body, err := e.client.Form(ctx, e.endpoint, form, http.Header{"Accept": {"text/xml"}})
	if err != nil {
		return credential.Issued{}, err
	}
	return awsCredentials(body, scope)
}

func awsCredentials(body []byte, scope []string) (credential.Issued, error) {
	var a struct {
		XMLName xml.Name `xml:"AssumeRoleWithWebIdentityResponse"`
		Result  struct {
			Credentials struct {
				AccessKeyID     string    `xml:"AccessKeyId"`
				SecretAccessKey string    `xml:"SecretAccessKey"`
				SessionToken    string    `xml:"SessionToken"`
				Expiration      time.Time `xml:"Expiration"`
			} `xml:"Credentials"`
		} `xml:"AssumeRoleWithWebIdentityResult"`
	}
	err := xml.Unmarshal(body, &a)
	c := a.Result.Credentials
	if err != nil || !endpoint.IsToken(c.AccessKeyID) || !endpoint.IsToken(c.SecretAccessKey) || !endpoint.IsToken(c.SessionToken) || c.Expiration.IsZero() {
		return credential.Issued{}, fmt.Errorf("%w: the answer is not one of AssumeRoleWithWebIdentity", credential.ErrUpstream)
	}
	return credential.Issued{
		Fields: []credential.Field{
			{Name: "access_key_id", Value: secret.Of([]byte(c.AccessKeyID)), Public: true},
			{Name: "secret_access_key", Value: secret.Of([]byte(c.SecretAccessKey))},
			{Name: "session_token", Value: secret.Of([]byte(c.SessionToken))},
			{Name: "expiration", Value: secret.Of([]byte(c.Expiration.UTC().Format(time.RFC3339))), Public: true},
		},
		NotAfter: c.Expiration,
		Scope:    scope,
	}, nil
}
