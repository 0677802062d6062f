package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// A desk is a verifier's machine: it has the vouch binary, files that were
// sent to it, and no configuration, daemon or TPM.
type desk struct {
	t   testing.TB
	dir string
}

func newDesk(t testing.TB) *desk { return &desk{t, t.TempDir()} }

// vouch runs the command line on the desk.
func (d *desk) vouch(args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	dir, err := binaries()
	must(d.t, err)
	cmd := exec.Command(filepath.Join(dir, "vouch"), args...)
	cmd.Dir = d.dir
	cmd.Env = []string{"VOUCHD_CONFIG=/nonexistent/vouchd.yaml", "HOME=" + d.dir}
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		d.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command that must succeed, and returns its standard output.
func (d *desk) ok(args ...string) string {
	d.t.Helper()
	out, stderr, code := d.vouch(args...)
	if code != 0 {
		d.t.Fatalf("vouch %s exits %d:\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

func (d *desk) write(name, content string) {
	d.t.Helper()
	must(d.t, os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o600))
}

func (d *desk) read(name string) string {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	must(d.t, err)
	return string(b)
}

// ok runs a command on the host that must succeed.
func (h *host) ok(args ...string) string {
	h.t.Helper()
	out, stderr, code := h.vouch(args...)
	if code != 0 {
		h.t.Fatalf("vouch %s exits %d:\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// ask has the desk draw a nonce, the host make evidence, and the desk
// challenge it. It leaves evidence.json, kept.json and answer.json.
func (d *desk) ask(h *host) (nonce string) {
	d.t.Helper()
	nonce = strings.TrimSpace(d.ok("node", "nonce"))
	d.write("evidence.json", h.ok("node", "evidence", "--nonce", nonce))
	h.write("challenge.json", d.ok("node", "challenge", "evidence.json", "--keep", "kept.json"))
	d.write("answer.json", h.ok("node", "activate", h.path("challenge.json")))
	return nonce
}

func TestAMachineIsAppraisedOnAnotherThatHasOnlyTheCommandLine(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	d := newDesk(t)
	nonce := d.ask(h)
	d.write("policy.yaml", d.ok("node", "policy", "learn", "evidence.json"))
	answered := []string{"--kept", "kept.json", "--answer", "answer.json"}
	appraise := func(args ...string) (string, string, int) {
		return d.vouch(append([]string{"node", "appraise", "evidence.json", "--policy", "policy.yaml"}, args...)...)
	}

	out, stderr, code := appraise(append(answered, "--nonce", nonce)...)
	if code != 0 || !strings.HasPrefix(out, "appraisal passed\n") || !strings.Contains(out, "passed  PCR 7: ") {
		t.Errorf("exits %d:\n%s%s", code, out, stderr)
	}
	d.write("result.json", d.ok(append([]string{"node", "appraise", "evidence.json", "--policy", "policy.yaml", "--any-nonce", "--output", "json"}, answered...)...))
	var r appraisal.Result
	must(t, json.Unmarshal([]byte(d.read("result.json")), &r))
	st, err := h.admin().Status(t.Context())
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
		d.write("later.json", string(b))
		out, stderr, code := appraise(tt.args...)
		if code != tt.code || !matches(tt.says, out+stderr) {
			t.Errorf("%s: exits %d, want %d and %q:\n%s%s", name, code, tt.code, tt.says, out, stderr)
		}
	}
}

func TestALogIsTiedToAMachineThatItsAuditorChallenged(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	d := newDesk(t)
	d.ask(h)
	d.write("machine.json", d.ok("node", "verify", "answer.json", "--kept", "kept.json", "--output", "json"))
	h.stop()
	log := h.path("state/log")

	if out := d.ok("log", "verify", log); !strings.Contains(out, "not known to you") {
		t.Errorf("without --node:\n%s", out)
	}
	if out := d.ok("log", "verify", log, "--node", "machine.json"); !strings.Contains(out, "The machine is known to you: machine.json") {
		t.Errorf("with --node:\n%s", out)
	}
	var v struct {
		OK    bool `json:"ok"`
		Known bool `json:"machine_known"`
	}
	must(t, json.Unmarshal([]byte(d.ok("log", "verify", log, "--node", "machine.json", "--output", "json")), &v))
	if !v.OK || !v.Known {
		t.Errorf("in JSON: %+v", v)
	}

	var m map[string]any
	must(t, json.Unmarshal([]byte(d.read("machine.json")), &m))
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
		d.write("other.json", string(b))
		if out, stderr, code := d.vouch("log", "verify", log, "--node", "other.json"); code != 1 || !strings.Contains(out+stderr, tt.says) {
			t.Errorf("%s: exits %d, want 1 and %q:\n%s%s", name, code, tt.says, out, stderr)
		}
	}
}

// The cuckoo case: a machine shows another one's endorsement key.
func TestEvidenceWithAnotherMachinesCertificateIsRefusedByName(t *testing.T) {
	t.Parallel()
	mine, other := newHost(t), newHost(t)
	other.tpm = tpmtest.StartManufactured(t)
	other.configure("")
	mine.start()
	other.start()
	d := newDesk(t)
	nonce := strings.TrimSpace(d.ok("node", "nonce"))
	var own, foreign map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(mine.ok("node", "evidence", "--nonce", nonce)), &own))
	must(t, json.Unmarshal([]byte(other.ok("node", "evidence", "--nonce", nonce)), &foreign))
	own["ek"] = foreign["ek"]
	b, err := json.Marshal(own)
	must(t, err)
	d.write("evidence.json", string(b))
	d.write("policy.yaml", d.ok("node", "policy", "learn", "evidence.json"))

	out, _, code := d.vouch("node", "appraise", "evidence.json", "--policy", "policy.yaml", "--nonce", nonce)
	if code != 1 || !matches("failed  activation: .*no challenge", out) {
		t.Errorf("without a challenge: exits %d:\n%s", code, out)
	}
	challenge := d.ok("node", "challenge", "evidence.json", "--keep", "kept.json")
	for name, h := range map[string]*host{"the machine that lies": mine, "the machine whose key it shows": other} {
		h.write("challenge.json", challenge)
		if _, stderr, code := h.vouch("node", "activate", h.path("challenge.json")); code != 1 || !strings.Contains(stderr, "it is for another machine") {
			t.Errorf("%s answers the challenge: exits %d: %s", name, code, stderr)
		}
	}
	d.ask(mine)
	d.write("evidence.json", string(b))
	out, _, code = d.vouch("node", "appraise", "evidence.json", "--policy", "policy.yaml", "--nonce", nonce, "--kept", "kept.json", "--answer", "answer.json")
	if code != 1 || !matches("failed  activation: .*about other keys", out) {
		t.Errorf("with the answer to another challenge: exits %d:\n%s", code, out)
	}
}

func TestTheAdminSocketBoundsWhatItIsSent(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	ctx, c := t.Context(), h.admin()
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
	if p := h.problems(); len(p) != 0 {
		t.Errorf("problems afterwards: %q", p)
	}
	h.stop()
	h.verifyLog()
	if out := h.ok("log", "show", "--event", "admin.request"); !matches(fmt.Sprintf(`success  admin\.request  pid \d+ uid %d `, os.Getuid()), out) {
		t.Errorf("who asked is not in the log:\n%s", out)
	}
}
