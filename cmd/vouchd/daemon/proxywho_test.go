package daemon_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// sh runs a script, with vouch, curl and the proxy's socket at hand, as a process of
// this one's user.
func sh(t *testing.T, h *proxytest.Host, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"),
		"vouch="+daemontest.Program(t, "vouch"), "proxy="+h.Path("proxy.sock"), `curl=curl -sS --max-time 20 --unix-socket `+h.Path("proxy.sock"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s: %v", script, err)
	}
	return string(out)
}

// TestHandleIsForTheProcessesThatDescendFromItsHolder: an entry that narrows by the
// program counts for vouch alone, which leases the handle; curl is what it starts.
func TestHandleIsForTheProcessesThatDescendFromItsHolder(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Entries(fmt.Sprintf("unix:uid:%d", os.Getuid()), "unix:path:"+daemontest.Program(t, "vouch"))
	h.Start()
	if out := sh(t, h, `$curl http://localhost/api/x`); !strings.Contains(out, "no_identity") || !strings.Contains(out, "vouch entry explain") {
		t.Errorf("without a handle: %s", out)
	}
	if out := sh(t, h, `$vouch exec --credential api=KEY -- sh -c '$curl -H "Authorization: Bearer $KEY" http://localhost/api/x'`); out != "ok" {
		t.Errorf("with the handle: %s", out)
	}
	if got := h.Upstream.Got(); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+proxytest.Secret {
		t.Errorf("the upstream got %v", got)
	}
	// It is copied out of the tree while that still runs.
	out := sh(t, h, `dir=$(mktemp -d); mkfifo $dir/out $dir/hold
		$vouch exec --credential api=KEY -- sh -c 'echo $KEY >'$dir'/out; read x <'$dir'/hold' &
		read key <$dir/out
		$curl -H "Authorization: Bearer $key" http://localhost/api/x
		echo >$dir/hold; wait; rm -r $dir`)
	if !strings.Contains(out, "handle_not_yours") {
		t.Errorf("copied out of the tree: %s", out)
	}
	if n := len(h.Upstream.Got()); n != 0 {
		t.Errorf("%d requests of a copied handle reached the upstream", n)
	}
	if found := h.Records("proxy.call", audit.Denied); found[len(found)-1].Workload == nil || found[len(found)-1].Credential.Name != "api" {
		t.Errorf("the refusal is recorded as %+v", found[len(found)-1])
	}
}

func TestHandleBelongsInItsPlaceAndNowhereElse(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or else it may answer before the handle in it comes
		io.WriteString(w, "ok")
	})
	h.Start()
	for args, want := range map[string]string{
		`-H "Authorization: Bearer $KEY" http://localhost/api/x`:                          "ok",
		`-u "me:$KEY" http://localhost/api/x`:                                             "ok",
		`-H "X-Api-Key: $KEY" http://localhost/api/x`:                                     "ok",
		`"http://localhost/api/x?key=$KEY&q=1"`:                                           "ok",
		`-H "Authorization: Bearer $KEY" -H "X-Comment: $KEY" http://localhost/api/x`:     "handle_misplaced",
		`-H "Authorization: Bearer $KEY" "http://localhost/api/x?q=a$KEY"`:                "handle_misplaced",
		`-H "Authorization: Bearer $KEY" http://localhost/api/x/$KEY`:                     "handle_misplaced",
		`-H "Authorization: Bearer $KEY" -d "comment=$KEY" http://localhost/api/x`:        "handle_misplaced",
		`-H "Authorization: Bearer $KEY" -H "X-Api-Key: sk-other" http://localhost/api/x`: "foreign_credential",
		`-H "Authorization: Bearer ${KEY%????????}aaaaaaaa" http://localhost/api/x`:       "handle_not_yours",
	} {
		if out := sh(t, h, `$vouch exec --credential api=KEY -- sh -c '`+"$curl "+args+`'`); !strings.Contains(out, want) {
			t.Errorf("%s: %s, want %s", args, out, want)
		}
	}
	for _, r := range h.Upstream.Got() {
		if text := fmt.Sprint(r.Header, r.RequestURI); strings.Contains(text, "vouch") {
			t.Errorf("a handle reached the upstream: %s", text)
		}
	}
}

// TestHostIsForTheOneCredentialThatIsGranted: two that fit are named, and neither is used.
func TestHostIsForTheOneCredentialThatIsGranted(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "hosts: [api.example.com]")
	h.Start()
	ask := func() (*http.Response, string) {
		r, err := http.NewRequest(http.MethodGet, "http://api.example.com/v1/user", nil)
		must(t, err)
		return send(t, h.Client(), r)
	}
	if resp, body := ask(); body != "ok" {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if got := h.Upstream.Got(); len(got) != 1 || got[0].RequestURI != "/v1/user" || got[0].Host != strings.TrimPrefix(h.Upstream.URL, "https://") {
		t.Errorf("the upstream got %+v", got)
	}
	h.Write("credentials.d/other.yaml", h.Definition("other", "hosts: [api.example.com]"))
	daemontest.Eventually(t, "two credentials fit", func() bool {
		resp, body := ask()
		return resp.StatusCode == http.StatusMisdirectedRequest && strings.Contains(body, "api and other") && strings.Contains(body, "http://localhost/api/")
	})
	h.Write("credentials.d/other.yaml", h.Definition("ungranted", "hosts: [api.example.com]"))
	daemontest.Eventually(t, "the one that is granted is used", func() bool { _, body := ask(); return body == "ok" })
}

