package svid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// authority is a root with its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{domain.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	c, err = x509.ParseCertificate(der)
	must(t, err)
	return &authority{c, key}
}

// svid is a leaf in PEM with its key, changed as a test wants.
func (a *authority) svid(t testing.TB, change func(*x509.Certificate)) []byte {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "agent"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{spiffeid.RequireFromPath(domain, "/agent").URL()}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return append(encode("CERTIFICATE", der), encode("PRIVATE KEY", private)...)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func token(t testing.TB, key *ecdsa.PrivateKey, claims any) []byte {
	t.Helper()
	return typed(t, "JWT", key, claims)
}

func typed(t testing.TB, typ jose.ContentType, key *ecdsa.PrivateKey, claims any) []byte {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, new(jose.SignerOptions).WithType(typ))
	must(t, err)
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	must(t, err)
	return []byte(text)
}

// look inspects a document, by a bundle if there is one, and returns what is said of its first
// thing in one text.
func look(t *testing.T, data []byte, b *Bundle) (Thing, string) {
	t.Helper()
	things, err := Inspect(data, time.Now())
	must(t, err)
	if b != nil {
		things[0].Verify(b)
	}
	var text strings.Builder
	write(&text, things)
	return things[0], text.String()
}

func TestX509SVIDIsHeldToItsStandardAndVerified(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	bundle, err := ReadBundle(encode("CERTIFICATE", a.cert.Raw), "roots")
	must(t, err)
	thing, text := look(t, a.svid(t, nil), bundle)
	if len(thing.Problems) != 0 || thing.Kind != "X509-SVID" || !strings.Contains(text, "spiffe://example.org/agent") || !strings.Contains(text, "by roots") || !strings.Contains(text, "private key") {
		t.Errorf("of one that is right: %s", text)
	}
	foreign, err := url.Parse("https://example.org")
	must(t, err)
	for want, data := range map[string][]byte{
		"expired 1m": a.svid(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}),
		"is not valid yet":              a.svid(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
		"has 0 URI names":               a.svid(t, func(c *x509.Certificate) { c.URIs = nil }),
		"has 2 URI names":               a.svid(t, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }),
		"is not a SPIFFE ID":            a.svid(t, func(c *x509.Certificate) { c.URIs = []*url.URL{foreign} }),
		"has no path":                   a.svid(t, func(c *x509.Certificate) { c.URIs = []*url.URL{domain.ID().URL()} }),
		"lacks digital signatures":      a.svid(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }),
		"is to sign certificates":       a.svid(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }),
		"does not verify by roots":      other.svid(t, nil),
		"its SPIFFE ID has a path":      a.svid(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }),
		"without the key usage to sign": a.svid(t, func(c *x509.Certificate) { c.IsCA = true }),
	} {
		if thing, text := look(t, data, bundle); !strings.Contains(strings.Join(thing.Problems, "\n"), want) {
			t.Errorf("want %q in %s", want, text)
		}
	}
}

func TestJWTSVIDIsHeldToItsStandardAndVerifiedAndNotShown(t *testing.T) {
	t.Parallel()
	key, other := newKey(t), newKey(t)
	keys := spiffebundle.New(domain)
	must(t, keys.AddJWTAuthority("k", key.Public()))
	doc, err := keys.Marshal()
	must(t, err)
	bundle, err := ReadBundle(doc, "keys")
	must(t, err)
	right := map[string]any{"sub": "spiffe://example.org/agent", "aud": []string{"a"}, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(), "tenant": "t-canary"}
	with := func(name string, value any) map[string]any {
		m := make(map[string]any)
		for k, v := range right {
			m[k] = v
		}
		if m[name] = value; value == nil {
			delete(m, name)
		}
		return m
	}
	good := token(t, key, right)
	thing, text := look(t, good, bundle)
	if len(thing.Problems) != 0 || !strings.Contains(text, "by keys") || !strings.Contains(text, "other claims    tenant") {
		t.Errorf("of one that is right: %s", text)
	}
	parts := strings.Split(string(good), ".")
	for _, secret := range []string{parts[1], parts[2], "canary"} {
		if strings.Contains(text, secret) {
			t.Errorf("it shows %s", secret)
		}
	}
	for want, data := range map[string][]byte{
		"is not a SPIFFE ID":      token(t, key, with("sub", "agent")),
		"has no audience":         token(t, key, with("aud", nil)),
		"has no end":              token(t, key, with("exp", nil)),
		"expired 1m":              token(t, key, with("exp", time.Now().Add(-time.Minute).Unix())),
		"does not verify by keys": token(t, other, right),
		"cannot be read":          []byte("eyJhbGciOiJub25lIn0.e30."),
	} {
		if thing, text := look(t, data, bundle); !strings.Contains(strings.Join(thing.Problems, "\n"), want) {
			t.Errorf("want %q in %s", want, text)
		}
	}
}

