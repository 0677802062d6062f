package policy

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
)

// needs is what the administrator has to give beside a preset's name.
var needs = map[string]string{
	"bearer-2026-11":     "upstream: https://api.example.com",
	"basic-2026-11":      "upstream: https://api.example.com\nslot: {basic: me}",
	"jira-2026-11":       "upstream: https://acme.atlassian.net\nslot: {basic: me@example.com}",
	"salesforce-2026-11": "upstream: https://acme.my.salesforce.com",
	"s3-2026-11":         "upstream: https://s3.eu-central-1.amazonaws.com\nslot: {sigv4: {region: eu-central-1, service: s3}}",
}

// calls are requests, as METHOD TARGET JSON, by preset and variant: those that are allowed
// and those that are refused.
var calls = map[string]struct{ allowed, refused []string }{
	"openai-2026-11/inference": {
		[]string{`POST /v1/responses {"model":"gpt-5"}`, `POST /v1/chat/completions {}`, `GET /v1/models`, `POST /v1/embeddings {}`},
		[]string{`POST /v1/files {}`, `GET /v1/files`, `POST /v1/fine_tuning/jobs {}`, `GET /v1/organization/admin_api_keys`, `DELETE /v1/models/ft:x`, `POST /v1/realtime/client_secrets {}`},
	},
	"openai-2026-11/text":      {[]string{`POST /v1/responses {}`, `GET /v1/models/gpt-5`}, []string{`POST /v1/embeddings {}`, `POST /v1/files {}`, `GET /v1/responses/1`}},
	"openai-2026-11/read-only": {[]string{`GET /v1/models`, `GET /v1/models/gpt-5`}, []string{`POST /v1/responses {}`, `GET /v1/files`, `DELETE /v1/models/x`}},
	"anthropic-2026-11/messages": {
		[]string{`POST /v1/messages {}`, `POST /v1/messages?beta=true {}`, `GET /v1/models?limit=5`},
		[]string{`POST /v1/files {}`, `GET /v1/files/1/content`, `POST /v1/messages/batches {}`, `GET /v1/organizations/api_keys`},
	},
	"anthropic-2026-11/batches":   {[]string{`POST /v1/messages/batches {}`, `GET /v1/messages/batches/1/results`}, []string{`POST /v1/files {}`, `DELETE /v1/messages/batches/1`, `GET /v1/organizations/users`}},
	"anthropic-2026-11/read-only": {[]string{`GET /v1/models`, `GET /v1/models/x`}, []string{`POST /v1/messages {}`, `GET /v1/files`, `POST /v1/files {}`}},
	"google-genai-2026-11/inference": {
		[]string{`POST /v1beta/models/gemini-3-pro:generateContent {}`, `POST /v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse {}`, `GET /v1beta/models`},
		[]string{`POST /upload/v1beta/files {}`, `GET /v1beta/files`, `POST /v1beta/tunedModels {}`, `POST /v1beta/models/x:predictLongRunning {}`},
	},
	"google-genai-2026-11/read-only": {[]string{`GET /v1beta/models`, `GET /v1/models/x`}, []string{`POST /v1beta/models/x:generateContent {}`, `GET /v1beta/files`, `GET /v1beta/cachedContents`}},
	"github-2026-11/work": {
		[]string{`GET /user`, `GET /repos/a/b/pulls?state=open`, `POST /repos/a/b/issues {}`, `PUT /repos/a/b/contents/x/y.go {}`, `POST /repos/a/b/pulls/1/reviews {}`, `GET /repositories/8514/issues?page=2`, `GET /search/issues?q=x`, `GET /repos/a/b`},
		[]string{`POST /user/keys {}`, `GET /repos/a/b/actions/secrets`, `POST /repos/a/b/hooks {}`, `POST /repos/a/b/transfer {}`, `PUT /repos/a/b/collaborators/evil {}`, `POST /repos/a/b/keys {}`, `DELETE /repos/a/b`, `PATCH /repos/a/b {}`, `POST /app/installations/1/access_tokens {}`, `POST /gists {}`, `POST /graphql {"query":"{viewer{login}}"}`, `GET /repos/a/b/secret-scanning/alerts`, `GET /repositories/8514/hooks`, `GET /organizations/9919/hooks`, `GET /orgs/a/secret-scanning/alerts`, `HEAD /repos/a/b/keys`, `GET /enterprises/e/secret-scanning/alerts`, `GET /user/codespaces/secrets`, `GET /scim/v2/organizations/a/Users`, `PUT /repositories/8514/collaborators/evil {}`},
	},
	"github-2026-11/read-only": {
		[]string{`GET /user`, `POST /graphql {"query":"query { viewer { login } }"}`, `GET /repositories/8514/pulls?page=2`, `GET /repos/a/b/actions/runs`, `HEAD /repos/a/b`},
		[]string{`POST /graphql {"query":"mutation { addStar }"}`, `POST /graphql {"query":"query a{x} mutation b{y}"}`, `POST /graphql [{"query":"{x}"}]`, `POST /graphql {"query":"{x}","query":"mutation{y}"}`, `POST /repos/a/b/issues {}`, `GET /repos/a/b/keys`, `GET /repos/a/b/secret-scanning/alerts`, `GET /repositories/8514/hooks`, `GET /organizations/9919/hooks`, `GET /orgs/a/secret-scanning/alerts`, `HEAD /repos/a/b/keys`, `GET /enterprises/e/secret-scanning/alerts`, `GET /user/codespaces/secrets`, `GET /scim/v2/organizations/a/Users`},
	},
	"github-2026-11/issues": {[]string{`GET /repos/a/b/issues`, `POST /repos/a/b/issues/1/comments {}`, `GET /repositories/8514/issues?page=2`}, []string{`GET /user`, `PUT /repos/a/b/contents/x {}`, `DELETE /repos/a/b/issues/1/lock`}},
	"github-git-2026-11/read-only": {
		[]string{`GET /a/b.git/info/refs?service=git-upload-pack`, `POST:application/x-git-upload-pack-request /a/b/git-upload-pack`},
		[]string{`GET /a/b/info/refs?service=git-receive-pack`, `POST:application/x-git-receive-pack-request /a/b/git-receive-pack`, `GET /a/b/info/refs`, `POST /a/b/info/lfs/objects/batch {}`, `GET /settings/tokens`, `GET /a/b/info/refs?service=git-upload-pack&service=git-receive-pack`},
	},
	"github-git-2026-11/push": {
		[]string{`GET /a/b/info/refs?service=git-receive-pack`, `POST:application/x-git-receive-pack-request /a/b/git-receive-pack`},
		[]string{`POST /a/b/info/lfs/objects/batch {}`, `POST /login/oauth/access_token {}`, `POST /a/b/git-receive-pack {}`, `GET /a/b/archive/main.zip`},
	},
	"gitlab-2026-11/work": {
		[]string{`GET /api/v4/projects/group%2Fname/merge_requests`, `POST /api/v4/projects/1/issues {}`, `POST /api/v4/projects/1/repository/commits {}`},
		[]string{`GET /api/v4/projects/1/variables`, `POST /api/v4/projects/1/access_tokens {}`, `POST /api/v4/projects/1/hooks {}`, `GET /api/v4/personal_access_tokens/self`, `POST /api/v4/projects/group%2Fname/deploy_keys {}`, `POST /api/v4/projects/1/members {}`, `GET /api/v4/projects/1/pipelines/2/variables`, `GET /api/v4/projects/1/pipeline_schedules/2`, `GET /api/v4/projects/1/secure_files/3/download`, `GET /api/v4/projects/1/terraform/state/main`, `GET /api/v4/projects/1/integrations/jenkins`, `GET /api/v4/projects/1/error_tracking/client_keys`, `GET /api/v4/groups/1/service_accounts/2/personal_access_tokens`, `HEAD /api/v4/projects/1/variables`, `POST /api/v4/projects/1/issues/2/move {}`, `POST /api/v4/projects/1/issues/2/clone {}`},
	},
	"gitlab-2026-11/read-only": {[]string{`GET /api/v4/projects/1`, `GET /api/v4/version`, `GET /api/v4/projects/1/pipelines/2/jobs`, `GET /api/v4/projects/1/jobs/3/trace`, `GET /api/v4/groups/1/projects`}, []string{`POST /api/v4/projects/1/issues {}`, `GET /api/v4/projects/1/variables`, `GET /api/v4/user`, `GET /api/v4/projects/1/pipelines/2/variables`, `GET /api/v4/projects/1/pipeline_schedules/2`, `GET /api/v4/projects/1/secure_files/3/download`, `GET /api/v4/projects/1/terraform/state/main`, `GET /api/v4/projects/1/integrations/jenkins`, `GET /api/v4/projects/1/error_tracking/client_keys`, `GET /api/v4/groups/1/service_accounts/2/personal_access_tokens`, `HEAD /api/v4/projects/1/variables`}},
	"slack-2026-11/post": {
		[]string{`POST /api/chat.postMessage {"channel":"C1","text":"hi"}`, `POST /api/auth.test {}`},
		[]string{`POST /api/chat.postMessage {"token":"xoxb-attacker","channel":"C1"}`, `POST /api/chat.postMessage`, `POST /api/conversations.inviteShared {}`, `GET /api/conversations.history`, `POST /api/files.completeUploadExternal {}`, `POST /api/admin.users.invite {}`, `POST /api/chat.update {"ts":"1"}`},
	},
	"slack-2026-11/read-only": {[]string{`GET /api/conversations.history?channel=C1`, `GET /api/users.list`}, []string{`POST /api/chat.postMessage {}`, `GET /api/oauth.v2.access`, `GET /api/files.list`}},
	"gmail-2026-11/drafts": {
		[]string{`POST /gmail/v1/users/me/drafts {}`, `PUT /gmail/v1/users/me/drafts/r1 {}`, `GET /gmail/v1/users/me/drafts`},
		[]string{`POST /gmail/v1/users/me/drafts/send {"id":"r1"}`, `POST /gmail/v1/users/me/messages/send {}`, `POST /upload/gmail/v1/users/me/messages/send`, `GET /gmail/v1/users/me/messages`, `POST /gmail/v1/users/me/settings/forwardingAddresses {}`, `DELETE /gmail/v1/users/me/drafts/r1`},
	},
	"gmail-2026-11/read-only": {[]string{`GET /gmail/v1/users/me/messages?q=x`, `GET /gmail/v1/users/me/profile`}, []string{`POST /gmail/v1/users/me/drafts {}`, `GET /gmail/v1/users/me/settings/delegates`, `POST /gmail/v1/users/me/messages/send {}`}},
	"gmail-2026-11/triage":    {[]string{`POST /gmail/v1/users/me/messages/1/modify {}`, `POST /gmail/v1/users/me/drafts {}`}, []string{`POST /gmail/v1/users/me/messages/send {}`, `DELETE /gmail/v1/users/me/messages/1`, `POST /gmail/v1/users/me/settings/filters {}`}},
	"google-drive-2026-11/read-only": {
		[]string{`GET /drive/v3/files?q=x`, `GET /drive/v3/files/1?alt=media`},
		[]string{`POST /drive/v3/files/1/permissions {}`, `GET /drive/v3/files/1/permissions`, `DELETE /drive/v3/files/1`, `POST /upload/drive/v3/files`},
	},
	"google-drive-2026-11/write": {[]string{`POST /upload/drive/v3/files?uploadType=media`, `PATCH /drive/v3/files/1 {}`}, []string{`POST /drive/v3/files/1/permissions {}`, `DELETE /drive/v3/files/1`, `POST /drive/v3/files/1/watch {}`, `PATCH /drive/v3/files/1?addParents=theirs {}`}},
	"stripe-2026-11/read-only": {
		[]string{`GET /v1/customers?limit=3`, `GET /v1/balance`},
		[]string{`POST /v1/charges`, `POST /v1/ephemeral_keys`, `POST /v1/webhook_endpoints`, `GET /v1/webhook_endpoints`, `POST /v1/payouts`, `GET /v1/payment_intents/pi_1`, `GET /v1/setup_intents`, `GET /v1/events`},
	},
	"stripe-2026-11/billing": {[]string{`POST /v1/customers`, `POST /v1/invoices/in_1`}, []string{`POST /v1/refunds`, `POST /v1/payouts`, `POST /v1/payment_intents`, `DELETE /v1/customers/cus_1`, `GET /v1/payment_intents`, `POST /v1/invoices/in_1/send`}},
	"notion-2026-11/read-only": {
		[]string{`POST /v1/search {}`, `GET /v1/pages/1`},
		[]string{`POST /v1/pages {}`, `POST /v1/oauth/token {}`, `PATCH /v1/blocks/1 {}`},
	},
	"notion-2026-11/write": {[]string{`POST /v1/pages {}`, `PATCH /v1/blocks/1/children {}`}, []string{`POST /v1/oauth/token {}`, `DELETE /v1/blocks/1`, `POST /v1/file_uploads {}`}},
	"linear-2026-11/read-only": {
		[]string{`POST /graphql {"query":"{ viewer { id } }"}`, `POST /graphql {"query":"query q { issues { nodes { id } } }"}`},
		[]string{`POST /graphql {"query":"mutation { issueCreate(input: {}) { success } }"}`, `GET /graphql?query=x`, `POST /graphql [{"query":"{x}"}]`, `POST /graphql {"query":"{x}","Query":"mutation{y}"}`, `POST /graphql {"query":"{ webhooks { nodes { secret } } }"}`, `POST /graphql {"query":"{ viewer { id } w: webhooks { nodes { id } } }"}`, `POST /graphql {"query":"{ authenticationSessions { id } }"}`},
	},
	"linear-2026-11/issues": {
		[]string{`POST /graphql {"query":"mutation m($i: X!) { issueCreate(input: $i) { success } }"}`, `POST /graphql {"query":"{ issues { nodes { id } } }"}`, `POST /graphql {"query":"mutation m($id: String!, $i: U!) {\n  issueUpdate(id: $id, input: $i) {\n    success\n    issue { id title state { id name } }\n  }\n}"}`, `POST /graphql {"query":"mutation createComment($input: CommentCreateInput!) { commentCreate(input: $input) { ...CommentPayload } } fragment CommentPayload on CommentPayload { __typename success comment { id } }"}`},
		[]string{`POST /graphql {"query":"mutation { issueDelete(id: \"1\") { success } }"}`, `POST /graphql {"query":"mutation { apiKeyCreate(input: {}) { success } }"}`, `POST /graphql {"query":"query a{x} mutation b { webhookCreate(input: {}) { success } }"}`, `POST /graphql {"query":"{ webhooks { nodes { secret } } }"}`, `POST /graphql {"query":"{ viewer { id } w: webhooks { nodes { id } } }"}`, `POST /graphql {"query":"{ authenticationSessions { id } }"}`, `POST /graphql {"query":"mutation m($i: X!) { issueCreate(input: $i) { success } fileUpload(size: $s) { uploadFile { uploadUrl } } }"}`, `POST /graphql {"query":"mutation a($i: X!) { issueCreate(input: $i) { success } } mutation b { logoutAllSessions { success } }","operationName":"b"}`, `POST /graphql {"query":"mutation m($i: X!) { issueCreate(input: $i) { success #}\n} logoutAllSessions { success } }"}`, `POST /graphql {"query":"mutation m($i: X!) { issueCreate(input: $i) { success } issueShare(id: $i) { success } }"}`},
	},
	"jira-2026-11/read-only": {[]string{`GET /rest/api/3/issue/AB-1`, `POST /rest/api/3/search/jql {}`}, []string{`POST /rest/api/3/issue {}`, `GET /rest/api/3/users`, `POST /rest/webhooks/1.0/webhook {}`}},
	"jira-2026-11/issues":    {[]string{`POST /rest/api/3/issue {}`, `POST /rest/api/3/issue/AB-1/comment {}`}, []string{`DELETE /rest/api/3/issue/AB-1`, `POST /rest/api/3/user {}`, `PUT /rest/api/3/permissionscheme/1 {}`, `PUT /rest/api/3/issue/archive {}`, `POST /rest/api/3/issue/AB-1/notify {}`}},
	"salesforce-2026-11/contacts": {
		[]string{`GET /services/data/v61.0/sobjects/Contact/003`, `PATCH /services/data/v61.0/sobjects/Contact/003 {}`, `GET /services/data/v61.0/query?q=SELECT+Id+FROM+Contact`},
		[]string{`GET /services/data/v61.0/sobjects/Account/001`, `GET /services/data/v61.0/query?q=SELECT+Id+FROM+Invoice__c`, `GET /services/data/v61.0/query?q=SELECT+Id,(SELECT+Id+FROM+Cases)+FROM+Contact`, `DELETE /services/data/v61.0/sobjects/Contact/003`, `POST /services/data/v61.0/composite {}`, `POST /services/oauth2/token {}`},
	},
	"salesforce-2026-11/read-only": {[]string{`GET /services/data/v61.0/sobjects`, `GET /services/data/v61.0/limits`}, []string{`GET /services/data/v61.0/query?q=SELECT+Id+FROM+User`, `POST /services/data/v61.0/sobjects/Contact {}`, `GET /services/oauth2/userinfo`, `GET /services/data/v61.0/sobjects/AuthProvider/0SO`, `GET /services/data/v61.0/sobjects/OauthToken/1`, `GET /services/data/v61.0/sobjects/AuthSession/1`}},
	"sentry-2026-11/read-only":     {[]string{`GET /api/0/organizations/acme/issues/`, `GET /api/0/issues/1/`, `GET /api/0/organizations/acme/events/?field=title`, `GET /api/0/projects/acme/web/events/`}, []string{`GET /api/0/projects/acme/web/keys/`, `PUT /api/0/issues/1/ {}`, `GET /api/0/api-tokens/`, `GET /api/0/organizations/acme/project-keys/`, `GET /api/0/organizations/acme/flags/signing-secrets/`, `GET /api/0/organizations/acme/org-auth-tokens/`, `GET /api/0/organizations/acme/sentry-apps/`, `GET /api/0/projects/acme/web/`, `GET /api/0/organizations/acme/audit-logs/`}},
	"sentry-2026-11/triage":        {[]string{`PUT /api/0/issues/1/ {}`, `POST /api/0/issues/1/comments/ {}`, `GET /api/0/organizations/acme/issues/1/events/latest/`}, []string{`POST /api/0/projects/acme/web/keys/ {}`, `DELETE /api/0/issues/1/`, `POST /api/0/organizations/acme/members/ {}`, `GET /api/0/organizations/acme/project-keys/`, `GET /api/0/organizations/acme/flags/signing-secrets/`, `GET /api/0/organizations/acme/org-auth-tokens/`, `GET /api/0/organizations/acme/sentry-apps/`, `GET /api/0/projects/acme/web/`, `GET /api/0/organizations/acme/audit-logs/`, `PUT /api/0/issues/1/ {"isPublic":true}`}},
	"sentry-2026-11/releases":      {[]string{`POST /api/0/organizations/acme/releases/ {}`, `GET /api/0/organizations/acme/chunk-upload/`}, []string{`GET /api/0/organizations/acme/issues/`, `POST /api/0/projects/acme/web/keys/ {}`, `DELETE /api/0/organizations/acme/releases/1/`}},
	"bearer-2026-11/full":          {[]string{`GET /x`, `DELETE /x`}, []string{`PROPFIND /x`, `LINK /x`, `PURGE /x`}},
	"bearer-2026-11/read-only":     {[]string{`GET /x`, `HEAD /`}, []string{`POST /x`, `PUT /x`, `DELETE /x`}},
	"basic-2026-11/full":           {[]string{`GET /x`, `DELETE /x`}, []string{`PROPFIND /x`, `LINK /x`, `PURGE /x`}},
	"basic-2026-11/read-only":      {[]string{`GET /x`, `HEAD /`}, []string{`POST /x`, `PUT /x`, `DELETE /x`}},
	"s3-2026-11/objects":           {[]string{`GET /bucket/key`, `PUT /bucket/a/b`, `GET /bucket?list-type=2`}, []string{`PUT /bucket`, `DELETE /bucket/`, `PUT /bucket/key?acl`, `POST /bucket?delete`, `GET /bucket?session`, `GET /bucket/key?torrent`, `PUT /bucket/key?retention`, `PUT /bucket/key?legal-hold`}},
	"s3-2026-11/read-only":         {[]string{`GET /bucket/key`, `HEAD /bucket/key`}, []string{`PUT /bucket/key`, `DELETE /bucket/key`, `GET /bucket?policy`, `GET /bucket?session`, `GET /bucket?acl`}},
}

