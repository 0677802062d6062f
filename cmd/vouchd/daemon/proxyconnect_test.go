package daemon_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// through returns a definition whose TLS passes as it is.
func through(h *proxytest.Host, name, host string) string {
	return fmt.Sprintf("credentials:\n  - name: %s\n    broker: none\n    proxy: {passthrough: true, hosts: [%s], upstream: %q, allow_addresses: [127.0.0.1/32]}\n", name, host, h.Upstream.URL)
}

// lastRefusal returns the last record of a call that was refused.
func lastRefusal(t *testing.T, h *proxytest.Host) audit.Record {
	t.Helper()
	found := h.Records("proxy.call", audit.Denied)
	if len(found) == 0 {
		t.Fatal("no refusal is recorded")
	}
	return found[len(found)-1].Record
}

// TestProgramThatKnowsNoBaseURLCallsByTLSThatIsEndedForIt: curl has neither the key nor an
// address of vouch's, in HTTP/2 and in HTTP/1.1.
func TestProgramThatKnowsNoBaseURLCallsByTLSThatIsEndedForIt(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "hosts: [api.example.com]")
	h.Entries(fmt.Sprintf("unix:uid:%d", os.Getuid()), "unix:path:"+daemontest.Program(t, "vouch")) // curl is what it starts
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Header.Get("Authorization"), b)
	})
	h.Start()
	for _, version := range []string{"--http2", "--http1.1"} {
		out := sh(t, h, `$vouch exec --proxy api --intercept -- curl -sS `+version+` -d content -w ' %{http_version} %{certs}' https://api.example.com/v1/models`)
		if !strings.HasPrefix(out, "POST Bearer [redacted] content "+strings.TrimSuffix(strings.TrimPrefix(version, "--http"), ".0")) {
			t.Errorf("%s: %s", version, out)
		}
	}
	got := h.Upstream.Got()
	if len(got) != 2 || got[0].Header.Get("Authorization") != "Bearer "+proxytest.Secret || got[0].RequestURI != "/v1/models" {
		t.Fatalf("the upstream got %+v", got)
	}
	found := h.Records("proxy.call", audit.Success)
	if c := found[len(found)-1].Call; c.Door != "connect" || len(c.Authority) != 64 || !strings.Contains(c.Processes, "/curl (") || !strings.HasSuffix(found[len(found)-1].Workload.Path, "/vouch") {
		t.Errorf("the call is recorded as %+v", c)
	}
	for script, want := range map[string]string{
		"curl -sS http://api.example.com/plain":                                     "GET Bearer [redacted]", // by an absolute URL; the credential goes by TLS
		"curl -sS -H 'Host: evil.example' https://api.example.com/":                 "evil.example over TLS to api.example.com",
		"curl -sS -H 'Authorization: Bearer sk-mine' https://api.example.com/":      "foreign_credential",
		"curl -sS https://api.example.com:8443/":                                    "response 403",
		"curl -sS https://evil.example/":                                            "response 403",
		"curl -sS http://evil.example/":                                             "nothing that this process is granted leads there: http evil.example",
		"curl -sS https://203.0.113.9/":                                             "response 403",
		"curl -sS --http1.1 --path-as-is https://api.example.com/v1/../admin":       "not in canonical form",
		"curl -sS http://me:secret@api.example.com/":                                "foreign_credential",
		"curl -sS -x \"$HTTPS_PROXY\" --proxy-user me:x https://api.example.com/ok": "GET Bearer [redacted]",
	} {
		if out := sh(t, h, `$vouch exec --proxy api --intercept -- sh -c '`+strings.ReplaceAll(script, "'", `"`)+`'`); !strings.Contains(out, want) {
			t.Errorf("%s: %s, want %s", script, out, want)
		}
	}
	for _, r := range h.Upstream.Got() {
		if r.Header.Get("Authorization") != "Bearer "+proxytest.Secret {
			t.Errorf("the upstream got %v", r.Header)
		}
	}
	if out := sh(t, h, `ca=$($vouch exec --proxy api --intercept -- sh -c 'test -s $SSL_CERT_FILE && echo $SSL_CERT_FILE'); echo there $ca; test -e $ca || echo gone`); !strings.HasPrefix(out, "there /") || !strings.HasSuffix(out, "gone\n") {
		t.Error(out)
	}
}

