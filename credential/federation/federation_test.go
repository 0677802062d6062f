package federation_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/federation"
)

const canary = credentialtest.Canary

var id = spiffeid.RequireFromString("spiffe://example.org/agent/research")

func newDomain(t *testing.T) *credentialtest.Workload { return credentialtest.NewWorkload(t, id) }

// vendor is a protocol fake: it verifies what it is sent as the vendor's
// documents say it does, and answers in the vendor's form.
type vendor struct {
	*httptest.Server
	t        *testing.T
	domain   *credentialtest.Workload
	audience string
	caFile   string
	override func(w http.ResponseWriter, r *http.Request) bool // a fault
	seen     []string                                          // paths asked for
}

func newVendor(t *testing.T, d *credentialtest.Workload, audience string, answer func(v *vendor, w http.ResponseWriter, r *http.Request)) *vendor {
	v := &vendor{t: t, domain: d, audience: audience}
	v.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.seen = append(v.seen, r.URL.Path)
		if v.override != nil && v.override(w, r) {
			return
		}
		answer(v, w, r)
	}))
	v.Config.ErrorLog = nil
	t.Cleanup(v.Close)
	v.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(v.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return v
}

// verified reports whether a token is what the vendor was told to trust.
func (v *vendor) verified(token string) bool { return v.domain.Verify(token, v.audience) }

func send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func jsonBody(r *http.Request) (m map[string]any) {
	b, _ := io.ReadAll(r.Body)
	json.Unmarshal(b, &m)
	return m
}

