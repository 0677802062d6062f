package fetched

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/credential/federation"
)

// azureSettings are the keys of a definition's azure-secret section.
type azureSettings struct {
	Audience config.At[string]              `yaml:"audience" default:"api://AzureADTokenExchange"`
	TenantID config.At[string]              `yaml:"tenant_id" required:"true"`
	ClientID config.At[string]              `yaml:"client_id" required:"true"`
	VaultURL config.At[string]              `yaml:"vault_url" required:"true" like:"https://example.vault.azure.net"`
	Scope    config.At[string]              `yaml:"scope" default:"https://vault.azure.net/.default"`
	Secret   config.At[credential.Template] `yaml:"secret" required:"true" like:"warehouse-password"`
	Fields   []config.At[string]            `yaml:"fields" like:"password"`
	Endpoint config.At[string]              `yaml:"token_endpoint" like:"https://login.microsoftonline.com/TENANT/oauth2/v2.0/token"`
	CAFile   config.At[string]              `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`
}

var (
	azureID     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,254}$`)
	azureSecret = regexp.MustCompile(`^[A-Za-z0-9-]{1,127}$`) // Key Vault's names
)

// OpenAzure is the [credential.Opener] of secrets in Azure Key Vault.
func OpenAzure(d *credential.Definition, section config.Section) (credential.Broker, error) {
	var s azureSettings
	if err := section.Decode(&s); err != nil {
		return nil, err
	}
	var problems config.Errors
	c := common{s.Audience, s.Secret, s.Fields, s.CAFile}
	c.check(d, &problems)
	checkURLs(&problems, map[string]config.At[string]{"vault_url": s.VaultURL, "token_endpoint": s.Endpoint})
	for key, at := range map[string]config.At[string]{"tenant_id": s.TenantID, "client_id": s.ClientID} {
		if !azureID.MatchString(at.Value) {
			problems.Add(at.Pos, "%s %.80q holds characters that have no place in it", key, at.Value)
		}
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	app := federation.Azure(d.JWTAlgorithm, s.Audience.Value, s.TenantID.Value, s.ClientID.Value, s.Scope.Value, s.Endpoint.Value, s.CAFile.Value)
	return newBroker(&azure{
		settings: s,
		app:      app,
		client:   endpoint.New(s.CAFile.Value),
	}, c, app.Traits().JWTAlgorithm), nil
}

// azure is Azure Key Vault, API version 7.4.
type azure struct {
	settings azureSettings
	app      *federation.Broker
	client   *endpoint.Client
}

func (a *azure) upstream() string { return strings.TrimSuffix(a.settings.VaultURL.Value, "/") }

func (a *azure) close() {
	a.app.Close()
	a.client.Close()
}

func (a *azure) read(ctx context.Context, r credential.Request, p credential.Plan, name string) ([]byte, string, error) {
	if !azureSecret.MatchString(name) {
		return nil, "", fmt.Errorf("%w: a secret of Key Vault is named by letters, digits and dashes", credential.ErrParameter)
	}
	issued, err := a.app.Issue(ctx, r, p)
	if err != nil {
		return nil, "", err
	}
	defer wipe(issued.Fields)
	header := http.Header{"Authorization": {"Bearer " + string(issued.Fields[0].Value.Reveal())}}
	answer, err := a.client.Ask(ctx, http.MethodGet, a.upstream()+"/secrets/"+name+"?api-version=7.4", nil, header)
	if err != nil {
		return nil, "", err
	}
	defer clear(answer)
	var v struct {
		Value *string `json:"value"`
		ID    string  `json:"id"` // its URL, with the version last
	}
	if err := json.Unmarshal(answer, &v); err != nil || v.Value == nil {
		return nil, "", fmt.Errorf("%w: the answer is not a secret of Key Vault", credential.ErrUpstream)
	}
	return []byte(*v.Value), v.ID[strings.LastIndexByte(v.ID, '/')+1:], nil
}
