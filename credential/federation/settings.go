package federation

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
)

// settings are the keys of a definition's federation section. Each profile needs
// some of them and may have others; the rest are refused.
type settings struct {
	Profile  config.At[string] `yaml:"profile" required:"true" oneof:"anthropic-2026-04 aws-2011-06-15 azure-v2.0 gcp-v1 openai-2026-06"`
	Audience config.At[string] `yaml:"audience" required:"true" like:"https://api.openai.com/v1"` // of the JWT-SVID
	Endpoint config.At[string] `yaml:"endpoint" like:"https://sts.example.com/token"`
	CAFile   config.At[string] `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`

	IdentityProviderID config.At[string] `yaml:"identity_provider_id"` // openai
	ServiceAccountID   config.At[string] `yaml:"service_account_id"`   // openai, anthropic
	FederationRuleID   config.At[string] `yaml:"federation_rule_id"`   // anthropic
	OrganizationID     config.At[string] `yaml:"organization_id"`
	WorkspaceID        config.At[string] `yaml:"workspace_id"`

	Region        config.At[string]              `yaml:"region" like:"eu-central-1"` // aws
	RoleARN       config.At[string]              `yaml:"role_arn" like:"arn:aws:iam::123456789012:role/agent"`
	SessionPolicy config.At[credential.Template] `yaml:"session_policy"` // JSON
	PolicyARNs    []config.At[string]            `yaml:"policy_arns"`

	Provider       config.At[string]   `yaml:"provider" like:"//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/vouchd"` // gcp
	ServiceAccount config.At[string]   `yaml:"service_account" like:"agent@project.iam.gserviceaccount.com"`
	IAMEndpoint    config.At[string]   `yaml:"iam_endpoint"`
	Scopes         []config.At[string] `yaml:"scopes"`

	TenantID config.At[string] `yaml:"tenant_id"` // azure
	ClientID config.At[string] `yaml:"client_id"`
	Scope    config.At[string] `yaml:"scope" like:"https://graph.microsoft.com/.default"`
}

// keys are the profile-specific keys that a definition gives, with their places.
func (s *settings) keys() map[string]config.Pos {
	given := make(map[string]config.Pos)
	for name, at := range map[string]config.At[string]{
		"identity_provider_id": s.IdentityProviderID, "service_account_id": s.ServiceAccountID, "federation_rule_id": s.FederationRuleID,
		"organization_id": s.OrganizationID, "workspace_id": s.WorkspaceID, "region": s.Region, "role_arn": s.RoleARN,
		"provider": s.Provider, "service_account": s.ServiceAccount, "iam_endpoint": s.IAMEndpoint,
		"tenant_id": s.TenantID, "client_id": s.ClientID, "scope": s.Scope,
	} {
		if at.Value != "" {
			given[name] = at.Pos
		}
	}
	if s.SessionPolicy.Value.String() != "" {
		given["session_policy"] = s.SessionPolicy.Pos
	}
	for name, list := range map[string][]config.At[string]{"policy_arns": s.PolicyARNs, "scopes": s.Scopes} {
		if len(list) > 0 {
			given[name] = list[0].Pos
		}
	}
	return given
}

// segment is what may go into a URL's path.
var segment = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,254}$`)

func readSettings(d *credential.Definition, section config.Section) (s settings, p profile, err error) {
	if err := section.Decode(&s); err != nil {
		return s, p, err
	}
	var problems config.Errors
	p = profiles[s.Profile.Value]
	given := s.keys()
	for _, key := range p.needs {
		if _, ok := given[key]; !ok {
			problems.Add(section.Pos, "%s needs %s; add it", p.name, key)
		}
	}
	for key, pos := range given {
		if !slices.Contains(p.needs, key) && !slices.Contains(p.may, key) {
			problems.Add(pos, "%s has no use for %s; remove it", p.name, key)
		}
	}
	for key, at := range map[string]config.At[string]{"region": s.Region, "tenant_id": s.TenantID, "service_account": s.ServiceAccount} {
		if at.Value != "" && !segment.MatchString(at.Value) {
			problems.Add(at.Pos, "%s %.80q holds characters that have no place in it", key, at.Value)
		}
	}
	for key, at := range map[string]config.At[string]{"endpoint": s.Endpoint, "iam_endpoint": s.IAMEndpoint} {
		if at.Value == "" {
			continue
		}
		if err := endpoint.CheckURL(at.Value); err != nil {
			problems.Add(at.Pos, "%s %.80q %v", key, at.Value, err)
		}
	}
	if f := s.CAFile; f.Value != "" && !filepath.IsAbs(f.Value) {
		problems.Add(f.Pos, "ca_file %.80q is not an absolute path; write it from /", f.Value)
	}
	if d.MaxTTL < p.shortest {
		problems.Add(section.Pos, "%s gives no less than %s; set max_ttl to that or more", p.name, config.FormatDuration(p.shortest))
	}
	checkPolicy(d, s.SessionPolicy, &problems)
	return s, p, problems.Err()
}

// checkPolicy looks whether a session policy is JSON once values are put in.
func checkPolicy(d *credential.Definition, policy config.At[credential.Template], problems *config.Errors) {
	if policy.Value.String() == "" {
		return
	}
	if err := policy.Value.Check(d, nil); err != nil {
		problems.Add(policy.Pos, "session_policy %v", err)
		return
	}
	values := make(map[string]string)
	for _, p := range d.Parameters {
		values[p.Name] = "x"
	}
	text, err := policy.Value.Expand(values, quoteJSON)
	if err != nil || !json.Valid([]byte(text)) {
		problems.Add(policy.Pos, "session_policy is not JSON; put places for values inside of its strings")
	}
}

// quoteJSON makes a value part of a JSON string. What means something to a
// policy is refused: a caller's value names one thing, and no pattern.
func quoteJSON(_, value string) (string, error) {
	if strings.ContainsAny(value, "*?$") {
		return "", fmt.Errorf("has a wildcard or a variable of IAM policies")
	}
	b, err := json.Marshal(value)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(b), `"`), `"`), nil
}

func (s *settings) endpoint(p profile) string {
	if s.Endpoint.Value != "" {
		return s.Endpoint.Value
	}
	return p.endpoint(s)
}

// A profile is how one vendor is asked.
type profile struct {
	name     string
	needs    []string
	may      []string
	shortest time.Duration // that a token lives
	longest  time.Duration // that a token may live whose answer was lost
	endpoint func(*settings) string
	exchange func(context.Context, exchange) (credential.Issued, error)
}