// TestWhatLeadsNowhereIsRefusedAndRecorded, with who tried it and what would allow it.
func TestWhatLeadsNowhereIsRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "hosts: [api.example.com]")
	h.Start()
	out := sh(t, h, `$vouch exec --proxy api --intercept -- curl -sS -p --proxy-header "X: y" https://evil.example/ -o /dev/null -w '%{http_connect}'`)
	if !strings.Contains(out, "403") {
		t.Fatal(out)
	}
	r := lastRefusal(t, h)
	if r.Call.Method != "connect" || r.Call.Path != "evil.example:443" || r.Call.Door != "connect" || r.SPIFFEID != "spiffe://example.org/agent" || !strings.Contains(r.Call.Processes, "/curl (") {
		t.Errorf("recorded: %+v %+v", r, r.Call)
	}
	// What curl does not show, a client that reads the answer does.
	out = sh(t, h, `$vouch exec --proxy api --intercept -- sh -c 'curl -sS -X CONNECT --request-target evil.example:443 $HTTPS_PROXY'`)
	if !strings.Contains(out, "not_granted") || !strings.Contains(out, "broker: none") {
		t.Error(out)
	}
}

// TestTunnelOfADefinitionWithPassthroughPassesAsItIs: nobody has looked into its TLS, whose
// certificate is the upstream's own.
func TestTunnelOfADefinitionWithPassthroughPassesAsItIs(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "hosts: [api.example.com]")
	h.Write("credentials.d/other.yaml", through(h, "other", "example.com")) // of the upstream's certificate
	h.Start()
	const blind = `$vouch exec --proxy api,other --intercept -- curl -sS --cacert `
	if out := sh(t, h, blind+h.Path("ca.pem")+` -H "Authorization: Bearer own" https://example.com/own`); out != "ok" {
		t.Error(out)
	}
	if got := h.Upstream.Got(); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer own" {
		t.Errorf("the upstream got %+v", got)
	}
	found := h.Records("proxy.call", audit.Success)
	if r := found[len(found)-1]; r.Call.Method != "CONNECT" || r.Call.Path != "example.com:443" || r.Credential.Name != "other" {
		t.Errorf("recorded: %+v", r.Call)
	}
	daemontest.Eventually(t, "the outcome is recorded", func() bool {
		out, _, _ := h.Vouch("log", "show", "--event", "proxy.outcome", "--output", "json")
		return strings.Contains(out, `"sent":`) && strings.Contains(out, `"received":`)
	})
	if out := sh(t, h, "$vouch get --list"); !matches(`(?m)^api    calls   api\.example\.com\nother  passes  example\.com$`, out) {
		t.Errorf("what is granted is listed as\n%s", out)
	}
	// The host that CONNECT names is the host that TLS names.
	if out := sh(t, h, blind+h.Path("ca.pem")+` --connect-to evil.example:443:example.com:443 https://evil.example/`); !strings.Contains(out, "curl: (") || len(h.Upstream.Got()) != 0 {
		t.Error(out)
	}
	// Without vouch's end of it, TLS with a credential is refused by name.
	if out := sh(t, h, `$curl -X CONNECT --request-target api.example.com:443 http://localhost/`); !strings.Contains(out, "not_intercepted") || !strings.Contains(out, "--intercept") {
		t.Error(out)
	}
}

