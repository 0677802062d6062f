package federation

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
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
	SessionTags   []tag                          `yaml:"session_tags"`

	Provider       config.At[string]   `yaml:"provider" like:"//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/vouchd"` // gcp
	ServiceAccount config.At[string]   `yaml:"service_account" like:"agent@project.iam.gserviceaccount.com"`
	IAMEndpoint    config.At[string]   `yaml:"iam_endpoint"`
	Scopes         []config.At[string] `yaml:"scopes"`

	TenantID config.At[string] `yaml:"tenant_id"` // azure
	ClientID config.At[string] `yaml:"client_id"`
	Scope    config.At[string] `yaml:"scope" like:"https://graph.microsoft.com/.default"`
}

// A tag is one attribute of an AWS session, by which policies may grant.
type tag struct {
	Name       config.At[string]              `yaml:"name" required:"true" like:"project"`
	Value      config.At[credential.Template] `yaml:"value" required:"true" like:"{{project}}"`
	Transitive bool                           `yaml:"transitive"` // stays when the session assumes another role
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
	if len(s.SessionTags) > 0 {
		given["session_tags"] = s.SessionTags[0].Name.Pos
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
	checkTags(d, s.SessionTags, &problems)
	return s, p, problems.Err()
}

// What AWS allows in session tags ("Pass session tags in AWS STS", IAM User
// Guide).
const maxTags = 50

var (
	tagName  = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{1,128}$`)
	tagValue = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{0,256}$`)
)

func checkTags(d *credential.Definition, tags []tag, problems *config.Errors) {
	if len(tags) > maxTags {
		problems.Add(tags[maxTags].Name.Pos, "session_tags has %d tags, and AWS takes %d; remove some", len(tags), maxTags)
	}
	seen := make(map[string]bool)
	for _, t := range tags {
		name := strings.ToLower(t.Name.Value) // AWS takes two that differ in case alone for one
		switch {
		case !tagName.MatchString(t.Name.Value) || strings.HasPrefix(name, "aws:"):
			problems.Add(t.Name.Pos, "session tag %.80q is not a name that AWS takes", t.Name.Value)
		case seen[name]:
			problems.Add(t.Name.Pos, "session tag %s is there already", t.Name.Value)
		}
		seen[name] = true
		if err := t.Value.Value.Check(d, nil); err != nil {
			problems.Add(t.Value.Pos, "value of session tag %s %v", t.Name.Value, err)
		}
	}
}

// quoteTag refuses what AWS would.
func quoteTag(_, value string) (string, error) {
	if !tagValue.MatchString(value) {
		return "", fmt.Errorf("holds characters that a session tag cannot")
	}
	return value, nil
}

// tagsClaim is what AWS reads of a token ("Passing session tags using
// AssumeRoleWithWebIdentity"), with a word for each tag.
func (s *settings) tagsClaim(params map[string]string) (claim map[string]any, scope []string, err error) {
	tags := make(map[string][]string)
	transitive := []string{}
	for _, t := range s.SessionTags {
		value, err := t.Value.Value.Expand(params, quoteTag)
		if err != nil || !tagValue.MatchString(value) {
			return nil, nil, fmt.Errorf("%w: session tag %s: %w", credential.ErrParameter, t.Name.Value, cmp.Or(err, errTooLong))
		}
		tags[t.Name.Value] = []string{value}
		scope = append(scope, "tag "+t.Name.Value+"="+value)
		if t.Transitive {
			transitive = append(transitive, t.Name.Value)
		}
	}
	return map[string]any{"principal_tags": tags, "transitive_tag_keys": transitive}, scope, nil
}

var errTooLong = errors.New("it has more than 256 characters, or some that a tag cannot have")

// checkPolicy looks whether a session policy is JSON once values are put in.
func checkPolicy(d *credential.Definition, policy config.At[credential.Template], problems *config.Errors) {
	if policy.Value.String() == "" {
		return
	}
	if err := policy.Value.Check(d, nil); err != nil {
		problems.Add(policy.Pos, "session_policy %v", err)
		return
	}
	values, mark := make(map[string]string), rand.Text()
	for _, p := range d.Parameters {
		values[p.Name] = mark
	}
	text, err := policy.Value.Expand(values, quoteJSON)
	var parsed any
	if err != nil || json.Unmarshal([]byte(text), &parsed) != nil {
		problems.Add(policy.Pos, "session_policy is not JSON; put places for values inside of its strings")
		return
	}
	if places(parsed, mark) != len(policy.Value.Names()) {
		problems.Add(policy.Pos, "session_policy has a place in a key, in an Effect or in a variable such as ${aws:…}; put places for values in the strings that name resources, actions and conditions")
	}
}

// places counts the places of a policy at which a value is one thing and no
// more: keys, effects and policy variables decide what the rest means.
func places(v any, mark string) (n int) {
	switch v := v.(type) {
	case string:
		for before, after, found := strings.Cut(v, mark); found; before, after, found = strings.Cut(after, mark) {
			if open := strings.LastIndex(before, "${"); open >= 0 && !strings.Contains(before[open:], "}") {
				return n // the rest of it may be in the variable too
			}
			n++
		}
	case []any:
		for _, e := range v {
			n += places(e, mark)
		}
	case map[string]any:
		for key, e := range v {
			if !strings.EqualFold(key, "Effect") {
				n += places(e, mark)
			}
		}
	}
	return n
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
	// algorithm is the only one that the vendor takes; empty: it takes both.
	algorithm string
	endpoint  func(*settings) string
	exchange  func(context.Context, exchange) (credential.Issued, error)
}
