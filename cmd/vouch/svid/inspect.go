package svid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/audit"
)

// A Thing is what was found in a document, without anything in it that is secret.
type Thing struct {
	Kind     string   `json:"kind"`
	Facts    []Fact   `json:"facts"`
	Problems []string `json:"problems"` // what is wrong with it; missing: nothing is

	chain []*x509.Certificate // of an X509-SVID
	token string              // a JWT-SVID or WIT-SVID
	wit   bool                // the latter
	says  jwt.Claims          // of token
}

// A Fact is one of its properties.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (t *Thing) fact(name, format string, args ...any) {
	t.Facts = append(t.Facts, Fact{name, audit.Escape(fmt.Sprintf(format, args...))})
}

func (t *Thing) problem(format string, args ...any) {
	t.Problems = append(t.Problems, audit.Escape(fmt.Sprintf(format, args...)))
}

// maxThings bounds what one document is taken apart into.
const maxThings = 256

// ErrUnknown means that a document is of no kind that is known here.
var ErrUnknown = errors.New("it is no certificate, token, bundle or evidence that vouch knows; give a file of PEM, DER, JSON or a JWT")

// Inspect says what a document holds, as of now. It tells by content, whatever the document is
// called.
func Inspect(data []byte, now time.Time) ([]Thing, error) {
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return nil, errors.New("it is empty")
	case bytes.Contains(data, []byte("-----BEGIN ")):
		return inspectPEM(data, now)
	case data[0] == '{':
		return inspectJSON(data, now)
	case isCompact(data):
		return []Thing{inspectToken(string(data), now)}, nil
	}
	certs, err := x509.ParseCertificates(data)
	if err != nil || len(certs) == 0 || len(certs) > maxThings {
		return nil, ErrUnknown
	}
	return inspectCertificates(certs, now), nil
}

func inspectPEM(data []byte, now time.Time) (things []Thing, err error) {
	var certs []*x509.Certificate
	for n := 0; ; n++ {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if n == maxThings {
			return nil, fmt.Errorf("it has more than %d parts", maxThings)
		}
		switch {
		case b.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				things = append(things, Thing{Kind: "certificate", Problems: []string{"cannot be read: " + err.Error()}})
				continue
			}
			certs = append(certs, c)
		case strings.HasSuffix(b.Type, "PRIVATE KEY"):
			t := Thing{Kind: "private key"}
			t.fact("type", "%s, which is not shown", b.Type)
			things = append(things, t)
		case b.Type == "CERTIFICATE REQUEST":
			things = append(things, inspectRequest(b.Bytes))
		default:
			t := Thing{Kind: "PEM"}
			t.fact("type", "%s", b.Type)
			things = append(things, t)
		}
	}
	things = append(inspectCertificates(certs, now), things...)
	if len(things) == 0 {
		return nil, ErrUnknown
	}
	return things, nil
}

func inspectRequest(der []byte) Thing {
	t := Thing{Kind: "certificate request"}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.problem("cannot be read: %v", err)
		return t
	}
	t.fact("subject", "%s", csr.Subject)
	for _, u := range csr.URIs {
		t.fact("URI", "%s", u)
	}
	t.fact("key", "%s", keyType(csr.PublicKey))
	if err := csr.CheckSignature(); err != nil {
		t.problem("is not signed by its own key: %v", err)
	}
	return t
}

// inspectCertificates takes certificates that belong together: an SVID with what leads to its
// root, or roots.
func inspectCertificates(certs []*x509.Certificate, now time.Time) (things []Thing) {
	for i, c := range certs {
		t := Thing{Kind: "X509-SVID", chain: certs[i:]}
		switch {
		case c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil:
			t.Kind, t.chain = "root certificate", nil
		case c.IsCA:
			t.Kind, t.chain = "signing certificate", nil
		case i > 0:
			t.chain = nil // the first is who the chain is about
		}
		t.certificate(c, now)
		things = append(things, t)
	}
	return things
}