// TestProcessThatARelayNamesIsRecordedOnlyIfItDescendsFromIt: anybody may switch a
// connection over, and says of it what it likes.
func TestProcessThatARelayNamesIsRecordedOnlyIfItDescendsFromIt(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	hello := fmt.Sprintf(`{"door":"loopback","processes":[{"pid":1,"start":1},{"pid":%d,"start":12345}]}`, os.Getpid())
	out := sh(t, h, `python3 - <<'END'
import os, socket
s = socket.socket(socket.AF_UNIX); s.connect(os.environ['proxy'])
s.sendall(b'GET / HTTP/1.1\r\nHost: vouchd\r\nConnection: Upgrade\r\nUpgrade: vouchd-relay\r\nVouchd-Relay: `+hello+`\r\n\r\nGET /api/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
data = b''
while True:
    b = s.recv(4096)
    if not b: break
    data += b
print(data.decode())
END`)
	if !strings.Contains(out, "101 Switching") || !strings.HasSuffix(strings.TrimSpace(out), "ok") {
		t.Fatal(out)
	}
	found := h.Records("proxy.call", audit.Success)
	if c := found[len(found)-1].Call; c.Door != "loopback" || c.Processes != "" {
		t.Errorf("recorded: %+v", c)
	}
}

func TestCallsWithoutACredentialAreJudgedAndRecorded(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Write("credentials.d/other.yaml", fmt.Sprintf("credentials:\n  - name: other\n    broker: none\n    proxy: {upstream: %q, ca_file: %s, hosts: [registry.example], rules: [{name: read, effect: allow, methods: [GET], paths: [\"/**\"]}], allow_addresses: [127.0.0.1/32]}\n", h.Upstream.URL, h.Path("ca.pem")))
	h.Start()
	for script, want := range map[string]string{
		"curl -sS https://registry.example/left-pad":                              "ok",
		"curl -sS -d x https://registry.example/left-pad":                         "no rule of other allows POST",
		"curl -sS -H \"Authorization: Bearer mine\" https://registry.example/pad": "foreign_credential",
	} {
		if out := sh(t, h, `$vouch exec --proxy other --intercept -- `+script); !strings.Contains(out, want) {
			t.Errorf("%s: %s", script, out)
		}
	}
	if got := h.Upstream.Got(); len(got) != 1 || got[0].Header.Get("Authorization") != "" {
		t.Errorf("the upstream got %+v", got)
	}
}

// TestTunnelEndsWithItsLease, and with what grants it: nobody could look into it again.
func TestTunnelEndsWithItsLease(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*proxytest.Host){
		"revoked":                 func(h *proxytest.Host) { h.OK("lease", "revoke", "--credential", "other") },
		"its definition is gone":  func(h *proxytest.Host) { h.Write("credentials.d/other.yaml", "credentials: []\n") },
		"its entry is for others": func(h *proxytest.Host) { h.Entries("unix:uid:4242") },
		"its entry grants it less": func(h *proxytest.Host) {
			h.Write("entries.d/a.yaml", strings.Replace(h.Read("entries.d/a.yaml"), "[api, other]", "[api]", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := proxytest.New(t)
			h.Write("credentials.d/other.yaml", through(h, "other", "example.com"))
			begun := make(chan struct{})
			h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).Flush()
				close(begun)
				<-r.Context().Done()
			})
			h.Start()
			out := make(chan string, 1)
			go func() {
				out <- sh(t, h, `$vouch exec --on-revoke ignore --proxy other --intercept -- curl -sS -N --max-time 60 --cacert `+h.Path("ca.pem")+` https://example.com/; echo ended`)
			}()
			<-begun
			end(h)
			if got := <-out; !strings.Contains(got, "curl: (") || strings.Contains(got, "timed out") {
				t.Errorf("curl prints %s", got)
			}
		})
	}
}

// TestWhatPinsACertificateSaysSo: an upstream that wants its client's own, and a client that
// wants its upstream's own. For both there is passthrough.
func TestWhatPinsACertificateSaysSo(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "hosts: [api.example.com]")
	h.Upstream.TLS.ClientAuth = tls.RequireAnyClientCert
	h.Start()
	if out := sh(t, h, `$curl http://localhost/api/x`); !strings.Contains(out, "upstream_certificate") || !strings.Contains(out, "passthrough: true") {
		t.Errorf("the caller of an upstream that wants a certificate is told %s", out)
	}
	if out := sh(t, h, `$vouch exec --proxy api --intercept -- curl -sS --pinnedpubkey sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= https://api.example.com/`); !strings.Contains(out, "does not match pinned public key") {
		t.Errorf("curl prints %s", out)
	}
}
