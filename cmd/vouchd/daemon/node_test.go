package daemon_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestAMachineIsAppraisedOnAnotherThatHasOnlyTheCommandLine(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Start()
	d := daemontest.NewDesk(t)
	nonce := d.Ask(h.Host)
	d.Write("policy.yaml", d.OK("node", "policy", "learn", "evidence.json"))
	answered := []string{"--kept", "kept.json", "--answer", "answer.json"}
	appraise := func(args ...string) (string, string, int) {
		return d.Vouch(append([]string{"node", "appraise", "evidence.json", "--policy", "policy.yaml"}, args...)...)
	}

	out, stderr, code := appraise(append(answered, "--nonce", nonce)...)
	if code != 0 || !strings.HasPrefix(out, "appraisal passed\n") || !strings.Contains(out, "passed  PCR 7: ") {
		t.Errorf("exits %d:\n%s%s", code, out, stderr)
	}
	d.Write("result.json", d.OK(append([]string{"node", "appraise", "evidence.json", "--policy", "policy.yaml", "--any-nonce", "--output", "json"}, answered...)...))
	var r appraisal.Result
	must(t, json.Unmarshal([]byte(d.Read("result.json")), &r))
	st, err := h.Admin().Status(t.Context())
	must(t, err)
	if !r.Passed || r.EKSHA256 != st.TPM.EKSHA256 || r.AKName != st.TPM.AKName {
		t.Errorf("the result names %s, %s; the host is %+v", r.EKSHA256, r.AKName, st.TPM)
	}

	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"without a nonce":             {answered, 2, "--any-nonce"},
		"with half of the activation": {[]string{"--any-nonce", "--kept", "kept.json"}, 2, "--answer"},
		"for another nonce":           {append(answered, "--nonce", strings.Repeat("ab", 32)), 1, "failed  nonce: "},
		"without a challenge":         {[]string{"--nonce", nonce}, 1, "failed  activation: .*vouch node challenge"},
		"after a later one":           {append(answered, "--any-nonce", "--previous", "later.json"), 1, "failed  quote: .*clock"},
	} {
		later := r
		later.BootState.Clock += 1 << 40
		b, err := json.Marshal(later)
		must(t, err)
		d.Write("later.json", string(b))
		out, stderr, code := appraise(tt.args...)
		if code != tt.code || !matches(tt.says, out+stderr) {
			t.Errorf("%s: exits %d, want %d and %q:\n%s%s", name, code, tt.code, tt.says, out, stderr)
		}
	}
}

func TestALogIsTiedToAMachineThatItsAuditorChallenged(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Start()
	d := daemontest.NewDesk(t)
	d.Ask(h.Host)
	d.Write("machine.json", d.OK("node", "verify", "answer.json", "--kept", "kept.json", "--output", "json"))
	h.Stop()
	log := h.Path("state/log")

	if out := d.OK("log", "verify", log); !strings.Contains(out, "The machine is not verified") {
		t.Errorf("without --node:\n%s", out)
	}
	if out := d.OK("log", "verify", log, "--node", "machine.json"); !strings.Contains(out, "The machine is the one in machine.json") {
		t.Errorf("with --node:\n%s", out)
	}
	var v struct {
		OK    bool `json:"ok"`
		Known bool `json:"machine_known"`
	}
	must(t, json.Unmarshal([]byte(d.OK("log", "verify", log, "--node", "machine.json", "--output", "json")), &v))
	if !v.OK || !v.Known {
		t.Errorf("in JSON: %+v", v)
	}

	var m map[string]any
	must(t, json.Unmarshal([]byte(d.Read("machine.json")), &m))
	for name, tt := range map[string]struct {
		key   string
		value any
		says  string
	}{
		"another endorsement key":      {"ek_sha256", strings.Repeat("00", 32), "of another machine"},
		"another attestation key":      {"ak_name", strings.Repeat("00", 34), "claims another machine's endorsement key"},
		"a machine that did not pass":  {"passed", false, "did not pass"},
		"no activation":                {"ek_sha256", "", "vouch node challenge"},
		"a version that nobody knows":  {"version", 9, "version 9"},
		"something that is no machine": {"ak_name", "", "is not the result"},
	} {
		changed := map[string]any{}
		for k, v := range m {
			changed[k] = v
		}
		changed[tt.key] = tt.value
		b, err := json.Marshal(changed)
		must(t, err)
		d.Write("other.json", string(b))
		if out, stderr, code := d.Vouch("log", "verify", log, "--node", "other.json"); code != 1 || !strings.Contains(out+stderr, tt.says) {
			t.Errorf("%s: exits %d, want 1 and %q:\n%s%s", name, code, tt.says, out, stderr)
		}
	}
}

