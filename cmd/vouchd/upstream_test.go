package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
)

// An upstream is a protocol fake of a source of credentials, written from its
// documents. It trusts what a host's trust bundle says, as it would be
// told at the vendor's.
type upstream struct {
	*httptest.Server
	h      *host
	caFile string

	mu       sync.Mutex
	canary   string        // the secret that it gives
	lifetime time.Duration // of it
	seen     []string      // who asked for what
}

func newUpstream(t testing.TB, h *host, answer func(u *upstream, w http.ResponseWriter, r *http.Request)) *upstream {
	t.Helper()
	u := &upstream{h: h, lifetime: 5 * time.Minute, caFile: h.Path("upstream-ca.pem"), canary: "canary-" + fmt.Sprint(time.Now().UnixNano())}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		defer u.mu.Unlock()
		answer(u, w, r)
	}))
	u.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	u.StartTLS()
	t.Cleanup(u.Close)
	must(t, os.WriteFile(u.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.Certificate().Raw}), 0o644))
	return u
}

// subject returns whose JWT-SVID a token is, by the host's trust bundle, or "" if
// it is none for the audience.
func (h *host) subject(token, audience string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	bundles, err := spiffe.FetchJWTBundles(ctx, spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	if err != nil {
		return ""
	}
	svid, err := jwtsvid.ParseAndValidate(token, bundles, []string{audience})
	if err != nil {
		return ""
	}
	return svid.ID.String()
}

func send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// sts is AWS's AssumeRoleWithWebIdentity.
func sts(u *upstream, w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	f := r.PostForm
	subject := u.h.subject(f.Get("WebIdentityToken"), "sts.amazonaws.com")
	w.Header().Set("Content-Type", "text/xml")
	if f.Get("Action") != "AssumeRoleWithWebIdentity" || f.Get("Version") != "2011-06-15" || f.Get("RoleArn") != "arn:aws:iam::123456789012:role/agent" || subject == "" {
		w.WriteHeader(400)
		fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>`)
		return
	}
	u.seen = append(u.seen, subject+" as "+f.Get("RoleSessionName"))
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><SessionToken>%[1]s-session</SessionToken><SecretAccessKey>%[1]s</SecretAccessKey><Expiration>%[2]s</Expiration><AccessKeyId>ASIA1</AccessKeyId></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, u.canary, time.Now().Add(20*time.Minute).UTC().Format(time.RFC3339))
}

// openAI is OpenAI's workload identity token exchange.
func openAI(u *upstream, w http.ResponseWriter, r *http.Request) {
	var b map[string]string
	json.NewDecoder(r.Body).Decode(&b)
	subject := u.h.subject(b["subject_token"], "https://api.openai.com/v1")
	if r.URL.Path != "/oauth/token" || b["grant_type"] != "urn:ietf:params:oauth:grant-type:token-exchange" ||
		b["subject_token_type"] != "urn:ietf:params:oauth:token-type:jwt" || b["identity_provider_id"] != "idp_1" || b["service_account_id"] != "sa_1" || subject == "" {
		send(w, 400, map[string]string{"error": "invalid_request"})
		return
	}
	u.seen = append(u.seen, subject)
	send(w, 200, map[string]any{"access_token": u.canary, "token_type": "Bearer", "expires_in": int(u.lifetime.Seconds()), "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
}

// grants has an entry for this user's processes grant credentials that are so
// defined.
func (h *host) grants(definitions string, names string) {
	h.T.Helper()
	if err := os.Mkdir(h.Path("credentials.d"), 0o755); err != nil && !os.IsExist(err) {
		h.T.Fatal(err)
	}
	h.Write("credentials.d/a.yaml", "credentials:\n"+definitions)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [%s]}\n", os.Getuid(), names))
}
