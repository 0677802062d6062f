package daemon_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// raw sends bytes on a connection of their own, and returns the first response.
func raw(t *testing.T, h *proxytest.Host, text string) (status int, code, body string) {
	t.Helper()
	c, err := h.Dial(t.Context())
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	if _, err := io.WriteString(c, text); err != nil {
		return 0, "", err.Error() // it was cut off
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: strings.SplitN(text, " ", 2)[0]})
	if err != nil {
		return 0, "", err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Vouchd"), string(b)
}

// TestRequestsThatCouldMeanSomethingElse: none reaches the upstream.
func TestRequestsThatCouldMeanSomethingElse(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, `rules: [{name: v1, effect: allow, methods: [GET, POST], paths: ["/v1/**"]}]`, "hosts: [api.example.com]")
	h.Start()
	request := func(line string, headers ...string) string {
		host := "Host: localhost\r\n"
		for _, v := range headers {
			if strings.HasPrefix(v, "Host:") {
				host = ""
			}
		}
		return line + " HTTP/1.1\r\n" + host + strings.Join(append(headers, ""), "\r\n") + "\r\n"
	}
	for text, want := range map[string]string{
		// Targets.
		request("GET /api/v1/../admin"):                             "400 target",
		request("GET /api/v1/%2e%2e/admin"):                         "400 target",
		request("GET /api/v1/..;/admin"):                            "400 target",
		request(`GET /api/v1/..\admin`):                             "400 target",
		request("GET /api/v1%2fadmin"):                              "400 target",
		request("GET /api/v1/%252e%252e/x"):                         "400 target",
		request("GET /api//v1/x"):                                   "400 target",
		request("GET /api/%761/ok"):                                 "400 target",
		request("GET /api/v1/x?a=1;b=2"):                            "400 target",
		request("GET http://localhost/api/v1/x"):                    "403 not_granted",
		request("GET http://evil.example/v1/x"):                     "403 not_granted",
		request("GET /%61pi/v1/x"):                                  "404 unknown_credential",
		request("GET /API/v1/x"):                                    "404 unknown_credential",
		request("GET /v1/x", "Host: api.example.com:8443"):          "404 unknown_credential",
		request("GET /v1/x", "Host: API.example.com"):               "404 unknown_credential",
		request("GET /v1/x", "Host: api.example.com."):              "404 unknown_credential",
		request("GET /v1/x", "Host: user@api.example.com"):          "400 ",
		request("GET /v1/x", "Host: api.example.com", "Host: evil"): "400 ",
		// Methods.
		request("TRACE /api/v1/x"):                                 "405 method_not_allowed",
		request("CONNECT api.example.com:443"):                     "403 not_intercepted",
		request("get /api/v1/x"):                                   "405 method_not_allowed",
		request("GET /api/admin"):                                  "403 request_not_allowed",
		request("PUT /api/v1/x", "Content-Length: 0"):              "403 request_not_allowed",
		request("GET /api/v1/x", "X-HTTP-Method-Override: DELETE"): "400 override",
		request("GET /api/v1/x", "X_HTTP_Method_Override: DELETE"): "400 override",
		request("GET /api/v1/x", "X-Original-URL: /admin"):         "400 override",
		// Credentials of the caller's own.
		request("GET /api/v1/x", "Authorization: Bearer sk-attacker"):                                                       "403 foreign_credential",
		request("GET /api/v1/x", "Authorization: Basic YTpi"):                                                               "403 foreign_credential",
		request("GET /api/v1/x", "X-Api-Key: sk-attacker"):                                                                  "403 foreign_credential",
		request("GET /api/v1/x", "X_Api_Key: sk-attacker"):                                                                  "403 foreign_credential",
		request("GET /api/v1/x", "x-goog-api-key: AIza"):                                                                    "403 foreign_credential",
		request("GET /api/v1/x", "Cookie: session=attacker"):                                                                "403 foreign_credential",
		request("GET /api/v1/x", "Proxy-Authorization: Bearer x"):                                                           "403 foreign_credential",
		request("GET /api/v1/x?key=attacker"):                                                                               "403 foreign_credential",
		request("GET /api/v1/x?Access_Token=attacker"):                                                                      "403 foreign_credential",
		request("GET /api/v1/x", "Authorization: Bearer a", "Authorization: b"):                                             "400 duplicate",
		request("POST /api/v1/x", "Trailer: Authorization", "Transfer-Encoding: chunked") + "0\r\nAuthorization: x\r\n\r\n": "400 trailer",
		// Framing.
		request("POST /api/v1/x", "Content-Length: 4", "Content-Length: 5") + "abcde":   "400 ",
		request("POST /api/v1/x", "Content-Length: +4") + "abcd":                        "400 ",
		request("POST /api/v1/x", "Transfer-Encoding: xchunked") + "0\r\n\r\n":          "501 ",
		request("POST /api/v1/x", "Transfer-Encoding: chunked, identity") + "0\r\n\r\n": "501 ",
		request("GET /api/v1/x", "Authorization : Bearer x"):                            "400 ",
		request("GET /api/v1/x", "A: b\x00c"):                                           "400 ",
		"GET /api/v1/x HTTP/9.9\r\nHost: localhost\r\n\r\n":                             "505 ",
		"GET /api/v1/x HTTP/1.1\r\n\r\n":                                                "400 ",
		request("GET /api/v1/x", "X-Long: "+strings.Repeat("a", 80<<10)):                "431 ",
	} {
		status, code, body := raw(t, h, text)
		if got := fmt.Sprint(status, " ", code); got != want {
			t.Errorf("%.90q: %s %s, want %s", text, got, body, want)
		}
	}
	if got := h.Upstream.Got(); len(got) > 0 {
		t.Errorf("%d of them reached the upstream: %+v", len(got), got[0])
	}
}

