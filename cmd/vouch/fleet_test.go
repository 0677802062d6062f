package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// greeted connects this process, as a workload of one host, to itself, as a workload of
// another, by mutual TLS: each knows the other's SPIFFE ID, and its own host's bundles.
func greeted(t *testing.T, server, client *daemontest.Host) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	source := func(h *daemontest.Host) *spiffe.X509Source {
		s, err := spiffe.NewX509Source(ctx, spiffe.WithClientOptions(spiffe.WithAddr("unix://"+h.Path("agent.sock"))))
		must(t, err)
		return s
	}
	at, from := source(server), source(client)
	defer at.Close()
	defer from.Close()
	atSVID, err := at.GetX509SVID()
	must(t, err)
	fromSVID, err := from.GetX509SVID()
	must(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(at, at, tlsconfig.AuthorizeID(fromSVID.ID)))
	must(t, err)
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.WriteString(c, "hello")
			c.Close()
		}
		served <- err
	}()
	defer func() { l.Close(); <-served }()
	conn, err := (&tls.Dialer{Config: tlsconfig.MTLSClientConfig(from, from, tlsconfig.AuthorizeID(atSVID.ID))}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		return fmt.Errorf("came %q, %w", got, err)
	}
	return nil
}

// A host of an organisation's root and one that is its own root exchange bundles in files,
// without any endpoint.
func TestHostOfOneRootAndAHostOfItsOwnFederateByFiles(t *testing.T) {
	t.Parallel()
	d := daemontest.NewDesk(t)
	root := d.Found("--tpm", tpmtest.Start(t).Address)
	enrolled := newEnrolledHost(t, "one").Host.Host
	enrolled.OK("node", "install", d.Approve(enrolled, "720h"), "--root", root)
	alone := daemontest.NewOf(t, "partner.example")
	alone.Start()
	for _, x := range []struct{ at, of *daemontest.Host }{{enrolled, alone}, {alone, enrolled}} {
		file := "federation.d/" + x.of.TrustDomain + ".bundle"
		x.at.Write(file, x.of.OK("bundle", "spiffe"))
		x.at.Write("federation.d/a.yaml", fmt.Sprintf("federation:\n  - {trust_domain: %s, bundle_file: %s}\n", x.of.TrustDomain, x.at.Path(file)))
		x.at.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://%s/agent/0\", selectors: [\"unix:uid:%d\"], federates_with: [%s]}\n", x.at.TrustDomain, os.Getuid(), x.of.TrustDomain))
		x.at.OK("check")
	}
	eventually(t, "workloads of both trust each other", func() bool {
		return greeted(t, enrolled, alone) == nil && greeted(t, alone, enrolled) == nil
	})
	for _, h := range []*daemontest.Host{enrolled, alone} {
		if p := h.Problems(); len(p) != 0 {
			t.Errorf("problems of %s: %q", h.TrustDomain, p)
		}
		if out := h.OK("entry", "list"); !strings.Contains(out, "federates with: ") {
			t.Errorf("vouch entry list at %s: %s", h.TrustDomain, out)
		}
		if out := h.OK("entry", "list", "--output", "json"); !strings.Contains(out, `"federates_with": [`) {
			t.Errorf("vouch entry list at %s: %s", h.TrustDomain, out)
		}
		h.Stop()
		h.VerifyLog()
	}
}

// The files that the page has an administrator write at either host are in order, together.
func TestFilesOfTheFleetPagePassTheCheck(t *testing.T) {
	t.Parallel()
	page := page(t, "fleet.md", "## Hosts that federate")
	for td, files := range map[string]map[string]string{
		"b.example": {"entries.d/bundle.yaml": block(t, page, "entries:\n  - spiffe_id: spiffe://b.example/bundle")},
		"a.example": {
			"entries.d/orders.yaml":       block(t, page, "entries:\n  - spiffe_id: spiffe://a.example/orders"),
			"federation.d/b.example.yaml": block(t, page, "federation:"),
		},
	} {
		dir := t.TempDir()
		files["vouchd.yaml"] = "trust_domain: " + td + "\n"
		for name, text := range files {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		}
		var out, errOut bytes.Buffer
		if code := cli.Execute(t.Context(), newRoot(), []string{"check", dir}, &out, &errOut); code != 0 || !strings.Contains(out.String(), "1 entry") {
			t.Errorf("at %s vouch check exits %d: %s%s", td, code, &out, &errOut)
		}
	}
}
