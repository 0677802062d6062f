package main

import (
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

func TestShellsCompleteWhatTheDaemonAndTheConfigurationKnow(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Grants("  - {name: web, broker: ssh, ssh: {principals: [x]}}\n  - {name: warehouse, broker: static, static: {disclosable: true}}\n", "web, warehouse")
	h.Start()
	if _, stderr, code := h.VouchReads([]byte("a value"), "secret", "seal", "warehouse"); code != 0 {
		t.Fatal(stderr)
	}
	for line, want := range map[string]string{
		"identity disable spiffe://example.org/ag": "spiffe://example.org/agent ",
		"lease revoke --identity spiffe://":        "spiffe://example.org/agent ",
		"log show --spiffe-id spiffe://":           "spiffe://example.org/agent ",
		"log show --event x509":                    "x509_svid.issue ",
		"log show --credential w":                  "warehouse web ",
		"lease revoke --credential wa":             "warehouse ",
		"get we":                                   "web ",
		"exec --proxy we":                          "web ",
		"secret rotate ":                           "warehouse ",
		"secret remove warehouse ":                 "",
		"log show --event nothing":                 "",
	} {
		out := h.OK(append([]string{"__complete"}, strings.Split(line, " ")...)...)
		got := ""
		for l := range strings.Lines(out) {
			if l = strings.TrimSpace(l); !strings.HasPrefix(l, ":") {
				got += l + " "
			}
		}
		if !strings.HasSuffix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestCompletionWaitsForNoDaemon(t *testing.T) {
	t.Parallel()
	dir := hung(t, false)
	d := daemontest.NewDesk(t)
	for _, line := range []string{"identity disable ", "secret rotate ", "get "} {
		out, stderr, code := d.Vouch(append([]string{"__complete", "--config", dir + "/vouchd.yaml"}, strings.Split(line, " ")...)...)
		if code != 0 || strings.Contains(out+stderr, "no answer") {
			t.Errorf("%s: exits %d: %s%s", line, code, out, stderr)
		}
	}
}