// TestOneRequestReachesTheUpstreamHoweverItIsFramed: what is sent on has one length,
// whatever the caller said.
func TestOneRequestReachesTheUpstreamHoweverItIsFramed(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	bodies := make(chan string, 10)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies <- r.Method + " " + r.RequestURI + " " + string(b)
	})
	for text, want := range map[string]string{
		"POST /api/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5;ext=1\r\nhello\r\n0\r\n\r\n": "POST /a hello",
		"POST /api/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 48\r\n\r\nxGET /api/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n":     "POST /b xGET /api/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		if status, code, body := raw(t, h, text); status != http.StatusOK {
			t.Errorf("%.40q: %d %s %s", text, status, code, body)
			continue
		}
		if got := <-bodies; got != want {
			t.Errorf("%.40q arrives as %q, want %q", text, got, want)
		}
	}
	if n := len(h.Upstream.Got()); n != 2 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

// TestContentIsAskedForOnceTheCallIsAllowed: who expects a 100 gets it then, and not where
// the call is refused.
func TestContentIsAskedForOnceTheCallIsAllowed(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, `rules: [{name: v1, effect: allow, methods: [POST], paths: ["/v1/**"]}]`)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	h.Start()
	for path, want := range map[string]string{"/api/v1/x": "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", "/api/v2/x": "HTTP/1.1 403 Forbidden\r\n"} {
		c, err := h.Dial(t.Context())
		must(t, err)
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", path)
		got := make([]byte, len(want))
		_, err = io.ReadFull(c, got[:len("HTTP/1.1 xxx")])
		must(t, err)
		if strings.HasPrefix(want, "HTTP/1.1 100") {
			io.WriteString(c, "tides")
		}
		_, err = io.ReadFull(c, got[len("HTTP/1.1 xxx"):])
		must(t, err)
		if string(got) != want {
			t.Errorf("%s is answered %q, want %q", path, got, want)
		}
	}
}

