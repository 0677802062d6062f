package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/identity/vaultca/vaultcatest"
)

// newVaultHost returns a host that a server certifies, once it lets the host in.
func newVaultHost(t *testing.T, s *vaultcatest.Server, name, auth string) *host {
	h := newHost(t)
	h.Name = name
	h.TPM = tpmtest.StartManufactured(t)
	more := ""
	if auth == "jwt" {
		more = "  jwt_key: tpm\n"
	}
	h.Configure(fmt.Sprintf("authority:\n  mode: vault\n%s  vault: {address: %q, ca_file: %s, role: vouchd, root_file: %s, auth: %s, audience: here}\n", more, s.URL, s.CAFile, s.RootFile, auth))
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.StartProcess()
	return h
}

// letIn has the server take tokens by the host's JWT key.
func letIn(t *testing.T, s *vaultcatest.Server, h *host) {
	t.Helper()
	b, err := h.Admin().Bundle(t.Context())
	must(t, err)
	var keys jose.JSONWebKeySet
	must(t, json.Unmarshal(b.JWKS, &keys))
	s.Lock()
	defer s.Unlock()
	s.Subject, s.Audience = "vouchd-node:", "here"
	for _, k := range keys.Keys {
		s.JWTKeys = append(s.JWTKeys, k.Key)
	}
}

func (h *host) served(t *testing.T) {
	t.Helper()
	daemontest.Eventually(t, h.Name+" is certified", func() bool { _, err := h.Fetch(); return err == nil })
}

func TestHostsThatAVaultCertifiesVerifyEachOtherAndGoOnWithoutIt(t *testing.T) {
	t.Parallel()
	s := vaultcatest.New(t)
	d := daemontest.NewDesk(t)
	root := d.Found("--tpm", tpmtest.Start(t).Address)
	one, two := newVaultHost(t, s, "one", "cert"), newVaultHost(t, s, "two", "jwt")
	for _, h := range []*host{one, two} {
		if id, err := h.Fetch(); err == nil {
			t.Errorf("%s is issued %s before it is certified", h.Name, id)
		}
		daemontest.Eventually(t, h.Name+" says so", func() bool {
			p := h.Problems()
			return len(p) == 1 && strings.Contains(p[0], s.URL+" has not certified this host since") && strings.Contains(p[0], "so nothing is issued: ")
		})
	}
	letIn(t, s, two)
	one.OK("node", "install", d.Approve(one.Host.Host, "720h"), "--root", root)
	s.Lock()
	s.Clients.AppendCertsFromPEM([]byte(d.Read("authority/root.pem")))
	s.Unlock()

	domain := spiffeid.RequireTrustDomainFromString("example.org")
	bundles := make(map[string]*x509bundle.Bundle)
	for _, h := range []*host{one, two} {
		h.served(t)
		if p := h.Problems(); len(p) != 0 {
			t.Errorf("%s: problems once it is certified: %q", h.Name, p)
		}
		if out := h.OK("status"); !strings.Contains(out, "by "+s.URL+" until") {
			t.Errorf("%s: status\n%s", h.Name, out)
		}
		var err error
		bundles[h.Name], err = h.x509Context().Bundles.GetX509BundleForTrustDomain(domain)
		must(t, err)
	}
	s.Lock()
	s.Fault = func(w http.ResponseWriter, _ string) bool { w.WriteHeader(503); return true } // sealed
	s.Unlock()
	for _, h := range []*host{one, two} {
		h.Stop()
		h.VerifyLog()
		h.StartProcess()
		if _, err := h.Fetch(); err != nil {
			t.Errorf("%s: after a restart without the server: %v", h.Name, err)
		}
		svid := h.x509Context().SVIDs[0]
		for name, bundle := range bundles {
			if id, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil || id != svid.ID {
				t.Errorf("by the bundle of %s the SVID of %s verifies as %v, %v", name, h.Name, id, err)
			}
		}
		if n := len(svid.Certificates); n != 3 {
			t.Errorf("%s: chain of %d certificates, want leaf, issuing CA, node CA", h.Name, n)
		}
		if got := h.Records("authority.upstream", audit.Success); len(got) != 1 || got[0].Key == nil {
			t.Errorf("%s: recorded %d certificates", h.Name, len(got))
		}
		if got := h.Records("authority.upstream", audit.Failed); len(got) != 1 {
			t.Errorf("%s: recorded %d times that there is none, want once", h.Name, len(got))
		}
	}
	s.Lock()
	defer s.Unlock()
	if got := strings.Join(s.Logins, " "); got != "jwt cert" && got != "cert jwt" {
		t.Errorf("logged in by %s", got)
	}
}

func TestCertificateOfAVaultIsRenewedAtHalfOfItsLifeAndNothingIsIssuedAfterIt(t *testing.T) {
	t.Parallel()
	s := vaultcatest.New(t)
	s.Life = 20 * time.Second // and half a minute before it was signed
	h := newVaultHost(t, s, "short", "jwt")
	letIn(t, s, h)
	h.served(t)
	serial := func() string { return h.x509Context().SVIDs[0].Certificates[2].SerialNumber.String() }
	first := serial()
	daemontest.Eventually(t, "another certificate is used", func() bool { return serial() != first })

	s.Lock()
	s.Fault = func(w http.ResponseWriter, _ string) bool { w.WriteHeader(503); return true }
	last := s.Signed
	s.Unlock()
	daemontest.Eventually(t, "its status says until when it can go on", func() bool {
		p := h.Problems()
		return len(p) > 0 && strings.Contains(p[0], "so that nothing is issued from ")
	})
	until := h.x509Context().SVIDs[0].Certificates[2].NotAfter
	if svid := h.x509Context().SVIDs[0]; svid.Certificates[0].NotAfter.After(until) {
		t.Errorf("an SVID lasts until %v and the certificate until %v", svid.Certificates[0].NotAfter, until)
	}
	daemontest.Eventually(t, "nothing is issued after its end", func() bool { _, err := h.Fetch(); return err != nil })
	if time.Now().Before(until) {
		t.Errorf("nothing is issued from %v on, and the certificate ends at %v", time.Now(), until)
	}
	s.Lock()
	s.Fault = nil
	s.Unlock()
	h.served(t)
	s.Lock()
	defer s.Unlock()
	if s.Signed <= last || s.Signed > 10 {
		t.Errorf("%d certificates were signed, %d of them before the server was away", s.Signed, last)
	}
}

func TestVaultWithoutAConstraintIsTold(t *testing.T) {
	t.Parallel()
	s := vaultcatest.New(t)
	s.OldServer = true
	h := newVaultHost(t, s, "old", "jwt")
	letIn(t, s, h)
	h.served(t)
	if out := h.OK("status"); !strings.Contains(out, "is not constrained to trust domain example.org") {
		t.Errorf("status\n%s", out)
	}
	if c := h.x509Context().SVIDs[0].Certificates[2]; len(c.PermittedURIDomains) != 0 || c.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Errorf("certified %v", c)
	}
}