func (t *Thing) certificate(c *x509.Certificate, now time.Time) {
	for _, u := range c.URIs {
		t.fact("SPIFFE ID", "%s", u)
	}
	t.fact("subject", "%s", c.Subject)
	t.fact("issuer", "%s", c.Issuer)
	t.fact("serial", "%x", c.SerialNumber)
	for _, name := range c.DNSNames {
		t.fact("DNS name", "%s", name)
	}
	t.fact("key", "%s", keyType(c.PublicKey))
	t.life(c.NotBefore, c.NotAfter, now)
	if c.IsCA && c.MaxPathLen >= 0 && (c.MaxPathLen > 0 || c.MaxPathLenZero) {
		t.fact("path length", "%d", c.MaxPathLen)
	}
	if len(c.PermittedURIDomains) > 0 {
		t.fact("constrained to", "%s", strings.Join(c.PermittedURIDomains, ", "))
	}
	t.fact("SHA-256", "%x", sha256.Sum256(c.Raw))
	t.standard(c)
}

// standard holds a certificate to X509-SVID.
func (t *Thing) standard(c *x509.Certificate) {
	signs := c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0
	switch n := len(c.URIs); {
	case c.IsCA && n > 1, !c.IsCA && n != 1:
		t.problem("has %d URI names; an SVID has exactly one, a signing certificate at most one (X509-SVID §2, §3.2)", n)
	case n == 1:
		id, err := spiffeid.FromURI(c.URIs[0])
		switch {
		case err != nil:
			t.problem("its URI name is not a SPIFFE ID: %v (SPIFFE-ID §2)", err)
		case c.IsCA && id.Path() != "":
			t.problem("signs, and its SPIFFE ID has a path (X509-SVID §3.2)")
		case !c.IsCA && id.Path() == "":
			t.problem("its SPIFFE ID has no path (X509-SVID §3.1)")
		}
	}
	switch {
	case c.IsCA && c.KeyUsage&x509.KeyUsageCertSign == 0:
		t.problem("is a CA without the key usage to sign certificates (X509-SVID §4.3)")
	case !c.IsCA && signs:
		t.problem("is no CA, and its key usage is to sign certificates or lists (X509-SVID §4.3)")
	case !c.IsCA && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		t.problem("its key usage lacks digital signatures (X509-SVID §4.3)")
	}
}

func (t *Thing) life(from, until, now time.Time) {
	t.fact("valid from", "%s", from.UTC().Format(time.RFC3339))
	t.fact("valid until", "%s", until.UTC().Format(time.RFC3339))
	switch {
	case now.Before(from):
		t.problem("is not valid yet, for %s", round(from.Sub(now)))
	case !now.Before(until):
		t.problem("expired %s ago", round(now.Sub(until)))
	default:
		t.fact("for another", "%s", round(until.Sub(now)))
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Second) }

func keyType(key any) string {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", key)
}

// algorithms are those that JWT-SVID §2.1 allows.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512}

// isCompact reports whether data has the form of a JWS in compact serialisation.
func isCompact(data []byte) bool {
	return bytes.HasPrefix(data, []byte("eyJ")) && bytes.Count(data, []byte(".")) == 2 && !bytes.ContainsAny(data, " \t\r\n")
}

