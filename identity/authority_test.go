package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/state"
)

var (
	domain = spiffeid.RequireTrustDomainFromString("example.org")
	agent  = spiffeid.RequireFromPath(domain, "/agent/research")
)

type options = identity.Options

// A host is a machine with a real TPM, a state directory and a clock that the
// test moves.
type host struct {
	t     testing.TB
	dir   *state.Dir
	node  *node.Node
	clock *clock

	mu        sync.Mutex // guards announced
	announced []identity.Key
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newHost(t testing.TB) *host {
	t.Helper()
	tpm, err := node.Open(t.Context(), tpmtest.Start(t).Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	n, err := node.Load(t.Context(), tpm, dir)
	if err != nil {
		t.Fatal(err)
	}
	return &host{t: t, dir: dir, node: n, clock: &clock{now: time.Now()}}
}

func (h *host) options() identity.Options {
	return identity.Options{
		TrustDomain:  domain,
		NodeKey:      h.node.Signer(),
		Store:        h.dir,
		Sealer:       h.node,
		IssuingCATTL: 4 * time.Hour,
		Overlap:      2 * time.Hour,
		JWTKeyTTL:    24 * time.Hour,
		JWTIssuer:    "https://example.org",
		Announce: func(_ context.Context, k identity.Key) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.announced = append(h.announced, k)
			return nil
		},
		Now: h.clock.Now,
	}
}

// start is what a start of the daemon does.
func (h *host) start(change ...func(*options)) *identity.Authority {
	h.t.Helper()
	o := h.options()
	for _, f := range change {
		f(&o)
	}
	a, err := identity.NewAuthority(h.t.Context(), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// keyInTPM is the option of a JWT key that never leaves the TPM.
func (h *host) keyInTPM(o *options) {
	key, err := h.node.Key(h.t.Context(), "jwt")
	if err != nil {
		h.t.Fatal(err)
	}
	o.JWTKey = key
}

func (h *host) issueX509(a *identity.Authority, ttl time.Duration) []*x509.Certificate {
	h.t.Helper()
	svid, err := a.IssueX509(h.t.Context(), identity.Entry{ID: agent, X509TTL: ttl})
	if err != nil {
		h.t.Fatal(err)
	}
	chain, err := x509.ParseCertificates(svid.Chain)
	if err != nil {
		h.t.Fatal(err)
	}
	return chain
}

func (h *host) issueJWT(a *identity.Authority) string {
	h.t.Helper()
	svid, err := a.IssueJWT(h.t.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, []string{"api"}, identity.With{})
	if err != nil {
		h.t.Fatal(err)
	}
	return svid.Token
}

func (h *host) verifyX509(a *identity.Authority, chain []*x509.Certificate) error {
	h.t.Helper()
	roots, err := x509bundle.ParseRaw(domain, a.Bundle().X509)
	if err != nil {
		h.t.Fatal(err)
	}
	_, _, err = x509svid.Verify(chain, roots, x509svid.WithTime(h.clock.Now()))
	return err
}

func TestX509SVIDObeysTheStandard(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	chain := h.issueX509(a, time.Hour)
	leaf, ca := chain[0], chain[1]
	roots, err := x509.ParseCertificates(a.Bundle().X509)
	if err != nil {
		t.Fatal(err)
	}
	root := roots[0]
	isCritical := func(c *x509.Certificate, oid ...int) bool {
		i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier(oid)) })
		return i >= 0 && c.Extensions[i].Critical
	}
	for _, tt := range []struct {
		clause string
		holds  bool
	}{
		{"§2 the leaf has exactly one URI SAN, the SPIFFE ID", len(leaf.URIs) == 1 && leaf.URIs[0].String() == agent.String()},
		{"§2 the leaf has no other SAN", len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) == 0},
		{"§3.1 the SAN is critical with an empty subject", leaf.Subject.String() == "" && isCritical(leaf, 2, 5, 29, 17)},
		{"§3.2 a signing certificate's ID has no path", ca.URIs[0].String() == "spiffe://example.org" && root.URIs[0].String() == "spiffe://example.org"},
		{"§4.1 cA is set on signing certificates alone", !leaf.IsCA && leaf.BasicConstraintsValid && ca.IsCA && root.IsCA},
		{"§4.3 key usage is critical", isCritical(leaf, 2, 5, 29, 15) && isCritical(ca, 2, 5, 29, 15) && isCritical(root, 2, 5, 29, 15)},
		{"§4.3 the leaf may sign, not certify", leaf.KeyUsage == x509.KeyUsageDigitalSignature},
		{"§4.3 signing certificates may certify, not sign", ca.KeyUsage == x509.KeyUsageCertSign|x509.KeyUsageCRLSign && root.KeyUsage == ca.KeyUsage},
		{"§4.4 the leaf serves both TLS purposes", slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth})},
		{"§5 path validation succeeds", h.verifyX509(a, chain) == nil},
		{"the issuing CA signs leaves only", ca.MaxPathLenZero && ca.MaxPathLen == 0},
		{"the root is the node key's", h.node.NodeKey().Equal(root.PublicKey)},
		{"the leaf ends with the issuing CA or before", !leaf.NotAfter.After(ca.NotAfter)},
	} {
		if !tt.holds {
			t.Errorf("X509-SVID %s: does not hold", tt.clause)
		}
	}
	if err := h.verifyX509(a, []*x509.Certificate{ca, root}); err == nil {
		t.Error("a signing certificate authenticates (X509-SVID §3.2)")
	}
}

