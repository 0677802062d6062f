//go:build clients

package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// Agents and tools as they are, in a sandbox: they know no base URL of vouch's, have no key,
// and call their vendors by name. What they call is a fake of the vendors' endpoints.

// fakes answers as three vendors of models do, and remembers which hosts were asked.
type fakes struct {
	mu    sync.Mutex // guards the field below
	asked []string
}

func (f *fakes) saw(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, what)
}

func (f *fakes) seen() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.asked, "\n")
}

func events(w http.ResponseWriter, events ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, e := range events {
		if kind, ok := strings.CutPrefix(e, `{"type":"`); ok {
			kind, _, _ = strings.Cut(kind, `"`)
			fmt.Fprintf(w, "event: %s\n", kind)
		}
		fmt.Fprintf(w, "data: %s\n\n", e)
		http.NewResponseController(w).Flush()
	}
}

func (f *fakes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	key := r.Header.Get("Authorization") + r.Header.Get("X-Api-Key") + r.Header.Get("X-Goog-Api-Key")
	f.saw(r.Method + " " + r.URL.Path + " " + fmt.Sprint(strings.TrimPrefix(key, "Bearer ") == proxytest.Secret))
	if !strings.Contains(key, proxytest.Secret) {
		http.Error(w, `{"error":{"message":"no key"}}`, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/v1/messages":
		events(w,
			`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"claude-sonnet-4-5","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}`,
			`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
			`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"the tide turns"}}`,
			`{"type":"content_block_stop","index":0}`,
			`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":3}}`,
			`{"type":"message_stop"}`)
	case r.URL.Path == "/v1/messages/count_tokens":
		io.WriteString(w, `{"input_tokens":1}`)
	case r.URL.Path == "/v1/responses":
		message := `{"type":"message","id":"m1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"the tide turns","annotations":[]}]}`
		events(w,
			`{"type":"response.created","response":{"id":"r1","object":"response","created_at":1,"status":"in_progress","model":"gpt-5","output":[]}}`,
			`{"type":"response.output_item.done","output_index":0,"item":`+message+`}`,
			`{"type":"response.completed","response":{"id":"r1","object":"response","created_at":1,"status":"completed","model":"gpt-5","output":[`+message+`],"usage":{"input_tokens":1,"input_tokens_details":{"cached_tokens":0},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":4}}}`)
	case strings.HasSuffix(r.URL.Path, ":streamGenerateContent"):
		events(w, `{"candidates":[{"content":{"role":"model","parts":[{"text":"the tide turns"}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":3,"totalTokenCount":4},"modelVersion":"gemini-2.5-pro"}`)
	case strings.HasSuffix(r.URL.Path, ":generateContent"): // asks itself which model to take, and who speaks next
		io.WriteString(w, `{"candidates":[{"content":{"role":"model","parts":[{"text":"{\"reasoning\":\"x\",\"model_choice\":\"flash\",\"complexity_score\":1,\"complexity_reasoning\":\"x\",\"next_speaker\":\"user\"}"}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":3,"totalTokenCount":4}}`)
	case r.URL.Path == "/v1/models" || r.URL.Path == "/v1beta/models":
		io.WriteString(w, `{"data":[],"models":[]}`)
	default:
		http.Error(w, `{"error":{"message":"what?"}}`, http.StatusNotFound)
	}
}

// vendor is a credential of a preset, whose clients have its handle for a key and no base URL.
func vendor(h *caller, preset, variable string, more ...string) []string {
	return append([]string{
		"preset: " + preset + "-2026-11", "upstream: " + h.Upstream.URL,
		fmt.Sprintf(`environment: [{name: %s, value: "{{handle}}"}]`, variable),
	}, more...)
}

// boxed returns the arguments that run a program in a sandbox.
func boxed(t *testing.T, args ...string) []string {
	t.Helper()
	return append([]string{daemontest.Program(t, "vouch"), "exec", "--sandbox", "--"}, args...)
}

// TestProxyClientsThatAreAgentsRunInASandbox: Claude Code, Codex and Gemini's, as npm has them.
func TestProxyClientsThatAreAgentsRunInASandbox(t *testing.T) {
	h := newCaller(t)
	f := new(fakes)
	h.Upstream.Handle(f.ServeHTTP)
	h.start(map[string][]string{
		"anthropic": vendor(h, "anthropic", "ANTHROPIC_API_KEY"),
		"openai":    vendor(h, "openai", "CODEX_API_KEY"),
		"google":    vendor(h, "google-genai", "GEMINI_API_KEY"),
	})
	h.Write("home/package.json", `{"dependencies":{"@anthropic-ai/claude-code":"^2","@openai/codex":"*","@google/gemini-cli":"*"}}`)
	h.run(t, "npm", "install", "--no-fund", "--no-audit", "--silent")
	must(t, os.MkdirAll(filepath.Join(h.home, "work"), 0o755))
	for name, args := range map[string][]string{
		"claude": {"env", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "node_modules/.bin/claude", "-p", "say what the tide does"},
		"codex":  {"node_modules/.bin/codex", "exec", "--skip-git-repo-check", "say what the tide does"},
		"gemini": {"env", "GEMINI_CLI_TRUST_WORKSPACE=true", "node_modules/.bin/gemini", "-m", "gemini-2.5-pro", "-p", "say what the tide does"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := h.try(boxed(t, append([]string{"timeout", "90"}, args...)...)...)
			if err != nil || !strings.Contains(out, "the tide turns") {
				t.Errorf("%v: %s\nasked:\n%s", err, out, f.seen())
			}
		})
	}
	for _, r := range h.Upstream.Got() {
		if b, err := json.Marshal(r.Header); err != nil || strings.Contains(string(b), "vouch") {
			t.Errorf("a vendor got a handle: %s (%v)", b, err)
		}
	}
}

