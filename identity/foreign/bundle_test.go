package foreign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
)

func TestBundleInTheStandardsFormIsRead(t *testing.T) {
	t.Parallel()
	a, b := newRoot(partner), newRoot(partner)
	ec, rsaKey := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), must(rsa.GenerateKey(rand.Reader, 2048))
	want := spiffebundle.New(partner)
	want.SetX509Authorities([]*x509.Certificate{a.cert, b.cert})
	want.SetSequenceNumber(1<<64 - 1)
	want.SetRefreshHint(7 * time.Minute)
	must(0, want.AddJWTAuthority("ec", ec.Public()))
	must(0, want.AddJWTAuthority("rsa", rsaKey.Public()))
	got, err := ParseBundle(partner, must(want.Marshal()))
	if err != nil {
		t.Fatal(err)
	}
	if got.Sequence != 1<<64-1 || got.Hint != 7*time.Minute || got.TrustDomain != partner || got.Keys != 2 || got.Empty() {
		t.Errorf("read %+v", got)
	}
	roots := got.x509Bundle()
	if len(got.Roots) != 2 || !roots.HasX509Authority(a.cert) || !roots.HasX509Authority(b.cert) || !got.JWT.Equal(want.JWTBundle()) {
		t.Error("roots or keys are not those that were written")
	}
	served, err := jwtbundle.Parse(partner, got.JWKS)
	if err != nil || !served.Equal(want.JWTBundle()) {
		t.Errorf("workloads would be served %s (%v)", got.JWKS, err)
	}
	if certs, err := x509.ParseCertificates(got.X509); err != nil || len(certs) != 2 {
		t.Errorf("workloads would be served %d roots (%v)", len(certs), err)
	}
}

// keysDocument is a document of these elements.
func keysDocument(elements ...any) []byte {
	return must(json.Marshal(map[string]any{"keys": elements, "another": "parameter"}))
}

// element is a root as it stands in a document, changed.
func element(r root, change func(map[string]any)) map[string]any {
	m := make(map[string]any)
	raw := must(jose.JSONWebKey{Key: r.cert.PublicKey, Use: "x509-svid", Certificates: []*x509.Certificate{r.cert}}.MarshalJSON())
	must(0, json.Unmarshal(raw, &m))
	change(m)
	return m
}

func TestWhatTheStandardsIgnoreIsIgnored(t *testing.T) {
	t.Parallel()
	good, unused := newRoot(partner), newRoot(partner)
	plain := element(good, func(map[string]any) {})
	symmetric := jose.JSONWebKey{Key: []byte("symmetric"), KeyID: "s", Use: "jwt-svid"}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, ignored := range map[string]any{
		"unknown use":        element(unused, func(m map[string]any) { m["use"] = "x509-SVID" }),
		"no use":             element(unused, func(m map[string]any) { delete(m, "use") }),
		"unknown key type":   map[string]any{"kty": "lattice", "use": "jwt-svid", "kid": "l"},
		"no key type":        map[string]any{"use": "jwt-svid", "kid": "l"},
		"no x5c":             element(unused, func(m map[string]any) { delete(m, "x5c") }),
		"empty x5c":          element(unused, func(m map[string]any) { m["x5c"] = []any{} }),
		"key of no WIT-SVID": jwkOf(ed.Public(), "e", "wit-svid"),
		"symmetric key":      symmetric,
		"key of no JWT-SVID": jwkOf(ed.Public(), "e", "jwt-svid"),
	} {
		b, err := ParseBundle(partner, keysDocument(ignored, plain))
		if err != nil || len(b.Roots) != 1 || b.Keys != 0 || !b.Roots[0].Equal(good.cert) {
			t.Errorf("%s: read %+v, %v", name, b, err)
		}
	}
	several := element(good, func(m map[string]any) {
		m["x5c"] = append(m["x5c"].([]any), base64.StdEncoding.EncodeToString(unused.cert.Raw))
	})
	if b, err := ParseBundle(partner, keysDocument(several)); err != nil || len(b.Roots) != 1 || !b.Roots[0].Equal(good.cert) {
		t.Errorf("of several certificates more than the first count: %+v, %v", b, err)
	}
}