// TestCredentialIsPutInLast: nothing of the caller's takes it out, or goes with it.
func TestCredentialIsPutInLast(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	r, err := http.NewRequest(http.MethodGet, "http://localhost/api/x", nil)
	must(t, err)
	for name, value := range map[string]string{
		"Connection": "authorization, x-hop, keep-alive", "X-Hop": "1", "Keep-Alive": "timeout=5", "Via": "1.1 me", "Referer": "http://inside/",
		"X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1", "X-Real-Ip": "10.0.0.1", "Range": "bytes=0-3", "If-Range": `"x"`, "Accept-Encoding": "gzip, br",
		"X-Kept": "yes", "User-Agent": "agent/1",
	} {
		r.Header.Set(name, value)
	}
	resp, body := send(t, h.Client(), r)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", resp.Status, body)
	}
	got := h.Upstream.Got()[0].Header
	if want := "Bearer " + proxytest.Secret; got.Get("Authorization") != want {
		t.Errorf("the upstream got Authorization %q, want %q", got.Get("Authorization"), want)
	}
	for _, name := range []string{"X-Hop", "Via", "Referer", "X-Forwarded-For", "Forwarded", "X-Real-Ip", "Range", "If-Range", "Keep-Alive"} {
		if v := got.Get(name); v != "" {
			t.Errorf("the upstream got %s: %s", name, v)
		}
	}
	if got.Get("Accept-Encoding") != "identity" || got.Get("X-Kept") != "yes" || got.Get("User-Agent") != "agent/1" {
		t.Errorf("the upstream got %v", got)
	}
}

// TestSecretDoesNotComeBack: in whatever way an upstream echoes it.
func TestSecretDoesNotComeBack(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	secret := proxytest.Secret
	var escaped strings.Builder
	for _, c := range []byte(secret) {
		fmt.Fprintf(&escaped, `\u%04x`, c)
	}
	split := func(text string, every int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for len(text) > 0 {
				n := min(every, len(text))
				io.WriteString(w, text[:n])
				http.NewResponseController(w).Flush()
				text = text[n:]
			}
		}
	}
	zipped := func(encoding, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", encoding)
			z := gzip.NewWriter(w)
			io.WriteString(z, text)
			z.Close()
		}
	}
	says := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }
	}
	for name, handler := range map[string]http.HandlerFunc{
		"plain": says("key: " + secret + "."),
		"an error page": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "bad key "+secret, http.StatusUnauthorized)
		},
		"percent":           says("key=" + url.QueryEscape(secret) + "&x"),
		"hex":               says(hex.EncodeToString([]byte(secret))),
		"HEX":               says(strings.ToUpper(hex.EncodeToString([]byte(secret)))),
		"base64":            says(base64.StdEncoding.EncodeToString([]byte(secret))),
		"base64, shifted 1": says(base64.StdEncoding.EncodeToString([]byte("x" + secret + "yy"))),
		"base64, shifted 2": says(base64.RawStdEncoding.EncodeToString([]byte("xx" + secret + "yy"))),
		"base64url":         says(base64.RawURLEncoding.EncodeToString([]byte("user:" + secret))),
		"JSON escapes":      says(`{"key":"` + escaped.String() + `"}`),
		"JSON, slash":       says(`{"key":"` + strings.ReplaceAll(secret, "/", `\/`) + `"}`),
		"byte by byte":      split("data: "+secret+"\n\n", 1),
		"over events":       split(strings.Repeat("x", 100)+secret+strings.Repeat("y", 100), 7),
		"long":              says(strings.Repeat("a", 100<<10) + secret + strings.Repeat("b", 100<<10)),
		"gzip":              zipped("gzip", "key: "+secret),
		"in a header": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Echo", "a"+secret+"b")
			w.WriteHeader(204)
		},
		"in a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/x?key="+url.QueryEscape(secret), http.StatusFound)
		},
		"in a cookie": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Set-Cookie", "k="+secret) },
		"in a trailer": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-End")
			io.WriteString(w, strings.Repeat("x", 70<<10))
			w.Header().Set("X-End", secret)
		},
		"in an early response": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "<"+secret+">")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			io.WriteString(w, "ok")
		},
	} {
		h.Upstream.Handle(handler)
		for _, path := range []string{"HTTP/1.1", "HTTP/2"} {
			c := h.Client()
			if path == "HTTP/2" {
				c = h.HTTP2()
			}
			var wire bytes.Buffer
			resp, body := get(t, c, "http://localhost/api/echo")
			for k, v := range resp.Header {
				fmt.Fprintln(&wire, k, v)
			}
			fmt.Fprintln(&wire, body, resp.Trailer)
			for _, form := range []string{
				secret, url.QueryEscape(secret), hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))), escaped.String(),
				strings.ReplaceAll(secret, "/", `\/`), base64.RawStdEncoding.EncodeToString([]byte(secret))[:30],
				base64.RawStdEncoding.EncodeToString([]byte("x" + secret))[4:30], base64.RawStdEncoding.EncodeToString([]byte("xx" + secret))[4:30],
				base64.RawURLEncoding.EncodeToString([]byte("user:" + secret))[8:30],
			} {
				if strings.Contains(wire.String(), form) {
					t.Errorf("%s over %s: it comes back as %.60q in %.200q", name, path, form, wire.String())
				}
			}
			if name == "in a cookie" && resp.Header.Get("Set-Cookie") != "" {
				t.Errorf("a cookie is set: %v", resp.Header)
			}
		}
	}
}

