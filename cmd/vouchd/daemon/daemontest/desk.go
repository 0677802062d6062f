package daemontest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A Desk is a machine that has the command line and nothing else.
type Desk struct {
	T   testing.TB
	Dir string
}

// NewDesk returns a desk with nothing on it.
func NewDesk(t testing.TB) *Desk { return &Desk{t, t.TempDir()} }

// Vouch runs the command line on the desk.
func (d *Desk) Vouch(args ...string) (stdout, stderr string, code int) {
	d.T.Helper()
	cmd := exec.Command(Program(d.T, "vouch"), args...)
	cmd.Dir = d.Dir
	cmd.Env = []string{"VOUCHD_CONFIG=/nonexistent/vouchd.yaml", "HOME=" + d.Dir}
	return run(d.T, cmd)
}

// OK runs a command that must succeed, and returns its standard output.
func (d *Desk) OK(args ...string) string {
	d.T.Helper()
	out, stderr, code := d.Vouch(args...)
	return succeeded(d.T, args, out, stderr, code)
}

// Write writes a file on the desk.
func (d *Desk) Write(name, content string) {
	d.T.Helper()
	must(d.T, os.WriteFile(filepath.Join(d.Dir, name), []byte(content), 0o600))
}

// Read returns a file on the desk.
func (d *Desk) Read(name string) string {
	d.T.Helper()
	b, err := os.ReadFile(filepath.Join(d.Dir, name))
	must(d.T, err)
	return string(b)
}

// Ask has the desk draw a nonce, the host make evidence, and the desk challenge
// it. It leaves evidence.json, kept.json and answer.json.
func (d *Desk) Ask(h *Host) (nonce string) {
	d.T.Helper()
	nonce = strings.TrimSpace(d.OK("node", "nonce"))
	d.Write("evidence.json", h.OK("node", "evidence", "--nonce", nonce))
	h.Write("challenge.json", d.OK("node", "challenge", "evidence.json", "--keep", "kept.json"))
	d.Write("answer.json", h.OK("node", "activate", h.Path("challenge.json")))
	return nonce
}

// Found creates a root CA on the desk, with its key where args say, and returns its
// digest.
func (d *Desk) Found(args ...string) (root string) {
	d.T.Helper()
	d.Write("passphrase", "correct horse battery staple\n")
	out := d.OK(append([]string{"authority", "init", "--trust-domain", "example.org", "--dir", "authority", "--output", "json"}, args...)...)
	var view struct {
		Root string `json:"root_sha256"`
	}
	must(d.T, json.Unmarshal([]byte(out), &view))
	return view.Root
}

// Approve has the desk approve a host for as long as life says, by a policy
// learned from it, and leaves the approval where the host finds it.
func (d *Desk) Approve(h *Host, life string) (file string) {
	d.T.Helper()
	nonce := strings.TrimSpace(d.OK("node", "nonce"))
	d.Write("policy.yaml", h.OK("node", "policy", "learn"))
	d.Write("request.json", h.OK("node", "request", "--nonce", nonce))
	d.OK("authority", "approve", "request.json", "--dir", "authority", "--passphrase-file", "passphrase",
		"--policy", "policy.yaml", "--nonce", nonce, "--life", life, "--write", "approval.json")
	h.Write("approval.json", d.Read("approval.json"))
	return h.Path("approval.json")
}

// ApproveBoot has the root CA approve the boot state that of is in, and gives h
// the approval.
func (d *Desk) ApproveBoot(h, of *Host, file string) {
	d.T.Helper()
	d.Ask(of)
	d.Write("policy.yaml", d.OK("node", "policy", "learn", "evidence.json"))
	d.Write("result.json", d.OK("node", "appraise", "evidence.json", "--policy", "policy.yaml", "--any-nonce",
		"--kept", "kept.json", "--answer", "answer.json", "--output", "json"))
	d.OK("authority", "approve-boot", "result.json", "--pcr", "0,7", "--write", file, "--dir", "authority", "--passphrase-file", "passphrase")
	h.Write(file, d.Read(file))
}
