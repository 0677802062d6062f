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

func TestJoinSaysWhatItDoesAndDoesItOnce(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	h := newHost(t)
	h.Write("vouchd.yaml", h.Read("vouchd.yaml")+"authority: # of this host\n  mode: standalone\n  spire: {bundle_file: "+h.Path("spire-bundle.pem")+"}\n")
	h.StartProcess()
	before := h.Read("vouchd.yaml")
	args := func(more ...string) []string {
		return append([]string{"node", "join", "--server", s.Address, "--bundle", s.BundleFile}, more...)
	}
	out := h.OK(args("--dry-run")...)
	for _, want := range []string{s.Address + " is the server of this trust domain", "would install the bundle as ", "would set authority.mode: spire in "} {
		if !strings.Contains(out, want) {
			t.Errorf("--dry-run does not say %q:\n%s", want, out)
		}
	}
	if _, stderr, code := h.Vouch(args()...); code == 0 || !strings.Contains(stderr, "nothing was changed: this host has no certificate") {
		t.Errorf("without a certificate: %d, %s", code, stderr)
	}
	other := spiretest.New(t, "example.org")
	if _, stderr, code := h.Vouch("node", "join", "--server", other.Address, "--bundle", s.BundleFile); code == 0 || !strings.Contains(stderr, "nothing was changed: ") || !strings.Contains(stderr, "unknown authority") {
		t.Errorf("another server: %d, %s", code, stderr)
	}
	elsewhere := spiretest.New(t, "other.example")
	if _, stderr, code := h.Vouch("node", "join", "--server", elsewhere.Address, "--bundle", elsewhere.BundleFile); code == 0 || !strings.Contains(stderr, "the server is spiffe://other.example/spire/server and not spiffe://example.org/spire/server") {
		t.Errorf("another trust domain: %d, %s", code, stderr)
	}
	if h.Read("vouchd.yaml") != before {
		t.Error("the configuration was changed")
	}

	h.Write("token", s.Token())
	token := args("--attestor", "join_token", "--token-file", h.Path("token"))
	done := make(chan string, 1)
	go func() {
		stdout, stderr, _ := h.Vouch(token...)
		done <- stdout + stderr
	}()
	daemontest.Eventually(t, "the configuration is changed", func() bool { return h.Read("vouchd.yaml") != before })
	h.Stop() // which systemd does on a real host
	h.StartProcess()
	out = <-done
	for _, want := range []string{"move the join token from ", "set authority.mode: spire in ", "It has attested this host as\n  spiffe://example.org/spire/agent/join_token/", "spire-server entry create -parentID spiffe://example.org/spire/agent/join_token/"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if text := h.Read("vouchd.yaml"); !strings.Contains(text, "# of this host") {
		t.Errorf("a comment is gone:\n%s", text)
	}
	if h.Read("vouchd.yaml.before-join") != before {
		t.Error("the former configuration is not kept")
	}
	if _, err := os.Stat(h.Path("token")); err == nil {
		t.Error("the token is still there")
	}
	if out := h.OK(args("--attestor", "join_token")...); !strings.Contains(out, "Nothing is to be changed.") || !strings.Contains(out, "It has attested this host as") {
		t.Errorf("a second time:\n%s", out)
	}
	s.Stop()
	if _, stderr, code := h.Vouch(args("--attestor", "join_token")...); code == 0 || !strings.Contains(stderr, "nothing was changed: asking for the bundle at SPIRE server "+s.Address) {
		t.Errorf("without the server: %d, %s", code, stderr)
	}
}
