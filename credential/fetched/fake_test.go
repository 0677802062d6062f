package fetched_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/vouchd/vouchd/credential/credentialtest"
)

// A vendor is a fake, written from the documents of the store and of what it is
// logged in to by. It verifies what it is sent, JWT-SVIDs and signatures, and
// gives the secrets that it has.
type vendor struct {
	*httptest.Server
	domain   *credentialtest.Workload
	audience string
	caFile   string

	mu       sync.Mutex        // guards the fields below
	secrets  map[string]string // as the store answers, by name
	live     map[string]bool   // access tokens
	override func(w http.ResponseWriter, r *http.Request) bool
	asked    []string
}

func newVendor(t *testing.T, d *credentialtest.Workload, audience string, answer func(v *vendor, w http.ResponseWriter, r *http.Request)) *vendor {
	t.Helper()
	v := &vendor{domain: d, audience: audience, secrets: make(map[string]string), live: make(map[string]bool)}
	v.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.asked = append(v.asked, r.Method+" "+r.URL.Path)
		if v.override == nil || !v.override(w, r) {
			answer(v, w, r)
		}
	}))
	v.Config.ErrorLog = nil
	t.Cleanup(v.Close)
	v.caFile = filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(v.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw}), 0o644))
	return v
}

func (v *vendor) fault(f func(w http.ResponseWriter, r *http.Request) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.override = f
}

func send(w http.ResponseWriter, contentType string, status int, answer any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

const (
	keyID        = "ASIATEMPORARY"
	secretKey    = "temporary-secret-key"
	sessionToken = "temporary-session-token"
)

func awsVendor(v *vendor, w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("X-Amz-Target") == "" {
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ParseForm()
		if f := r.PostForm; f.Get("Action") != "AssumeRoleWithWebIdentity" || f.Get("RoleArn") != "arn:aws:iam::123456789012:role/agent" || !v.domain.Verify(f.Get("WebIdentityToken"), v.audience) {
			w.WriteHeader(400)
			io.WriteString(w, `<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>`)
			return
		}
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><SessionToken>%s</SessionToken><SecretAccessKey>%s</SecretAccessKey><Expiration>%s</Expiration><AccessKeyId>%s</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
			sessionToken, secretKey, time.Now().Add(15*time.Minute).UTC().Format(time.RFC3339), keyID)
		return
	}
	const json11 = "application/x-amz-json-1.1"
	var ask struct{ SecretID string }
	switch err := checkSignature(r, body); {
	case err != nil:
		send(w, json11, 400, map[string]string{"__type": "InvalidSignatureException", "message": err.Error()})
	case r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue" || json.Unmarshal(body, &map[string]string{}) != nil:
		send(w, json11, 400, map[string]string{"__type": "InvalidParameterException"})
	default:
		json.Unmarshal(body, &ask)
		answer, ok := v.secrets[ask.SecretID]
		if !ok {
			send(w, json11, 400, map[string]string{"__type": "com.amazonaws.secretsmanager#ResourceNotFoundException", "Message": "Secrets Manager can't find it: " + sessionToken})
			return
		}
		w.Header().Set("Content-Type", json11)
		io.WriteString(w, answer)
	}
}

var authorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/eu-central-1/secretsmanager/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})$`)

// checkSignature verifies a signature as a server does, from what arrived.
func checkSignature(r *http.Request, body []byte) error {
	m := authorization.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil || m[1] != keyID || r.Header.Get("X-Amz-Security-Token") != sessionToken {
		return fmt.Errorf("authorization %q", r.Header.Get("Authorization"))
	}
	stamp, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(stamp).Abs() > 5*time.Minute || m[2] != stamp.Format("20060102") {
		return fmt.Errorf("date %q", r.Header.Get("X-Amz-Date"))
	}
	request := r.Method + "\n/\n\n"
	for _, name := range strings.Split(m[3], ";") {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		request += name + ":" + value + "\n"
	}
	for _, must := range []string{"content-type", "host", "x-amz-date", "x-amz-security-token", "x-amz-target"} {
		if !strings.Contains(";"+m[3]+";", ";"+must+";") {
			return fmt.Errorf("%s is not signed", must)
		}
	}
	hash := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	request += "\n" + m[3] + "\n" + hash(body)
	key := []byte("AWS4" + secretKey)
	for _, part := range []string{
		m[2], "eu-central-1", "secretsmanager", "aws4_request",
		"AWS4-HMAC-SHA256\n" + r.Header.Get("X-Amz-Date") + "\n" + m[2] + "/eu-central-1/secretsmanager/aws4_request\n" + hash([]byte(request)),
	} {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(part))
		key = h.Sum(nil)
	}
	if hex.EncodeToString(key) != m[4] {
		return fmt.Errorf("signature %s", m[4])
	}
	return nil
}

func azureVendor(v *vendor, w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	name, secret := strings.CutPrefix(r.URL.Path, "/secrets/")
	switch {
	case !secret && r.URL.Path == "/tenant/oauth2/v2.0/token":
		if f := r.PostForm; f.Get("client_id") != "app" || f.Get("scope") != "https://vault.azure.net/.default" || !v.domain.Verify(f.Get("client_assertion"), v.audience, jose.RS256) {
			send(w, "application/json", 401, map[string]string{"error": "invalid_client"})
			return
		}
		send(w, "application/json", 200, map[string]any{"access_token": "azure-token", "token_type": "Bearer", "expires_in": 3599})
	case r.Method != "GET" || r.URL.Query().Get("api-version") != "7.4" || r.Header.Get("Authorization") != "Bearer azure-token":
		send(w, "application/json", 401, map[string]any{"error": map[string]string{"code": "Unauthorized"}})
	case v.secrets[name] == "":
		send(w, "application/json", 404, map[string]any{"error": map[string]string{"code": "SecretNotFound", "message": "azure-token"}})
	default:
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, v.secrets[name])
	}
}

func infisicalVendor(v *vendor, w http.ResponseWriter, r *http.Request) {
	var ask map[string]string
	if r.Method == "POST" {
		json.NewDecoder(r.Body).Decode(&ask)
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	name, secret := strings.CutPrefix(r.URL.Path, "/api/v4/secrets/")
	refuse := func(status int, word string) {
		send(w, "application/json", status, map[string]any{"statusCode": status, "error": word, "message": "infisical-token"})
	}
	switch {
	case r.URL.Path == "/api/v1/auth/oidc-auth/login":
		if ask["identityId"] != "identity-1" || !v.domain.Verify(ask["jwt"], v.audience) {
			refuse(401, "UnauthorizedError")
			return
		}
		v.live["infisical-token"] = true
		send(w, "application/json", 200, map[string]any{"accessToken": "infisical-token", "expiresIn": 2592000, "accessTokenMaxTTL": 2592000, "tokenType": "Bearer"})
	case r.URL.Path == "/api/v1/auth/token/revoke":
		delete(v.live, ask["accessToken"])
		send(w, "application/json", 200, map[string]string{"message": "Successfully revoked access token"})
	case !secret || !v.live[bearer]:
		refuse(401, "UnauthorizedError")
	case r.URL.Query().Get("projectId") != "project-1" || r.URL.Query().Get("environment") != "prod" || r.URL.Query().Get("secretPath") != "/warehouse":
		refuse(403, "PermissionDenied")
	case v.secrets[name] == "":
		refuse(404, "NotFound")
	default:
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, v.secrets[name])
	}
}