func TestWITSVIDIsHeldToItsStandardAndVerified(t *testing.T) {
	t.Parallel()
	key, holder := newKey(t), newKey(t)
	keys := spiffebundle.New(domain)
	must(t, keys.AddWITAuthority("k", key.Public()))
	doc, err := keys.Marshal()
	must(t, err)
	bundle, err := ReadBundle(doc, "keys")
	must(t, err)
	claims := func(jwk any) map[string]any {
		return map[string]any{
			"sub": "spiffe://example.org/agent", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(), "cnf": map[string]any{"jwk": jwk},
		}
	}
	public := jose.JSONWebKey{Key: holder.Public(), Algorithm: string(jose.ES256)}
	thing, text := look(t, typed(t, "wit+jwt", key, claims(public)), bundle)
	if thing.Kind != "WIT-SVID" || len(thing.Problems) != 0 || !strings.Contains(text, "a key of ECDSA P-256") || !strings.Contains(text, "by keys") {
		t.Errorf("of one that is right: %s", text)
	}
	for want, data := range map[string][]byte{
		"names no key":            typed(t, "wit+jwt", key, claims(nil)),
		"has a private key":       typed(t, "wit+jwt", key, claims(jose.JSONWebKey{Key: holder})),
		"does not verify by keys": typed(t, "wit+jwt", holder, claims(public)),
		"has no audience":         typed(t, "JWT", key, claims(public)),
	} {
		if thing, text := look(t, data, bundle); !strings.Contains(strings.Join(thing.Problems, "\n"), want) {
			t.Errorf("want %q in %s", want, text)
		}
	}
}

func TestDocumentsAreToldByContent(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	keys := spiffebundle.New(domain)
	keys.AddX509Authority(a.cert)
	must(t, keys.AddJWTAuthority("k", newKey(t).Public()))
	keys.SetSequenceNumber(7)
	bundle, err := keys.Marshal()
	must(t, err)
	for want, data := range map[string][]byte{
		"root certificate":         encode("CERTIFICATE", a.cert.Raw),
		"X509-SVID":                a.svid(t, nil),
		"SPIFFE bundle":            bundle,
		"evidence":                 []byte(`{"version":1,"quote":{},"ak":{},"node_key":{}}`),
		"enrolment request":        []byte(`{"version":1,"trust_domain":"example.org","csr":"AA==","evidence":{}}`),
		"challenge":                []byte(`{"version":1,"ek_sha256":"ab","ak_name":"cd","credential":"AA==","secret":"AA=="}`),
		"answer to a challenge":    []byte(`{"version":1,"ek_sha256":"ab","ak_name":"cd","proof":"AA=="}`),
		"kept part of a challenge": []byte(`{"version":1,"ek_sha256":"ab","ak_name":"cd","credential":"AA=="}`),
		"approval of an enrolment": []byte(`{"version":1,"challenge":"AA==","sealed":"AA=="}`),
		"appraisal result":         []byte(`{"version":1,"passed":true,"rules":[]}`),
		"approval of a boot state": []byte(`{"version":1,"pcrs":{},"signature":"AA=="}`),
	} {
		things, err := Inspect(data, time.Now())
		if err != nil || things[0].Kind != want {
			t.Errorf("%s is told to be %v, %v", want, things, err)
		}
	}
	if things, err := Inspect(a.cert.Raw, time.Now()); err != nil || things[0].Kind != "root certificate" {
		t.Errorf("DER: %v, %v", things, err)
	}
	for _, data := range []string{"", "  ", "hello", "{", `{"a":1}`, "-----BEGIN NOTHING-----", "\x30\x82"} {
		if things, err := Inspect([]byte(data), time.Now()); err == nil {
			t.Errorf("%q is told to be %v", data, things)
		}
	}
}

func FuzzInspect(f *testing.F) {
	a := newAuthority(f)
	f.Add(a.svid(f, nil))
	f.Add(a.cert.Raw)
	f.Add(token(f, a.key, map[string]any{"sub": "spiffe://example.org/\u202e\x1b[2J", "aud": "a"}))
	f.Add([]byte(`{"keys":[{"use":"x509-svid","kty":"EC","crv":"P-256","x":"AA","y":"AA"}],"spiffe_sequence":1}`))
	f.Add([]byte(`{"version":1,"quote":{},"ak":{},"node_key":{},"hostname":"\u001b[2J"}`))
	bundle, err := ReadBundle(encode("CERTIFICATE", a.cert.Raw), "roots")
	must(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		things, err := Inspect(data, time.Now())
		if err != nil {
			return
		}
		for i := range things {
			things[i].Verify(bundle)
		}
		var text strings.Builder
		write(&text, things)
		if i := strings.IndexFunc(text.String(), func(r rune) bool { return r != '\n' && (r < ' ' || r == 0x7f || r == '\u202e') }); i >= 0 {
			t.Errorf("%q has what a terminal would act on", text.String()[i:])
		}
	})
}
