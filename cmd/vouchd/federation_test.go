package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
)

func TestAWSSDKReadsWhatItsCredentialProcessPrints(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	u := newUpstream(t, h, sts)
	h.grants(fmt.Sprintf(`  - {name: s3, broker: federation, max_ttl: 1h, federation: {profile: aws-2011-06-15, audience: sts.amazonaws.com,
      endpoint: %q, ca_file: %q, region: eu-central-1, role_arn: "arn:aws:iam::123456789012:role/agent"}}
  - {name: model, broker: federation, max_ttl: 1h, federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1",
      endpoint: %[1]q, ca_file: %[2]q, identity_provider_id: idp_1, service_account_id: sa_1}}
`, u.URL+"/", u.caFile), "s3, model")
	h.start()
	dir, err := binaries()
	must(t, err)
	process := fmt.Sprintf("%s aws-credential-process s3 --socket unix://%s", filepath.Join(dir, "vouch"), h.path("agent.sock"))
	got, err := processcreds.NewProvider(process).Retrieve(t.Context())
	if err != nil {
		t.Fatalf("the SDK got none: %v; the daemon said:\n%s", err, h.stderr)
	}
	if got.AccessKeyID != "ASIA1" || got.SecretAccessKey != u.canary || got.SessionToken != u.canary+"-session" ||
		!got.CanExpire || time.Until(got.Expires) > 20*time.Minute || time.Until(got.Expires) < 15*time.Minute {
		t.Errorf("the SDK got %+v", got)
	}
	if len(u.seen) != 1 || !strings.HasPrefix(u.seen[0], "spiffe://example.org/agent as agent-") {
		t.Errorf("STS saw %q", u.seen)
	}
	out, _, _ := h.vouch("log", "show", "--credential", "s3", "--output", "json")
	for _, want := range []string{`"exposure":"memory"`, `"revocation":"expiry-only"`, `arn:aws:iam::123456789012:role/agent`} {
		if !strings.Contains(out, want) {
			t.Errorf("the log does not say %s:\n%s", want, out)
		}
	}
	h.checkSecret(login{Password: u.canary})
	if _, stderr, code := h.vouch("aws-credential-process", "model"); code != 1 || !strings.Contains(stderr, "source of the credential refused") {
		t.Errorf("asked of the wrong vendor, it exits %d: %s", code, stderr)
	}
	if _, stderr, code := h.vouch("aws-credential-process", "other"); code != 1 || !strings.Contains(stderr, "not granted") {
		t.Errorf("of what is not granted it exits %d: %s", code, stderr)
	}
}

func TestModelsTokenIsHadWithoutAnyStoredKey(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	u := newUpstream(t, h, openAI)
	h.grants(fmt.Sprintf(`  - {name: model, broker: federation, max_ttl: 1h, federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1",
      endpoint: %q, ca_file: %q, identity_provider_id: idp_1, service_account_id: sa_1}}
`, u.URL+"/oauth/token", u.caFile), "model")
	h.start()
	out, stderr, code := h.vouch("exec", "--credential", "model=OPENAI_API_KEY", "--", "sh", "-c", "echo $OPENAI_API_KEY")
	if code != 0 || out != u.canary+"\n" {
		t.Fatalf("exits %d with %s%s; the daemon said:\n%s", code, out, stderr, h.stderr)
	}
	if len(u.seen) != 1 || u.seen[0] != "spiffe://example.org/agent" {
		t.Errorf("the vendor saw %q", u.seen)
	}
	story, _, _ := h.vouch("log", "show", "--spiffe-id", "spiffe://example.org/agent", "--output", "json")
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
	if out, _, _ := h.vouch("lease", "list", "--output", "json"); !strings.Contains(out, `"revocation": "expiry-only"`) || !strings.Contains(out, `"state": "revoking"`) {
		t.Errorf("the lease, which only expires, is listed as\n%s", out)
	}
	h.checkSecret(login{Password: u.canary})
}
