package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// tenKeys is a file of ten keys, each with a request that the agent makes: the variable
// with the address and what comes after it, and where the key goes.
var tenKeys = []struct{ variable, value, base, path, header, body string }{
	{"OPENAI_API_KEY", "sk-proj-canary0123456789abcdefghijklmnopqrstuvwxyz", "OPENAI_BASE_URL", "/models", "Authorization: Bearer", ""},
	{"ANTHROPIC_API_KEY", "sk-ant-api03-canary0123456789abcdefghijklmnop", "ANTHROPIC_BASE_URL", "/v1/messages", "X-Api-Key:", `{"model":"m"}`},
	{"GEMINI_API_KEY", "AIzacanary0123456789abcdefghijklmnopqrs", "GOOGLE_GEMINI_BASE_URL", "/v1beta/models", "X-Goog-Api-Key:", ""},
	{"GITHUB_TOKEN", "ghp_canary0123456789abcdefghijklmnopqrst", "GITHUB_API_URL", "/user", "Authorization: Bearer", ""},
	{"GITLAB_TOKEN", "glpat-canary0123456789abcd", "GITLAB_URL", "/api/v4/projects", "Private-Token:", ""},
	{"SLACK_BOT_TOKEN", "xoxb-canary-0123456789-abcdefghij", "SLACK_API_URL", "chat.postMessage", "Authorization: Bearer", `{"text":"t"}`},
	{"STRIPE_SECRET_KEY", "sk_live_canary0123456789abcdefgh", "STRIPE_API_BASE", "/v1/charges", "Authorization: Bearer", ""},
	{"NOTION_API_KEY", "ntn_canary0123456789abcdefghijklmnopqrstuvwxyz01", "NOTION_BASE_URL", "/v1/users/me", "Authorization: Bearer", ""},
	{"LINEAR_API_KEY", "lin_api_canary0123456789abcdefghijklmnopqrstuvw", "LINEAR_API_URL", "", "Authorization:", `{"query":"query { viewer { id } }"}`},
	{"SENTRY_AUTH_TOKEN", "sntrys_canary0123456789abcdefghijklmnopq", "SENTRY_URL", "api/0/organizations/", "Authorization: Bearer", ""},
}

// agentOfTenKeys makes each call, prints what it got, and waits.
const agentOfTenKeys = `#!/usr/bin/python3
import json, os, sys, urllib.error, urllib.request
for k in json.load(open(os.path.dirname(os.path.abspath(__file__)) + "/calls")):
    name, form = k["header"].split(":")
    headers = {name: (form + " " + os.environ[k["variable"]]).strip(), "Content-Type": "application/json"}
    request = urllib.request.Request(os.environ[k["base"]] + k["path"], data=k["body"].encode() or None, headers=headers)
    try:
        print(k["variable"], urllib.request.urlopen(request).read().decode(), flush=True)
    except urllib.error.HTTPError as e:
        print(k["variable"], e.code, e.read().decode(), flush=True)
print("done", os.getpid(), os.getppid(), flush=True)
sys.stdin.read()
`

