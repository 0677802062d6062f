package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

const enrolledMode = "authority:\n  mode: enrolled\n"

func newEnrolledHost(t *testing.T, name string) *host {
	h := newHost(t)
	h.Name = name
	h.TPM = tpmtest.StartManufactured(t)
	h.Configure(enrolledMode)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.StartProcess()
	return h
}

// x509Context fetches all that a workload gets.
func (h *host) x509Context() *spiffe.X509Context {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(h.T.Context(), 10*time.Second)
	defer cancel()
	got, err := spiffe.FetchX509Context(ctx, spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	must(h.T, err)
	return got
}

func TestHostsEnrolledUnderOneRootVerifyEachOther(t *testing.T) {
	t.Parallel()
	d := daemontest.NewDesk(t)
	root := d.Found("--tpm", tpmtest.Start(t).Address)
	hosts := []*host{newEnrolledHost(t, "one"), newEnrolledHost(t, "two"), newEnrolledHost(t, "three")}
	for _, h := range hosts {
		if id, err := h.Fetch(); err == nil {
			t.Errorf("%s is issued %s before it is enrolled", h.Name, id)
		}
		if p := h.Problems(); len(p) != 1 || !strings.Contains(p[0], "vouch node request") {
			t.Errorf("%s: problems before it is enrolled: %q", h.Name, p)
		}
		if out := h.OK("node", "install", d.Approve(h.Host.Host, "720h"), "--root", root); !strings.HasPrefix(out, "Enrolled in example.org until ") || strings.Contains(out, "Not in force") {
			t.Errorf("%s: %s", h.Name, out)
		}
		if p := h.Problems(); len(p) != 0 {
			t.Errorf("%s: problems once it is enrolled: %q", h.Name, p)
		}
	}
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	bundles := make(map[string]*x509bundle.Bundle)
	for _, h := range hosts {
		bundle, err := h.x509Context().Bundles.GetX509BundleForTrustDomain(domain)
		must(t, err)
		bundles[h.Name] = bundle
	}
	for _, h := range hosts {
		svid := h.x509Context().SVIDs[0]
		for name, bundle := range bundles {
			if id, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil || id != svid.ID {
				t.Errorf("by the bundle of %s the SVID of %s verifies as %v, %v", name, h.Name, id, err)
			}
		}
		if n := len(svid.Certificates); n != 3 {
			t.Errorf("%s: chain of %d certificates, want leaf, issuing CA, node CA", h.Name, n)
		}
		if out := h.OK("status"); !strings.Contains(out, "by root "+root[:16]) {
			t.Errorf("%s: status\n%s", h.Name, out)
		}
		h.Stop()
		h.VerifyLog()
		h.StartProcess()
		if _, err := h.Fetch(); err != nil {
			t.Errorf("%s: after a restart: %v", h.Name, err)
		}
	}
	for _, server := range hosts {
		for _, client := range hosts {
			if err := greeted(t, server.Host.Host, client.Host.Host); err != nil {
				t.Errorf("from %s to %s: %v", client.Name, server.Name, err)
			}
		}
	}
	if out := d.OK("authority", "list", "--dir", "authority"); !matches(`(?s)sha256:`+root+`.* one .* until .* two .* until .* three .* until `, out) {
		t.Errorf("the authority lists\n%s", out)
	}
}

func TestAnApprovalIsOfUseToTheMachineThatAskedAlone(t *testing.T) {
	t.Parallel()
	d := daemontest.NewDesk(t)
	root := d.Found("--passphrase-file", "passphrase") // the root key in a file, encrypted with age
	one, two := newEnrolledHost(t, "one"), newEnrolledHost(t, "two")
	approval := d.Approve(one.Host.Host, "24h")
	two.Write("approval.json", one.Read("approval.json"))
	for name, tt := range map[string]struct {
		h    *host
		args []string
		code int
		says string
	}{
		"on another machine":    {two, []string{two.Path("approval.json"), "--root", root}, 1, "for another machine"},
		"of another root":       {one, []string{approval, "--root", strings.Repeat("00", 32)}, 1, "not of the root 0000"},
		"without saying whose":  {one, []string{approval}, 2, "--root"},
		"that is no approval":   {one, []string{one.Path("vouchd.yaml"), "--root", root}, 1, "installing an enrolment"},
		"that is not there":     {one, []string{one.Path("none.json"), "--root", root}, 1, "none.json: no such file"},
		"in place of two of it": {one, []string{approval, approval, "--root", root}, 2, "--help"},
	} {
		if _, stderr, code := tt.h.Vouch(append([]string{"node", "install"}, tt.args...)...); code != tt.code || !strings.Contains(stderr, tt.says) {
			t.Errorf("%s: exits %d, want %d and %q: %s", name, code, tt.code, tt.says, stderr)
		}
		if id, err := tt.h.Fetch(); err == nil {
			t.Errorf("%s: issued %s", name, id)
		}
	}
}

func TestTheAuthorityRefusesByName(t *testing.T) {
	t.Parallel()
	d := daemontest.NewDesk(t)
	d.Found("--tpm", tpmtest.Start(t).Address)
	one, two := newEnrolledHost(t, "one"), newEnrolledHost(t, "one")
	d.Approve(one.Host.Host, "24h")
	d.Write("one.json", d.Read("request.json"))
	d.Write("one.yaml", d.Read("policy.yaml"))
	d.Write("two.json", two.OK("node", "request"))
	d.Write("two.yaml", two.OK("node", "policy", "learn"))
	var lie, other map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(d.Read("one.json")), &lie))
	must(t, json.Unmarshal([]byte(d.Read("two.json")), &other))
	lie["csr"] = other["csr"]
	b, err := json.Marshal(lie)
	must(t, err)
	d.Write("lie.json", string(b))

	approve := func(request, policy string, more ...string) (string, string, int) {
		args := []string{"authority", "approve", request, "--dir", "authority", "--policy", policy, "--write", "out.json"}
		return d.Vouch(append(args, more...)...)
	}
	good := []string{"--any-nonce"}
	for name, tt := range map[string]struct {
		request, policy string
		more            []string
		code            int
		says            string
	}{
		"a machine that the policy does not name": {"one.json", "two.yaml", good, 1, "endorsement key .* is not among the policy's keys"},
		"another machine of the same name":        {"two.json", "two.yaml", good, 1, "another machine is enrolled by that name .*vouch authority revoke"},
		"another nonce":                           {"one.json", "one.yaml", []string{"--nonce", strings.Repeat("ab", 32)}, 1, "not made for the verifier's nonce"},
		"no nonce":                                {"one.json", "one.yaml", nil, 2, "--any-nonce"},
		"another machine's certificate request":   {"lie.json", "one.yaml", good, 1, "certificate request"},
		"too long a life":                         {"one.json", "one.yaml", append(good, "--life", "90000h"), 2, "--life"},
		"no request":                              {"one.yaml", "one.yaml", good, 1, "request: "},
	} {
		out, stderr, code := approve(tt.request, tt.policy, tt.more...)
		if code != tt.code || !matches(tt.says, stderr) {
			t.Errorf("%s: exits %d, want %d and %q:\n%s%s", name, code, tt.code, tt.says, out, stderr)
		}
		if _, err := os.Stat(d.Dir + "/out.json"); err == nil {
			t.Fatalf("%s: there is an approval", name)
		}
	}

	var list struct {
		Nodes []struct {
			Serial  string    `json:"serial"`
			Revoked time.Time `json:"revoked"`
		} `json:"nodes"`
	}
	must(t, json.Unmarshal([]byte(d.OK("authority", "list", "--dir", "authority", "--output", "json")), &list))
	if len(list.Nodes) != 1 {
		t.Fatalf("the authority lists %d hosts, want 1", len(list.Nodes))
	}
	if _, stderr, code := d.Vouch("authority", "revoke", "00", "--dir", "authority"); code != 1 || !strings.Contains(stderr, "vouch authority list") {
		t.Errorf("revoking an unknown one exits %d: %s", code, stderr)
	}
	d.OK("authority", "revoke", list.Nodes[0].Serial, "--dir", "authority")
	crl, err := x509.ParseRevocationList([]byte(d.Read("authority/revoked.crl")))
	must(t, err)
	if len(crl.RevokedCertificateEntries) != 1 || crl.RevokedCertificateEntries[0].SerialNumber.Text(16) != list.Nodes[0].Serial {
		t.Errorf("the revocation list has %v", crl.RevokedCertificateEntries)
	}
	if out, stderr, code := approve("two.json", "two.yaml", good...); code != 0 {
		t.Errorf("once the other one is revoked: exits %d:\n%s%s", code, out, stderr)
	}
	if _, stderr, code := d.Vouch("authority", "init", "--trust-domain", "example.org", "--dir", "authority", "--passphrase-file", "passphrase"); code != 1 || !strings.Contains(stderr, "already holds a root CA") {
		t.Errorf("a second authority in the same place exits %d: %s", code, stderr)
	}
}
