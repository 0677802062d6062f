package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// newKeepingHost returns a host whose test user may have a secret that is
// disclosable, and one that is not.
func newKeepingHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [stripe, proxied, missing]}\n", os.Getuid()))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.Write("credentials.d/a.yaml", `credentials:
  - {name: stripe, broker: static, static: {secret: stripe-key, disclosable: true}}
  - {name: proxied, broker: static, static: {secret: stripe-key}}
  - {name: missing, broker: static, bind: lease, static: {disclosable: true}}
`)
	return h
}

func TestCommandLineKeepsSecrets(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start()
	const value = "sk_live_canary-4f1b\n"
	for _, tt := range []struct {
		stdin    string
		args     []string
		code     int
		out, err string // regular expressions
	}{
		{"", []string{"secret", "list"}, 0, `^$`, `^$`},
		{"", []string{"secret", "seal", "stripe-key"}, 1, `^$`, `it is empty; did the command before the pipe fail`},
		{"", []string{"get", "stripe"}, 1, `^$`, `the source of the credential refused`},
		{value, []string{"secret", "seal", "stripe-key"}, 0, `^stripe-key: sealed 20 bytes to this machine as revision 1; rotate it by \d{4}-`, `note: the value includes a trailing newline`},
		{value, []string{"secret", "seal", "stripe-key"}, 1, `^$`, `vouch secret rotate stripe-key`},
		{value, []string{"secret", "seal", "../x"}, 2, `^$`, `use letters`},
		{value, []string{"secret", "seal"}, 2, `^$`, `accepts 1 arg`},
		{value, []string{"secret", "seal", "x", "--rotate-after", "soon"}, 2, `^$`, `want an age such as 45d`},
		{value, []string{"secret", "seal", "x", "--fd", "77"}, 1, `^$`, `bad file descriptor`},
		{value, []string{"secret", "rotate", "x"}, 1, `^$`, `vouch secret seal x`},
		{"", []string{"secret", "remove", "x"}, 1, `^$`, `nothing is sealed`},
		{"", []string{"secret", "list"}, 0, `stripe-key\s+20 bytes\s+sealed 0 days ago\s+rotate by .*never used`, `^$`},
		{"", []string{"get", "stripe", "--field", "value"}, 0, `^sk_live_canary-4f1b\n$`, `^$`},
		{"", []string{"exec", "--credential", "stripe:value=KEY", "--", "sh", "-c", "echo $KEY"}, 0, `^sk_live_canary-4f1b\n$`, `^$`},
		{"", []string{"get", "proxied"}, 1, `^$`, `value of proxied is not handed out; add a proxy block to its definition, for vouchd to make calls with it, or set disclosable: true`},
		{"", []string{"secret", "list"}, 0, `used 2 times, last .* by spiffe://example.org/agent`, `^$`},
		{"new", []string{"secret", "rotate", "stripe-key", "--broad", "--rotate-after", "45d"}, 0, `revision 2`, `^$`},
		{"", []string{"get", "stripe", "--field", "value"}, 0, `^new$`, `^$`},
		{"", []string{"status"}, 1, `(?s)problem: credential missing needs the secret missing, which is not sealed; run: vouch secret seal missing\n.*secrets\s+1 sealed to this machine, 0 due`, `^$`},
		{"", []string{"secret", "remove", "stripe-key"}, 0, `^removed stripe-key`, `^$`},
		{"", []string{"get", "stripe"}, 1, `^$`, `the source of the credential refused`},
	} {
		out, stderr, code := h.VouchReads([]byte(tt.stdin), tt.args...)
		if code != tt.code || !matches(tt.out, out) || !matches(tt.err, stderr) {
			t.Errorf("vouch %s exits %d, want %d\n-- out, want %s --\n%s-- err, want %s --\n%s", strings.Join(tt.args, " "), code, tt.code, tt.out, out, tt.err, stderr)
		}
	}
	h.CheckSecret(leasetest.Login{Password: strings.TrimSpace(value)})

	for event, want := range map[string]string{
		"secret.seal": "stripe-key  as stripe-key@1", "secret.rotate": "stripe-key@2", "secret.remove": "stripe-key@2",
		"lease.grant_intent": "(credential is proxy-only", "lease.end": "stripe  as stripe-key@1  at sealed:stripe-key",
	} {
		if out, _, _ := h.Vouch("log", "show", "--event", event); !strings.Contains(out, want) {
			t.Errorf("the log does not say %q of %s:\n%s", want, event, out)
		}
	}
	if out, stderr, code := h.Vouch("log", "report"); code != 0 || !matches(`secret stripe-key: removed, used 3 times, last .* by spiffe://example.org/agent`, out) {
		t.Errorf("log report exits %d: %s%s", code, out, stderr)
	}
	if out, _, code := h.Vouch("log", "verify", "--live"); code != 0 {
		t.Errorf("the log does not hold: %s", out)
	}
}

func TestSecretsOfAnyBytesReachTheAgent(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start()
	million := make([]byte, 1_000_000)
	rand.Read(million)
	for i, value := range [][]byte{[]byte("lines\n\r\n and \x00 zeros\x00\n"), million} {
		verb := []string{"seal", "rotate"}[i]
		r, w, err := os.Pipe()
		must(t, err)
		go func() { w.Write(value); w.Close() }()
		cmd := exec.Command(daemontest.Program(t, "vouch"), "secret", verb, "stripe-key", "--fd", "3")
		cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"))
		cmd.ExtraFiles = []*os.File{r}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		r.Close()
		if got := granted(t, h, "stripe"); !bytes.Equal(got, value) {
			t.Errorf("%d bytes came of %d", len(got), len(value))
		}
	}
	if _, stderr, code := h.VouchReads(make([]byte, 1<<20+1), "secret", "rotate", "stripe-key"); code != 1 || !strings.Contains(stderr, "longer than 1048576 bytes") {
		t.Errorf("a byte too many exits %d: %s", code, stderr)
	}
}