func TestPresetsAllowWhatTheySayAndRefuseTheRest(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, preset := range Presets() {
		if len(preset.Variants) == 0 {
			t.Errorf("%s has no variants", preset.Name)
		}
		if u, err := url.Parse(preset.Source); !strings.HasPrefix(preset.Source, "RFC ") && (err != nil || u.Scheme != "https" || !strings.Contains(preset.Source, ", November 2026")) {
			t.Errorf("%s has the source %q, want a document and when it was read", preset.Name, preset.Source)
		}
		for _, v := range preset.Variants {
			p := mustLoad(t, fmt.Sprintf("preset: %s\nvariant: %s\n%s", preset.Name, v.Name, needs[preset.Name]))
			of, ok := calls[preset.Name+"/"+v.Name]
			if !ok || len(of.allowed) < 2 || len(of.refused) < 3 {
				t.Errorf("%s/%s has %d calls that are allowed and %d that are refused", preset.Name, v.Name, len(of.allowed), len(of.refused))
				continue
			}
			seen++
			for _, line := range of.allowed {
				if got := p.Judge(ask(t, p, line)); got.Effect != Allow {
					t.Errorf("%s/%s: %s is refused by %q", preset.Name, v.Name, line, got.Rule)
				}
			}
			for _, line := range of.refused {
				if got := p.Judge(ask(t, p, line)); got.Effect != Deny {
					t.Errorf("%s/%s: %s is allowed by %s", preset.Name, v.Name, line, got.Rule)
				}
			}
		}
	}
	if seen != len(calls) {
		t.Errorf("%d variants have calls, and there are calls of %d", seen, len(calls))
	}
}