// TestFromAFileOfTenKeysToAnAgentWithoutAny follows docs/keys.md.
func TestFromAFileOfTenKeysToAnAgentWithoutAny(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	must(t, os.Remove(h.Path("credentials.d/api.yaml")))
	h.Write("entries.d/a.yaml", "entries: []\n")
	must(t, os.Mkdir(h.Path("research"), 0o755))
	var file strings.Builder
	var calls []map[string]string
	keys := make(map[string]bool)
	for _, k := range tenKeys {
		fmt.Fprintf(&file, "%s=%s\n", k.variable, k.value)
		calls = append(calls, map[string]string{"variable": k.variable, "base": k.base, "path": k.path, "header": k.header, "body": k.body})
		keys[k.value] = true
	}
	text, err := json.Marshal(calls)
	must(t, err)
	h.Write("research/calls", string(text))
	h.Write("research/.env", file.String()+"LOG_LEVEL=info\n")
	h.Write("research/agent", agentOfTenKeys)
	must(t, os.Chmod(h.Path("research/agent"), 0o755))
	h.Host.Start()

	page, err := os.ReadFile("../../docs/keys.md")
	must(t, err)
	of := strings.NewReplacer("/opt/research", h.Path("research"), "/etc/vouchd", h.Dir)
	command := func(text string) *exec.Cmd {
		t.Helper()
		if !strings.Contains(string(page), "\n    "+text+"\n") {
			t.Fatalf("the page does not say %q", text)
		}
		cmd := exec.Command("sh", "-ec", of.Replace(text))
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(daemontest.Program(t, "vouch"))+":"+os.Getenv("PATH"), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		cmd.Stderr = t.Output()
		return cmd
	}
	run := func(text string) string {
		t.Helper()
		out, err := command(text).Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s\n%s", text, err, out, h.Stderr)
		}
		return string(out)
	}
	run("vouch migrate env /opt/research/.env --credential-prefix research --dry-run")
	if read(t, h.Path("research/.env")) != file.String()+"LOG_LEVEL=info\n" {
		t.Error("a dry run changes the file")
	}
	out := run("vouch migrate env /opt/research/.env --credential-prefix research")
	if strings.Contains(read(t, h.Path("research/.env")), "canary") {
		t.Error("a key is left in the file")
	}
	granted := regexp.MustCompile(`credentials: \[.*\]`).FindString(out)
	// The vendors are one server here.
	definitions := h.Path("credentials.d/research.yaml.disabled")
	must(t, os.WriteFile(definitions, []byte(regexp.MustCompile(`(?m)^( +)preset: .*$`).ReplaceAllString(read(t, definitions),
		fmt.Sprintf("$0\n${1}upstream: %s\n${1}ca_file: %s\n${1}allow_addresses: [127.0.0.1/32]", h.Upstream.URL, h.Path("ca.pem")))), 0o644))
	run("mv /etc/vouchd/credentials.d/research.yaml.disabled /etc/vouchd/credentials.d/research.yaml")
	run("vouch check")
	h.Write("entries.d/research.yaml", fmt.Sprintf("entries:\n  - spiffe_id: spiffe://example.org/agent/research\n    selectors: [\"unix:uid:%d\"]\n    %s\n", os.Getuid(), granted))
	daemontest.Eventually(t, "the credentials are granted", func() bool {
		_, _, code := h.Vouch("exec", "--proxy", "research-openai-api-key", "--", "true")
		return code == 0
	})
	if n := len(h.Upstream.Got()); n != 0 {
		t.Errorf("%d calls were made for a command that makes none", n)
	}

	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "X-Api-Key", "X-Goog-Api-Key", "Private-Token"} {
			if v := strings.TrimPrefix(r.Header.Get(name), "Bearer "); keys[v] {
				fmt.Fprintln(w, "it came with the key", v)
				return
			}
		}
		w.WriteHeader(401)
	})
	agent := command("vouch exec --env-file /opt/research/.env -- /opt/research/agent")
	in, err := agent.StdinPipe()
	must(t, err)
	printed, err := agent.StdoutPipe()
	must(t, err)
	must(t, agent.Start())
	defer agent.Wait()
	defer in.Close()
	lines := bufio.NewScanner(printed)
	called := make(map[string]bool)
	var pids []string
	for pids == nil && lines.Scan() {
		name, said, _ := strings.Cut(lines.Text(), " ")
		if name == "done" {
			pids = strings.Fields(said)
		} else if called[name] = true; said != "it came with the key [redacted]" && said != "" {
			t.Errorf("%s: %s", name, said)
		}
	}
	if pids == nil {
		t.Fatalf("the agent called for %v and ended", called)
	}
	// What holds the handles is searched as somebody would who has taken the agent over.
	search := exec.Command("go", append([]string{"run", "../../examples/demo/vendor", "search", "canary"}, pids...)...)
	if out, err := search.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	in.Close()
	must(t, agent.Wait())

	run("vouch exec --env-file /opt/research/.env -- env | vouch redact --shapes block >/dev/null")
	shown := run("vouch log show --event proxy")
	report := run("vouch log report")
	for _, k := range tenKeys {
		credential := "research-" + strings.ReplaceAll(strings.ToLower(k.variable), "_", "-")
		if !called[k.variable] || !strings.Contains(shown, credential) || !strings.Contains(report, credential) {
			t.Errorf("%s: called %v; the log says\n%s", k.variable, called[k.variable], shown)
		}
	}
	run("vouch log verify --live --trace")
}