// hosts answers as registries and APIs do, each under its own name, which what a client
// sends does not reach: a definition has one upstream.
type hosts map[string]func(w http.ResponseWriter, r *http.Request)

func (of hosts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	longest := ""
	for prefix := range of {
		if strings.HasPrefix(r.URL.Path, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	if longest == "" {
		http.NotFound(w, r)
		return
	}
	of[longest](w, r)
}

func text(contentType, body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}
}

// withKey answers who brings the secret.
func withKey(serve func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+proxytest.Secret {
			http.Error(w, `{"message":"no key"}`, http.StatusUnauthorized)
			return
		}
		serve(w, r)
	}
}

// archive returns a tar.gz with one file.
func archive(t *testing.T, name, content string) string {
	t.Helper()
	var b strings.Builder
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
	_, err := io.WriteString(w, content)
	must(t, err)
	must(t, errors.Join(w.Close(), z.Close()))
	return b.String()
}

// wheel returns a package for pip.
func wheel(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	z := zip.NewWriter(&b)
	for _, f := range [][2]string{
		{"tides.py", "turn = 'the tide turns'\n"},
		{"tides-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tides\nVersion: 1.0\n"},
		{"tides-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"tides-1.0.dist-info/RECORD", "tides.py,,\ntides-1.0.dist-info/METADATA,,\ntides-1.0.dist-info/WHEEL,,\ntides-1.0.dist-info/RECORD,,\n"},
	} {
		w, err := z.Create(f[0])
		must(t, err)
		_, err = io.WriteString(w, f[1])
		must(t, err)
	}
	must(t, z.Close())
	return b.String()
}

const pythonClients = `import asyncio, json, ssl, urllib.request
import aiohttp, httpx, requests
url = "https://api.github.com/user"
print("urllib", json.load(urllib.request.urlopen(url))["login"])
print("requests", requests.get(url).json()["login"])
print("httpx", httpx.get(url).json()["login"])
async def ask():
    async with aiohttp.ClientSession(trust_env=True) as s:
        async with s.get(url) as r:
            print("aiohttp", (await r.json())["login"])
    async with aiohttp.ClientSession() as s: # that ignores the variables of a proxy
        async with s.get(url) as r:
            print("aiohttp by its name", (await r.json())["login"])
asyncio.run(ask())
`

const slackBot = `import { WebClient } from '@slack/web-api';
console.log('posted', (await new WebClient(process.env.SLACK_BOT_TOKEN, {retryConfig: {retries: 0}}).chat.postMessage({channel: 'C1', text: 'tides'})).ok);
`

const javaClient = `import java.net.*; import java.net.http.*;
class Call { public static void main(String[] a) throws Exception {
  System.out.println(new String(new URL("https://api.github.com/user").openStream().readAllBytes()));
} }
`

// TestProxyClientsThatAreToolsRunInASandbox: each as it is installed, with nothing set for it
// but what vouch exec sets.
func TestProxyClientsThatAreToolsRunInASandbox(t *testing.T) {
	h := newCaller(t)
	npm, python, crate := archive(t, "package/package.json", `{"name":"left-pad","version":"1.3.0"}`), wheel(t), archive(t, "tides-1.0.0/Cargo.toml", "[package]\nname = \"tides\"\nversion = \"1.0.0\"\n[lib]\npath = \"x.rs\"\n")
	sha := func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }
	h.Upstream.Handle(hosts{
		"/left-pad/-/":  text("application/octet-stream", npm),
		"/left-pad":     text("application/json", `{"name":"left-pad","dist-tags":{"latest":"1.3.0"},"versions":{"1.3.0":{"name":"left-pad","version":"1.3.0","dist":{"tarball":"https://registry.npmjs.org/left-pad/-/left-pad-1.3.0.tgz"}}}}`),
		"/simple/tides": text("text/html", `<a href="/packages/tides-1.0-py3-none-any.whl#sha256=`+sha(python)+`">tides-1.0-py3-none-any.whl</a>`),
		"/packages/":    text("application/octet-stream", python),
		"/config.json":  text("application/json", `{"dl":"https://index.crates.io/crates"}`),
		"/ti/de/tides":  text("text/plain", `{"name":"tides","vers":"1.0.0","deps":[],"features":{},"yanked":false,"cksum":"`+sha(crate)+`"}`+"\n"),
		"/crates/tides": text("application/gzip", crate),
		"/": func(w http.ResponseWriter, r *http.Request) { // what AWS tells of a caller
			if r.Method != http.MethodPost || !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/") {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "text/xml")
			io.WriteString(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/tides</Arn><UserId>U</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
		},
		"/user":                 withKey(text("application/json", `{"login":"octo"}`)),
		"/api/chat.postMessage": withKey(text("application/json", `{"ok":true}`)),
	}.ServeHTTP)
	gitURL, _ := serveGit(t, h, "")
	open := func(name, host string) {
		h.Write("credentials.d/"+name+".yaml", fmt.Sprintf("credentials:\n  - name: %s\n    broker: none\n    proxy: {upstream: %q, ca_file: %s, hosts: [%s], rules: [{name: read, effect: allow, methods: [GET, HEAD], paths: [\"/**\"]}], allow_addresses: [127.0.0.1/32]}\n", name, h.Upstream.URL, h.Path("ca.pem"), host))
	}
	open("npm", "registry.npmjs.org")
	open("pypi", "pypi.org")
	open("crates", "index.crates.io")
	h.start(map[string][]string{
		"github": vendor(h, "github", "GH_TOKEN", "variant: read-only"),
		"slack":  vendor(h, "slack", "SLACK_BOT_TOKEN", "rules: [{name: post, effect: allow, methods: [POST], paths: [/api/chat.postMessage]}]"),
		"aws": {
			"upstream: " + h.Upstream.URL, "hosts: [sts.eu-central-1.amazonaws.com]", "slot: {sigv4: {region: eu-central-1, service: sts, access_key_id: AKIAIOSFODNN7EXAMPLE}}",
			`environment: [{name: AWS_ACCESS_KEY_ID, value: "{{handle}}"}, {name: AWS_SECRET_ACCESS_KEY, value: x}, {name: AWS_DEFAULT_REGION, value: eu-central-1}]`,
		},
		"pusher": {"preset: github-git-2026-11", "variant: push", "upstream: " + gitURL, "environment: [{name: UNUSED, value: x}]"},
	})
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [npm, pypi, crates, github, slack, aws, pusher]}\n", os.Getuid()))
	h.Ready()
	must(t, os.MkdirAll(h.Path("git/repositories/a"), 0o755))
	h.run(t, "git", "init", "-q", "--bare", "-b", "main", h.Path("git/repositories/a/b.git"))
	h.run(t, "git", "-C", h.Path("git/repositories/a/b.git"), "config", "http.receivepack", "true")
	h.Write("home/package.json", `{"type":"module","dependencies":{"@slack/web-api":"8.2.0"}}`)
	h.run(t, "npm", "install", "--no-fund", "--no-audit", "--silent")
	for name, content := range map[string]string{"clients.py": pythonClients, "bot.mjs": slackBot, "Call.java": javaClient} {
		h.Write("home/"+name, content)
	}
	for _, dir := range []string{"crate/src", "npm"} {
		must(t, os.MkdirAll(filepath.Join(h.home, dir), 0o755))
	}
	h.Write("home/npm/package.json", "{}")
	h.Write("home/crate/Cargo.toml", "[package]\nname = \"x\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\ntides = \"1\"\n")
	h.Write("home/crate/src/lib.rs", "")
	for name, tt := range map[string]struct{ script, want string }{
		"git":    {"git clone -q https://github.com/a/b.git && cd b && git commit -q --allow-empty -m one && git push -q origin HEAD:main && git ls-remote -q origin", "refs/heads/main"},
		"npm":    {"cd npm && npm install --no-audit --no-fund left-pad && ls node_modules", "left-pad"},
		"pip":    {"/usr/bin/python3 -m pip install -q --no-cache-dir --disable-pip-version-check --break-system-packages --target site tides && PYTHONPATH=site /usr/bin/python3 -c 'import tides; print(tides.turn)'", "the tide turns"},
		"cargo":  {"cd crate && PATH=/usr/bin:$PATH CARGO_HOME=$PWD/home cargo fetch && ls home/registry/cache/*", "tides-1.0.0.crate"},
		"gh":     {"gh api user", `"octo"`},
		"aws":    {"AWS_STS_REGIONAL_ENDPOINTS=regional aws sts get-caller-identity", "user/tides"},
		"slack":  {"node bot.mjs", "posted true"},
		"java":   {"java Call.java", `"octo"`},
		"python": {"/usr/bin/python3 clients.py", "urllib octo\nrequests octo\nhttpx octo\naiohttp octo\naiohttp by its name octo"},
	} {
		t.Run(name, func(t *testing.T) {
			proxies := "github,npm,pypi,crates,slack,aws"
			if name == "git" {
				proxies = "pusher"
			}
			out, err := h.try(daemontest.Program(t, "vouch"), "exec", "--sandbox", "--proxy", proxies, "--", "timeout", "90", "sh", "-c", tt.script)
			if err != nil || !strings.Contains(out, tt.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
