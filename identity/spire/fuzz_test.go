package spire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

var example = spiffeid.RequireTrustDomainFromString("example.org")

func encoded(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signed returns an authority of example.org, and a leaf that it signed.
func signed(t testing.TB) (authority, leaf []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{example.ID().URL()},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authority, err = x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{spiffeid.RequireFromPath(example, "/agent").URL()},
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return authority, leaf, key
}

func FuzzParseBundle(f *testing.F) {
	authority, _, key := signed(f)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded(f, &spirev1.Bundle{
		TrustDomain: "example.org", SequenceNumber: 1, RefreshHint: -1, X509Authorities: []*spirev1.X509Certificate{{Asn1: authority, Tainted: true}},
		JwtAuthorities: []*spirev1.JWTKey{{KeyId: "one", PublicKey: public, ExpiresAt: 1}},
		WitAuthorities: []*spirev1.WITKey{{KeyId: "two", PublicKey: public, ExpiresAt: 1}},
	}))
	f.Add(encoded(f, &spirev1.Bundle{TrustDomain: "spiffe://example.org"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m spirev1.Bundle
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		if b, err := parseForeign(example, &m); err == nil && b.TrustDomain != example {
			t.Errorf("taken for a bundle of %s", b.TrustDomain)
		}
		b, err := parseBundle(example, &m)
		if err != nil {
			return
		}
		if len(b.X509) == 0 || b.roots.Empty() || len(b.authorities) != len(m.X509Authorities)+len(m.JwtAuthorities)+len(m.WitAuthorities) {
			t.Errorf("a bundle of %d authorities out of %v", len(b.authorities), &m)
		}
		if c := b.change(example); len(c.X509)+len(c.Keys) != len(b.authorities) || c.TrustDomain != "example.org" {
			t.Errorf("records say %+v", c)
		}
	})
}

func FuzzEntries(f *testing.F) {
	f.Add(encoded(f, &spirev1.GetAuthorizedEntriesResponse{Entries: []*spirev1.Entry{
		{Id: "one", SpiffeId: &spirev1.SPIFFEID{TrustDomain: "example.org", Path: "/agent"}, Selectors: []*spirev1.Selector{{Type: "unix", Value: "uid:0"}}, X509SvidTtl: -1, FederatesWith: []string{"spiffe://other.example"}},
		{Id: "two", SpiffeId: &spirev1.SPIFFEID{TrustDomain: "example.org", Path: "/agent"}, Selectors: []*spirev1.Selector{{Type: "k8s", Value: "ns:x"}}, Hint: "\x1b[2J"},
		{Id: "three", Admin: true},
	}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m spirev1.GetAuthorizedEntriesResponse
		byID := make(map[string]*spirev1.Entry)
		if proto.Unmarshal(raw, &m) != nil || take(byID, m.Entries) != nil {
			return
		}
		es := newEntries(example, byID)
		for _, e := range es.list {
			raw := byID[e.Server]
			switch {
			case raw.Admin || raw.Downstream || raw.StoreSvid || len(e.Selectors) == 0 || len(e.Selectors) != len(raw.Selectors):
				t.Errorf("%v is served as %+v", raw, e)
			case e.ID.TrustDomain() != example || e.ID.Path() == "" || e.X509TTL <= 0 || e.JWTTTL <= 0:
				t.Errorf("%v is served as %+v", raw, e)
			}
		}
		if !es.hold(byID) || len(es.unknown) > maxNamed {
			t.Error("the entries are not what they were made of")
		}
		if c := newEntries(example, nil).change(es); len(c.Removed)+c.More != len(byID) {
			t.Errorf("records say %+v of %d entries", c, len(byID))
		}
	})
}

func FuzzX509SVID(f *testing.F) {
	authority, leaf, _ := signed(f)
	b, err := parseBundle(example, &spirev1.Bundle{TrustDomain: "example.org", X509Authorities: []*spirev1.X509Certificate{{Asn1: authority}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded(f, &spirev1.X509SVID{CertChain: [][]byte{leaf}}))
	f.Add(encoded(f, &spirev1.X509SVID{CertChain: [][]byte{authority, leaf}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m spirev1.X509SVID
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		now := time.Now()
		chain, v, err := verifyChain(&m, b, now)
		if err == nil && (string(chain[0].Raw) != string(leaf) || now.After(v.until) || v.until.After(chain[0].NotAfter)) {
			t.Errorf("verified %x until %v", chain[0].Raw, v.until)
		}
	})
}

func FuzzJWTSVID(f *testing.F) {
	authority, _, key := signed(f)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	b, err := parseBundle(example, &spirev1.Bundle{
		TrustDomain: "example.org", X509Authorities: []*spirev1.X509Certificate{{Asn1: authority}}, JwtAuthorities: []*spirev1.JWTKey{{KeyId: "one", PublicKey: public}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("eyJhbGciOiJFUzI1NiIsImtpZCI6Im9uZSIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy9hZ2VudCIsImF1ZCI6WyJhcGkiXSwiZXhwIjo0MDAwMDAwMDAwfQ.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		if h, _, err := takeJWT(&spirev1.Entry{Id: "one"}, spiffeid.RequireFromPath(example, "/agent"), []string{"api"}, &spirev1.JWTSVID{Token: token}, b, time.Now()); err == nil {
			t.Errorf("took %s, which nobody signed, for %v", token, h.svid)
		}
	})
}

func FuzzChallenge(f *testing.F) {
	_, _, key := signed(f)
	good, err := json.Marshal(popMessage{&popNonce{Nonce: make([]byte, popNonceLen)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"rsa_signature":{"nonce":"AAAA"}}`))
	f.Fuzz(func(t *testing.T, challenge []byte) {
		answer, err := (&popAttempt{key: key}).Answer(t.Context(), challenge)
		var m popMessage
		if err == nil && (json.Unmarshal(answer, &m) != nil || m.ECDSA == nil || len(m.ECDSA.Nonce) != popNonceLen) {
			t.Errorf("answered %s with %s", challenge, answer)
		}
	})
}
