package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

// load reads a proxy block, given without its indentation.
func load(t *testing.T, block string) (*Policy, error) {
	t.Helper()
	var doc struct {
		Proxy config.Section `yaml:"proxy"`
	}
	text := "proxy:\n  " + strings.ReplaceAll(strings.TrimSpace(block), "\n", "\n  ") + "\n"
	if err := config.Decode("a.yaml", []byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	return Load(doc.Proxy)
}

const plain = `upstream: https://api.example.com/base
hosts: [api.example.com]
slot: {header: authorization, form: "Bearer {{value}}"}
`

func mustLoad(t *testing.T, block string) *Policy {
	t.Helper()
	p, err := load(t, block)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask is a request as a client writes it: METHOD[:MEDIA-TYPE] TARGET [JSON].
func ask(t *testing.T, p *Policy, line string) *Request {
	t.Helper()
	parts := strings.SplitN(line, " ", 3)
	target, err := ParseTarget(parts[1], p.Slashes)
	if err != nil {
		t.Fatal(err)
	}
	method, media, _ := strings.Cut(parts[0], ":")
	q := &Request{Method: method, Target: target, Type: media}
	if len(parts) == 3 {
		q.Type, q.Size = "application/json", int64(len(parts[2]))
		q.JSON, _ = ReadJSON([]byte(parts[2]), p.Pointers(q.Method, target))
	}
	return q
}

func TestFirstRuleThatMatchesCountsAndNoneRefuses(t *testing.T) {
	t.Parallel()
	p := mustLoad(t, plain+`rules:
  - {name: no-keys, effect: deny, methods: [GET, POST], paths: [/v1/keys/**]}
  - {name: chat, effect: allow, methods: [POST], paths: [/v1/chat], content_types: [application/json], json: [{at: /model, one_of: [small, medium]}, {at: /max, max: 100}, {at: /tools, absent: true}]}
  - {name: search, effect: allow, methods: [GET], paths: [/v1/search], query: [{at: q, matches: "[a-z ]+"}, {at: admin, absent: true}]}
  - {name: read, effect: allow, methods: [GET], paths: ["/v1/models/**", "/v1/users/*/name"]}
`)
	for line, want := range map[string]Verdict{
		"GET /v1/models":                                          {Allow, "read"},
		"GET /v1/models/":                                         {Allow, "read"},
		"GET /v1/models/a/b":                                      {Allow, "read"},
		"GET /v1/modelsX":                                         {Deny, ""},
		"POST /v1/models":                                         {Deny, ""},
		"HEAD /v1/models":                                         {Deny, ""},
		"GET /v1/users/7/name":                                    {Allow, "read"},
		"GET /v1/users/7/8/name":                                  {Deny, ""},
		"GET /v1/keys":                                            {Deny, "no-keys"},
		"GET /v1/keys/1":                                          {Deny, "no-keys"},
		"GET /v1/search?q=tides":                                  {Allow, "search"},
		"GET /v1/search?q=tides&q=x":                              {Deny, ""},
		"GET /v1/search?q=TIDES":                                  {Deny, ""},
		"GET /v1/search?q=tides&admin=1":                          {Deny, ""},
		"GET /v1/search":                                          {Deny, ""},
		`POST /v1/chat {"model":"small"}`:                         {Deny, ""},
		`POST /v1/chat {"model":"small","max":100}`:               {Allow, "chat"},
		`POST /v1/chat {"model":"small","max":101}`:               {Deny, ""},
		`POST /v1/chat {"model":"small","max":"5"}`:               {Deny, ""},
		`POST /v1/chat {"model":"large","max":5}`:                 {Deny, ""},
		`POST /v1/chat {"model":["small"],"max":5}`:               {Deny, ""},
		`POST /v1/chat {"model":"small","max":5,"tools":null}`:    {Deny, ""},
		`POST /v1/chat {"model":"large","model":"small","max":5}`: {Deny, ""},
		`POST /v1/chat {"Model":"large","model":"small","max":5}`: {Deny, ""},
		`POST /v1/chat {"model":"small","max":5}{}`:               {Deny, ""},
	} {
		if got := p.Judge(ask(t, p, line)); got != want {
			t.Errorf("%s: %+v, want %+v", line, got, want)
		}
	}
}

func TestContentThatCannotBeReadIsDeniedByARuleThatLooksAtIt(t *testing.T) {
	t.Parallel()
	p := mustLoad(t, plain+`rules:
  - {name: not-large, effect: deny, methods: [POST], paths: [/chat], json: [{at: /model, one_of: [large]}]}
  - {name: all, effect: allow, methods: [POST], paths: ["/**"]}
`)
	for line, want := range map[string]Verdict{
		`POST /chat {"model":"small"}`:                                      {Allow, "all"},
		`POST /chat {"model":"large"}`:                                      {Deny, "not-large"},
		`POST /chat {"model":"small","model":"large"}`:                      {Deny, "not-large"},
		`POST /chat {"MODEL":"large"}`:                                      {Deny, "not-large"},
		`POST /chat not JSON`:                                               {Deny, "not-large"},
		"POST /chat \ufeff{}":                                               {Deny, "not-large"},
		"POST /chat \xff\xfe{":                                              {Deny, "not-large"},
		`POST /chat ` + strings.Repeat("[", 100) + strings.Repeat("]", 100): {Deny, "not-large"},
		`POST /other not JSON`:                                              {Allow, "all"},
	} {
		if got := p.Judge(ask(t, p, line)); got != want {
			t.Errorf("%.60s: %+v, want %+v", line, got, want)
		}
	}
}

func TestRuleIsNamedByItsPatternAndNotByWhatWasAsked(t *testing.T) {
	t.Parallel()
	p := mustLoad(t, plain+`rules: [{name: read, effect: allow, methods: [GET], paths: ["/users/*/mail"]}]`)
	q := ask(t, p, "GET /users/someone@example.org/mail")
	if got := p.PathOf("read", q.Target); got != "/users/*/mail" {
		t.Errorf("the path is %q", got)
	}
}

func TestBlocksThatCannotBeMeantAreRefusedWithTheirLine(t *testing.T) {
	t.Parallel()
	rule := "rules: [{name: a, effect: allow, methods: [GET], paths: [/a]}]\n"
	for block, want := range map[string]string{
		plain: "rules is empty",
		plain + "rules: [{name: a, effect: ask, methods: [GET], paths: [/a]}]":                                                          `effect "ask"`,
		plain + "rules: [{name: a, effect: allow, methods: [GET]}]":                                                                     "methods or paths is missing",
		plain + "rules: [{name: a, effect: allow, methods: [get], paths: [/a]}]":                                                        `method "get"`,
		plain + "rules: [{name: a, effect: allow, methods: [TRACE], paths: [/a]}]":                                                      `method "TRACE"`,
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [a]}]":                                                         "begin with a slash",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a*b*]}]":                                                     "twice in a segment",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/**/b]}]":                                                     "before its end",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a/../b]}]":                                                   "no request has",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a%2f]}]":                                                     "an escape",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a], json: [{at: model}]}]":                                   "needs one of",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a], json: [{at: m, one_of: [x]}]}]":                          "does not begin with a slash",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a], query: [{at: q, matches: \"(\"}]}]":                      "missing closing",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/**]}, {name: b, effect: deny, methods: [GET], paths: [/x]}]": "rule b is never reached",
		plain + "rules: [{name: a, effect: allow, methods: [GET], paths: [/a]}, {name: a, effect: deny, methods: [PUT], paths: [/x]}]":  "there twice",
		rule: "upstream is missing",
		strings.Replace(plain, "https", "http", 1) + rule:                          "would pass in clear",
		strings.Replace(plain, "api.example.com/base", "u:p@x.example", 1) + rule:  "is not like",
		strings.Replace(plain, "/base", "/base/", 1) + rule:                        "ends with a slash",
		strings.Replace(plain, "/base", "/../x", 1) + rule:                         "dot segment",
		strings.Replace(plain, "[api.example.com]", "[API.example.com]", 1) + rule: "lower case",
		strings.Replace(plain, "header: authorization, ", "", 1) + rule:            "slot needs one of",
		strings.Replace(plain, "{{value}}", "x", 1) + rule:                         "without {{value}}",
		plain + rule + "allow_addresses: [10.0.0.1/8]":                             "is not a network",
		plain + rule + "variant: x":                                                "variant is of a preset",
		"preset: nothing-2026-11":                                                  "is not known; there are",
		"preset: openai-2026-11\nvariant: x":                                       "has no variant",
		plain + rule + "ca_file: relative.pem":                                     "is not an absolute path",
		plain + rule + "cookies: maybe":                                            "cookies",
	} {
		if _, err := load(t, block); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "a.yaml:") {
			t.Errorf("%s: %v, want %q", block, err, want)
		}
	}
}

func TestPolicyReachesTheOtherProcessWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, certificate(t), 0o600); err != nil {
		t.Fatal(err)
	}
	p := mustLoad(t, plain+fmt.Sprintf(`rules: [{name: a, effect: allow, methods: [POST], paths: [/a], json: [{at: /m, matches: "x.*"}, {at: /n, max: 7}]}]
ca_file: %s
allow_addresses: [10.0.0.0/8]
timeouts: {idle: 3s}
`, ca))
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q Policy
	if err := json.Unmarshal(b, &q); err != nil {
		t.Fatal(err)
	}
	if err := q.Compile(); err != nil {
		t.Fatal(err)
	}
	if !p.Same(&q) || q.Roots() == nil || q.Base().Host != "api.example.com" {
		t.Errorf("it arrives as %+v", q)
	}
	if got := q.Judge(ask(t, &q, `POST /a {"m":"xyz","n":7}`)); got.Effect != Allow {
		t.Errorf("its rules say %+v", got)
	}
	q.Rules[0].Name = "b"
	if p.Same(&q) {
		t.Error("another policy is taken for the same")
	}
}

func TestWhatASlotHolds(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"": "", "key": "key", "Bearer key": "key", "bearer  key": "key", "token key": "key",
		"Basic dXNlcjprZXk=": "key", "basic a2V5Og==": "key", "Basic a2V5OngtLW9hdXRoLWJhc2lj": "x--oauth-basic", "Basic a2V5OngtLW9hdXRo": "x--oauth",
		"Basic ???": "???", "AWS4-HMAC-SHA256 Credential=key/20261127/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0": "key",
		"AWS4-HMAC-SHA256 SignedHeaders=host, Credential=key/x": "SignedHeaders=host, Credential=key/x", "AWS4-HMAC-SHA256 Credential=key": "Credential=key",
	} {
		got := strings.Join(Held(value), " ")
		if got != want {
			t.Errorf("%q holds %q, want %q", value, got, want)
		}
	}
}

func TestSlotIsFilledOnlyWithWhatARequestCanCarry(t *testing.T) {
	t.Parallel()
	bearer := Slot{Header: "Authorization", Form: "Bearer {{value}}"}
	basic := Slot{Basic: "{{username}}"}
	for _, tt := range []struct {
		slot   Slot
		fields map[string]string
		want   string
	}{
		{bearer, map[string]string{"value": "key"}, "Bearer key"},
		{bearer, map[string]string{"other": "key"}, ""},
		{bearer, map[string]string{"value": "key\r\nX: y"}, ""},
		{bearer, map[string]string{"value": "key\x00"}, ""},
		{basic, map[string]string{"username": "me", "value": "key"}, "Basic bWU6a2V5"},
		{basic, map[string]string{"username": "a:b", "value": "key"}, ""},
		{Slot{Query: "key"}, map[string]string{"value": "a&b"}, "a&b"},
	} {
		got, err := tt.slot.Render(tt.fields)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%+v with %v: %q (%v), want %q", tt.slot, tt.fields, got, err, tt.want)
		}
	}
}

// TestValueThatWasNotLookedForFulfilsNothing: the rules have changed since.
func TestValueThatWasNotLookedForFulfilsNothing(t *testing.T) {
	t.Parallel()
	before := mustLoad(t, `{upstream: https://a.example, slot: {header: Authorization, form: "Bearer {{value}}"}, rules: [{name: a, effect: allow, methods: [POST], paths: [/a], json: [{at: /model, one_of: [small]}]}]}`)
	q := ask(t, before, `POST /a {"model":"small","background":true}`)
	if v := before.Judge(q); v.Effect != Allow {
		t.Fatalf("before: %+v", v)
	}
	for _, rules := range []string{
		`[{name: a, effect: allow, methods: [POST], paths: [/a], json: [{at: /model, one_of: [small]}, {at: /background, absent: true}]}]`,
		`[{name: no, effect: deny, methods: [POST], paths: [/a], json: [{at: /background, one_of: ["true"]}]}, {name: a, effect: allow, methods: [POST], paths: [/a], json: [{at: /model, one_of: [small]}]}]`,
	} {
		now := mustLoad(t, `{upstream: https://a.example, slot: {header: Authorization, form: "Bearer {{value}}"}, rules: `+rules+`}`)
		if v := now.Judge(q); v.Effect == Allow {
			t.Errorf("%s: %+v", rules, v)
		}
	}
}

// FuzzReadJSON: what is accepted, the standard library reads the same way.
func FuzzReadJSON(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"a":{"b":"x"},"c":[1,2]}`, `{"a":1,"a":2}`, `{"A":1}`, `[]`, `"\u0061"`, `{"a":1}x`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ReadJSON(b, []string{"/a", "/a/b"})
		if err != nil {
			if !errors.Is(err, ErrJSON) {
				t.Errorf("%q: %v", b, err)
			}
			return
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		object, _ := v.(map[string]any)
		a, there := object["a"]
		if got := got["/a"]; (got.Kind != Missing) != there {
			t.Errorf("%q: /a is %v, and %v", b, got, a)
		} else if s, is := a.(string); is && (got.Kind != String || got.Text != s) {
			t.Errorf("%q: /a is %+v, and %q", b, got, s)
		}
	})
}

func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
