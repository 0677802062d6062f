// Package proxytest has hosts whose daemon makes calls for this process, and an upstream
// that takes them, for tests of the proxy from end to end.
package proxytest

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// Secret is what the daemon holds, and nobody else is to see but the upstream.
const Secret = "sk-live-canary-7c1f9e42d8/+="

// A Host is a [daemontest.Host] with an upstream.
type Host struct {
	*daemontest.Host
	Upstream *Upstream
}

// All are rules that allow everything.
const All = `[{name: all, effect: allow, methods: [GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE], paths: ["/**"]}]`

// New returns a host with the credential "api", which this user is granted; its
// daemon is not started. More is keys of the proxy block; without a slot and rules it has
// the Bearer one, and [All].
func New(t testing.TB, more ...string) *Host {
	t.Helper()
	h := &Host{daemontest.New(t), NewUpstream(t)}
	h.Configure("proxy_socket: " + h.Path("proxy.sock") + "\n")
	h.Entries(fmt.Sprintf("unix:uid:%d", os.Getuid()))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.Write("ca.pem", h.Upstream.CA)
	h.Define(more...)
	return h
}

// Entries has the user's entry want these selectors.
func (h *Host) Entries(selectors ...string) {
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"%s\"], credentials: [api, other]}\n", strings.Join(selectors, `", "`)))
}

// Define writes the definition of "api".
func (h *Host) Define(more ...string) {
	h.Write("credentials.d/api.yaml", h.Definition("api", more...))
}

// Definition is one of a credential by that name.
func (h *Host) Definition(name string, more ...string) string {
	text := strings.Join(more, "\n")
	if !strings.Contains(text, "slot:") && !strings.Contains(text, "preset:") {
		more = append(more, `slot: {header: Authorization, form: "Bearer {{value}}"}`)
	}
	if !strings.Contains(text, "rules:") && !strings.Contains(text, "preset:") {
		more = append(more, "rules: "+All)
	}
	if !strings.Contains(text, "upstream:") {
		more = append(more, "upstream: "+h.Upstream.URL)
	}
	more = append(more, "ca_file: "+h.Path("ca.pem"), "allow_addresses: [127.0.0.1/32]")
	return fmt.Sprintf("credentials:\n  - name: %s\n    broker: static\n    ttl: 1h\n    static: {secret: api-key}\n    proxy:\n      %s\n",
		name, strings.Join(more, "\n      "))
}

// Start starts the daemon in this process, and seals the secret.
func (h *Host) Start() {
	h.T.Helper()
	h.Host.Start()
	h.Seal()
}

// Seal seals the secret, and waits until calls are made.
func (h *Host) Seal() {
	h.T.Helper()
	_, stderr, code := h.VouchReads([]byte(Secret), "secret", "seal", "api-key")
	if code != 0 {
		h.T.Fatalf("sealing: %s", stderr)
	}
	h.Ready()
}

// Ready waits until the proxy knows the definitions.
func (h *Host) Ready() {
	h.T.Helper()
	c := h.Client()
	said := ""
	ask := func(path string, want int, code string) bool {
		resp, err := c.Get("http://localhost" + path)
		if err != nil {
			said = err.Error()
			return false
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body) // it is to be shown
		said = resp.Status + " " + string(body)
		return resp.StatusCode == want && resp.Header.Get("X-Vouchd") == code
	}
	defer func() {
		if h.T.Failed() {
			h.T.Logf("the proxy said last: %s", said)
		}
	}()
	daemontest.Eventually(h.T, "the proxy serves", func() bool {
		return ask("/nothing/", http.StatusNotFound, "unknown_credential") &&
			ask("/api/..", http.StatusBadRequest, "target") // refused by its target, once it is known
	})
}

// Dial connects to the proxy.
func (h *Host) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", h.Path("proxy.sock"))
}

// Client returns a client whose every request goes to the proxy's socket, over HTTP/1.1.
func (h *Host) Client() *http.Client {
	t := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return h.Dial(ctx) },
		DisableCompression: true,
	}
	h.T.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// HTTP2 returns one that speaks HTTP/2.
func (h *Host) HTTP2() *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return h.Dial(ctx) }, Protocols: p}
	h.T.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// An Upstream is an HTTPS server on loopback, which remembers the requests it got.
type Upstream struct {
	*httptest.Server
	CA string // PEM

	mu      sync.Mutex // guards the fields below
	handler http.HandlerFunc
	forgets bool
	got     []*http.Request
}

// NewUpstream returns one that answers every request with 200 and "ok", over HTTP/1.1 or
// HTTP/2 as the caller likes.
func NewUpstream(t testing.TB) *Upstream {
	u := &Upstream{handler: func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") }}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		h := u.handler
		if !u.forgets {
			u.got = append(u.got, r)
		}
		u.mu.Unlock()
		h(w, r)
	}))
	u.EnableHTTP2 = true
	u.StartTLS()
	u.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.Certificate().Raw}))
	t.Cleanup(u.Close)
	return u
}

// Handle has it answer otherwise.
func (u *Upstream) Handle(h http.HandlerFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handler = h
}

// Forget has it remember no requests.
func (u *Upstream) Forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.forgets = true
}

// Got returns the requests that it got, and forgets them.
func (u *Upstream) Got() []*http.Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	got := u.got
	u.got = nil
	return got
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