func TestJWTSVIDObeysTheStandard(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	token := h.issueJWT(a)
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("token has %d parts, want the compact serialisation (§1)", len(parts))
	}
	var header, claims map[string]any
	for i, v := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := keys(header), []string{"alg", "kid", "typ"}; !slices.Equal(got, want) {
		t.Errorf("header has %q, want %q and nothing else (§2)", got, want)
	}
	if header["alg"] != "ES256" || header["typ"] != "JWT" {
		t.Errorf("header = %v, want ES256 (§2.1) and JWT (§2.3)", header)
	}
	if got, want := keys(claims), []string{"aud", "exp", "iat", "iss", "jti", "sub"}; !slices.Equal(got, want) {
		t.Errorf("claims are %q, want %q (§3)", got, want)
	}
	if claims["sub"] != agent.String() || claims["iss"] != "https://example.org" {
		t.Errorf("claims = %v", claims)
	}
	bundle, err := jwtbundle.Parse(domain, a.Bundle().JWKS)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token, bundle, []string{"api"}); err != nil {
		t.Errorf("the bundle does not validate the token: %v", err)
	}
	if !bytes.Contains(a.Bundle().JWKS, []byte(`"use":"jwt-svid"`)) {
		t.Errorf("JWKS %s lacks use jwt-svid (§6.1)", a.Bundle().JWKS)
	}
}

func keys(m map[string]any) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

