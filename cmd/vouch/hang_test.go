package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// asks has arguments for each command that asks the daemon, with what comes on standard input
// behind "<": {dir} is a directory with a configuration, whose sockets are those of a daemon
// that does not answer. The others, which are here without arguments, ask none.
var asks = map[string][]string{
	"authority approve": nil, "authority approve-boot": nil, "authority init": nil, "authority list": nil, "authority revoke": nil,
	"aws-credential-process": {"x", "--timeout", "2s"},
	"bundle jwks":            {}, "bundle openid-configuration": {"--issuer", "https://example.org"}, "bundle spiffe": {},
	"bugreport":         nil, // asks, and does without an answer
	"bundle serve":      {"--listen", "127.0.0.1:0"},
	"check":             nil,
	"docker-credential": {"get", "--timeout", "2s", "<", "https://example.org"},
	"doctor":            {},
	"drill end":         {"--credential", "x"},
	"drill revoke":      {"--credential", "x", "--yes"},
	"entry disable":     {"spiffe://example.org/a"}, "entry enable": {"spiffe://example.org/a"}, "entry explain": {"--self"}, "entry list": {},
	"entry new":    {"--spiffe-id", "spiffe://example.org/a", "--from-pid", "1"},
	"exec":         {"--credential", "x=Y", "--timeout", "2s", "--", "true"},
	"fetch bundle": {"--timeout", "2s"}, "fetch jwt": {"--audience", "a", "--timeout", "2s"}, "fetch x509": {"--timeout", "2s"},
	"get":              {"x", "--timeout", "2s"},
	"git-credential":   {"get", "--timeout", "2s", "<", "protocol=https\nhost=example.org\n\n"},
	"hash":             nil,
	"identity disable": {"spiffe://example.org/a"}, "identity enable": {"spiffe://example.org/a"},
	"inventory":          nil,
	"kubectl-credential": {"--cluster", "https://example.org", "--timeout", "2s"},
	"lease list":         {}, "lease revoke": {"--all"},
	"log archive": nil, "log consistency": nil, "log explain": nil, "log prove": nil, "log report": nil, "log restart": nil, "log show": nil,
	"log verify": nil, "log verify-consistency": nil, "log verify-proof": nil, "log check-consistency": nil, "log check-proof": nil,
	"migrate env": {"{dir}/.env", "--credential-prefix", "x", "--disclosable"},
	"migrate aws": {"{dir}/credentials"}, "migrate docker": {"{dir}/config.json"}, "migrate file": {"{dir}/.bashrc", "--disclosable"}, "migrate undo": {"{dir}/.env"},
	"migrate git": {"{dir}/.git-credentials"}, "migrate kubeconfig": nil, "migrate mcp": nil, "migrate unit": nil, // seal as the others do
	"node activate": {"{dir}/file.json"}, "node appraise": nil, "node attest": {}, "node challenge": nil, "node evidence": {"--nonce", strings.Repeat("ab", 32)},
	"node install": {"{dir}/file.json", "--root", strings.Repeat("ab", 32)}, "node nonce": nil, "node policy learn": {}, "node request": {},
	"node join":   nil, // bounds what it waits for itself
	"node reseal": nil, "node reset": nil, "node verify": nil,
	"policy presets": nil, "policy suggest": nil, "policy test": nil, "program list": nil, "redact": nil, "sandbox unit": nil,
	"program run": nil, "run": nil, // ask the service of programs, under systemd alone
	"secret list": {}, "secret remove": {"x"}, "secret rotate": {"x", "<", "value"}, "secret seal": {"x", "<", "value"},
	"ssh-agent":    {"--credential", "x", "--timeout", "2s", "--", "true"},
	"ssh-ca":       {"x"},
	"status":       {},
	"svid inspect": nil, // the same
	"ui":           nil, // shows on its page that there is no answer
	"version":      nil, // asks, and does without an answer
}

// leaves returns the commands that do something, by their names after vouch's.
func leaves(cmd *cobra.Command) (names []string) {
	for _, sub := range cmd.Commands() {
		names = append(names, leaves(sub)...)
	}
	if !cmd.HasSubCommands() {
		names = append(names, strings.TrimPrefix(cmd.CommandPath(), "vouch "))
	}
	return names
}

// hung is a directory with the configuration of a daemon that accepts connections, unless it
// is missing, and says nothing.
func hung(t *testing.T, missing bool) string {
	t.Helper()
	dir := t.TempDir()
	config := "trust_domain: example.org\n"
	for _, name := range []string{"agent", "admin", "proxy"} {
		path := filepath.Join(dir, name+".sock")
		config += fmt.Sprintf("%s_socket: %s\n", name, path)
		if missing {
			continue
		}
		l, err := net.Listen("unix", path)
		must(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
			}
		}()
	}
	for name, text := range map[string]string{
		"vouchd.yaml": config, ".env": "TOKEN=abcdefghijklmnop\n", "file.json": "{}", ".bashrc": "export TOKEN=q8Zr2Lk5Vt7Xw3Np\n",
		"credentials": "[x]\naws_access_key_id = AKIA2345672345672345\naws_secret_access_key = " + strings.Repeat("aB3/", 10) + "\n",
		"config.json": `{"auths": {"reg.internal": {"auth": "YW5uOmFiY2RlZmdoMTIzNDU2Nzg="}}}`, ".git-credentials": "https://ann:q8Zr2Lk5Vt7Xw3Np@git.internal\n",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// notRepeated are the commands whose callers want an answer of a form of their own.
var notRepeated = map[string]string{
	"git-credential": "git goes on to ask others",
}

func TestNoCommandHangsWithTheDaemon(t *testing.T) {
	t.Parallel()
	vouch := daemontest.Program(t, "vouch")
	for _, name := range leaves(newRoot()) {
		args, known := asks[name]
		if !known {
			t.Errorf("vouch %s: the table does not say how it asks the daemon, or that it does not", name)
		}
		if args == nil {
			continue
		}
		for _, missing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, missing=%t", name, missing), func(t *testing.T) {
				t.Parallel()
				dir := hung(t, missing)
				all := append(strings.Fields(name), args...)
				stdin := ""
				for i, a := range all {
					if a == "<" {
						stdin, all = all[i+1], all[:i]
						break
					}
					all[i] = strings.ReplaceAll(a, "{dir}", dir)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, vouch, all...)
				cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+filepath.Join(dir, "vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+filepath.Join(dir, "agent.sock"))
				cmd.Stdin = strings.NewReader(stdin)
				out, err := cmd.CombinedOutput()
				said := string(out)
				switch want := map[bool]string{false: "no answer", true: "is vouchd running?"}[missing]; {
				case ctx.Err() != nil:
					t.Errorf("it hangs, and has said %s", said)
				case err == nil && notRepeated[name] == "":
					t.Errorf("it succeeds, and says %s", said)
				case !strings.Contains(said, want), strings.Contains(said, "rpc error"), strings.Contains(said, "context deadline"):
					t.Errorf("it does not say %q: %s", want, said)
				}
			})
		}
	}
}
