package daemon_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/zitadel/oidc/v3/pkg/client/rp"
	"github.com/zitadel/oidc/v3/pkg/oidc"
)

// A stock OpenID Connect relying party knows nothing of vouchd but the issuer's
// URL, behind which there are files.
func TestStockVerifierTrustsTokensByPublishedFilesAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	web := httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
	defer web.Close()
	h := newHost(t)
	h.Configure("authority:\n  jwt_issuer: " + web.URL + "\n")
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	must(t, os.Mkdir(dir+"/.well-known", 0o755))
	h.OK("bundle", "openid-configuration", "--issuer", web.URL, "--write", dir+"/.well-known/openid-configuration")
	said := h.OK("bundle", "jwks", "--issuer", web.URL, "--write", dir+"/keys")
	if !matches(`keys is written; publish the next before \d{4}-`, said) {
		t.Errorf("bundle jwks says %s", said)
	}

	ctx := t.Context()
	party, err := rp.NewRelyingPartyOIDC(ctx, web.URL, "relying-party", "", "", nil, rp.WithHTTPClient(web.Client()), rp.WithVerifierOpts(rp.WithSupportedSigningAlgorithms("ES256")))
	must(t, err)
	verify := func(audience string) (*oidc.IDTokenClaims, error) {
		return rp.VerifyIDToken[*oidc.IDTokenClaims](ctx, strings.TrimSpace(h.OK("fetch", "jwt", "--audience", audience)), party.IDTokenVerifier())
	}
	claims, err := verify("relying-party")
	if err != nil || claims.Subject != "spiffe://example.org/cli" {
		t.Errorf("the token is %+v, %v", claims, err)
	}
	if _, err := verify("somebody-else"); err == nil {
		t.Error("a token for another audience is accepted")
	}

	// The files stay good across a restart, and nothing new is to be published.
	h.Stop()
	h.Start()
	if _, err := verify("relying-party"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if said := h.OK("bundle", "jwks", "--write", dir+"/keys"); !strings.Contains(said, "is up to date") {
		t.Errorf("bundle jwks says %s", said)
	}
	// Without the files nobody trusts anything.
	must(t, os.WriteFile(dir+"/keys", []byte(`{"keys":[]}`), 0o644))
	stranger, err := rp.NewRelyingPartyOIDC(ctx, web.URL, "relying-party", "", "", nil, rp.WithHTTPClient(web.Client()), rp.WithVerifierOpts(rp.WithSupportedSigningAlgorithms("ES256")))
	must(t, err)
	if _, err := rp.VerifyIDToken[*oidc.IDTokenClaims](ctx, strings.TrimSpace(h.OK("fetch", "jwt", "--audience", "relying-party")), stranger.IDTokenVerifier()); err == nil {
		t.Error("a token of an unpublished key is accepted")
	}
}

func TestRelyingPartyOfRS256AloneTrustsTokensOfEntriesThatSaySo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	web := httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(web.Close)
	h := newHost(t)
	h.Configure("authority:\n  jwt_issuer: " + web.URL + "\n")
	entry := daemontest.EntriesForVouch()
	h.Write("entries.d/a.yaml", entry)
	h.Start()
	must(t, os.Mkdir(dir+"/.well-known", 0o755))
	h.OK("bundle", "openid-configuration", "--issuer", web.URL, "--write", dir+"/.well-known/openid-configuration")
	h.OK("bundle", "jwks", "--write", dir+"/keys")
	ctx := t.Context()
	party, err := rp.NewRelyingPartyOIDC(ctx, web.URL, "relying-party", "", "", nil, rp.WithHTTPClient(web.Client()), rp.WithVerifierOpts(rp.WithSupportedSigningAlgorithms("RS256")))
	must(t, err)
	verify := func() error {
		_, err := rp.VerifyIDToken[*oidc.IDTokenClaims](ctx, strings.TrimSpace(h.OK("fetch", "jwt", "--audience", "relying-party")), party.IDTokenVerifier())
		return err
	}
	if err := verify(); err == nil {
		t.Error("it takes ES256")
	}
	h.Write("entries.d/a.yaml", strings.Replace(entry, "}", ", jwt_algorithm: RS256}", 1))
	daemontest.Eventually(t, "the entry asks for RS256", func() bool { return strings.Contains(h.OK("entry", "list"), "signed with RS256") })
	for range 2 {
		if err := verify(); err != nil {
			t.Error(err)
		}
		h.Stop()
		h.Start()
	}
	h.Stop()
	h.VerifyLog()
}