func TestValidateJWTRefuses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	good := h.issueJWT(a)
	parts := strings.Split(good, ".")
	b64 := base64.RawURLEncoding.EncodeToString
	for _, tt := range []struct {
		name, token, audience string
	}{
		{"another audience", good, "other"},
		{"alg none", b64([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".", "api"},
		{"alg HS256", b64([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + parts[1] + "." + parts[2], "api"},
		{"a changed claim", parts[0] + "." + b64([]byte(`{"sub":"spiffe://example.org/admin","aud":"api","exp":9999999999}`)) + "." + parts[2], "api"},
		{"a foreign trust domain", parts[0] + "." + b64([]byte(`{"sub":"spiffe://evil.example/agent","aud":"api","exp":9999999999}`)) + "." + parts[2], "api"},
		{"no signature", parts[0] + "." + parts[1] + ".", "api"},
		{"the JSON serialisation", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "api"},
		{"nothing", "", "api"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if svid, err := a.Bundle().ValidateJWT(tt.token, tt.audience); err == nil {
				t.Errorf("ValidateJWT accepted it as %s", svid.ID)
			}
		})
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	foreign := spiffeid.RequireFromString("spiffe://evil.example/agent")
	for _, tt := range []struct {
		name string
		id   spiffeid.ID
		ttl  time.Duration
	}{
		{"a foreign trust domain", foreign, time.Hour},
		{"the trust domain's own ID", domain.ID(), time.Hour},
		{"no ID", spiffeid.ID{}, time.Hour},
		{"no lifetime", agent, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := a.IssueX509(t.Context(), identity.Entry{ID: tt.id, X509TTL: tt.ttl}); err == nil {
				t.Error("IssueX509 issued")
			}
			if _, err := a.IssueJWT(t.Context(), identity.Entry{ID: tt.id, JWTTTL: tt.ttl}, []string{"api"}, identity.With{}); err == nil {
				t.Error("IssueJWT issued")
			}
		})
	}
	if _, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, nil, identity.With{}); err == nil {
		t.Error("IssueJWT issued for no audience")
	}
}

func TestEverythingValidVerifiesAcrossRotationAndRestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	type issued struct {
		chain []*x509.Certificate
		token string
		until time.Time
	}
	var all []issued
	// Three days in half-hour steps, a restart every five hours.
	for step := range 144 {
		if step%10 == 9 {
			a = h.start()
		}
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, issued{h.issueX509(a, time.Hour), h.issueJWT(a), h.clock.Now().Add(time.Hour)})
		h.clock.move(30 * time.Minute)
		bundle, err := jwtbundle.Parse(domain, a.Bundle().JWKS)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range all {
			if !h.clock.Now().Before(s.until) {
				continue
			}
			if err := h.verifyX509(a, s.chain); err != nil {
				t.Fatalf("step %d: the X509-SVID of step %d: %v", step, i, err)
			}
			if _, ok := bundle.FindJWTAuthority(keyID(t, s.token)); !ok {
				t.Fatalf("step %d: the key of the JWT-SVID of step %d is not in the bundle", step, i)
			}
		}
	}
	if n := strings.Count(string(a.Bundle().JWKS), `"kid"`); n > 3 {
		t.Errorf("the bundle keeps %d JWT keys; old ones are to leave", n)
	}
}

func keyID(t *testing.T, token string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
	if err != nil {
		t.Fatal(err)
	}
	var header struct{ Kid string }
	if err := json.Unmarshal(b, &header); err != nil {
		t.Fatal(err)
	}
	return header.Kid
}

func TestJWTKeyIsPublishedOneLifeBeforeItSigns(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	published := make(map[string]time.Time)
	note := func() {
		var set struct {
			Keys []struct{ Kid string }
		}
		if err := json.Unmarshal(a.Bundle().JWKS, &set); err != nil {
			t.Fatal(err)
		}
		for _, k := range set.Keys {
			if _, ok := published[k.Kid]; !ok {
				published[k.Kid] = h.clock.Now()
			}
		}
	}
	note()
	first := keyID(t, h.issueJWT(a))
	signed := map[string]bool{first: true}
	for range 4 * 60 {
		h.clock.move(15 * time.Minute)
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		note()
		kid := keyID(t, h.issueJWT(a))
		if !signed[kid] {
			signed[kid] = true
			if ahead := h.clock.Now().Sub(published[kid]); ahead < 24*time.Hour-15*time.Minute {
				t.Errorf("key %s signs %v after it was published, want 24h", kid, ahead)
			}
		}
	}
	if len(signed) != 3 {
		t.Errorf("%d keys signed within 60 hours, want 3", len(signed))
	}
}