func TestResponsesThatCannotBeSearchedAreWithheld(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	for encoding, want := range map[string]string{"br": "encoded as", "zstd": "encoded as", "gzip, gzip": "encoded as", "gzip": "is not"} {
		h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", encoding)
			io.WriteString(w, "what it is not")
		})
		resp, body := get(t, h.Client(), "http://localhost/api/x")
		if resp.StatusCode != http.StatusBadGateway || resp.Header.Get("X-Vouchd") != "upstream_encoding" || !strings.Contains(body, want) {
			t.Errorf("%s: %s %s", encoding, resp.Status, body)
		}
	}
}

// TestConnectionThatGoesOnInAnotherProtocolEndsWhereTheSecretComes: it is searched as it
// is, so that the upstream is not asked for compression of its own.
func TestConnectionThatGoesOnInAnotherProtocolEndsWhereTheSecretComes(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "websocket: true")
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		c, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprintf(both, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		both.Flush()
		for {
			line, err := both.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(both, strings.Replace(line, "the secret", r.Header.Get("Authorization"), 1))
			both.Flush()
		}
	})
	h.Start()
	c, err := h.Dial(t.Context())
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	fmt.Fprint(c, "GET /api/v1 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	must(t, err)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	if got := h.Upstream.Got(); len(got) != 1 || got[0].Header.Get("Sec-WebSocket-Extensions") != "" {
		t.Errorf("the upstream got %v", got)
	}
	fmt.Fprintln(c, "tides")
	if line, err := in.ReadString('\n'); err != nil || line != "tides\n" {
		t.Errorf("%q, %v", line, err)
	}
	fmt.Fprintln(c, "the secret")
	rest, err := io.ReadAll(in)
	if err != nil || bytes.Contains(rest, []byte(proxytest.Secret)) {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestUpstreamIsThePinnedOne: whatever its name leads to, and whatever it says.
func TestUpstreamIsThePinnedOne(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another server was called") }))
	defer other.Close()
	h.Start()
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+"/x", http.StatusTemporaryRedirect)
	})
	if resp, _ := get(t, h.Client(), "http://localhost/api/x"); resp.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("a redirect comes back as %s", resp.Status)
	}

	port := h.Upstream.Listener.Addr().(*net.TCPAddr).Port
	for name, of := range map[string]struct{ definition, want string }{
		"address":     {strings.Replace(h.Definition("other"), "allow_addresses: [127.0.0.1/32]", "", 1), "upstream_address"},
		"name":        {h.Definition("other", fmt.Sprintf("upstream: https://localhost:%d", port)), "upstream_certificate"},
		"certificate": {strings.Replace(h.Definition("other"), "ca_file: "+h.Path("ca.pem"), "", 1), "upstream_certificate"},
		"dead":        {h.Definition("other", "upstream: https://127.0.0.1:1"), "upstream_unreachable"},
	} {
		h.Write("credentials.d/other.yaml", of.definition)
		daemontest.Eventually(t, name+" is refused", func() bool {
			resp, _ := get(t, h.Client(), "http://localhost/other/x")
			return resp.StatusCode == http.StatusBadGateway && resp.Header.Get("X-Vouchd") == of.want
		})
	}
}

