package door

import (
	"bufio"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// TestATargetIsADefinitionsHostAsItIsWritten: one that another reader could take for it is
// not, and leads nowhere.
func TestATargetIsADefinitionsHostAsItIsWritten(t *testing.T) {
	t.Parallel()
	api, other := &policy.Policy{Upstream: "https://api.example.com", Hosts: []string{"api.example.com"}}, &policy.Policy{Hosts: []string{"cdn.example"}, Passthrough: true}
	api.Rules = []policy.Rule{{Name: "all", Effect: policy.Allow, Methods: []string{"GET"}, Paths: []policy.Pattern{"/**"}}}
	for _, p := range []*policy.Policy{api, other} {
		if err := p.Compile(); err != nil {
			t.Fatal(err)
		}
	}
	known := newRoutes(map[string]*policy.Policy{"api": api, "other": other})
	direct, tunnel := &relay.Hello{Door: relay.Sandbox}, &relay.Hello{Door: relay.Connect, Host: "api.example.com"}
	for _, tt := range []struct {
		target, host string
		says         *relay.Hello
		want         string // the definition and the rest of the target, where it leads or why it does not
	}{
		{"GET /v1", "api.example.com", nil, "api /v1"},
		{"GET /v1", "api.example.com:443", nil, "api /v1"},
		{"GET /api/v1", "localhost", nil, "api /v1"},
		{"GET http://api.example.com/v1?a=b", "x", nil, "api /v1?a=b"},
		{"GET https://api.example.com/v1", "x", nil, "api /v1"},
		{"GET http://api.example.com:80/v1", "x", nil, "api /v1"},
		{"GET http://api.example.com", "x", nil, "api /"},
		{"GET http://api.example.com?a", "x", nil, "api /?a"},
		{"GET http://API.example.com/v1", "x", nil, "http API.example.com"},
		{"GET http://api.example.com./v1", "x", nil, "http api.example.com."},
		{"GET http://api.example.com:8443/v1", "x", nil, "http api.example.com:8443"},
		{"GET /v1", "api.example.com:80:443", nil, "404"},
		{"GET http://me@api.example.com/v1", "x", nil, "400"},
		{"GET http://api.example.com@evil.example/v1", "x", nil, "400"},
		{"GET http://evil.example#@api.example.com/v1", "x", nil, "400"},
		{"GET http://evil.example\\@api.example.com/v1", "x", nil, "400"},
		{"GET http://%61pi.example.com/v1", "x", nil, "400"},
		{"GET ftp://api.example.com/v1", "x", nil, "400"},
		{"GET http:///v1", "x", nil, "400"},
		{"GET *", "x", nil, "400"},
		{"GET http://xn--pi-gmc.example.com/", "x", nil, "http xn--pi-gmc.example.com"},
		{"GET http://0300.0250.0.1/", "x", nil, "http 0300.0250.0.1"},
		{"GET http://[fe80::1%25eth0]/", "x", nil, "http [fe80::1%25eth0]"},
		{"GET http://localhost/api/v1", "x", nil, "http localhost"},
		{"CONNECT cdn.example:443", "x", nil, "other cdn.example:443"},
		{"CONNECT api.example.com:443", "x", nil, "api api.example.com:443"},
		{"CONNECT cdn.example:22", "x", nil, "connect cdn.example:22"},
		{"CONNECT CDN.example:443", "x", nil, "connect CDN.example:443"},
		{"CONNECT cdn.example.:443", "x", nil, "connect cdn.example.:443"},
		{"CONNECT 169.254.169.254:443", "x", nil, "connect 169.254.169.254:443"},
		{"CONNECT [::1]:443", "x", nil, "connect [::1]:443"},
		{"CONNECT cdn.example", "x", nil, "400"},
		{"CONNECT me@cdn.example:443", "x", nil, "connect me@cdn.example:443"},
		{"TRACE /api/v1", "localhost", nil, "405"},
		{"get /api/v1", "localhost", nil, "405"},
		{"GET /v1", "api.example.com", tunnel, "api /v1"},
		{"GET /v1", "evil.example", tunnel, "host evil.example over TLS to api.example.com"},
		{"GET /api/v1", "localhost", tunnel, "host localhost over TLS to api.example.com"},
		{"GET http://evil.example/v1", "api.example.com", tunnel, "host evil.example over TLS to api.example.com"},
		{"CONNECT cdn.example:443", "api.example.com", tunnel, "connect cdn.example:443"},
		{"GET /api/v1", "203.0.113.7", direct, "http 203.0.113.7"},
		{"GET /v1", "api.example.com", direct, "api /v1"},
	} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(tt.target + " HTTP/1.1\r\nHost: " + tt.host + "\r\n\r\n")))
		if err != nil { // Go refuses it already
			if tt.want != "400" {
				t.Errorf("%s: %v", tt.target, err)
			}
			continue
		}
		found, err := find(r, known, tt.says)
		got := ""
		var to nowhere
		var no *refusal
		switch {
		case errors.As(err, &to):
			got = to.Kind + " " + to.Target
		case errors.As(err, &no):
			got = map[int]string{400: "400", 404: "404", 405: "405"}[no.Status]
		case err != nil:
			got = err.Error()
		default:
			got = found.names[0] + " " + found.raw + found.host
		}
		if got != tt.want {
			t.Errorf("%s of host %s (%+v): %s, want %s", tt.target, tt.host, tt.says, got, tt.want)
		}
	}
}

// FuzzTarget: whatever is asked for, what is found is a definition's and its target is a path.
func FuzzTarget(f *testing.F) {
	f.Add("GET", "http://api.example.com/v1?a", "x", "")
	f.Add("CONNECT", "api.example.com:443", "x", "api.example.com")
	f.Add("GET", "/api/v1", "localhost:80", "")
	p := &policy.Policy{Upstream: "https://api.example.com", Hosts: []string{"api.example.com"}}
	p.Rules = []policy.Rule{{Name: "all", Effect: policy.Allow, Methods: []string{"GET"}, Paths: []policy.Pattern{"/**"}}}
	if err := p.Compile(); err != nil {
		f.Fatal(err)
	}
	known := newRoutes(map[string]*policy.Policy{"api": p})
	f.Fuzz(func(t *testing.T, method, uri, host, bound string) {
		says := &relay.Hello{Door: relay.Connect, Host: bound}
		found, err := find(&http.Request{ProtoMajor: 1, Method: method, RequestURI: uri, Host: host}, known, says)
		if err != nil {
			return
		}
		switch {
		case len(found.names) != 1 || found.names[0] != "api" || found.policy != p:
			t.Errorf("%s %q of %q: %+v", method, uri, host, found)
		case method == http.MethodConnect && (bound != "" || found.host != "api.example.com:443"):
			t.Errorf("CONNECT %q leads to %q", uri, found.host)
		case method != http.MethodConnect && !strings.HasPrefix(found.raw, "/"):
			t.Errorf("%s %q of %q has the target %q", method, uri, host, found.raw)
		case bound != "" && bound != "api.example.com":
			t.Errorf("%s %q of %q over a connection for %q", method, uri, host, bound)
		}
	})
}