// Somebody publishes the JWKS as a file, and only as often as it says.
func TestPublishedJWKSVerifiesUntilItSays(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	bundle := a.Bundle()
	replaced := 0
	for step := range 7 * 96 {
		if step%50 == 49 {
			a = h.start()
		}
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !h.clock.Now().Before(bundle.JWKSGoodUntil) {
			bundle = a.Bundle()
			replaced++
		}
		keys, err := jwtbundle.Parse(domain, bundle.JWKS)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := keys.FindJWTAuthority(keyID(t, h.issueJWT(a))); !ok {
			t.Fatalf("step %d: the published JWKS lacks the key that signs", step)
		}
		h.clock.move(15 * time.Minute)
	}
	if replaced != 3 { // in a week, with keys of a day, of which it has two
		t.Errorf("it was published %d times anew, want 3", replaced)
	}
}

func TestAKeyIsAnnouncedBeforeItIsUsed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	refused := errors.New("log full")
	_, err := identity.NewAuthority(t.Context(), func() identity.Options {
		o := h.options()
		o.Announce = func(context.Context, identity.Key) error { return refused }
		return o
	}())
	if !errors.Is(err, refused) {
		t.Fatalf("NewAuthority = %v, want the announcement's error", err)
	}
	a := h.start()
	chain, token := h.issueX509(a, time.Hour), h.issueJWT(a)
	var announced []string
	for _, k := range h.announced {
		announced = append(announced, k.ID)
	}
	caID := hex.EncodeToString(chain[1].SubjectKeyId)
	if !slices.Contains(announced, caID) || !slices.Contains(announced, keyID(t, token)) {
		t.Errorf("announced %q, which lacks %s or %s", announced, caID, keyID(t, token))
	}
}

func TestOldKeysServeOnWhileNewOnesCannotBeAnnounced(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var broken bool
	a := h.start(func(o *options) {
		announce := o.Announce
		o.Announce = func(ctx context.Context, k identity.Key) error {
			if broken {
				return errors.New("log full")
			}
			return announce(ctx, k)
		}
	})
	broken = true
	h.clock.move(3 * time.Hour)
	if err := a.Rotate(t.Context()); err == nil {
		t.Error("Rotate succeeded without announcing")
	}
	chain := h.issueX509(a, 2*time.Hour)
	if chain[0].NotAfter.After(chain[1].NotAfter) {
		t.Error("an SVID outlives the issuing CA")
	}
	h.clock.move(2 * time.Hour)
	if _, err := a.IssueX509(t.Context(), identity.Entry{ID: agent, X509TTL: time.Hour}); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("IssueX509 with an expired CA = %v, want ErrNoAuthority", err)
	}
	broken = false
	if err := h.verifyX509(a, h.issueX509(a, time.Hour)); err != nil {
		t.Errorf("after mending: %v", err)
	}
}

func TestClockThatJumpsMakesNewKeysAndNoInvalidSVIDs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	for _, jump := range []time.Duration{24 * time.Hour, -48 * time.Hour, 400 * 24 * time.Hour, -400 * 24 * time.Hour} {
		h.clock.move(jump)
		if err := h.verifyX509(a, h.issueX509(a, time.Hour)); err != nil {
			t.Errorf("after a jump of %v: %v", jump, err)
		}
		token := h.issueJWT(a)
		bundle, err := jwtbundle.Parse(domain, a.Bundle().JWKS)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := bundle.FindJWTAuthority(keyID(t, token)); !ok {
			t.Errorf("after a jump of %v: the signing key is not in the bundle", jump)
		}
	}
}

// both is the option of keys of both algorithms.
func both(o *options) { o.JWTAlgorithms = []string{identity.ES256, identity.RS256} }

