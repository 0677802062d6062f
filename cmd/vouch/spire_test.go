package main

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// newSPIREHost returns a host that proves to a server by a leaf which one it is.
func newSPIREHost(t *testing.T, s *spiretest.Server, name string) *host {
	h := newHost(t)
	h.Name = name
	h.TPM = tpmtest.StartManufactured(t)
	h.Configure(fmt.Sprintf("authority:\n  mode: spire\n  spire: {server: %q, bundle_file: %s}\n", s.Address, s.BundleFile))
	h.StartProcess()
	return h
}

func TestHostsWithLeavesOfOneRootJoinASPIREServerAndVerifyEachOther(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	d := daemontest.NewDesk(t)
	root := d.Found("--tpm", tpmtest.Start(t).Address)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(d.Read("authority/root.pem")))
	s.Set(func() { s.PopRoots = roots })
	s.Add(s.Entry("/agent", fmt.Sprintf("unix:uid:%d", os.Getuid())))
	hosts := []*host{newSPIREHost(t, s, "web1"), newSPIREHost(t, s, "web2")}
	for _, h := range hosts {
		daemontest.Eventually(t, h.Name+" says what it lacks", func() bool {
			p := strings.Join(h.Problems(), "\n")
			return strings.Contains(p, "has no certificate to join SPIRE server "+s.Address) && strings.Contains(p, "vouch node request --spire")
		})
		nonce := strings.TrimSpace(d.OK("node", "nonce"))
		d.Write("policy.yaml", h.OK("node", "policy", "learn"))
		d.Write("request.json", h.OK("node", "request", "--spire", "--nonce", nonce))
		terms := []string{"request.json", "--dir", "authority", "--policy", "policy.yaml", "--nonce", nonce, "--life", "720h", "--write", "approval.json"}
		if _, stderr, code := d.Vouch(append([]string{"authority", "approve"}, terms...)...); code == 0 || !strings.Contains(stderr, "approve it with --spire and --name") {
			t.Errorf("approved as a CA: %d\n%s", code, stderr)
		}
		if _, stderr, code := d.Vouch(append([]string{"authority", "approve", "--spire"}, terms...)...); code == 0 || !strings.Contains(stderr, "--name") {
			t.Errorf("approved without a name: %d\n%s", code, stderr)
		}
		out := d.OK(append([]string{"authority", "approve", "--spire", "--name", h.Name}, terms...)...)
		if !strings.Contains(out, "Signed agent's certificate ") || !strings.Contains(out, " for "+h.Name+" until ") {
			t.Errorf("vouch authority approve\n%s", out)
		}
		h.Write("approval.json", d.Read("approval.json"))
		if out := h.OK("node", "install", h.Path("approval.json"), "--root", root); !strings.Contains(out, "This host is "+h.Name+" to a SPIRE server of example.org until ") {
			t.Errorf("vouch node install\n%s", out)
		}
		daemontest.Eventually(t, h.Name+" is served", func() bool { _, err := h.Fetch(); return err == nil })
		if out := h.OK("status"); !strings.Contains(out, "/spire/agent/x509pop/") || !strings.Contains(out, h.Name+", by root ") {
			t.Errorf("%s: status\n%s", h.Name, out)
		}
	}
	if out := d.OK("authority", "list", "--dir", "authority"); strings.Count(out, " (SPIRE agent)") != 2 {
		t.Errorf("vouch authority list\n%s", out)
	}
	one, two := hosts[0].x509Context(), hosts[1].x509Context()
	for _, svid := range one.SVIDs {
		b, err := two.Bundles.GetX509BundleForTrustDomain(s.TrustDomain)
		must(t, err)
		if id, _, err := x509svid.Verify(svid.Certificates, b); err != nil || id != svid.ID {
			t.Errorf("by the bundle of web2 the SVID of web1 verifies as %v, %v", id, err)
		}
	}
	for _, h := range hosts {
		h.Stop()
		h.VerifyLog()
	}
}