// authority returns a certificate authority, and what issues certificates for loopback.
func authority(t *testing.T) (ca string, issue func() *tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	must(t, err)
	serial := int64(1)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), func() *tls.Certificate {
		serial++
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, own.Public(), key)
		must(t, err)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}
	}
}

// TestUpstreamMayRenewItsCertificate, and its authority when the file of that is replaced.
func TestUpstreamMayRenewItsCertificate(t *testing.T) {
	t.Parallel()
	ca, issue := authority(t)
	other, issueOther := authority(t)
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(issue())
	u := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	u.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*shown.Load()}}, nil
	}}
	u.Config.ErrorLog = log.New(io.Discard, "", 0)
	u.StartTLS()
	defer u.Close()
	h := proxytest.New(t, "upstream: "+u.URL)
	h.Write("ca.pem", ca)
	h.Start()
	renew := func(c *tls.Certificate) {
		shown.Store(c)
		u.CloseClientConnections()
	}
	call := func() string {
		resp, body := get(t, h.Client(), "http://localhost/api/x")
		return strings.TrimSpace(body + resp.Header.Get("X-Vouchd"))
	}
	if got := call(); got != "ok" {
		t.Errorf("at first: %s", got)
	}
	renew(issue())
	daemontest.Eventually(t, "calls are made with the next certificate", func() bool { return call() == "ok" })
	renew(issueOther())
	daemontest.Eventually(t, "another authority's certificate is refused", func() bool { return strings.HasSuffix(call(), "upstream_certificate") })
	h.Write("ca.pem", other)
	h.Define("upstream: " + u.URL) // the same, to be looked at
	daemontest.Eventually(t, "calls are made by the other authority", func() bool { return call() == "ok" })
}

// TestUpstreamThatKeepsToNothing: what is late, or not as long as it says, is told as such.
func TestUpstreamThatKeepsToNothing(t *testing.T) {
	t.Parallel()
	var handle atomic.Pointer[http.HandlerFunc]
	u := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*handle.Load())(w, r) })) // of HTTP/1.1
	defer u.Close()
	h := proxytest.New(t, "upstream: "+u.URL, "timeouts: {header: 1s}")
	h.Start()
	says := func(head, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n%s", head, body)
		}
	}
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string // and then the content
	}{
		"no header in time":       {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "502 upstream_unreachable"},
		"more than it says":       {says("Content-Length: 5", "tides and more"), "200  tides"},
		"less than it says":       {says("Content-Length: 50", "tides"), "502 upstream_unreachable"},
		"two lengths":             {says("Content-Length: 5\r\nContent-Length: 6", "tides!"), "502 upstream_unreachable"},
		"chunks that have no end": {says("Transfer-Encoding: chunked", "5\r\ntides\r\n"), "200 "},
	} {
		handle.Store(&tt.handler)
		resp, err := h.Client().Get("http://localhost/api/x")
		must(t, err)
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("X-Vouchd"), " ", string(b)); !strings.HasPrefix(got, tt.want) || (err != nil) != (name == "chunks that have no end") {
			t.Errorf("%s: %s (%v), want %s", name, got, err, tt.want)
		}
	}
}

