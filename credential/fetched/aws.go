package fetched

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/credential/federation"
)

// awsSettings are the keys of a definition's aws-secret section.
type awsSettings struct {
	Audience    config.At[string]              `yaml:"audience" default:"sts.amazonaws.com"`
	Region      config.At[string]              `yaml:"region" required:"true" like:"eu-central-1"`
	RoleARN     config.At[string]              `yaml:"role_arn" required:"true" like:"arn:aws:iam::123456789012:role/agent"`
	Secret      config.At[credential.Template] `yaml:"secret" required:"true" like:"prod/warehouse"`
	Fields      []config.At[string]            `yaml:"fields" like:"password"`
	Endpoint    config.At[string]              `yaml:"endpoint" like:"https://secretsmanager.eu-central-1.amazonaws.com"`
	STSEndpoint config.At[string]              `yaml:"sts_endpoint" like:"https://sts.eu-central-1.amazonaws.com"`
	CAFile      config.At[string]              `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`
}

var (
	region  = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)
	roleARN = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9/_+=,.@-]{1,512}$`)
)

// OpenAWS is the [credential.Opener] of secrets in AWS Secrets Manager.
func OpenAWS(d *credential.Definition, section config.Section) (credential.Broker, error) {
	var s awsSettings
	if err := section.Decode(&s); err != nil {
		return nil, err
	}
	var problems config.Errors
	c := common{s.Audience, s.Secret, s.Fields, s.CAFile}
	c.check(d, &problems)
	checkURLs(&problems, map[string]config.At[string]{"endpoint": s.Endpoint, "sts_endpoint": s.STSEndpoint})
	if !region.MatchString(s.Region.Value) {
		problems.Add(s.Region.Pos, "region %.80q is not one; write it like eu-central-1", s.Region.Value)
	}
	if !roleARN.MatchString(s.RoleARN.Value) {
		problems.Add(s.RoleARN.Pos, "role_arn %.80q is not a role's", s.RoleARN.Value)
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	role := federation.AWS(d.JWTAlgorithm, s.Audience.Value, s.Region.Value, s.RoleARN.Value, s.STSEndpoint.Value, s.CAFile.Value)
	return newBroker(&aws{
		settings: s,
		role:     role,
		client:   endpoint.New(s.CAFile.Value),
		now:      time.Now,
	}, c, role.Traits().JWTAlgorithm), nil
}

// aws is AWS Secrets Manager, API version 2017-10-17.
type aws struct {
	settings awsSettings
	role     *federation.Broker
	client   *endpoint.Client
	now      func() time.Time
}

func (a *aws) upstream() string {
	if e := a.settings.Endpoint.Value; e != "" {
		return e
	}
	domain := ".amazonaws.com"
	if strings.HasPrefix(a.settings.Region.Value, "cn-") {
		domain += ".cn"
	}
	return "https://secretsmanager." + a.settings.Region.Value + domain
}

func (a *aws) close() {
	a.role.Close()
	a.client.Close()
}

// read assumes the role as the workload, and asks with what that gives.
func (a *aws) read(ctx context.Context, r credential.Request, p credential.Plan, name string) ([]byte, string, error) {
	issued, err := a.role.Issue(ctx, r, p)
	if err != nil {
		return nil, "", err
	}
	defer wipe(issued.Fields)
	body, err := json.Marshal(map[string]string{"SecretId": name})
	if err != nil {
		return nil, "", err
	}
	header := http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amz-Target": {"secretsmanager.GetSecretValue"}}
	to := strings.TrimSuffix(a.upstream(), "/") + "/"
	if err := sign(http.MethodPost, to, header, body, keysOf(issued.Fields), scope{a.settings.Region.Value, "secretsmanager"}, a.now()); err != nil {
		return nil, "", err
	}
	answer, err := a.client.Ask(ctx, http.MethodPost, to, body, header)
	if err != nil {
		return nil, "", err
	}
	defer clear(answer)
	var v struct {
		VersionID string  `json:"VersionId"`
		Text      *string `json:"SecretString"`
		Binary    []byte  `json:"SecretBinary"` // in base64
	}
	if err := json.Unmarshal(answer, &v); err != nil || (v.Text == nil) == (v.Binary == nil) {
		return nil, "", fmt.Errorf("%w: the answer is not one of GetSecretValue", credential.ErrUpstream)
	}
	if v.Text != nil {
		return []byte(*v.Text), v.VersionID, nil
	}
	return v.Binary, v.VersionID, nil
}

func keysOf(fields []credential.Field) (k keys) {
	for _, f := range fields {
		switch f.Name {
		case "access_key_id":
			k.id = string(f.Value.Reveal())
		case "secret_access_key":
			k.secret = string(f.Value.Reveal())
		case "session_token":
			k.token = string(f.Value.Reveal())
		}
	}
	return k
}

func wipe(fields []credential.Field) {
	for _, f := range fields {
		f.Value.Wipe()
	}
}