// granted is what an agent is given.
func granted(t *testing.T, h *host, name string) []byte {
	t.Helper()
	client, err := client.New("unix://" + h.Path("agent.sock"))
	must(t, err)
	defer client.Close()
	_, fields, err := client.Grant(context.Background(), &credentialv1.GrantCredentialRequest{Name: name})
	must(t, err)
	return fields[0].Value.Reveal()
}

func TestSecretThatIsDueIsToldEverywhere(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start("metrics=unix:" + h.Path("metrics.sock"))
	if _, stderr, code := h.VouchReads([]byte("x"), "secret", "seal", "stripe-key", "--rotate-after", "1s"); code != 0 {
		t.Fatal(stderr)
	}
	eventually(t, "the secret is due", func() bool {
		st, err := h.Admin().Status(t.Context())
		must(t, err)
		return st.Secrets.Due == 1
	})
	if out, _, _ := h.Vouch("status"); !matches(`(?m)^reminder: secret stripe-key is 0 days old and should be rotated after 0; .*vouch secret rotate stripe-key$`, out) {
		t.Errorf("status says\n%s", out)
	}
	if out, _, _ := h.Vouch("secret", "list"); !matches(`ROTATE: due since`, out) {
		t.Errorf("secret list says\n%s", out)
	}
	var views []view.Secret
	out, _, _ := h.Vouch("secret", "list", "--output", "json")
	must(t, json.Unmarshal([]byte(out), &views))
	if len(views) != 1 || !views[0].Due || views[0].Name != "stripe-key" {
		t.Errorf("secret list in JSON: %+v", views)
	}
	text := h.Metrics("metrics.sock")
	for _, want := range []string{`(?m)^vouchd_secrets 1$`, `(?m)^vouchd_secrets_due 1$`, `(?m)^vouchd_secret_rotate_by_seconds{secret="stripe-key"} \d`, `(?m)^vouchd_secret_sealed_seconds{secret="stripe-key"} \d`} {
		if !matches(want, text) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if out, _, _ := h.Vouch("log", "report"); !strings.Contains(out, "! should have been rotated by") {
		// The report is as of the last record: there has to be one.
		h.Vouch("get", "stripe")
		if out, _, _ = h.Vouch("log", "report"); !strings.Contains(out, "! should have been rotated by") {
			t.Errorf("the report says\n%s", out)
		}
	}
}

func TestUsesAndSecretsSurviveARestart(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start()
	if _, stderr, code := h.VouchReads([]byte("x"), "secret", "seal", "stripe-key"); code != 0 {
		t.Fatal(stderr)
	}
	granted(t, h, "stripe")
	h.Stop()
	h.Start()
	secrets, err := h.Admin().Secrets.List(t.Context())
	must(t, err)
	if len(secrets) != 1 || secrets[0].Uses != 1 || !slices.Equal(secrets[0].UsedBy, []string{"spiffe://example.org/agent"}) {
		t.Errorf("after a restart: %+v", secrets)
	}
	if got := granted(t, h, "stripe"); string(got) != "x" {
		t.Errorf("the value is %q", got)
	}
}

func TestListOfSecretsThatDoesNotOpenIsAProblemAndNoEnd(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start()
	if _, stderr, code := h.VouchReads([]byte("x"), "secret", "seal", "stripe-key"); code != 0 {
		t.Fatal(stderr)
	}
	h.Stop()
	b, err := os.ReadFile(h.Path("state/secrets"))
	must(t, err)
	must(t, os.WriteFile(h.Path("state/secrets"), b[:len(b)-3], 0o600))
	h.Start()
	if out, _, code := h.Vouch("status"); code != 1 || !matches(`problem: cannot open any secret: .*secrets is damaged`, out) {
		t.Errorf("status exits %d and says\n%s", code, out)
	}
	if _, stderr, code := h.VouchReads([]byte("x"), "secret", "seal", "other"); code != 1 || !strings.Contains(stderr, "damaged") {
		t.Errorf("sealing exits %d: %s", code, stderr)
	}
}

func TestSecretBoundToBootStates(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start()
	d := daemontest.NewDesk(t)
	d.Found("--tpm", tpmtest.Start(t).Address)
	h.Write("root.pem", d.Read("authority/root.pem"))
	if out, stderr, code := h.VouchReads([]byte("bound"), "secret", "seal", "stripe-key", "--bind-to", h.Path("root.pem")); code != 0 || !strings.Contains(out, "vouch node reseal") {
		t.Fatalf("exits %d: %s%s", code, out, stderr)
	}
	opens := func(when string, want bool) {
		t.Helper()
		out, _, code := h.Vouch("get", "stripe", "--field", "value")
		if (code == 0 && out == "bound") != want {
			t.Errorf("%s: exits %d with %q", when, code, out)
		}
	}
	opens("before any boot state is approved", false)
	d.ApproveBoot(h.Host.Host, h.Host.Host, "approval.json")
	h.OK("node", "reseal", h.Path("approval.json"))
	opens("in the approved state", true)
	h.TPM.Extend(7, "an update")
	opens("in another state", false)
	d.ApproveBoot(h.Host.Host, h.Host.Host, "update.json")
	h.OK("node", "reseal", h.Path("update.json"))
	opens("after the update was approved", true)
}