func TestRefusalTellsTheAgentWhyAndWhatToAskFor(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, `rules: [{name: no-keys, effect: deny, methods: [GET], paths: [/keys]}, {name: models, effect: allow, methods: [GET], paths: [/models]}]`)
	h.Start()
	resp, body := get(t, h.Client(), "http://localhost/api/keys")
	var e struct {
		Error struct{ Code, Message, Rule string }
	}
	must(t, json.Unmarshal([]byte(body), &e))
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Should-Retry") != "false" || e.Error.Rule != "no-keys" ||
		!strings.Contains(e.Error.Message, "rule no-keys of api denies GET /keys; ask this host's administrator (request ") {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	r, err := http.NewRequest(http.MethodGet, "http://localhost/api/other", nil)
	must(t, err)
	r.Header.Set("User-Agent", "git/2.51.0") // which prints plain text alone
	resp, body = send(t, h.Client(), r)
	if resp.StatusCode != http.StatusForbidden || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || !matches(`^vouchd: the rules refuse the request: no rule of api allows GET /other; ask this host's administrator \(request \w+\)\n$`, body) {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	found := h.Records("proxy.call", audit.Denied)
	if found = found[max(0, len(found)-2):]; len(found) != 2 || found[0].Call == nil || found[0].Call.Rule != "no-keys" || found[1].Call.Path != "/other" || found[1].Credential.Name != "api" {
		t.Errorf("the log has %+v", found)
	}
}

// TestUseIsDurableBeforeItReachesTheUpstream: the upstream itself looks at the log.
func TestUseIsDurableBeforeItReachesTheUpstream(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, h.OK("log", "show", "--event", "proxy.call", "--output", "json"))
	})
	_, body := get(t, h.Client(), "http://localhost/api/users/7?name=secret-name")
	body = strings.TrimSpace(body)
	body = body[strings.LastIndex(body, "\n")+1:] // before it is what Ready asked
	leaf, err := audit.DecodeLeaf([]byte(body))
	must(t, err)
	if c := leaf.Call; c == nil || c.Method != "GET" || c.Path != "/**" || c.Rule != "all" || c.Door != "unix" || leaf.SPIFFEID != "spiffe://example.org/agent" || leaf.Workload.PID != os.Getpid() {
		t.Errorf("while the upstream was called, the log had %s", body)
	}
	if strings.Contains(body, "secret-name") || strings.Contains(body, "/users/7") {
		t.Errorf("the record holds what was asked for: %s", body)
	}
	daemontest.Eventually(t, "what came of it is recorded", func() bool {
		out := h.OK("log", "show", "--event", "proxy.outcome", "--output", "json")
		if out == "" {
			return false
		}
		end, err := audit.DecodeLeaf([]byte(strings.TrimSpace(out)))
		must(t, err)
		return end.RequestID == leaf.RequestID && end.Call.Status == 200 && end.Call.Received > 0 && end.Call.WithinTTL && end.Duration > 0
	})
}

func TestCallsEndWhenTheLeaseIsRevoked(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.Start()
	begun := make(chan struct{})
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "data: 1\n\n")
		http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/api/stream", nil)
	must(t, err)
	resp, err := h.Client().Do(r)
	must(t, err)
	defer resp.Body.Close()
	<-begun
	h.OK("lease", "revoke", "--credential", "api")
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream has a proper end, though the lease was revoked")
	}
	again, body := get(t, h.Client(), "http://localhost/api/x")
	if again.StatusCode != http.StatusForbidden || again.Header.Get("X-Vouchd") != "lease_revoked" {
		t.Errorf("the next call: %s %s", again.Status, body)
	}
}
