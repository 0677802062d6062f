//go:build clients

package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// The stock clients of vendors, and what programs call APIs with, through the proxy. They
// come from npm and Debian, so that make test-clients runs this, and make test does not.
// The upstream is a fake of the vendors' endpoints; what it got is what counts.

// vendors answers as the vendors' APIs do, for as much as the clients here ask. Who does
// not bring the secret is told nothing.
func vendors(t *testing.T) http.HandlerFunc {
	stream := func(w http.ResponseWriter, events ...string) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range events {
			io.WriteString(w, e+"\n\n")
			http.NewResponseController(w).Flush()
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+proxytest.Secret && r.Header.Get("X-Api-Key") != proxytest.Secret {
			http.Error(w, `{"error":{"message":"no key"}}`, http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		switch r.Method + " " + r.URL.Path {
		case "POST /v1/chat/completions":
			chunk := func(text string) string {
				return `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"` + text + `"}}]}`
			}
			stream(w, chunk("tides "), chunk("turn"), "data: [DONE]")
		case "POST /v1/messages":
			stream(w,
				"event: message_start\ndata: "+`{"type":"message_start","message":{"id":"1","type":"message","role":"assistant","content":[],"model":"m","stop_reason":null,"usage":{"input_tokens":1,"output_tokens":1}}}`,
				"event: content_block_start\ndata: "+`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
				"event: content_block_delta\ndata: "+`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"tides turn"}}`,
				"event: content_block_stop\ndata: "+`{"type":"content_block_stop","index":0}`,
				"event: message_delta\ndata: "+`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}`,
				"event: message_stop\ndata: "+`{"type":"message_stop"}`)
		case "GET /user":
			io.WriteString(w, `{"login":"octo"}`)
		case "POST /graphql":
			io.WriteString(w, `{"data":{"repository":{"pullRequests":{"totalCount":1,"pageInfo":{"hasNextPage":false},"nodes":[{"number":7,"title":"tides","state":"OPEN","headRefName":"b","isDraft":false,"createdAt":"2026-01-01T00:00:00Z"}]}}}}`)
		case "GET /echo":
			fmt.Fprintf(w, `{"you sent":%q}`, r.Header.Get("Authorization")+r.Header.Get("X-Api-Key"))
		case "POST /upload":
			fmt.Fprintf(w, `{"bytes":%d}`, len(body))
		case "GET /socket":
			websocket(t, w, r)
		default:
			http.Error(w, `{"error":{"message":"what?"}}`, http.StatusNotFound)
		}
	}
}

// websocket repeats one message (RFC 6455).
func websocket(t *testing.T, w http.ResponseWriter, r *http.Request) {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	w.Header().Set("Upgrade", "websocket")
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Sec-WebSocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
	w.WriteHeader(http.StatusSwitchingProtocols)
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	head := make([]byte, 6) // a short masked frame of text
	if _, err := io.ReadFull(rw, head); err != nil {
		return
	}
	payload := make([]byte, head[1]&0x7f)
	if _, err := io.ReadFull(rw, payload); err != nil {
		return
	}
	for i := range payload {
		payload[i] ^= head[2+i%4]
	}
	c.Write(append([]byte{0x81, byte(len(payload))}, payload...))
	bufio.NewReader(c).ReadByte() // until the client closes
}

const openaiClient = `import OpenAI from 'openai';
const stream = await new OpenAI().chat.completions.create({model: 'gpt-5-mini', messages: [{role: 'user', content: 'x'}], stream: true});
let text = '';
for await (const part of stream) text += part.choices[0]?.delta?.content ?? '';
console.log(text);
try { await new OpenAI().files.list(); } catch (e) { console.log(e.status, e.message); }
`

const anthropicClient = `import Anthropic from '@anthropic-ai/sdk';
let text = '';
for await (const e of new Anthropic().messages.stream({model: 'm', max_tokens: 9, messages: [{role: 'user', content: 'x'}]}))
  if (e.type === 'content_block_delta') text += e.delta.text;
console.log(text);
try { await new Anthropic().messages.batches.list(); } catch (e) { console.log(e.status, e.message); }
`

const socketClients = `import { Client } from 'undici';
import axios from 'axios';
import WebSocket from 'ws';
const socketPath = process.env.VOUCHD_PROXY_SOCKET;
const undici = new Client('http://localhost', {socketPath});
const {body} = await undici.request({path: '/api/echo', method: 'GET'});
console.log('undici', JSON.stringify(await body.json()));
undici.close();
console.log('axios', (await axios.post('/upload', 'x'.repeat(300000), {socketPath, baseURL: 'http://localhost/api', url: '/upload'})).data.bytes);
const ws = new WebSocket('ws+unix:' + socketPath + ':/api/socket');
ws.on('open', () => ws.send('tides'));
ws.on('message', (m) => { console.log('ws', m.toString()); ws.terminate(); });
`

const pythonClient = `import httpx, os, requests
s = os.environ["VOUCHD_PROXY_SOCKET"]
with httpx.Client(transport=httpx.HTTPTransport(uds=s)) as c:
    print("httpx", c.get("http://localhost/api/echo").json())
print("requests", requests.get(os.environ["API_URL"] + "/echo", headers={"X-Api-Key": os.environ["API_KEY"]}).json())
`

func TestProxyClientsWorkUnchangedAndNeverHaveTheKey(t *testing.T) {
	h := proxytest.New(t, "websocket: true", `environment: [{name: API_URL, value: "{{url}}"}, {name: API_KEY, value: "{{handle}}"}]`)
	h.Upstream.Handle(vendors(t))
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [api, openai, anthropic, github]}\n", os.Getuid()))
	for _, name := range []string{"openai", "anthropic", "github"} {
		more := []string{fmt.Sprintf("preset: %s-2026-11", name)}
		if name == "github" {
			more = append(more, "variant: read-only")
		}
		h.Write("credentials.d/"+name+".yaml", h.Definition(name, append(more, "upstream: "+h.Upstream.URL)...))
	}
	h.Start()
	dir := h.Path("node")
	must(t, os.Mkdir(dir, 0o700))
	h.Write("node/package.json", `{"type":"module","dependencies":{"openai":"^6","@anthropic-ai/sdk":"^0.70","undici":"^7","axios":"^1","ws":"^8"}}`)
	for name, text := range map[string]string{"openai.mjs": openaiClient, "anthropic.mjs": anthropicClient, "socket.mjs": socketClients, "client.py": pythonClient} {
		h.Write("node/"+name, text)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"), "HOME="+dir, "GH_PROMPT_DISABLED=1", "NO_COLOR=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("npm", "install", "--no-fund", "--no-audit", "--silent")
	vouch := daemontest.Program(t, "vouch")
	for name, want := range map[string][]string{
		"openai":    {"tides turn\n", "403", "no rule of openai allows GET /v1/files"},
		"anthropic": {"tides turn\n", "403", "no rule of anthropic allows GET /v1/messages/batches"},
	} {
		out := run(vouch, "exec", "--proxy", name, "--", "node", name+".mjs")
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s prints %s, want %q", name, out, w)
			}
		}
	}
	out := run(vouch, "exec", "--proxy", "api", "--", "node", "socket.mjs")
	for _, want := range []string{`undici {"you sent":"Bearer [redacted]"}`, "axios 300000", "ws tides"} {
		if !strings.Contains(out, want) {
			t.Errorf("it prints %s, want %q", out, want)
		}
	}
	out = run(vouch, "exec", "--proxy", "api", "--", "/usr/bin/python3", "client.py")
	for _, want := range []string{"httpx {'you sent': 'Bearer [redacted]'}", "requests {'you sent': 'Bearer [redacted]'}"} {
		if !strings.Contains(out, want) {
			t.Errorf("it prints %s, want %q", out, want)
		}
	}
	must(t, os.MkdirAll(filepath.Join(dir, ".config/gh"), 0o700))
	h.Write("node/.config/gh/config.yml", "http_unix_socket: "+h.Path("proxy.sock")+"\n")
	h.Write("node/.config/gh/hosts.yml", "github.com:\n  oauth_token: none\n  user: octo\n")
	if out := run(vouch, "exec", "--credential", "github=GH_TOKEN", "--", "gh", "api", "user"); !strings.Contains(out, `"octo"`) {
		t.Errorf("gh api user prints %s", out)
	}
	if out := run(vouch, "exec", "--credential", "github=GH_TOKEN", "--", "gh", "pr", "list", "--repo", "a/b", "--json", "number,title"); !strings.Contains(out, `"tides"`) {
		t.Errorf("gh pr list prints %s", out)
	}
	for _, r := range h.Upstream.Got() {
		if b, err := json.Marshal(r.Header); err != nil || strings.Contains(string(b), "vouch") {
			t.Errorf("the upstream got a handle: %s (%v)", b, err)
		}
	}
}

// TestProxyClientsOfGoStream: the vendors' SDKs for Go, through a loopback port.
func TestProxyClientsOfGoStream(t *testing.T) {
	h := newCaller(t)
	h.Upstream.Handle(vendors(t))
	of := make(map[string][]string)
	for _, name := range []string{"openai", "anthropic"} {
		of[name] = []string{"preset: " + name + "-2026-11", "upstream: " + h.Upstream.URL}
	}
	h.start(of)
	for name, refused := range map[string]string{"openai": "/v1/files", "anthropic": "/v1/messages/batches"} {
		t.Run(name, func(t *testing.T) {
			h.says(t, h.run(t, h.by(name, h.built(name))...), "tides turn\n", "no rule of "+name+" allows GET "+refused)
		})
	}
}

const slackClient = `import { WebClient } from '@slack/web-api';
const c = new WebClient(process.env.SLACK_BOT_TOKEN, {slackApiUrl: process.env.SLACK_API_URL, retryConfig: {retries: 0}});
console.log('posted', (await c.chat.postMessage({channel: 'C1', text: 'tides'})).ok);
try { await c.conversations.list(); } catch (e) { console.log('refused', e.code, e.statusCode, e.body?.message); }
`

// TestProxyClientsSlack: its SDK sends forms, so that it takes rules that let them pass, and
// has the token in a header.
func TestProxyClientsSlack(t *testing.T) {
	h := newCaller(t)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		form, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"ok":%t}`, r.URL.Path == "/api/chat.postMessage" && r.Header.Get("Authorization") == "Bearer "+proxytest.Secret && !strings.Contains(string(form), "token"))
	})
	h.start(map[string][]string{"slack": {"preset: slack-2026-11", "upstream: " + h.Upstream.URL, "rules: [{name: post, effect: allow, methods: [POST], paths: [/api/chat.postMessage]}]"}})
	h.Write("home/package.json", `{"type":"module","dependencies":{"@slack/web-api":"8.2.0"}}`)
	h.Write("home/slack.mjs", slackClient)
	h.run(t, "npm", "install", "--no-fund", "--no-audit", "--silent")
	h.says(t, h.run(t, h.by("slack", "node", "slack.mjs")...), "posted true\n", "refused", "403", "no rule of slack allows POST /api/conversations.list")
}
