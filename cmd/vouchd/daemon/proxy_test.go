package daemon_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// send sends a request and returns the response with its content.
func send(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(r)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, string(b)
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	must(t, err)
	return send(t, c, r)
}

func TestProxyMakesTheCallWithTheSecretThatTheAgentNeverSees(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	for name, c := range map[string]*http.Client{"HTTP/1.1": h.Client(), "HTTP/2": h.HTTP2()} {
		resp, body := get(t, c, "http://localhost/api/v1/models?limit=2")
		if resp.StatusCode != http.StatusOK || body != "ok" {
			t.Fatalf("%s: %s %s", name, resp.Status, body)
		}
		got := h.Upstream.Got()
		if len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+proxytest.Secret || got[0].RequestURI != "/v1/models?limit=2" {
			t.Fatalf("%s: the upstream got %+v", name, got)
		}
	}
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		io.WriteString(w, "you sent "+r.Header.Get("Authorization"))
	})
	resp, body := get(t, h.Client(), "http://localhost/api/echo")
	if strings.Contains(body+resp.Header.Get("X-Echo"), proxytest.Secret) || body != "you sent Bearer [redacted]" {
		t.Errorf("the echo comes back as %q and %q", body, resp.Header.Get("X-Echo"))
	}
}

func TestConnectionIsKeptBetweenRequests(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	dials := 0
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials++
		return h.Dial(ctx)
	}}}
	defer c.CloseIdleConnections()
	for range 5 {
		get(t, c, "http://localhost/api/x")
	}
	if dials != 1 {
		t.Errorf("5 requests took %d connections", dials)
	}
}

// TestOneRecordStandsForTheCallsOfAWindow, and says how many there were.
func TestOneRecordStandsForTheCallsOfAWindow(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "record: window")
	h.Start()
	c := h.Client()
	const calls = 150 // more than one window has
	for range calls {
		if resp, body := get(t, c, "http://localhost/api/x"); body != "ok" {
			t.Fatalf("%s %s", resp.Status, body)
		}
	}
	begun := h.Records("proxy.call", audit.Success)
	if n := len(begun); n < 2 || n > calls/2 {
		t.Errorf("%d calls have %d records", calls, n)
	}
	daemontest.Eventually(t, "what came of all of them is recorded", func() bool {
		n := uint64(0)
		for _, r := range daemontest.RecordsYet(h.Host, "proxy.outcome", audit.Success) {
			n += r.Call.Count
			if !slices.ContainsFunc(begun, func(b audit.Leaf) bool { return b.RequestID == r.RequestID }) {
				t.Fatalf("an outcome is of request %s, which has no record", r.RequestID)
			}
		}
		return n == calls
	})
}

// TestReportTellsOfCalls: how many, by which rules, and how they went.
func TestReportTellsOfCalls(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, `rules: [{name: models, effect: allow, methods: [GET], paths: ["/models/**"]}, {name: echo, effect: allow, methods: [GET], paths: [/echo]}]`)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" {
			io.WriteString(w, r.Header.Get("Authorization"))
		}
	})
	h.Start()
	for _, path := range []string{"/models", "/models/a", "/echo", "/files"} {
		get(t, h.Client(), "http://localhost/api"+path)
	}
	// One more was refused when it was asked whether the proxy is ready.
	want := "called 3 times (1 by rule echo, 2 by rule models), 0 bytes sent and 35 received, 2 refused, 1 with the credential in the response, which was taken out"
	daemontest.Eventually(t, "the report has the calls", func() bool { return strings.Contains(h.OK("log", "report"), "called 3") })
	if out := h.OK("log", "report"); !strings.Contains(out, want) {
		t.Errorf("the report says\n%s", out)
	}
}