func TestWhoIsGrantedNothingIsToldSo(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Entries("unix:uid:64123")
	h.Start()
	resp, body := get(t, h.Client(), "http://localhost/api/x")
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Vouchd") != "no_identity" {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestRulesThatAreOnlyTriedOutRefuseNothingAndAreRecorded.
func TestRulesThatAreOnlyTriedOutRefuseNothingAndAreRecorded(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "enforce: false", `rules: [{name: models, effect: allow, methods: [GET], paths: [/models]}]`)
	h.Start()
	if resp, body := get(t, h.Client(), "http://localhost/api/files"); body != "ok" {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if found := h.Records("proxy.call", audit.Success); len(found) != 1 || !found[0].Call.Unenforced || found[0].Call.Path != "/files" {
		t.Errorf("the log has %+v", found[0].Call)
	}
}

// TestRotatedSecretIsUsedByTheNextCall, and a removed one by none.
func TestRotatedSecretIsUsedByTheNextCall(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	get(t, h.Client(), "http://localhost/api/x")
	if _, stderr, code := h.VouchReads([]byte("the-next-key-1234"), "secret", "rotate", "api-key"); code != 0 {
		t.Fatal(stderr)
	}
	if resp, body := get(t, h.Client(), "http://localhost/api/x"); body != "ok" {
		t.Fatalf("%s %s", resp.Status, body)
	}
	got := h.Upstream.Got()
	if a, b := got[0].Header.Get("Authorization"), got[1].Header.Get("Authorization"); a != "Bearer "+proxytest.Secret || b != "Bearer the-next-key-1234" {
		t.Errorf("the upstream got %q and then %q", a, b)
	}
	h.OK("secret", "remove", "api-key")
	if resp, body := get(t, h.Client(), "http://localhost/api/x"); resp.StatusCode < 400 {
		t.Errorf("after it was removed: %s %s", resp.Status, body)
	}
}

// TestCredentialIsGivenOnlyToTheProxy: what an agent leases is a handle.
func TestCredentialIsGivenOnlyToTheProxy(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "handle_prefix: sk-")
	h.Start()
	if out := sh(t, h, `$vouch exec --credential api=KEY -- sh -c 'echo $KEY'`); !strings.HasPrefix(out, "sk-vouch") || strings.Contains(out, proxytest.Secret) {
		t.Errorf("the command has %q", out)
	}
	if out, stderr, code := h.Vouch("get", "api"); code != 1 || out != "" || !strings.Contains(stderr, "vouch exec --proxy api") {
		t.Errorf("vouch get exits %d and prints %q: %s", code, out, stderr)
	}
}

// TestCommandCallsByALoopbackPortThatIsItsOwn: with no key and no address of the vendor's.
func TestCommandCallsByALoopbackPortThatIsItsOwn(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "handle_prefix: sk-", `environment: [{name: API_URL, value: "{{url}}/v1"}, {name: API_KEY, value: "{{handle}}"}]`)
	h.Start()
	if out := sh(t, h, `$vouch exec --proxy api -- sh -c 'curl -sS -H "Authorization: Bearer $API_KEY" $API_URL/models'`); out != "ok" {
		t.Errorf("the command gets %s", out)
	}
	if got := h.Upstream.Got(); len(got) != 1 || got[0].RequestURI != "/v1/models" || got[0].Header.Get("Authorization") != "Bearer "+proxytest.Secret {
		t.Errorf("the upstream got %+v", got)
	}
	h.Write(".env", "DEBUG=1\nAPI_KEY=vouch:api\n")
	if out := sh(t, h, `$vouch exec --env-file `+h.Path(".env")+` -- sh -c 'curl -sS -H "Authorization: Bearer $API_KEY" $API_URL/models?debug=$DEBUG'`); out != "ok" {
		t.Errorf("with a .env file the command gets %s", out)
	}
	for args, want := range map[string]string{
		"--proxy other":             "other is not granted to this process",
		"--proxy api --ttl 1h30s1x": "invalid argument",
		"":                          "--proxy NAME, --credential NAME=VARIABLE or --env-file is required",
	} {
		if out := sh(t, h, "$vouch exec "+args+" -- true"); !strings.Contains(out, want) {
			t.Errorf("%s: %s", args, out)
		}
	}
}

// TestRefusedRequestsBecomeProposedRules, and explain tells of them.
func TestRefusedRequestsBecomeProposedRules(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, `rules: [{name: models, effect: allow, methods: [GET], paths: [/models]}, {name: no-keys, effect: deny, methods: [GET], paths: [/keys]}]`)
	h.Start()
	c := h.Client()
	for _, path := range []string{"/v1/users/17/mail", "/v1/users/18/mail", "/keys", "/models"} {
		get(t, c, "http://localhost/api"+path)
	}
	out := h.OK("policy", "suggest", "--credential", "api")
	if !matches(`(?m)^  # 2 requests, last .*, by spiffe://example.org/agent; see: vouch log explain \d+$`, out) ||
		!strings.Contains(out, `- {name: suggested-1, effect: allow, methods: [GET], paths: ["/v1/users/*/mail"]}`) || strings.Contains(out, "keys") || strings.Contains(out, "models") {
		t.Errorf("suggest prints\n%s", out)
	}
	daemontest.Eventually(t, "what came of the call is recorded", func() bool {
		return strings.Contains(h.OK("log", "show", "--event", "proxy.outcome"), "GET /models by rule models: status 200, 0 bytes sent and 2 received")
	})
	found := h.Records("proxy.call", audit.Success)
	explained := h.OK("log", "explain", fmt.Sprint(found[0].Index))
	for _, want := range []string{"GET /models by rule models", "status 200", "spiffe://example.org/agent", "credential api"} {
		if !strings.Contains(explained, want) {
			t.Errorf("explain lacks %q:\n%s", want, explained)
		}
	}
}