func issueRS256(t *testing.T, a *identity.Authority) *identity.JWTSVID {
	t.Helper()
	svid, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, []string{"api"}, identity.With{Algorithm: identity.RS256})
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestRS256IsThereForThoseWhoAskAndSurvivesARestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	before := keyID(t, h.issueJWT(h.start())) // a version that knew ES256 alone
	a := h.start(both)
	if kid := keyID(t, h.issueJWT(a)); kid != before {
		t.Errorf("with RS256 beside it, %s signs by default, want %s as before", kid, before)
	}
	if !a.Bundle().JWKSGoodUntil.Before(h.clock.Now().Add(time.Second)) {
		t.Error("a bundle without an RSA key claims to verify everything")
	}
	svid := issueRS256(t, a)
	parsed, err := jwt.ParseSigned(svid.Token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || parsed.Headers[0].KeyID != svid.KeyID || parsed.Headers[0].ExtraHeaders["typ"] != "JWT" {
		t.Fatalf("%+v, %v", parsed, err)
	}
	if _, err := a.Bundle().ValidateJWT(svid.Token, "api"); err != nil {
		t.Error(err)
	}
	if err := a.SelfCheck(t.Context()); err != nil {
		t.Error(err)
	}
	a = h.start(both)
	if again := issueRS256(t, a); again.KeyID != svid.KeyID {
		t.Errorf("after a restart %s signs, want %s", again.KeyID, svid.KeyID)
	}
	if _, err := a.Bundle().ValidateJWT(svid.Token, "api"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if !slices.ContainsFunc(h.announced, func(k identity.Key) bool { return k.ID == svid.KeyID && len(k.PublicKey) > 0 }) {
		t.Error("the RSA key was not announced")
	}
	if err := h.start().SelfCheck(t.Context()); err != nil {
		t.Errorf("once RS256 is excluded: %v", err)
	}
}

func TestRSAKeysArePublishedALifeBeforeTheySign(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start(both)
	issueRS256(t, a)
	published := make(map[string]bool)
	signed := make(map[string]bool)
	for range 4 {
		bundle, err := a.WholeBundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		keys, err := jwtbundle.Parse(domain, bundle.JWKS)
		if err != nil {
			t.Fatal(err)
		}
		kid := issueRS256(t, a).KeyID
		if len(signed) > 0 && !signed[kid] && !published[kid] {
			t.Errorf("key %s signs, and was not in the bundle a life before", kid)
		}
		signed[kid] = true
		clear(published)
		for id := range keys.JWTAuthorities() {
			published[id] = true
		}
		h.clock.move(24 * time.Hour)
	}
	if len(signed) < 3 {
		t.Errorf("%d RSA keys signed in four days", len(signed))
	}
}

func TestRSAKeysAreMadeInTheBackgroundOnceTheAuthorityRuns(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start(both)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ran := make(chan struct{})
	go func() { a.Run(ctx); close(ran) }()
	for changed := a.Changed(); ; changed = a.Changed() {
		keys, err := jwtbundle.Parse(domain, a.Bundle().JWKS)
		if err != nil {
			t.Fatal(err)
		}
		if len(keys.JWTAuthorities()) == 4 { // of each algorithm one that signs, and the next
			break
		}
		h.issueJWT(a) // which waits for no RSA key
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("a minute later %d keys are published", len(keys.JWTAuthorities()))
		}
	}
	if until := a.Bundle().JWKSGoodUntil; until.Before(h.clock.Now().Add(24 * time.Hour)) {
		t.Errorf("with all keys, the bundle says that it is good until %v", until)
	}
	cancel()
	<-ran
}

func TestAnAlgorithmThatIsExcludedSignsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, change := range []func(*options){func(*options) {}, h.keyInTPM} {
		_, err := h.start(change).IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, []string{"api"}, identity.With{Algorithm: identity.RS256})
		if !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(fmt.Sprint(err), "jwt_algorithms") {
			t.Errorf("IssueJWTWith = %v, want ErrNoAuthority and the setting", err)
		}
	}
	o := h.options()
	o.JWTAlgorithms = []string{"HS256"}
	if _, err := identity.NewAuthority(t.Context(), o); err == nil {
		t.Error("an authority signs with HS256")
	}
	o = h.options()
	h.keyInTPM(&o)
	both(&o)
	if _, err := identity.NewAuthority(t.Context(), o); err == nil {
		t.Error("a key of the TPM claims to sign RS256")
	}
}

