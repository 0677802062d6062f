package leasetest

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
)

// An Upstream is a protocol fake of a source of credentials, written from its
// documents. It trusts what a host's trust bundle says, as it would be
// told at the vendor's.
type Upstream struct {
	*httptest.Server
	Host   *Host
	CAFile string

	Mu       sync.Mutex    // guards the fields below
	Canary   string        // the secret that it gives
	Lifetime time.Duration // of it
	Seen     []string      // who asked for what
}

func NewUpstream(t testing.TB, h *Host, answer func(u *Upstream, w http.ResponseWriter, r *http.Request)) *Upstream {
	t.Helper()
	u := &Upstream{Host: h, Lifetime: 5 * time.Minute, CAFile: h.Path("upstream-ca.pem"), Canary: "canary-" + fmt.Sprint(time.Now().UnixNano())}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.Mu.Lock()
		defer u.Mu.Unlock()
		answer(u, w, r)
	}))
	u.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	u.StartTLS()
	t.Cleanup(u.Close)
	must(t, os.WriteFile(u.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.Certificate().Raw}), 0o644))
	return u
}

// Subject returns whose JWT-SVID a token is, by the host's trust bundle, or "" if
// it is none for the audience.
func (h *Host) Subject(token, audience string) string {
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

func Send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// STS is AWS's AssumeRoleWithWebIdentity.
func STS(u *Upstream, w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	f := r.PostForm
	subject := u.Host.Subject(f.Get("WebIdentityToken"), "sts.amazonaws.com")
	w.Header().Set("Content-Type", "text/xml")
	if f.Get("Action") != "AssumeRoleWithWebIdentity" || f.Get("Version") != "2011-06-15" || f.Get("RoleArn") != "arn:aws:iam::123456789012:role/agent" || subject == "" {
		w.WriteHeader(400)
		fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>`)
		return
	}
	seconds, err := strconv.Atoi(cmp.Or(f.Get("DurationSeconds"), "1200"))
	if err != nil || seconds < 900 {
		w.WriteHeader(400)
		return
	}
	u.Seen = append(u.Seen, subject+" as "+f.Get("RoleSessionName"))
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><SessionToken>%[1]s-session</SessionToken><SecretAccessKey>%[1]s</SecretAccessKey><Expiration>%[2]s</Expiration><AccessKeyId>ASIA1</AccessKeyId></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, u.Canary, time.Now().Add(time.Duration(seconds)*time.Second).UTC().Format(time.RFC3339))
}

// OpenAI is OpenAI's workload identity token exchange.
func OpenAI(u *Upstream, w http.ResponseWriter, r *http.Request) {
	var b map[string]string
	json.NewDecoder(r.Body).Decode(&b)
	subject := u.Host.Subject(b["subject_token"], "https://api.openai.com/v1")
	if r.URL.Path != "/oauth/token" || b["grant_type"] != "urn:ietf:params:oauth:grant-type:token-exchange" ||
		b["subject_token_type"] != "urn:ietf:params:oauth:token-type:jwt" || b["identity_provider_id"] != "idp_1" || b["service_account_id"] != "sa_1" || subject == "" {
		Send(w, 400, map[string]string{"error": "invalid_request"})
		return
	}
	u.Seen = append(u.Seen, subject)
	Send(w, 200, map[string]any{"access_token": u.Canary, "token_type": "Bearer", "expires_in": int(u.Lifetime.Seconds()), "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
}

// Grants has an entry for this user's processes grant credentials that are so
// defined.
func (h *Host) Grants(definitions string, names string) {
	h.T.Helper()
	if err := os.Mkdir(h.Path("credentials.d"), 0o755); err != nil && !os.IsExist(err) {
		h.T.Fatal(err)
	}
	h.Write("credentials.d/a.yaml", "credentials:\n"+definitions)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [%s]}\n", os.Getuid(), names))
}