func inspectToken(token string, now time.Time) Thing {
	t := Thing{Kind: "JWT-SVID", token: token}
	t.fact("token", "%d bytes, which are not shown", len(token))
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		t.problem("cannot be read as a token by an algorithm of JWT-SVID §2.1: %v", err)
		return t
	}
	if len(parsed.Headers) == 1 {
		h := parsed.Headers[0]
		t.fact("algorithm", "%s", h.Algorithm)
		t.fact("key ID", "%s", h.KeyID)
		switch typ, ok := h.ExtraHeaders[jose.HeaderType].(string); {
		case typ == "wit+jwt":
			t.Kind, t.wit = "WIT-SVID", true
		case ok && typ != "JWT" && typ != "JOSE":
			t.problem("its typ is %q, not JWT or JOSE (JWT-SVID §2.3)", typ)
		}
	}
	var c jwt.Claims
	var all map[string]any
	if err := parsed.UnsafeClaimsWithoutVerification(&c, &all); err != nil {
		t.problem("its claims cannot be read: %v", err)
		return t
	}
	t.says = c
	t.fact("SPIFFE ID", "%s", c.Subject)
	if _, err := spiffeid.FromString(c.Subject); err != nil {
		t.problem("its sub is not a SPIFFE ID: %v (JWT-SVID §3.1)", err)
	}
	if t.wit {
		t.boundTo(all["cnf"])
	} else if t.fact("audience", "%s", strings.Join(c.Audience, ", ")); len(c.Audience) == 0 {
		t.problem("has no audience (JWT-SVID §3.2)")
	}
	if c.Issuer != "" {
		t.fact("issuer", "%s", c.Issuer)
	}
	if c.Expiry == nil {
		t.problem("has no end (JWT-SVID §3.3)")
	} else {
		from := now
		if c.IssuedAt != nil {
			from = c.IssuedAt.Time()
		}
		t.life(from, c.Expiry.Time(), now)
	}
	var others []string
	for name := range all {
		if !slices.Contains([]string{"sub", "aud", "iss", "exp", "iat"}, name) && (name != "cnf" || !t.wit) {
			others = append(others, name)
		}
	}
	if slices.Sort(others); len(others) > 0 {
		t.fact("other claims", "%s", strings.Join(others, ", "))
	}
	return t
}

// boundTo says which key a WIT-SVID is of use with.
func (t *Thing) boundTo(cnf any) {
	var bound struct {
		JWK *jose.JSONWebKey `json:"jwk"`
	}
	text, err := json.Marshal(cnf)
	if err == nil {
		err = json.Unmarshal(text, &bound)
	}
	switch {
	case err != nil || bound.JWK == nil:
		t.problem("its cnf names no key, so anybody could use it")
	case !bound.JWK.IsPublic():
		t.problem("its cnf has a private key, or none that is known")
	default:
		t.fact("of use with", "a key of %s, which its holder proves to have", keyType(bound.JWK.Key))
	}
}

// documents are those of vouch, told by fields that no other has.
var documents = []struct {
	kind, about string
	fields      []string
}{
	{"evidence", "of a machine, for vouch node appraise", []string{"quote", "ak", "node_key"}},
	{"enrolment request", "of a host, for vouch authority approve", []string{"csr", "evidence"}},
	{"challenge", "for vouch node activate, on the machine", []string{"credential", "secret"}},
	{"answer to a challenge", "for vouch node verify or appraise", []string{"proof", "ak_name"}},
	{"kept part of a challenge", "which is secret: whoever has it can forge the answer", []string{"credential", "ak_name"}},
	{"approval of an enrolment", "for vouch node install; only the machine that asked can open it", []string{"challenge", "sealed"}},
	{"appraisal result", "for --node and --previous", []string{"rules", "passed"}},
	{"approval of a boot state", "for vouch node reseal", []string{"pcrs", "signature"}},
}

func inspectJSON(data []byte, now time.Time) ([]Thing, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("it begins like JSON, and is none: %w", err)
	}
	if _, ok := fields["keys"]; ok {
		return []Thing{inspectBundle(data)}, nil
	}
	for _, d := range documents {
		if slices.ContainsFunc(d.fields, func(f string) bool { _, ok := fields[f]; return !ok }) {
			continue
		}
		t := Thing{Kind: d.kind}
		t.fact("about", "%s", d.about)
		for _, name := range []string{"version", "trust_domain", "ek_sha256", "ak_name", "hostname", "passed", "evidence_sha256"} {
			var value any
			if json.Unmarshal(fields[name], &value) == nil && value != nil {
				t.fact(name, "%v", value)
			}
		}
		t.fact("SHA-256", "%x", sha256.Sum256(data))
		return []Thing{t}, nil
	}
	return nil, ErrUnknown
}

