//go:build clients

package main

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

// The vendors' own SDKs, from npm, exchange the JWT-SVID that vouch keeps in a
// file. What they ask is a fake of the vendors' endpoints.
func TestExampleClientsOfVendorsExchangeTheIdentityTokenInAFile(t *testing.T) {
	h := newHost(t)
	u := leasetest.NewUpstream(t, h.Host, models)
	h.Grants("  - {name: unused, broker: ssh, ssh: {principals: [x]}}\n", "unused")
	h.Start()
	dir := h.Path("node")
	must(t, os.Mkdir(dir, 0o700))
	for _, name := range []string{"package.json", "anthropic.mjs", "openai.mjs"} {
		h.Write("node/"+name, example(t, "node/"+name))
	}
	ran(t, nil, "npm", "install", "--no-fund", "--no-audit", "--silent", "--prefix", dir)
	// OpenAI's SDK has the address of its token endpoint built in.
	h.Write("node/redirect.mjs", `const real = globalThis.fetch;
globalThis.fetch = (url, init) => real(String(url).replace('https://auth.openai.com', process.env.FAKE), init);
`)
	for _, tt := range []struct {
		example, audience string
		env               []string
	}{
		{"anthropic.mjs", "https://api.anthropic.com", []string{
			"ANTHROPIC_BASE_URL=" + u.URL, "ANTHROPIC_IDENTITY_TOKEN_FILE=" + dir + "/token", "ANTHROPIC_FEDERATION_RULE_ID=fdrl_1",
			"ANTHROPIC_ORGANIZATION_ID=org", "ANTHROPIC_SERVICE_ACCOUNT_ID=svac_1",
		}},
		{"openai.mjs", "https://api.openai.com/v1", []string{
			"OPENAI_BASE_URL=" + u.URL + "/v1", "FAKE=" + u.URL, "OPENAI_IDENTITY_TOKEN_FILE=" + dir + "/token",
			"OPENAI_IDENTITY_PROVIDER_ID=idp_1", "OPENAI_SERVICE_ACCOUNT_ID=sa_1",
		}},
	} {
		if _, stderr, code := h.Vouch("fetch", "jwt", "--audience", tt.audience, "--write", dir+"/token"); code != 0 {
			t.Fatal(stderr)
		}
		env := append(tt.env, "NODE_EXTRA_CA_CERTS="+u.CAFile, "HOME="+dir)
		if out := ran(t, env, "node", "--import", dir+"/redirect.mjs", dir+"/"+tt.example); !strings.HasSuffix(out, "hello from the test\n") {
			t.Errorf("%s says %q", tt.example, out)
		}
		must(t, os.WriteFile(dir+"/token", []byte("x.y.z"), 0o600))
		if out, err := program(env, "", "node", "--import", dir+"/redirect.mjs", dir+"/"+tt.example).CombinedOutput(); err == nil {
			t.Errorf("%s with another token: %s", tt.example, out)
		}
	}
	if want := []string{"spiffe://example.org/agent", "spiffe://example.org/agent"}; !slices.Equal(u.Seen, want) {
		t.Errorf("the vendors saw %q", u.Seen)
	}
}

// models is the APIs of both vendors.
func models(u *leasetest.Upstream, w http.ResponseWriter, r *http.Request) {
	authorized := r.Header.Get("Authorization") == "Bearer "+u.Canary
	switch r.URL.Path {
	case "/oauth/token":
		leasetest.OpenAI(u, w, r)
	case "/v1/oauth/token":
		var b map[string]string
		json.NewDecoder(r.Body).Decode(&b)
		subject := u.Host.Subject(b["assertion"], "https://api.anthropic.com")
		if b["grant_type"] != "urn:ietf:params:oauth:grant-type:jwt-bearer" || b["federation_rule_id"] != "fdrl_1" || b["organization_id"] != "org" || b["service_account_id"] != "svac_1" || subject == "" {
			leasetest.Send(w, 400, map[string]any{"error": map[string]string{"type": "invalid_request_error"}})
			return
		}
		u.Seen = append(u.Seen, subject)
		leasetest.Send(w, 200, map[string]any{"access_token": u.Canary, "token_type": "Bearer", "expires_in": 300})
	case "/v1/messages":
		if !authorized {
			w.WriteHeader(401)
			return
		}
		leasetest.Send(w, 200, map[string]any{"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
			"content": []any{map[string]string{"type": "text", "text": "hello from the test"}}, "usage": map[string]int{"input_tokens": 1, "output_tokens": 1}})
	case "/v1/chat/completions":
		if !authorized {
			w.WriteHeader(401)
			return
		}
		leasetest.Send(w, 200, map[string]any{"id": "c", "object": "chat.completion", "created": 1, "model": "m",
			"choices": []any{map[string]any{"index": 0, "finish_reason": "stop", "message": map[string]string{"role": "assistant", "content": "hello from the test"}}}})
	default:
		w.WriteHeader(404)
	}
}
