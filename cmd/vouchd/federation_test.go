package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"

	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"

	"github.com/vouchd/vouchd/credential/oauth2/oauth2test"
)

func TestAWSSDKReadsWhatItsCredentialProcessPrints(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	u := leasetest.NewUpstream(t, h.Host, leasetest.STS)
	h.Grants(fmt.Sprintf(`  - {name: s3, broker: federation, ttl: 20m, max_ttl: 1h, federation: {profile: aws-2011-06-15, audience: sts.amazonaws.com,
      endpoint: %q, ca_file: %q, region: eu-central-1, role_arn: "arn:aws:iam::123456789012:role/agent"}}
  - {name: model, broker: federation, max_ttl: 1h, federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1",
      endpoint: %[1]q, ca_file: %[2]q, identity_provider_id: idp_1, service_account_id: sa_1}}
`, u.URL+"/", u.CAFile), "s3, model")
	h.Start()
	process := fmt.Sprintf("%s aws-credential-process s3 --socket unix://%s", daemontest.Program(t, "vouch"), h.Path("agent.sock"))
	got, err := processcreds.NewProvider(process).Retrieve(t.Context())
	if err != nil {
		t.Fatalf("the SDK got none: %v; the daemon said:\n%s", err, h.Stderr)
	}
	if got.AccessKeyID != "ASIA1" || got.SecretAccessKey != u.Canary || got.SessionToken != u.Canary+"-session" ||
		!got.CanExpire || time.Until(got.Expires) > 20*time.Minute || time.Until(got.Expires) < 15*time.Minute {
		t.Errorf("the SDK got %+v", got)
	}
	if len(u.Seen) != 1 || !strings.HasPrefix(u.Seen[0], "spiffe://example.org/agent as agent-") {
		t.Errorf("STS saw %q", u.Seen)
	}
	out, _, _ := h.Vouch("log", "show", "--credential", "s3", "--output", "json")
	for _, want := range []string{`"exposure":"memory"`, `"revocation":"expiry-only"`, `arn:aws:iam::123456789012:role/agent`} {
		if !strings.Contains(out, want) {
			t.Errorf("the log does not say %s:\n%s", want, out)
		}
	}
	h.CheckSecret(leasetest.Login{Password: u.Canary})
	if _, stderr, code := h.Vouch("aws-credential-process", "model"); code != 1 || !strings.Contains(stderr, "source of the credential refused") {
		t.Errorf("asked of the wrong vendor, it exits %d: %s", code, stderr)
	}
	if _, stderr, code := h.Vouch("aws-credential-process", "other"); code != 1 || !strings.Contains(stderr, "not granted") {
		t.Errorf("of what is not granted it exits %d: %s", code, stderr)
	}
}

func TestModelsTokenIsHadWithoutAnyStoredKey(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	u := leasetest.NewUpstream(t, h.Host, leasetest.OpenAI)
	h.Grants(fmt.Sprintf(`  - {name: model, broker: federation, max_ttl: 1h, federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1",
      endpoint: %q, ca_file: %q, identity_provider_id: idp_1, service_account_id: sa_1}}
`, u.URL+"/oauth/token", u.CAFile), "model")
	h.Start()
	out, stderr, code := h.Vouch("exec", "--credential", "model=OPENAI_API_KEY", "--", "sh", "-c", "echo $OPENAI_API_KEY")
	if code != 0 || out != u.Canary+"\n" {
		t.Fatalf("exits %d with %s%s; the daemon said:\n%s", code, out, stderr, h.Stderr)
	}
	if len(u.Seen) != 1 || u.Seen[0] != "spiffe://example.org/agent" {
		t.Errorf("the vendor saw %q", u.Seen)
	}
	story, _, _ := h.Vouch("log", "show", "--spiffe-id", "spiffe://example.org/agent", "--output", "json")
	for _, want := range []string{
		`"event":"lease.grant_intent"`, `"event":"jwt_svid.issue"`, `"audience":["https://api.openai.com/v1"]`, `"event":"lease.grant"`, `"exposure":"environment"`, `"kind":"federation"`,
	} {
		if !strings.Contains(story, want) {
			t.Errorf("the log does not say %s:\n%s", want, story)
		}
	}
	// Nobody took it back, and nobody says so.
	if strings.Contains(story, `"event":"lease.revoke"`) {
		t.Errorf("the log says that it was revoked:\n%s", story)
	}
	if out, _, _ := h.Vouch("lease", "list", "--output", "json"); !strings.Contains(out, `"revocation": "expiry-only"`) || !strings.Contains(out, `"state": "revoking"`) {
		t.Errorf("the lease, which only expires, is listed as\n%s", out)
	}
	h.CheckSecret(leasetest.Login{Password: u.Canary})
}

func TestAccessTokenIsHadByTokenExchangeWithoutAnyStoredKey(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := oauth2test.Start(t, "spiffe://example.org/agent", h.Subject, nil)
	h.Grants(fmt.Sprintf(`  - name: crm
    broker: oauth2
    max_ttl: 1h
    parameters: [{name: object, one_of: [contacts, companies]}]
    oauth2: {grant: token-exchange, token_url: %q, subject_audience: %q, client_auth: jwt-svid, ca_file: %q, scopes: ["crm.{{object}}.read", admin]}
`, p.URL+"/oauth/token", p.URL, p.CAFile), "crm")
	h.Start()
	out, stderr, code := h.Vouch("exec", "--credential", "crm:access_token=TOKEN", "--param", "object=contacts", "--", "sh", "-c", "printf %s $TOKEN")
	if code != 0 || out == "" {
		t.Fatalf("exits %d: %s; the daemon said:\n%s", code, stderr, h.Stderr)
	}
	if got := p.Subject(t, out); got != oauth2test.Account {
		t.Errorf("the token is of %q, want %q", got, oauth2test.Account)
	}
	// Nothing but the workload's JWT-SVIDs was there to obtain it with.
	form := p.Forms()[0]
	if h.Subject(form.Get("subject_token"), p.URL) != "spiffe://example.org/agent" || form.Get("client_secret") != "" || form.Get("scope") != "crm.contacts.read admin" {
		t.Errorf("the provider was asked with %v", form)
	}
	story, _, _ := h.Vouch("log", "show", "--spiffe-id", "spiffe://example.org/agent", "--output", "json")
	for _, want := range []string{
		`"scope_asked":"object=contacts"`, `"scope_granted":"crm.contacts.read"`, `"event":"jwt_svid.issue"`, `"event":"lease.grant"`, `"kind":"oauth2"`, `"revocation":"expiry-only"`,
	} {
		if !strings.Contains(story, want) {
			t.Errorf("the log does not say %s:\n%s", want, story)
		}
	}
	h.CheckSecret(leasetest.Login{Password: out})
	if _, stderr, code := h.Vouch("exec", "--credential", "crm=TOKEN", "--param", "object=billing", "--", "true"); code != 1 || !strings.Contains(stderr, "not one of contacts, companies") {
		t.Errorf("asked for what is not granted, it exits %d: %s", code, stderr)
	}
}
