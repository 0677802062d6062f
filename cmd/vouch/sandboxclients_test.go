//go:build clients

package main

import (
	"encoding/json"
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