// The cuckoo case: a machine shows another one's endorsement key.
func TestEvidenceWithAnotherMachinesCertificateIsRefusedByName(t *testing.T) {
	t.Parallel()
	mine, other := newHost(t), newHost(t)
	other.TPM = tpmtest.StartManufactured(t)
	other.Configure("")
	mine.Start()
	other.Start()
	d := daemontest.NewDesk(t)
	nonce := strings.TrimSpace(d.OK("node", "nonce"))
	var own, foreign map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(mine.OK("node", "evidence", "--nonce", nonce)), &own))
	must(t, json.Unmarshal([]byte(other.OK("node", "evidence", "--nonce", nonce)), &foreign))
	own["ek"] = foreign["ek"]
	b, err := json.Marshal(own)
	must(t, err)
	d.Write("evidence.json", string(b))
	d.Write("policy.yaml", d.OK("node", "policy", "learn", "evidence.json"))

	out, _, code := d.Vouch("node", "appraise", "evidence.json", "--policy", "policy.yaml", "--nonce", nonce)
	if code != 1 || !matches("failed  activation: .*no challenge", out) {
		t.Errorf("without a challenge: exits %d:\n%s", code, out)
	}
	challenge := d.OK("node", "challenge", "evidence.json", "--keep", "kept.json")
	for name, h := range map[string]*host{"the machine that lies": mine, "the machine whose key it shows": other} {
		h.Write("challenge.json", challenge)
		if _, stderr, code := h.Vouch("node", "activate", h.Path("challenge.json")); code != 1 || !strings.Contains(stderr, "it is for another machine") {
			t.Errorf("%s answers the challenge: exits %d: %s", name, code, stderr)
		}
	}
	d.Ask(mine.Host)
	d.Write("evidence.json", string(b))
	out, _, code = d.Vouch("node", "appraise", "evidence.json", "--policy", "policy.yaml", "--nonce", nonce, "--kept", "kept.json", "--answer", "answer.json")
	if code != 1 || !matches("failed  activation: .*about other keys", out) {
		t.Errorf("with the answer to another challenge: exits %d:\n%s", code, out)
	}
}

func TestTheAdminSocketBoundsWhatItIsSent(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Start()
	ctx, c := t.Context(), h.Admin()
	for name, call := range map[string]func() error{
		"a nonce too short":         func() error { _, err := c.Node.Evidence(ctx, make([]byte, appraisal.MinNonceLen-1)); return err },
		"a nonce too long":          func() error { _, err := c.Node.Evidence(ctx, make([]byte, appraisal.MaxNonceLen+1)); return err },
		"no nonce":                  func() error { _, err := c.Node.Evidence(ctx, nil); return err },
		"a challenge of a megabyte": func() error { _, err := c.Node.Activate(ctx, make([]byte, 1<<20)); return err },
		"a challenge of nothing":    func() error { _, err := c.Node.Activate(ctx, nil); return err },
		"an approval of nothing":    func() error { _, err := c.Node.Install(ctx, nil, ""); return err },
		"a boot state of nothing":   func() error { return c.Node.Reseal(ctx, nil) },
	} {
		if err := call(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if p := h.Problems(); len(p) != 0 {
		t.Errorf("problems afterwards: %q", p)
	}
	h.Stop()
	h.VerifyLog()
	if out := h.OK("log", "show", "--event", "admin.request"); !matches(fmt.Sprintf(`success  admin\.request  pid \d+ uid %d `, os.Getuid()), out) {
		t.Errorf("who asked is not in the log:\n%s", out)
	}
}