// inspectBundle reads a SPIFFE bundle, or a JWKS as other issuers have it.
func inspectBundle(data []byte) Thing {
	t := Thing{Kind: "SPIFFE bundle"}
	var doc struct {
		Sequence *uint64           `json:"spiffe_sequence"`
		Hint     *int64            `json:"spiffe_refresh_hint"`
		Keys     []jose.JSONWebKey `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.problem("cannot be read: %v", err)
		return t
	}
	if len(doc.Keys) > maxThings {
		t.problem("has %d keys, more than the %d that are looked at", len(doc.Keys), maxThings)
		return t
	}
	if doc.Sequence == nil && doc.Hint == nil && !slices.ContainsFunc(doc.Keys, func(k jose.JSONWebKey) bool { return len(k.Certificates) > 0 }) {
		t.Kind = "JWKS"
	}
	if doc.Sequence != nil {
		t.fact("sequence", "%d", *doc.Sequence)
	}
	if doc.Hint != nil {
		t.fact("refresh hint", "%s", time.Duration(max(0, min(*doc.Hint, 1<<31)))*time.Second)
	}
	for _, k := range doc.Keys {
		name := k.Use
		if name == "" {
			name = "key"
		}
		switch {
		case !k.IsPublic() && k.Valid():
			t.problem("has a private key, %s: whoever has this can sign", k.KeyID)
		case len(k.Certificates) > 0:
			c := k.Certificates[0]
			t.fact(name, "root %s, %s, until %s", c.Subject, keyType(c.PublicKey), c.NotAfter.UTC().Format(time.RFC3339))
		default:
			t.fact(name, "%s, %s", k.KeyID, keyType(k.Key))
		}
	}
	if len(doc.Keys) == 0 {
		t.problem("has no keys, and so trusts nobody")
	}
	return t
}

// A Bundle is what SVIDs of one trust domain are verified with.
type Bundle struct {
	Of    string // whose, in words
	roots []*x509.Certificate
	keys  *spiffebundle.Bundle // nil: no keys of JWT-SVIDs
}

// ReadBundle reads a bundle from PEM, DER or JSON.
func ReadBundle(data []byte, of string) (*Bundle, error) {
	b := &Bundle{Of: of}
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] == '{' {
		keys, err := spiffebundle.Parse(spiffeid.TrustDomain{}, data)
		if err != nil {
			return nil, err
		}
		b.keys, b.roots = keys, keys.X509Authorities()
		return b, nil
	}
	for rest := data; ; {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			break
		}
		c, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			return nil, err
		}
		if b.roots = append(b.roots, c); len(b.roots) > maxThings {
			return nil, fmt.Errorf("it has more than %d certificates", maxThings)
		}
	}
	if len(b.roots) == 0 {
		certs, err := x509.ParseCertificates(data)
		if err != nil || len(certs) == 0 {
			return nil, errors.New("it holds no certificate and no keys")
		}
		b.roots = certs
	}
	return b, nil
}

// Verify says whether a thing is what it says, by a bundle, if it is something that is
// verified.
func (t *Thing) Verify(b *Bundle) {
	switch {
	case len(t.chain) > 0 && len(t.chain[0].URIs) == 1:
		id, err := spiffeid.FromURI(t.chain[0].URIs[0])
		if err != nil {
			return // a problem already
		}
		if _, _, err := x509svid.Verify(t.chain, x509bundle.FromX509Authorities(id.TrustDomain(), b.roots)); err != nil {
			t.problem("does not verify by %s: %v", b.Of, err)
			return
		}
		t.fact("verified", "by %s", b.Of)
	case t.wit:
		id, err := spiffeid.FromString(t.says.Subject)
		if err != nil || b.keys == nil || len(b.keys.WITAuthorities()) == 0 {
			return // a problem already, or nothing to verify it with
		}
		if _, err := witsvid.ParseAndValidate(t.token, witbundle.FromWITAuthorities(id.TrustDomain(), b.keys.WITAuthorities())); err != nil {
			t.problem("does not verify by %s: %v", b.Of, err)
			return
		}
		t.fact("verified", "by %s", b.Of)
	case t.token != "" && b.keys != nil:
		id, err := spiffeid.FromString(t.says.Subject)
		if err != nil {
			return // a problem already
		}
		if _, err := jwtsvid.ParseAndValidate(t.token, jwtbundle.FromJWTAuthorities(id.TrustDomain(), b.keys.JWTAuthorities()), t.says.Audience); err != nil {
			t.problem("does not verify by %s: %v", b.Of, err)
			return
		}
		t.fact("verified", "by %s, for an audience of its own", b.Of)
	}
}
