package fetched_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/fetched"
)

const canary = credentialtest.Canary

var id = spiffeid.RequireFromString("spiffe://example.org/agent/research")

// stores is each store with its settings, its fake, and how it answers a secret.
var stores = []struct {
	broker, audience, settings string
	open                       credential.Opener
	fake                       func(*vendor, http.ResponseWriter, *http.Request)
	answer                     func(value string) string
}{
	{"aws-secret", "sts.amazonaws.com", `region: eu-central-1, role_arn: "arn:aws:iam::123456789012:role/agent", endpoint: "@URL", sts_endpoint: "@URL"`,
		fetched.OpenAWS, awsVendor, func(v string) string {
			return fmt.Sprintf(`{"ARN":"arn:x","Name":"warehouse","VersionId":"3","SecretString":%s,"VersionStages":["AWSCURRENT"]}`, quote(v))
		}},
	{"azure-secret", "api://AzureADTokenExchange", `tenant_id: tenant, client_id: app, vault_url: "@URL", token_endpoint: "@URL/tenant/oauth2/v2.0/token"`,
		fetched.OpenAzure, azureVendor, func(v string) string {
			return fmt.Sprintf(`{"value":%s,"id":"https://example.vault.azure.net/secrets/warehouse/3","attributes":{"enabled":true}}`, quote(v))
		}},
	{"infisical", "https://infisical.example", `audience: "https://infisical.example", site_url: "@URL", identity_id: identity-1, project_id: project-1, environment: prod, path: /warehouse`,
		fetched.OpenInfisical, infisicalVendor, func(v string) string {
			return fmt.Sprintf(`{"secret":{"version":3,"secretKey":"warehouse","secretValue":%s,"secretValueHidden":false}}`, quote(v))
		}},
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func open(t *testing.T, v *vendor, broker string, open credential.Opener, settings, more string) credential.Broker {
	t.Helper()
	return credentialtest.Broker(t, broker, open, fmt.Sprintf(`
credentials:
  - name: api
    broker: %s
    ttl: 5m
    parameters: [{name: which, pattern: ".+"}]
    %s: {ca_file: %s, secret: "{{which}}", %s%s}
`, broker, broker, v.caFile, strings.ReplaceAll(settings, "@URL", v.URL), more))
}

func issue(t *testing.T, b credential.Broker, d *credentialtest.Workload, which string) (credential.Plan, credential.Issued, error) {
	t.Helper()
	r := credential.Request{LeaseID: "LEASEIDLONGER", Holder: credential.Holder{ID: id, Identity: d}, Params: map[string]string{"which": which}, TTL: 5 * time.Minute}
	p, err := b.Plan(t.Context(), r)
	must(t, err)
	i, err := b.Issue(t.Context(), r, p)
	return p, i, err
}

func TestStoreGivesTheWorkloadOneSecret(t *testing.T) {
	t.Parallel()
	for _, tt := range stores {
		t.Run(tt.broker, func(t *testing.T) {
			t.Parallel()
			d := credentialtest.NewWorkload(t, id)
			v := newVendor(t, d, tt.audience, tt.fake)
			b := open(t, v, tt.broker, tt.open, tt.settings, "")
			v.secrets["warehouse"] = tt.answer(canary + "\n\x00ü")
			p, i, err := issue(t, b, d, "warehouse")
			must(t, err)
			if len(i.Fields) != 1 || i.Fields[0].Name != "value" || i.Fields[0].Public || string(i.Fields[0].Value.Reveal()) != canary+"\n\x00ü" {
				t.Errorf("fields %+v", i.Fields)
			}
			if !slices.Equal(i.Scope, []string{"secret=warehouse", "version=3"}) {
				t.Errorf("scope %q", i.Scope)
			}
			if p.Handle.Name != "research-"+(credential.Request{LeaseID: "LEASEIDLONGER"}).Tag() || !p.NotAfter.IsZero() || !i.NotAfter.IsZero() {
				t.Errorf("handle %s, which claims to end at %v and %v", p.Handle.Name, p.NotAfter, i.NotAfter)
			}
			if tr := b.Traits(); tr.Revocation != credential.Unrevocable || tr.Renews || tr.Upstream != v.URL {
				t.Errorf("traits %+v claim more than the store can do", tr)
			}
			if len(v.live) != 0 {
				t.Error("the token that it was read with lives on")
			}
		})
	}
}

func TestFieldsAreTakenOutOfASecretsJSON(t *testing.T) {
	t.Parallel()
	for _, tt := range stores {
		t.Run(tt.broker, func(t *testing.T) {
			t.Parallel()
			d := credentialtest.NewWorkload(t, id)
			v := newVendor(t, d, tt.audience, tt.fake)
			b := open(t, v, tt.broker, tt.open, tt.settings, ", fields: [username, port]")
			v.secrets["warehouse"] = tt.answer(`{"username":"u","password":"` + canary + `","port":12345678901234567890}`)
			_, i, err := issue(t, b, d, "warehouse")
			must(t, err)
			if len(i.Fields) != 2 || string(i.Fields[0].Value.Reveal()) != "u" || string(i.Fields[1].Value.Reveal()) != "12345678901234567890" {
				t.Errorf("fields %+v", i.Fields)
			}
			for name, text := range map[string]string{
				"plain text": canary, "a list": `["` + canary + `"]`, "another object": `{"password":"` + canary + `"}`, "null": "null", "an object and more": `{"username":"u","port":1} {}`,
				"a field that is an object": `{"username":{"` + canary + `":1},"port":1}`, "half of it": `{"username":"` + canary,
			} {
				v.mu.Lock()
				v.secrets["warehouse"] = tt.answer(text)
				v.mu.Unlock()
				_, i, err := issue(t, b, d, "warehouse")
				if !errors.Is(err, credential.ErrUpstream) || len(i.Fields) != 0 || strings.Contains(err.Error(), canary) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func TestStoreRefusesWhatIsNotTheWorkloads(t *testing.T) {
	t.Parallel()
	for _, tt := range stores {
		t.Run(tt.broker, func(t *testing.T) {
			t.Parallel()
			for name, change := range map[string]func(*credentialtest.Workload){
				"another identity": func(d *credentialtest.Workload) { d.Change = func(c *jwt.Claims) { c.Subject += "x" } },
				"another audience": func(d *credentialtest.Workload) { d.Change = func(c *jwt.Claims) { c.Audience = jwt.Audience{"x"} } },
				"another key": func(d *credentialtest.Workload) {
					other := credentialtest.NewWorkload(t, id)
					d.Key, d.RSA = other.Key, other.RSA
				},
			} {
				trusted := credentialtest.NewWorkload(t, id)
				v := newVendor(t, trusted, tt.audience, tt.fake)
				v.secrets["warehouse"] = tt.answer(canary)
				d := &credentialtest.Workload{ID: id, Key: trusted.Key, RSA: trusted.RSA}
				change(d)
				_, _, err := issue(t, open(t, v, tt.broker, tt.open, tt.settings, ""), d, "warehouse")
				if !errors.Is(err, credential.ErrRefused) || strings.Contains(err.Error(), "eyJ") {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func TestSecretThatIsNotThereIsRefusedWithoutRepeatingTheAnswer(t *testing.T) {
	t.Parallel()
	for _, tt := range stores {
		t.Run(tt.broker, func(t *testing.T) {
			t.Parallel()
			d := credentialtest.NewWorkload(t, id)
			v := newVendor(t, d, tt.audience, tt.fake)
			_, _, err := issue(t, open(t, v, tt.broker, tt.open, tt.settings, ""), d, "warehouse")
			if !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "NotFound") || strings.Contains(err.Error(), "token") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestCallersValueIsOneStepOfASecretsName(t *testing.T) {
	t.Parallel()
	for _, tt := range stores {
		t.Run(tt.broker, func(t *testing.T) {
			t.Parallel()
			d := credentialtest.NewWorkload(t, id)
			v := newVendor(t, d, tt.audience, tt.fake)
			b := open(t, v, tt.broker, tt.open, tt.settings, "")
			for _, bad := range []string{"prod/x", "..", "a?b", "a b", "-x", "a%2fb", "a:b", "ä"} {
				if _, _, err := issue(t, b, d, bad); !errors.Is(err, credential.ErrParameter) {
					t.Errorf("%q: %v", bad, err)
				}
			}
			if len(v.asked) != 0 {
				t.Errorf("asked %q", v.asked)
			}
		})
	}
}

func TestStoreFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range stores {
		t.Run(tt.broker, func(t *testing.T) {
			t.Parallel()
			d := credentialtest.NewWorkload(t, id)
			v := newVendor(t, d, tt.audience, tt.fake)
			b := open(t, v, tt.broker, tt.open, tt.settings, "")
			answer := func(status int, body string) func(http.ResponseWriter, *http.Request) bool {
				return func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("X-Amz-Target") == "" && !strings.Contains(r.URL.Path, "/secrets/") {
						return false // the way there works
					}
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(status)
					io.WriteString(w, body)
					return true
				}
			}
			for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
				"500": answer(500, ""), "429": answer(429, ""), "nothing": answer(200, ""), "garbage": answer(200, "\x00"), "an empty object": answer(200, "{}"),
				"an empty secret":       answer(200, tt.answer("")),
				"an answer without end": answer(200, strings.Repeat(" ", 2<<20)),
				"a redirect":            answer(302, ""),
				"a cut connection":      func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
			} {
				v.fault(fault)
				if _, i, err := issue(t, b, d, "warehouse"); !errors.Is(err, credential.ErrUpstream) || len(i.Fields) != 0 {
					t.Errorf("%s: %v", name, err)
				}
			}
			if len(v.live) != 0 {
				t.Error("a token lives on")
			}
		})
	}
}

func TestBinarySecretOfAWSIsDeliveredAsItIs(t *testing.T) {
	t.Parallel()
	d := credentialtest.NewWorkload(t, id)
	tt := stores[0]
	v := newVendor(t, d, tt.audience, tt.fake)
	v.secrets["warehouse"] = `{"VersionId":"3","SecretBinary":"AP8="}`
	_, i, err := issue(t, open(t, v, tt.broker, tt.open, tt.settings, ""), d, "warehouse")
	must(t, err)
	if string(i.Fields[0].Value.Reveal()) != "\x00\xff" {
		t.Errorf("value %q", i.Fields[0].Value.Reveal())
	}
}

func TestHiddenSecretOfInfisicalSaysWhichPermissionIsMissing(t *testing.T) {
	t.Parallel()
	d := credentialtest.NewWorkload(t, id)
	tt := stores[2]
	v := newVendor(t, d, tt.audience, tt.fake)
	v.secrets["warehouse"] = `{"secret":{"version":3,"secretValue":"<hidden-by-infisical>","secretValueHidden":true}}`
	_, i, err := issue(t, open(t, v, tt.broker, tt.open, tt.settings, ""), d, "warehouse")
	if !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "permission to read values") || len(i.Fields) != 0 {
		t.Errorf("%v, %v", i.Fields, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