func openAI(v *vendor, w http.ResponseWriter, r *http.Request) {
	b := jsonBody(r)
	switch {
	case r.Method != "POST" || r.URL.Path != "/oauth/token" || r.Header.Get("Content-Type") != "application/json",
		b["grant_type"] != "urn:ietf:params:oauth:grant-type:token-exchange" || b["subject_token_type"] != "urn:ietf:params:oauth:token-type:jwt",
		b["identity_provider_id"] != "idp_1" || b["service_account_id"] != "sa_1" || len(b) != 5:
		send(w, 400, map[string]string{"error": "invalid_request"})
	case !v.verified(fmt.Sprint(b["subject_token"])):
		send(w, 401, map[string]any{"error": map[string]string{"code": "invalid_subject_token", "message": fmt.Sprint(b["subject_token"])}})
	default:
		send(w, 200, map[string]any{"access_token": canary, "token_type": "Bearer", "expires_in": 300, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
	}
}

func anthropic(v *vendor, w http.ResponseWriter, r *http.Request) {
	b := jsonBody(r)
	beta := strings.Split(r.Header.Get("Anthropic-Beta"), ",")
	switch {
	case r.Method != "POST" || r.URL.Path != "/v1/oauth/token" || r.Header.Get("Content-Type") != "application/json" || !slices.Contains(beta, "oidc-federation-2026-04-01"),
		b["grant_type"] != "urn:ietf:params:oauth:grant-type:jwt-bearer" || b["federation_rule_id"] != "fdrl_1" || b["organization_id"] != "org" ||
			b["service_account_id"] != "svac_1" || b["workspace_id"] != "wrkspc_1" || len(b) != 6:
		send(w, 400, map[string]any{"error": map[string]string{"type": "invalid_request_error"}})
	case !v.verified(fmt.Sprint(b["assertion"])):
		send(w, 401, map[string]any{"error": map[string]string{"type": "authentication_error"}})
	default:
		send(w, 200, map[string]any{"access_token": canary, "token_type": "Bearer", "expires_in": 300, "scope": "workspace:developer"})
	}
}

func awsSTS(v *vendor, w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	f := r.PostForm
	var policy map[string]any
	fail := func(code string) {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(400)
		fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error></ErrorResponse>`, code, f.Get("WebIdentityToken"))
	}
	switch {
	case f.Get("Action") != "AssumeRoleWithWebIdentity" || f.Get("Version") != "2011-06-15" || f.Get("RoleArn") != "arn:aws:iam::123456789012:role/agent",
		f.Get("RoleSessionName") != "research-"+(credential.Request{LeaseID: "LEASEIDLONGER"}).Tag() || f.Get("PolicyArns.member.1.arn") != "arn:aws:iam::aws:policy/ReadOnlyAccess" || r.Header.Get("Authorization") != "":
		fail("ValidationError")
	case json.Unmarshal([]byte(f.Get("Policy")), &policy) != nil || !strings.Contains(f.Get("Policy"), "arn:aws:s3:::reports/alice\\\"s"):
		fail("MalformedPolicyDocument")
	case f.Get("DurationSeconds") != "1200":
		fail("ValidationError")
	case !v.verified(f.Get("WebIdentityToken")):
		fail("InvalidIdentityToken")
	default:
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<SubjectFromWebIdentityToken>x</SubjectFromWebIdentityToken><Credentials><SessionToken>%s</SessionToken><SecretAccessKey>%s</SecretAccessKey>
<Expiration>%s</Expiration><AccessKeyId>ASIA1</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
			canary, canary, time.Now().Add(20*time.Minute).UTC().Format(time.RFC3339))
	}
}

func gcp(v *vendor, w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/projects/-/serviceAccounts/agent@project.iam.gserviceaccount.com:generateAccessToken" {
		b := jsonBody(r)
		if r.Header.Get("Authorization") != "Bearer federated" || fmt.Sprint(b["scope"]) != "[https://www.googleapis.com/auth/devstorage.read_only]" || b["lifetime"] != "1200s" {
			send(w, 403, map[string]any{"error": map[string]any{"code": 403, "status": "PERMISSION_DENIED", "message": "x"}})
			return
		}
		send(w, 200, map[string]any{"accessToken": canary, "expireTime": time.Now().Add(20 * time.Minute).UTC()})
		return
	}
	r.ParseForm()
	f := r.PostForm
	switch {
	case r.URL.Path != "/v1/token" || r.Header.Get("Authorization") != "" || f.Get("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange",
		f.Get("audience") != "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/v",
		f.Get("requested_token_type") != "urn:ietf:params:oauth:token-type:access_token" || f.Get("subject_token_type") != "urn:ietf:params:oauth:token-type:jwt" || f.Get("scope") == "":
		send(w, 400, map[string]string{"error": "invalid_request"})
	case !v.verified(f.Get("subject_token")):
		send(w, 400, map[string]string{"error": "invalid_grant", "error_description": f.Get("subject_token")})
	default:
		send(w, 200, map[string]any{"access_token": "federated", "token_type": "Bearer", "expires_in": 3599, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
	}
}

// rs256Header begins a token whose header says first that it is signed with RS256.
var rs256Header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256",`))

func azure(v *vendor, w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	f := r.PostForm
	switch {
	case r.URL.Path != "/tenant/oauth2/v2.0/token" || f.Get("grant_type") != "client_credentials" || f.Get("client_id") != "app" || f.Get("scope") != "https://graph.microsoft.com/.default",
		f.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || f.Has("client_secret"):
		send(w, 400, map[string]string{"error": "invalid_request"})
	case !strings.HasPrefix(f.Get("client_assertion"), rs256Header):
		send(w, 400, map[string]any{"error": "invalid_request", "error_codes": []int{5002738},
			"error_description": "AADSTS5002738: Invalid JWT token. It is not a supported signature algorithm. Supported signing algorithms are: 'RS256, HS256'"})
	case !v.domain.Verify(f.Get("client_assertion"), v.audience, jose.RS256):
		send(w, 401, map[string]string{"error": "invalid_client", "error_description": f.Get("client_assertion")})
	default:
		send(w, 200, map[string]any{"access_token": canary, "token_type": "Bearer", "expires_in": "3599", "ext_expires_in": 3599})
	}
}

// vendors is each profile with its settings and its fake.
var vendors = []struct {
	profile  string
	path     string // of the endpoint
	audience string
	settings string
	answer   func(*vendor, http.ResponseWriter, *http.Request)
	fields   []string
}{
	{"openai-2026-06", "/oauth/token", "https://api.openai.com/v1", "identity_provider_id: idp_1, service_account_id: sa_1", openAI, []string{"access_token"}},
	{"anthropic-2026-04", "/v1/oauth/token", "https://api.anthropic.com",
		"federation_rule_id: fdrl_1, organization_id: org, service_account_id: svac_1, workspace_id: wrkspc_1", anthropic, []string{"access_token"}},
	{"aws-2011-06-15", "/", "sts.amazonaws.com",
		`region: eu-central-1, role_arn: "arn:aws:iam::123456789012:role/agent", policy_arns: ["arn:aws:iam::aws:policy/ReadOnlyAccess"],
      session_policy: '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::reports/{{who}}"}]}'`,
		awsSTS, []string{"access_key_id", "secret_access_key", "session_token", "expiration"}},
	{"gcp-v1", "/v1/token", "https://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/v",
		`provider: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/v, service_account: agent@project.iam.gserviceaccount.com,
      scopes: [https://www.googleapis.com/auth/devstorage.read_only], iam_endpoint: "IAM"`, gcp, []string{"access_token"}},
	{"azure-v2.0", "/tenant/oauth2/v2.0/token", "api://AzureADTokenExchange",
		"tenant_id: tenant, client_id: app, scope: https://graph.microsoft.com/.default", azure, []string{"access_token"}},
}

func open(t *testing.T, v *vendor, profile, path, settings string, keys ...string) credential.Broker {
	t.Helper()
	text := fmt.Sprintf(`
credentials:
  - name: api
    broker: federation
    ttl: 20m
    max_ttl: 1h
    parameters: [{name: who, one_of: ["alice\"s", "*"]}]
    %s
    federation: {profile: %s, audience: %q, endpoint: %q, ca_file: %s, %s}
`, strings.Join(keys, ""), profile, v.audience, v.URL+path, v.caFile, strings.Replace(settings, "IAM", v.URL+"/v1", 1))
	return credentialtest.Broker(t, "federation", federation.Open, text)
}

func issue(t *testing.T, b credential.Broker, d *credentialtest.Workload, who string) (credential.Issued, error) {
	t.Helper()
	r := credential.Request{
		LeaseID: "LEASEIDLONGER", Holder: credential.Holder{ID: id, Identity: d},
		Params: map[string]string{"who": who}, TTL: 20 * time.Minute,
	}
	p, err := b.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if p.Handle.Name == "" || !p.NotAfter.After(time.Now()) {
		t.Errorf("plan %+v", p)
	}
	return b.Issue(t.Context(), r, p)
}

func TestEachVendorGivesATokenForAJWTSVID(t *testing.T) {
	t.Parallel()
	for _, tt := range vendors {
		t.Run(tt.profile, func(t *testing.T) {
			t.Parallel()
			d := newDomain(t)
			v := newVendor(t, d, tt.audience, tt.answer)
			b := open(t, v, tt.profile, tt.path, tt.settings)
			issued, err := issue(t, b, d, `alice"s`)
			if err != nil {
				t.Fatal(err)
			}
			var fields []string
			secrets := 0
			for _, f := range issued.Fields {
				fields = append(fields, f.Name)
				if string(f.Value.Reveal()) == canary && !f.Public {
					secrets++
				}
			}
			if !slices.Equal(fields, tt.fields) || secrets == 0 {
				t.Errorf("fields %q", fields)
			}
			if left := time.Until(issued.NotAfter); left < 4*time.Minute || left > time.Hour {
				t.Errorf("ends in %v", left)
			}
			if len(issued.Scope) == 0 || !slices.Equal(issued.Audience, []string{tt.audience}) {
				t.Errorf("scope %q, audience %q", issued.Scope, issued.Audience)
			}
			if tr := b.Traits(); tr.Revocation != credential.ExpiryOnly || tr.Renews || !tr.ChoosesTTL {
				t.Errorf("traits %+v claim more than the vendor can do", tr)
			}
			if _, err := b.Revoke(t.Context(), credential.Handle{}); !errors.Is(err, credential.ErrOnlyExpires) {
				t.Errorf("Revoke: %v", err)
			}
		})
	}
}

func TestVendorRefusesWhatIsNotTheWorkloads(t *testing.T) {
	t.Parallel()
	for _, tt := range vendors {
		t.Run(tt.profile, func(t *testing.T) {
			t.Parallel()
			for name, change := range map[string]func(*credentialtest.Workload){
				"another key": func(d *credentialtest.Workload) { d.Key, d.RSA = newDomain(t).Key, newDomain(t).RSA },
				"another identity": func(d *credentialtest.Workload) {
					d.Change = func(c *jwt.Claims) { c.Subject = "spiffe://example.org/other" }
				},
				"another audience": func(d *credentialtest.Workload) { d.Change = func(c *jwt.Claims) { c.Audience = jwt.Audience{"x"} } },
				"an old token": func(d *credentialtest.Workload) {
					d.Change = func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-time.Hour)) }
				},
				"a life of two hours": func(d *credentialtest.Workload) {
					d.Change = func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(2 * time.Hour)) }
				},
				"no issued-at": func(d *credentialtest.Workload) { d.Change = func(c *jwt.Claims) { c.IssuedAt = nil } },
			} {
				trusted := newDomain(t)
				v := newVendor(t, trusted, tt.audience, tt.answer)
				d := &credentialtest.Workload{ID: id, Key: trusted.Key, RSA: trusted.RSA}
				change(d)
				_, err := issue(t, open(t, v, tt.profile, tt.path, tt.settings), d, `alice"s`)
				if !errors.Is(err, credential.ErrRefused) {
					t.Errorf("%s: %v", name, err)
				}
				if strings.Contains(fmt.Sprint(err), "eyJ") {
					t.Errorf("%s: the error repeats the assertion that the vendor echoed", name)
				}
			}
		})
	}
}

