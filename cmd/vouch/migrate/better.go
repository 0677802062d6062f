package migrate

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

// A broker is a definition that needs no static secret, but something of its vendor's that
// nobody here knows.
type broker struct {
	why    string
	text   string // its lines, from "broker:" on, indented by four
	fillIn []string
}

// fill is what stands where somebody has to fill in.
const fill = "FILL_IN"

// append appends the definition, as comments that replace the one before them.
func (b *broker) append(text []byte, name, places, preset string) []byte {
	lines := fmt.Sprintf("  - name: %s\n%s%s", name, b.text, places)
	if preset != "" && places == "" {
		lines += "    proxy: {preset: " + preset + "}\n"
	}
	text = fmt.Appendf(text, "    # Better: %s. Fill in what is marked, put it in the place of the definition above, and\n    # remove the secret: vouch secret remove %s\n", b.why, name)
	for line := range strings.Lines(lines) {
		text = append(text, "  #"+strings.TrimPrefix(line, " ")...)
	}
	return text
}

// betterThan returns the better broker for a secret, by its variable and its shape.
func betterThan(variable, what string, value secret.Bytes) *broker {
	v := strings.ToUpper(variable)
	switch {
	case what == "github-token" || v == "GITHUB_TOKEN" || v == "GH_TOKEN":
		return githubApp("")
	case v == "OPENAI_API_KEY" || what == "openai-key":
		return &broker{"no key: federation with OpenAI (docs/brokers.md#federation)", `    broker: federation
    federation:
      profile: openai-2026-06
      audience: https://api.openai.com/v1
      identity_provider_id: ` + fill + ` # of a workload identity provider at OpenAI
      service_account_id: ` + fill + `
`, []string{"identity_provider_id", "service_account_id"}}
	case v == "ANTHROPIC_API_KEY" || what == "anthropic-key":
		return &broker{"no key: federation with Anthropic (docs/brokers.md#federation)", `    broker: federation
    federation:
      profile: anthropic-2026-04
      audience: https://api.anthropic.com
      federation_rule_id: ` + fill + `
      organization_id: ` + fill + `
      service_account_id: ` + fill + `
`, []string{"federation_rule_id", "organization_id", "service_account_id"}}
	case v == "AWS_SECRET_ACCESS_KEY" || what == "aws-secret-key":
		return awsRole()
	case v == "AZURE_CLIENT_SECRET" || what == "azure-client-secret":
		return &broker{"no secret: federation with Azure (docs/brokers.md#federation)", `    broker: federation
    federation:
      profile: azure-v2.0
      audience: api://AzureADTokenExchange
      tenant_id: ` + fill + `
      client_id: ` + fill + `
      scope: https://management.azure.com/.default
`, []string{"client_id", "tenant_id"}}
	case what == "gcloud-service-account":
		return &broker{"no key: federation with Google (docs/brokers.md#federation)", `    broker: federation
    federation:
      profile: gcp-v1
      audience: ` + fill + ` # //iam.googleapis.com/projects/…/providers/…
      provider: ` + fill + ` # projects/…/workloadIdentityPools/…/providers/…
      service_account: ` + fill + ` # its address
      scopes: [https://www.googleapis.com/auth/cloud-platform]
`, []string{"audience", "provider", "service_account"}}
	case what == "ssh-key":
		return &broker{"no key: a certificate for each lease (docs/brokers.md#ssh)", `    broker: ssh
    ttl: 10m
    ssh:
      principals: [` + fill + `]
`, []string{"principals"}}
	}
	return databaseRole(value)
}

// githubApp leases tokens of an app, for the repository of a path if there is one.
func githubApp(path string) *broker {
	repository := fill
	if parts := strings.Split(strings.Trim(strings.TrimSuffix(path, ".git"), "/"), "/"); len(parts) == 2 && plainName.MatchString(parts[1]) {
		repository = parts[1]
	}
	b := &broker{"a GitHub App, whose tokens live for minutes (docs/brokers.md#github)", `    broker: github
    ttl: 10m
    bind: lease
    github:
      app_id: ` + fill + ` # its client ID
      installation_id: ` + fill + ` # a number
      app_key_file: /etc/vouchd/secrets/github-app.pem
      repositories: [` + repository + `]
      permissions: [contents:read]
`, []string{"app_id", "installation_id", "repositories"}}
	if repository != fill {
		b.fillIn = b.fillIn[:2]
	}
	return b
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

func awsRole() *broker {
	return &broker{"no key: a role that vouchd assumes (docs/brokers.md#federation)", `    broker: federation
    ttl: 15m
    max_ttl: 1h
    federation:
      profile: aws-2011-06-15
      audience: sts.amazonaws.com
      region: ` + fill + `
      role_arn: ` + fill + `
`, []string{"region", "role_arn"}}
}

// databaseRole is a role for each lease, for the URL of a PostgreSQL with a password.
func databaseRole(v secret.Bytes) *broker {
	u, err := url.Parse(strings.TrimSpace(string(v.Reveal())))
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.User == nil || u.Hostname() == "" {
		return nil
	}
	port, database := u.Port(), strings.Trim(u.Path, "/")
	if port == "" {
		port = "5432"
	}
	if !plainName.MatchString(database) {
		database = fill
	}
	return &broker{"a role for each lease (docs/brokers.md#postgres)", fmt.Sprintf(`    broker: postgres
    postgres:
      host: %q
      port: %s
      database: %s
      user: %s # one that may make roles
      password_file: /etc/vouchd/secrets/postgres
      grants:
        - GRANT SELECT ON ALL TABLES IN SCHEMA public TO {{role}}
`, inventory.Printable(u.Hostname()), port, database, fill), []string{"user"}}
}
