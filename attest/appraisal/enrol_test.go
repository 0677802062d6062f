package appraisal_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

var exampleOrg = spiffeid.RequireTrustDomainFromString("example.org")

func newAuthority(t *testing.T, td spiffeid.TrustDomain) appraisal.Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.NewAuthority(key, td, time.Now(), 10*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func rootSHA256(a appraisal.Authority) string {
	d := sha256.Sum256(a.Root.Raw)
	return hex.EncodeToString(d[:])
}

// enrol goes the whole way of one node.
func enrol(t *testing.T, m *machine, a appraisal.Authority, p appraisal.Policy) appraisal.Enrolment {
	t.Helper()
	terms := appraisal.Terms{Policy: p, Nonce: someBytes(32), Life: 30 * 24 * time.Hour, Now: time.Now()}
	request, err := m.Request(t.Context(), exampleOrg, terms.Nonce, m.from)
	if err != nil {
		t.Fatal(err)
	}
	approval, _, r, err := a.Approve(request, terms)
	if err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	e, err := m.Install(t.Context(), approval, rootSHA256(a))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestHostsEnrolledUnderOneRootVerifyEachOther(t *testing.T) {
	t.Parallel()
	one := booted(t, "uki-secureboot", tpmtest.Start(t))
	two := booted(t, "uki-secureboot", tpmtest.StartManufactured(t))
	p := policy(t, "endorsement: {keys: ["+one.EKSHA256()+", "+two.EKSHA256()+"]}\nsecure_boot: {required: true}\n")
	// The root's key may be in a TPM itself.
	admin := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	key, err := admin.Key(t.Context(), "authority")
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.NewAuthority(key, exampleOrg, time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*machine{one, two} {
		e := enrol(t, m, a, p)
		bundle := x509bundle.FromX509Authorities(exampleOrg, []*x509.Certificate{e.Root})
		id := spiffeid.RequireFromString("spiffe://example.org/agent")
		got, _, err := x509svid.Verify(svid(t, m.Node, e, "spiffe://example.org/agent", 0), bundle)
		if err != nil || got != id {
			t.Errorf("SVID verifies as %v, %v", got, err)
		}
		if !e.NotAfter().Equal(a.Root.NotAfter) {
			t.Errorf("enrolled until %v, the root lasts until %v", e.NotAfter(), a.Root.NotAfter)
		}
		again, err := m.Enrolment(time.Now())
		if err != nil || !again.Chain[0].Equal(e.Chain[0]) {
			t.Errorf("installed enrolment: %v", err)
		}
		if _, err := m.Enrolment(e.NotAfter().Add(time.Second)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("an expired enrolment: %v", err)
		}
		// What the organisation's root does not allow a host.
		for name, chain := range map[string][]*x509.Certificate{
			"an identity of another trust domain": svid(t, m.Node, e, "spiffe://other.org/agent", 0),
			"an identity of a subdomain":          svid(t, m.Node, e, "spiffe://a.example.org/agent", 0),
			"another level of CAs":                svid(t, m.Node, e, "spiffe://example.org/agent", 1),
		} {
			pool := x509.NewCertPool()
			pool.AddCert(e.Root)
			between := x509.NewCertPool()
			for _, c := range chain[1:] {
				between.AddCert(c)
			}
			_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err == nil {
				t.Errorf("%s verifies", name)
			}
		}
	}
}

// svid issues as the daemon does: an issuing CA below the node key, and so many
// CAs more below that as no daemon makes.
func svid(t *testing.T, n *node.Node, e appraisal.Enrolment, id string, more int) []*x509.Certificate {
	t.Helper()
	chain := append([]*x509.Certificate(nil), e.Chain...)
	var signer crypto.Signer = n.Signer()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i <= more+1; i++ {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
		if i <= more {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		} else {
			c.URIs, c.KeyUsage = []*url.URL{uri}, x509.KeyUsageDigitalSignature
		}
		signed, err := appraisal.SignCA(c, chain[0], &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		chain, signer = append([]*x509.Certificate{signed}, chain...), key
	}
	return chain
}

func TestRequestsAreRefused(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	a := newAuthority(t, exampleOrg)
	nonce := someBytes(32)
	terms := appraisal.Terms{Policy: policy(t, "endorsement: {keys: ["+m.EKSHA256()+"]}\nboot_state: any\n"), Nonce: nonce, Life: 24 * time.Hour, Now: time.Now()}
	b, err := m.Request(t.Context(), exampleOrg, nonce, m.from)
	if err != nil {
		t.Fatal(err)
	}
	var good appraisal.Request
	if err := json.Unmarshal(b, &good); err != nil {
		t.Fatal(err)
	}
	jwt, err := m.Key(t.Context(), "jwt")
	if err != nil {
		t.Fatal(err)
	}
	csr := func(signer crypto.Signer, id string) []byte {
		uri, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{URIs: []*url.URL{uri}}, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for _, tt := range []struct {
		name  string
		forge func(*appraisal.Request, *appraisal.Terms)
		says  string
	}{
		{"a policy it does not satisfy", func(r *appraisal.Request, terms *appraisal.Terms) {
			terms.Policy = policy(t, "endorsement: {keys: ["+other+"]}\nboot_state: any\n")
		}, "endorsement"},
		{"no policy", func(r *appraisal.Request, terms *appraisal.Terms) { terms.Policy = appraisal.Policy{} }, "policy"},
		{"another nonce", func(r *appraisal.Request, terms *appraisal.Terms) { terms.Nonce = someBytes(32) }, "nonce"},
		{"no nonce and none accepted", func(r *appraisal.Request, terms *appraisal.Terms) { terms.Nonce = nil }, "nonce"},
		{"another trust domain", func(r *appraisal.Request, terms *appraisal.Terms) { r.TrustDomain = "other.org" }, "other.org"},
		{"a certificate request for another trust domain", func(r *appraisal.Request, terms *appraisal.Terms) { r.CSR = csr(m.Signer(), "spiffe://other.org") }, "spiffe://example.org"},
		{"a certificate request for a workload's ID", func(r *appraisal.Request, terms *appraisal.Terms) {
			r.CSR = csr(m.Signer(), "spiffe://example.org/admin")
		}, "spiffe://example.org"},
		{"a certificate request by another key", func(r *appraisal.Request, terms *appraisal.Terms) { r.CSR = csr(jwt, "spiffe://example.org") }, appraisal.ErrKey.Error()},
		{"a changed certificate request", func(r *appraisal.Request, terms *appraisal.Terms) { r.CSR = flip(r.CSR, len(r.CSR)-1) }, "certificate request"},
		{"no certificate request", func(r *appraisal.Request, terms *appraisal.Terms) { r.CSR = nil }, "certificate request"},
		{"no evidence", func(r *appraisal.Request, terms *appraisal.Terms) { r.Evidence = json.RawMessage("{}") }, "evidence"},
		{"an unknown version", func(r *appraisal.Request, terms *appraisal.Terms) { r.Version = 2 }, "version"},
		{"a life that is too long", func(r *appraisal.Request, terms *appraisal.Terms) { terms.Life = appraisal.MaxCALife + 1 }, "life"},
		{"a life that is too short", func(r *appraisal.Request, terms *appraisal.Terms) { terms.Life = 0 }, "life"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, with := clone(t, good), terms
			tt.forge(&r, &with)
			approval, c, _, err := a.Approve(encode(t, r), with)
			if err == nil || approval != nil || c != nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Approve = %v, which does not mention %q", err, tt.says)
			}
		})
	}
	terms.Nonce, terms.AnyNonce = nil, true
	if _, _, _, err := a.Approve(b, terms); err != nil {
		t.Errorf("a request of any age: %v", err)
	}
}

func TestApprovalsOfEnrolmentAreChecked(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	if _, err := m.Enrolment(time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Enrolment of a node that has none: %v, want %v", err, fs.ErrNotExist)
	}
	a, other := newAuthority(t, exampleOrg), newAuthority(t, exampleOrg)
	p := policy(t, "endorsement: {keys: ["+m.EKSHA256()+"]}\nboot_state: any\n")
	b, err := m.Request(t.Context(), exampleOrg, nil, m.from)
	if err != nil {
		t.Fatal(err)
	}
	approval, _, _, err := a.Approve(b, appraisal.Terms{Policy: p, AnyNonce: true, Life: 24 * time.Hour, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Install(t.Context(), approval, rootSHA256(other)); err == nil {
		t.Error("installed under another root than asked for")
	}
	if _, err := m.Install(t.Context(), approval, ""); err == nil {
		t.Error("installed under any root")
	}
	for name, change := range map[string]func(*appraisal.SealedEnrolment){
		"changed on the way": func(d *appraisal.SealedEnrolment) { d.Sealed = flip(d.Sealed, 5) },
		"without contents":   func(d *appraisal.SealedEnrolment) { d.Sealed = nil },
		"another version":    func(d *appraisal.SealedEnrolment) { d.Version = 2 },
		"no challenge":       func(d *appraisal.SealedEnrolment) { d.Challenge = nil },
	} {
		var d appraisal.SealedEnrolment
		if err := json.Unmarshal(approval, &d); err != nil {
			t.Fatal(err)
		}
		change(&d)
		if _, err := m.Install(t.Context(), encode(t, d), rootSHA256(a)); err == nil {
			t.Errorf("%s: installed", name)
		}
	}
	if _, err := m.Enrolment(time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after refused approvals something is installed: %v", err)
	}
	if _, err := m.Install(t.Context(), approval, rootSHA256(a)); err != nil {
		t.Error(err)
	}
}

func TestChainsThatEnrolNobody(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t, exampleOrg)
	now := time.Now()
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
		good   bool
	}{
		{"as it should be", func(*x509.Certificate) {}, true},
		{"no constraint", func(c *x509.Certificate) { c.PermittedURIDomains = nil }, false},
		{"a constraint that is not critical", func(c *x509.Certificate) { c.PermittedDNSDomainsCritical = false }, false},
		{"a constraint to more domains", func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org", "other.org"} }, false},
		{"a constraint that lets subdomains in", func(c *x509.Certificate) { c.ExcludedURIDomains = nil }, false},
		{"a constraint to subdomains", func(c *x509.Certificate) { c.PermittedURIDomains = []string{".example.org"} }, false},
		{"no CA", func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, 0; c.KeyUsage = x509.KeyUsageDigitalSignature }, false},
		{"any path length", func(c *x509.Certificate) { c.MaxPathLen = -1 }, false},
		{"no path length", func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }, false},
		{"a longer path", func(c *x509.Certificate) { c.MaxPathLen = 2 }, false},
		{"another trust domain", func(c *x509.Certificate) { c.URIs[0].Host = "other.org" }, false},
		{"a workload's ID", func(c *x509.Certificate) { c.URIs[0].Path = "/admin" }, false},
		{"expired", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, false},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			template := appraisal.CATemplate(exampleOrg, &key.PublicKey, now, 30*time.Minute)
			template.MaxPathLen = 1
			tt.change(template)
			c, err := appraisal.SignCA(template, a.Root, &key.PublicKey, a.Signer)
			if err != nil {
				t.Fatal(err)
			}
			if err := appraisal.VerifyEnrolment([]*x509.Certificate{c}, a.Root, exampleOrg, &key.PublicKey, now); (err == nil) != tt.good {
				t.Errorf("VerifyEnrolment = %v", err)
			}
			if err := appraisal.VerifyEnrolment([]*x509.Certificate{c}, newAuthority(t, exampleOrg).Root, exampleOrg, &key.PublicKey, now); err == nil {
				t.Error("verifies under another root")
			}
		})
	}
	theirs, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := appraisal.CATemplate(exampleOrg, &theirs.PublicKey, now, 30*time.Minute)
	template.MaxPathLen = 1
	c, err := appraisal.SignCA(template, a.Root, &theirs.PublicKey, a.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := appraisal.VerifyEnrolment([]*x509.Certificate{c}, a.Root, exampleOrg, &key.PublicKey, now); err == nil {
		t.Error("another key's certificate verifies")
	}
	if err := appraisal.VerifyEnrolment(nil, a.Root, exampleOrg, &key.PublicKey, now); err == nil {
		t.Error("no chain verifies")
	}
}

func TestRevocationList(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, exampleOrg)
	now := time.Now().Truncate(time.Second)
	der, err := a.RevocationList([]appraisal.Revoked{{Serial: big.NewInt(7), At: now}}, 3, now, now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSignatureFrom(a.Root); err != nil {
		t.Error(err)
	}
	if len(l.RevokedCertificateEntries) != 1 || l.RevokedCertificateEntries[0].SerialNumber.Int64() != 7 {
		t.Errorf("revoked: %v", l.RevokedCertificateEntries)
	}
}