func TestDefinitionChoosesTheAlgorithm(t *testing.T) {
	t.Parallel()
	for _, tt := range vendors {
		t.Run(tt.profile, func(t *testing.T) {
			t.Parallel()
			var said []string
			d := newDomain(t)
			v := newVendor(t, d, tt.audience, func(v *vendor, w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				for _, alg := range []string{"ES256", "RS256"} {
					if bytes.Contains(body, []byte(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"`+alg+`",`)))) {
						said = append(said, alg)
					}
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
				tt.answer(v, w, r)
			})
			for _, alg := range []string{"RS256", "ES256"} {
				b := open(t, v, tt.profile, tt.path, tt.settings, "jwt_algorithm: "+alg)
				if got := b.Traits().JWTAlgorithm; got != alg {
					t.Errorf("the broker says that it needs %q, want %s", got, alg)
				}
				_, err := issue(t, b, d, `alice"s`)
				if refused := tt.profile == "azure-v2.0" && alg == "ES256"; errors.Is(err, credential.ErrRefused) != refused || !refused && err != nil {
					t.Errorf("%s: %v", alg, err)
				}
			}
			if !slices.Equal(slices.Compact(said), []string{"RS256", "ES256"}) {
				t.Errorf("presented %q", said)
			}
		})
	}
}

func TestVendorFaults(t *testing.T) {
	t.Parallel()
	answer := func(status int, contentType, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			io.WriteString(w, body)
			return true
		}
	}
	for _, tt := range vendors {
		t.Run(tt.profile, func(t *testing.T) {
			t.Parallel()
			d := newDomain(t)
			v := newVendor(t, d, tt.audience, tt.answer)
			b := open(t, v, tt.profile, tt.path, tt.settings)
			for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
				"500":                     answer(500, "application/json", `{"error":"server_error"}`),
				"429":                     answer(429, "text/html", "slow down"),
				"an empty answer":         answer(200, "application/json", ""),
				"garbage":                 answer(200, "text/html", "<html>\x00\xff"),
				"no token":                answer(200, "application/json", `{"token_type":"Bearer","expires_in":300}`),
				"a token of two lines":    answer(200, "application/json", `{"access_token":"a\nb","token_type":"Bearer","expires_in":300}`),
				"a token of another type": answer(200, "application/json", `{"access_token":"a","token_type":"mac","expires_in":300}`),
				"a negative lifetime":     answer(200, "application/json", `{"access_token":"a","token_type":"Bearer","expires_in":-1}`),
				"an endless lifetime":     answer(200, "application/json", `{"access_token":"a","token_type":"Bearer","expires_in":1e300}`),
				"a lifetime of text":      answer(200, "application/json", `{"access_token":"a","token_type":"Bearer","expires_in":"soon"}`),
				"an answer without end":   answer(200, "application/json", strings.Repeat(" ", 2<<20)),
				"a redirect": func(w http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path == "/elsewhere" {
						return false
					}
					http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
					return true
				},
				"a cut connection": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
			} {
				v.override = fault
				if issued, err := issue(t, b, d, `alice"s`); !errors.Is(err, credential.ErrUpstream) {
					t.Errorf("%s: %+v, %v", name, issued.Fields, err)
				}
			}
			if slices.Contains(v.seen, "/elsewhere") {
				t.Error("a redirect was followed")
			}
			v.override = nil
			if _, err := issue(t, b, d, `alice"s`); err != nil {
				t.Errorf("once the vendor is well again: %v", err)
			}
		})
	}
}

func TestVendorWithTheWrongCertificateGetsNoAssertion(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	v := newVendor(t, d, "a", openAI)
	other := newVendor(t, d, "a", openAI)
	other.caFile = filepath.Join(t.TempDir(), "none.pem")
	for name, caFile := range map[string]string{"another authority": writeOtherCA(t), "no such file": other.caFile} {
		v.caFile = caFile
		b := open(t, v, "openai-2026-06", "/oauth/token", "identity_provider_id: idp_1, service_account_id: sa_1")
		if _, err := issue(t, b, d, "x"); !errors.Is(err, credential.ErrUpstream) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(v.seen) != 0 {
		t.Error("the request was sent all the same")
	}
}

func writeOtherCA(t *testing.T) string {
	t.Helper()
	der, err := newDomain(t).Authority()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCallersWildcardDoesNotWidenASessionPolicy(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	tt := vendors[2]
	v := newVendor(t, d, tt.audience, tt.answer)
	_, err := issue(t, open(t, v, tt.profile, tt.path, tt.settings), d, "*")
	if !errors.Is(err, credential.ErrParameter) || len(v.seen) != 0 {
		t.Errorf("%v after %q", err, v.seen)
	}
}

func TestSessionTagsAreInTheTokenAndNowhereElse(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	tt := vendors[2]
	var claim map[string]any
	v := newVendor(t, d, tt.audience, func(v *vendor, w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		token, err := jwt.ParseSigned(r.PostForm.Get("WebIdentityToken"), []jose.SignatureAlgorithm{jose.ES256})
		if err == nil {
			err = token.Claims(d.Key.Public(), &claim)
		}
		if err != nil {
			t.Error(err)
		}
		tt.answer(v, w, r)
	})
	b := open(t, v, tt.profile, tt.path, tt.settings+`, session_tags: [{name: project, value: "{{who}}"}, {name: stage, value: test, transitive: true}]`)
	if _, err := issue(t, b, d, `alice"s`); !errors.Is(err, credential.ErrParameter) || len(v.seen) != 0 {
		t.Errorf("a value that no tag can have: %v after %q", err, v.seen)
	}
	b = open(t, v, tt.profile, tt.path, tt.settings+`, session_tags: [{name: project, value: "p-1"}, {name: stage, value: test, transitive: true}]`)
	issued, err := issue(t, b, d, `alice"s`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(claim["https://aws.amazon.com/tags"])
	if want := `{"principal_tags":{"project":["p-1"],"stage":["test"]},"transitive_tag_keys":["stage"]}`; err != nil || string(got) != want {
		t.Errorf("the token's tags are %s, want %s", got, want)
	}
	if !slices.Contains(issued.Scope, "tag project=p-1") {
		t.Errorf("the scope does not tell of the tags: %q", issued.Scope)
	}
}

func TestSessionTagsThatAWSWouldRefuseAreNot(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	for i := range 51 {
		fmt.Fprintf(&many, "{name: a%d, value: v}, ", i)
	}
	for tags, want := range map[string]string{
		`[{name: "aws:x", value: v}]`:                "not a name",
		`[{name: "a*", value: v}]`:                   "not a name",
		`[{name: a, value: v}, {name: A, value: v}]`: "there already",
		`[{name: a, value: "{{nobody}}"}]`:           "which is no parameter",
		`[` + many.String() + `]`:                    "AWS takes 50",
	} {
		dir := t.TempDir()
		text := fmt.Sprintf("credentials:\n  - {name: api, broker: federation, max_ttl: 1h, federation: {profile: aws-2011-06-15, audience: a, region: r, role_arn: x, session_tags: %s}}\n", tags)
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := credential.LoadDefinitions(dir, credential.Brokers{"federation": federation.Open}, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", tags, err, want)
		}
	}
}

func TestPlaceInASessionPolicyIsInAStringThatNamesSomething(t *testing.T) {
	t.Parallel()
	for policy, ok := range map[string]bool{
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/{{who}}/x"}]}`:         true,
		`{"Statement":[{"Effect":"Allow","Action":"s3:{{who}}","Resource":"arn:aws:s3:::${aws:userid}/{{who}}"}]}`: true,
		`{"Statement":[{"Effect":"{{who}}","Action":"s3:GetObject","Resource":"*"}]}`:                              false,
		`{"Statement":[{"Effect":"Allow","{{who}}":"s3:GetObject","Resource":"*"}]}`:                               false,
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"b/${aws:{{who}}}"}]}`:                 false,
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"b/${{{who}}"}]}`:                      false,
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":{{who}}}]}`:                            false,
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"\{{who}}"}]}`:                         false,
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"\u00{{who}}"}]}`:                      false,
	} {
		dir := t.TempDir()
		text := fmt.Sprintf("credentials:\n  - name: api\n    broker: federation\n    max_ttl: 1h\n    parameters: [{name: who, pattern: \"[a-z]+\"}]\n    federation: {profile: aws-2011-06-15, audience: a, region: r, role_arn: x, session_policy: '%s'}\n", policy)
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := credential.LoadDefinitions(dir, credential.Brokers{"federation": federation.Open}, true)
		if ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "session_policy") {
			t.Errorf("%s: %v", policy, err)
		}
	}
}