func TestKeysOfWITSVIDsAndOfJWTSVIDsAreKeptApart(t *testing.T) {
	t.Parallel()
	r := newRoot(partner)
	root, token := element(r, func(map[string]any) {}), jwkOf(r.key.Public(), "k", "jwt-svid")
	without := must(ParseBundle(partner, keysDocument(root, token)))
	if without.WITKeys != nil || !without.WIT.Empty() {
		t.Errorf("without any it has %s", without.WITKeys)
	}
	// Nothing says that a key of one use can't have the ID of one of the other.
	b := must(ParseBundle(partner, keysDocument(root, token, jwkOf(r.key.Public(), "k", "wit-svid"))))
	if b.Keys != 1 || !bytes.Equal(b.JWKS, without.JWKS) || b.Digest == without.Digest {
		t.Errorf("with one it is %+v", b)
	}
	parsed, err := witbundle.Parse(partner, b.WITKeys)
	if err != nil || !parsed.Equal(b.WIT) || !parsed.HasWITAuthority("k") {
		t.Errorf("%s: %v, %v", b.WITKeys, parsed, err)
	}
	if alone := must(ParseBundle(partner, keysDocument(jwkOf(r.key.Public(), "k", "wit-svid")))); alone.Empty() {
		t.Error("a trust domain of WIT-SVIDs alone counts as one that has withdrawn its keys")
	}
}

func TestDocumentThatIsNoBundleIsRefused(t *testing.T) {
	t.Parallel()
	r := newRoot(partner)
	leaf, _ := r.leaf(func(c *x509.Certificate) {})
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for _, tt := range []struct {
		name     string
		document []byte
		want     string
	}{
		{"empty", nil, "not a SPIFFE bundle"},
		{"HTML", []byte("<!doctype html><title>Sign in</title>"), "not a SPIFFE bundle"},
		{"a list", []byte("[]"), "not a SPIFFE bundle"},
		{"text", []byte(`"keys"`), "not a SPIFFE bundle"},
		{"no keys", []byte(`{"spiffe_sequence": 1}`), "it has no keys"},
		{"keys in other letters", []byte(`{"Keys": []}`), "it has no keys"},
		{"null keys", []byte(`{"keys": null}`), "it has no keys"},
		{"keys twice", []byte(`{"keys": [], "keys": []}`), "duplicate"},
		{"bytes behind it", []byte(`{"keys": []} {}`), "after top-level value"},
		{"negative sequence", []byte(`{"keys": [], "spiffe_sequence": -1}`), "not a SPIFFE bundle"},
		{"sequence of 65 bits", []byte(`{"keys": [], "spiffe_sequence": 18446744073709551616}`), "not a SPIFFE bundle"},
		{"broken sequence", []byte(`{"keys": [], "spiffe_sequence": 1.5}`), "not a SPIFFE bundle"},
		{"key that is a number", []byte(`{"keys": [1]}`), "key 1 of the bundle"},
		{"too long", bytes.Repeat([]byte(" "), MaxDocument+1), "more than 262144 bytes"},
		{"x5c that is no base64", keysDocument(element(r, func(m map[string]any) { m["x5c"] = []string{"*"} })), "x5c"},
		{"x5c that is no certificate", keysDocument(element(r, func(m map[string]any) { m["x5c"] = []string{"AAAA"} })), "x5c"},
		{"root that signs nothing", keysDocument(element(r, func(m map[string]any) {
			m["x5c"] = []string{base64.StdEncoding.EncodeToString(leaf)}
		})), "signs none"},
		{"another trust domain's root", keysDocument(element(newRoot(other), func(map[string]any) {})), "its root is of other.example"},
		{"our own root", keysDocument(element(newRoot(own), func(map[string]any) {})), "its root is of example.org"},
		{"JWT key without kid", keysDocument(jwkOf(ec.Public(), "", "jwt-svid")), "needs a kid"},
		{"WIT key without kid", keysDocument(jwkOf(ec.Public(), "", "wit-svid")), "needs a kid"},
		{"WIT keys with one kid", keysDocument(jwkOf(ec.Public(), "w", "wit-svid"), jwkOf(r.key.Public(), "w", "wit-svid")), "its kid is that of another key"},
		{"JWT key with a long kid", keysDocument(jwkOf(ec.Public(), strings.Repeat("k", 257), "jwt-svid")), "needs a kid"},
		{"kid twice", keysDocument(jwkOf(ec.Public(), "k", "jwt-svid"), jwkOf(r.key.Public(), "k", "jwt-svid")), "kid is that of another"},
		{"private key", keysDocument(jwkOf(ec, "k", "jwt-svid")), "no valid public key"},
		{"weak RSA key", keysDocument(weakRSA("k")), "fewer than 2048 bits"},
	} {
		b, err := ParseBundle(partner, tt.document)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: read %+v, %v; want an error with %q", tt.name, b, err, tt.want)
		}
		if !errors.Is(err, errDocument) && !errors.Is(err, errOther) {
			t.Errorf("%s: %v is of no kind", tt.name, err)
		}
	}
}