func TestManyWhoWantTheFirstRSAKeyGetTheSame(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start(both)
	kids := make(chan string, 8)
	for range cap(kids) {
		go func() {
			svid, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, []string{"api"}, identity.With{Algorithm: identity.RS256})
			if err != nil {
				t.Error(err)
				svid = new(identity.JWTSVID)
			}
			kids <- svid.KeyID
		}()
	}
	first := <-kids
	for range cap(kids) - 1 {
		if kid := <-kids; kid != first {
			t.Errorf("one was signed by %s, another by %s", first, kid)
		}
	}
}

func TestBundleSequence(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	first := a.Bundle().Sequence
	if again := h.start().Bundle().Sequence; again != first {
		t.Errorf("a restart without a change moves the sequence from %d to %d", first, again)
	}
	changed := a.Changed()
	h.clock.move(24*time.Hour + time.Minute)
	if err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("Changed is not told of a new bundle")
	}
	if next := a.Bundle().Sequence; next != first+1 {
		t.Errorf("sequence after a change = %d, want %d", next, first+1)
	}
}

func TestJWTKeyInTheTPMStaysTheSame(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start(h.keyInTPM)
	first := keyID(t, h.issueJWT(a))
	h.clock.move(1000 * time.Hour)
	a = h.start(h.keyInTPM)
	token, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, []string{"api"}, identity.With{})
	if err != nil {
		t.Fatal(err)
	}
	if token.KeyID != first {
		t.Errorf("the key changed from %s to %s", first, token.KeyID)
	}
	bundle, err := jwtbundle.Parse(domain, a.Bundle().JWKS)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := bundle.FindJWTAuthority(first)
	if !ok {
		t.Fatal("the bundle lacks the key")
	}
	if _, ok := key.(*ecdsa.PublicKey); !ok {
		t.Errorf("the key is a %T", key)
	}
}

func TestSelfCheckPasses(t *testing.T) {
	t.Parallel()
	if err := newHost(t).start().SelfCheck(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNamedX509SVIDsNameStandsForItsID(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	long := spiffeid.RequireFromString("spiffe://example.org/" + strings.Repeat("a", 44)) // 65 bytes
	fits := spiffeid.RequireFromString("spiffe://example.org/" + strings.Repeat("a", 43))
	for id, want := range map[spiffeid.ID]string{
		agent: agent.String(),
		fits:  fits.String(),
		long:  fmt.Sprintf("%x", sha256.Sum256([]byte(long.String()))),
	} {
		svid, err := a.IssueX509(t.Context(), identity.Entry{ID: id, X509TTL: time.Hour, Names: identity.Names{Common: identity.CommonName(id)}})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(svid.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		if leaf.Subject.CommonName != want || len(want) > 64 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != id.String() || len(leaf.DNSNames) != 0 {
			t.Errorf("%s has the common name %q, want %q, and URIs %v", id, leaf.Subject.CommonName, want, leaf.URIs)
		}
		chain, err := x509.ParseCertificates(svid.Chain)
		if err != nil {
			t.Fatal(err)
		}
		roots, err := x509.ParseCertificates(a.Bundle().X509)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(id.TrustDomain(), roots)); err != nil || got != id {
			t.Errorf("it verifies as %v, %v", got, err)
		}
	}
}

func TestJWTSVIDWithAClaimMoreSaysTheRestAsAlways(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.start()
	svid, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Minute}, []string{"api"}, identity.With{
		Claim: "https://aws.amazon.com/tags", Value: map[string]any{"principal_tags": map[string][]string{"project": {"p"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.Bundle().ValidateJWT(svid.Token, "api")
	if err != nil || got.ID != agent || fmt.Sprint(got.Claims["https://aws.amazon.com/tags"]) != "map[principal_tags:map[project:[p]]]" {
		t.Errorf("it says %+v, %v", got, err)
	}
	for _, claim := range []string{"", "sub", "aud", "exp", "iss", "iat", "nbf", "jti"} {
		if _, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Minute}, []string{"api"}, identity.With{Claim: claim, Value: "x"}); err == nil {
			t.Errorf("claim %q could be set", claim)
		}
	}
}
