package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/vouchd/vouchd/credential/sshca/sshdtest"
)

// newSSHHost returns a host whose daemon certifies SSH keys, and a server that
// trusts it.
func newSSHHost(t *testing.T) (*host, *sshdtest.Server) {
	t.Helper()
	h := newHost(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [web-ssh]}\n"+
		"  - {spiffe_id: \"spiffe://example.org/other\", selectors: [\"unix:uid:65534\"], credentials: [backup-ssh]}\n", os.Getuid()))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.Write("credentials.d/a.yaml", `credentials:
  - name: web-ssh
    broker: ssh
    ssh: {principals: [deploy], source_address: [127.0.0.1]}
  - name: backup-ssh
    broker: ssh
    ssh: {principals: [backup]}
`)
	h.Start()
	ca, stderr, code := h.Vouch("ssh-ca")
	if code != 0 {
		t.Fatalf("vouch ssh-ca: %s", stderr)
	}
	return h, sshdtest.Start(t, ca)
}

func TestSSHLogsInThroughTheAgent(t *testing.T) {
	t.Parallel()
	h, server := newSSHHost(t)
	args := append([]string{"ssh-agent", "--credential", "web-ssh", "--", "ssh"}, server.Args(nil, "echo let in; exit 3")...)
	out, stderr, code := h.Vouch(args...)
	if code != 3 || out != "let in\n" {
		t.Fatalf("exits %d: %s%s\n%s", code, out, stderr, server.Log())
	}
	who := regexp.MustCompile(`ID spiffe://example\.org/agent request (\S+) \(serial (\d+)\)`).FindStringSubmatch(server.Log())
	if who == nil {
		t.Fatalf("the server does not know who it was:\n%s", server.Log())
	}
	story, _, _ := h.Vouch("log", "show", "--credential", "web-ssh", "--output", "json")
	for _, want := range []string{`"request_id":"` + who[1] + `"`, `serial ` + who[2], "principal=deploy source-address=127.0.0.1", `"exposure":"memory"`} {
		if !strings.Contains(story, want) {
			t.Errorf("vouchd's log does not say %q:\n%s", want, story)
		}
	}
	socket, _, _ := h.Vouch("ssh-agent", "--credential", "web-ssh", "--", "sh", "-c", "test -S $SSH_AUTH_SOCK && echo -n $SSH_AUTH_SOCK")
	if _, err := os.Lstat(filepath.Dir(socket)); socket == "" || err == nil {
		t.Errorf("left behind: %q, %v", socket, err)
	}
}

func TestSSHAgentServesAtAPath(t *testing.T) {
	t.Parallel()
	h, server := newSSHHost(t)
	socket := h.Path("agent of ssh.sock")
	start := func() *exec.Cmd {
		cmd := exec.Command(daemontest.Program(t, "vouch"), "ssh-agent", "--credential", "web-ssh", "--listen", socket)
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		return cmd
	}
	agent := start()
	out := daemontest.NewLines()
	agent.Stdout, agent.Stderr = out, t.Output()
	must(t, agent.Start())
	t.Cleanup(func() { agent.Process.Kill() })
	out.Wait(t, "SSH_AUTH_SOCK='"+socket+"'; export SSH_AUTH_SOCK;")
	if info, err := os.Lstat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	if said, err := start().CombinedOutput(); err == nil || !strings.Contains(string(said), "exists; if no agent serves") {
		t.Errorf("a second agent in the place of the first: %v: %s", err, said)
	}
	login := exec.Command("ssh", server.Args(nil, "true")...)
	login.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	if said, err := login.CombinedOutput(); err != nil {
		t.Errorf("ssh: %v: %s%s", err, said, server.Log())
	}
	must(t, agent.Process.Signal(syscall.SIGTERM))
	must(t, agent.Wait())
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is left behind")
	}
}

func TestSSHAuthorityIsOfNoUseToAnotherIdentity(t *testing.T) {
	t.Parallel()
	h, _ := newSSHHost(t)
	_, stderr, code := h.Vouch("ssh-agent", "--credential", "backup-ssh", "--", "true")
	if code != 1 || !strings.Contains(stderr, "not granted") {
		t.Errorf("another's credential: exits %d: %s", code, stderr)
	}
	denied, _, _ := h.Vouch("log", "show", "--event", "lease.grant_intent", "--output", "json")
	if !strings.Contains(denied, `"outcome":"denied"`) || !strings.Contains(denied, "backup-ssh") {
		t.Errorf("the refusal is not recorded:\n%s", denied)
	}
	if out, _, _ := h.Vouch("log", "show", "--credential", "backup-ssh", "--output", "json"); strings.Contains(out, `"event":"lease.grant"`) {
		t.Errorf("something was granted:\n%s", out)
	}
	// The authority's public half is for administrators, and of names that are used.
	if _, stderr, code := h.Vouch("ssh-ca", "jwt"); code != 1 || !strings.Contains(stderr, `no credential in force uses the SSH CA "jwt"; those in use: default`) {
		t.Errorf("vouch ssh-ca jwt exits %d: %s", code, stderr)
	}
	if keys, err := filepath.Glob(h.Path("state/tpm-key-ssh-*")); err != nil || len(keys) != 1 {
		t.Errorf("keys in the TPM: %q, %v", keys, err)
	}
	if out, _, _ := h.Vouch("log", "show", "--event", "admin.request"); !strings.Contains(out, "public key of SSH CA default") {
		t.Errorf("that an administrator asked is not recorded:\n%s", out)
	}
}

func TestSSHAgentNeedsToBeToldWhat(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for want, args := range map[string][]string{
		"--credential is required":  {"ssh-agent", "--", "true"},
		"give either --listen PATH": {"ssh-agent", "--credential", "x"},
		"or a command after --":     {"ssh-agent", "--credential", "x", "--listen", "/tmp/x", "--", "true"},
		"accepts at most 1":         {"ssh-ca", "a", "b"},
		"unknown flag: --add":       {"ssh-agent", "--add", "x"},
	} {
		if _, stderr, code := h.Vouch(args...); code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("vouch %s exits %d, want 2 and %q: %s", strings.Join(args, " "), code, want, stderr)
		}
	}
}