// weakRSA is a key of 1024 bits, which Go makes no more.
func weakRSA(kid string) map[string]any {
	n := bytes.Repeat([]byte{0xff}, 128)
	return map[string]any{"kty": "RSA", "use": "jwt-svid", "kid": kid, "e": "AQAB", "n": base64.RawURLEncoding.EncodeToString(n)}
}

func TestOrderOfKeysMakesNoOtherBundle(t *testing.T) {
	t.Parallel()
	var elements, reversed []any
	for i := range 3 {
		r := newRoot(partner)
		elements = append(elements, element(r, func(map[string]any) {}), jwkOf(r.key.Public(), fmt.Sprint(i), "jwt-svid"))
	}
	for _, e := range elements {
		reversed = append([]any{e}, reversed...)
	}
	a, b := must(ParseBundle(partner, keysDocument(elements...))), must(ParseBundle(partner, keysDocument(reversed...)))
	if a.Digest != b.Digest || !bytes.Equal(a.X509, b.X509) || !bytes.Equal(a.JWKS, b.JWKS) {
		t.Error("another order makes another bundle")
	}
	if c := must(ParseBundle(partner, keysDocument(elements[1:]...))); c.Digest == a.Digest {
		t.Error("another root makes no other bundle")
	}
}

func TestBundleWithoutKeysSaysToTrustNothing(t *testing.T) {
	t.Parallel()
	b, err := ParseBundle(partner, []byte(`{"keys": []}`))
	if err != nil || !b.Empty() || string(b.JWKS) != `{"keys":[]}` {
		t.Errorf("read %+v, %v", b, err)
	}
}

// FuzzParseBundle holds that whatever is read can be served: workloads' parsers take it, and
// find in it what was counted.
func FuzzParseBundle(f *testing.F) {
	r := newRoot(partner)
	b := spiffebundle.FromX509Authorities(partner, []*x509.Certificate{r.cert})
	must(0, b.AddJWTAuthority("k", r.key.Public()))
	b.SetSequenceNumber(3)
	b.SetRefreshHint(time.Minute)
	f.Add(must(b.Marshal()))
	f.Add([]byte(`{"keys":[]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA","use":"jwt-svid","kid":"a"}],"spiffe_refresh_hint":-1}`))
	f.Add(keysDocument(weakRSA("k")))
	f.Add(bytes.Repeat([]byte("["), 10_000))
	f.Fuzz(func(t *testing.T, document []byte) {
		b, err := ParseBundle(partner, document)
		if err != nil {
			if !errors.Is(err, errDocument) && !errors.Is(err, errOther) {
				t.Errorf("%v is of no kind", err)
			}
			return
		}
		if len(b.X509) > 0 {
			if certs, err := x509.ParseCertificates(b.X509); err != nil || len(certs) != len(b.Roots) {
				t.Errorf("%d roots are served as %d: %v", len(b.Roots), len(certs), err)
			}
		}
		keys, err := jwtbundle.Parse(partner, b.JWKS)
		if err != nil || len(keys.JWTAuthorities()) != b.Keys {
			t.Errorf("%d keys are served as %s: %v", b.Keys, b.JWKS, err)
		}
		if b.Hint < 0 || b.Hint > maxInterval {
			t.Errorf("hint %v", b.Hint)
		}
	})
}