// row is a preset's line in the document that lists them, given what it is for.
func row(t *testing.T, p Preset, use string) string {
	t.Helper()
	_, block, err := readPreset(p.Name)
	if err != nil {
		t.Fatal(err)
	}
	slot := "yours to give"
	switch s := block.Slot.slot(); {
	case s.Basic != "":
		slot = fmt.Sprintf("basic, user `%s`", s.Basic)
	case s.Header != "":
		slot = fmt.Sprintf("`%s: %s`", s.Header, s.Form)
	}
	if block.Upstream.Value == "" {
		slot += "; `upstream` too"
	}
	var variants []string
	for _, v := range p.Variants {
		variants = append(variants, fmt.Sprintf("`%s`: %s", v.Name, v.Says))
	}
	source, read, _ := strings.Cut(p.Source, ", ")
	if read != "" {
		source = fmt.Sprintf("[%s](%s)", read, source)
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | %s |", p.Name, use, slot, strings.Join(variants, "<br>"), source)
}

func TestDocumentSaysWhatEveryPresetIs(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/presets.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` | ")
		if !ok || !strings.HasPrefix(line, "| `") {
			continue
		}
		rows++
		use, _, _ := strings.Cut(rest, " | ")
		i := slices.IndexFunc(Presets(), func(p Preset) bool { return p.Name == name })
		if i < 0 || use == "" {
			t.Errorf("docs/presets.md has a row of %q, for %q", name, use)
		} else if want := row(t, Presets()[i], use); strings.TrimSpace(line) != want {
			t.Errorf("docs/presets.md lacks the row\n%s", want)
		}
	}
	if rows != len(Presets()) {
		t.Errorf("docs/presets.md has %d presets, and there are %d", rows, len(Presets()))
	}
}

func TestKeysOfKnownClientsHaveTheirPreset(t *testing.T) {
	t.Parallel()
	for variable, want := range map[string]string{"OPENAI_API_KEY": "openai-2026-11", "ANTHROPIC_API_KEY": "anthropic-2026-11", "GITHUB_TOKEN": "github-2026-11", "OPENAI_BASE_URL": "", "STRIPE_SECRET_KEY": "stripe-2026-11", "FOO_KEY": ""} {
		if got, ok := PresetOf(variable); got != want || ok != (want != "") {
			t.Errorf("%s has the preset %q, want %q", variable, got, want)
		}
	}
}