func TestPublishedKeysAreAsCloudsWantThemAndHaveTheNextOne(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Start()
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	must(t, json.Unmarshal([]byte(h.OK("bundle", "jwks")), &set))
	published := make(map[any]int)
	for _, k := range set.Keys {
		published[fmt.Sprintf("%v %v", k["alg"], k["kty"])]++
		if k["use"] != "sig" || k["kid"] == "" || k["d"] != nil {
			t.Errorf("key %v", k)
		}
	}
	if len(set.Keys) != 4 || published["ES256 EC"] != 2 || published["RS256 RSA"] != 2 {
		t.Errorf("published: %v; want of each algorithm the key that signs and the next", published)
	}
	for _, tt := range []struct {
		args []string
		code int
		err  string
	}{
		{[]string{"bundle", "jwks", "--issuer", "https://other.example.org"}, 1, "this host's tokens say https://example.org"},
		{[]string{"bundle", "openid-configuration"}, 2, "--issuer"},
		{[]string{"bundle", "openid-configuration", "--issuer", "https://other.example.org"}, 1, "authority.jwt_issuer"},
		{[]string{"bundle", "openid-configuration", "--issuer", "https://example.org", "--jwks-uri", "http://example.org/keys"}, 2, "want an https URL"},
		{[]string{"bundle", "jwks", "--write", h.Path("nonexistent/keys")}, 1, "no such file"},
		{[]string{"bundle"}, 2, "a command is required"},
	} {
		if _, stderr, code := h.Vouch(tt.args...); code != tt.code || !strings.Contains(stderr, tt.err) {
			t.Errorf("vouch %s exits %d: %s", strings.Join(tt.args, " "), code, stderr)
		}
	}
	var doc map[string]any
	must(t, json.Unmarshal([]byte(h.OK("bundle", "openid-configuration", "--issuer", "https://example.org")), &doc))
	if doc["issuer"] != "https://example.org" || doc["jwks_uri"] != "https://example.org/keys" ||
		fmt.Sprint(doc["id_token_signing_alg_values_supported"]) != "[ES256 RS256]" {
		t.Errorf("the document is %v", doc)
	}
}

// Another trust domain has nothing but the file.
func TestFederatedDomainVerifiesSVIDsByTheBundle(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	bundle, err := spiffebundle.Parse(td, []byte(h.OK("bundle", "spiffe")))
	must(t, err)
	if n, ok := bundle.SequenceNumber(); !ok || n == 0 {
		t.Errorf("sequence %d, %v", n, ok)
	}
	if hint, ok := bundle.RefreshHint(); !ok || hint < time.Minute {
		t.Errorf("refresh hint %v, %v", hint, ok)
	}
	if len(bundle.X509Authorities()) != 1 || len(bundle.JWTAuthorities()) != 4 {
		t.Errorf("%d roots and %d JWT keys", len(bundle.X509Authorities()), len(bundle.JWTAuthorities()))
	}
	token := strings.TrimSpace(h.OK("fetch", "jwt", "--audience", "far"))
	if svid, err := jwtsvid.ParseAndValidate(token, bundle, []string{"far"}); err != nil || svid.ID.Path() != "/cli" {
		t.Errorf("the JWT-SVID: %v", err)
	}
	h.OK("fetch", "x509", "--write", h.Path("svid"))
	svid, err := x509svid.Load(h.Path("svid/svid.0.pem"), h.Path("svid/svid.0.key"))
	must(t, err)
	var raw [][]byte
	for _, c := range svid.Certificates {
		raw = append(raw, c.Raw)
	}
	if id, _, err := x509svid.ParseAndVerify(raw, bundle); err != nil || id.Path() != "/cli" {
		t.Errorf("the X509-SVID: %v", err)
	}
	// It is what the Workload API gives workloads of this host.
	roots, err := x509.ParseCertificate(bundle.X509Authorities()[0].Raw)
	if err != nil || !strings.Contains(h.OK("fetch", "bundle"), "BEGIN CERTIFICATE") || !roots.IsCA {
		t.Errorf("the root: %v", err)
	}
}
