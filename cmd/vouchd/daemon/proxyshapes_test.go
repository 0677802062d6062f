package daemon_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// TestWhatLooksLikeAnotherSecretIsTreatedAsTheDefinitionSays: by default it passes and the
// record says so.
func TestWhatLooksLikeAnotherSecretIsTreatedAsTheDefinitionSays(t *testing.T) {
	t.Parallel()
	token := "ghp_" + strings.Repeat("a1B2", 9)
	for shapes, want := range map[string]struct {
		status int
		body   string
		header string
	}{
		"mark":   {200, "it is " + token + ".", token},
		"redact": {200, "it is [redacted: github-token].", "[redacted: github-token]"},
		"block":  {502, "secret_blocked", ""},
		"off":    {200, "it is " + token + ".", token},
	} {
		for _, length := range []string{"short", "streamed"} {
			t.Run(shapes+" "+length, func(t *testing.T) {
				t.Parallel()
				h := proxytest.New(t, "redact: {shapes: "+shapes+"}")
				h.Upstream.Handle(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("X-Token", token)
					if length == "streamed" {
						w.(http.Flusher).Flush()
					}
					io.WriteString(w, "it is "+token[:10])
					io.WriteString(w, token[10:]+".")
				})
				h.Start()
				resp, body := get(t, h.Client(), "http://localhost/api/x")
				if resp.StatusCode != want.status || !strings.Contains(body, want.body) || want.status != 200 && strings.Contains(body, token) || resp.Header.Get("X-Token") != want.header {
					t.Errorf("it is %s, %q, and the header %q", resp.Status, body, resp.Header.Get("X-Token"))
				}
				daemontest.Eventually(t, "the record says what was found", func() bool {
					out, _, _ := h.Vouch("log", "show", "--event", "proxy.outcome", "--output", "json")
					return out != "" && strings.Contains(out, `"shapes":"github-token"`) == (shapes != "off")
				})
			})
		}
	}
}

// TestStreamThatMayNotHaveASecretInItHasNoProperEndWhereOneIs: at its very end, too.
func TestStreamThatMayNotHaveASecretInItHasNoProperEndWhereOneIs(t *testing.T) {
	t.Parallel()
	token := "ghp_" + strings.Repeat("a1B2", 9)
	h := proxytest.New(t, "redact: {shapes: block}")
	h.Upstream.Handle(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		io.WriteString(w, "it is "+token)
	})
	h.Start()
	resp, err := h.Client().Get("http://localhost/api/x")
	must(t, err)
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || strings.Contains(string(b), token) {
		t.Errorf("it ends with %q, %v", b, err)
	}
}
