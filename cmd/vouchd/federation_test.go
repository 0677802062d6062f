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
