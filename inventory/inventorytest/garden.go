// Package inventorytest has a host's files with secrets planted in them, for tests of what
// finds and replaces those.
package inventorytest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A Garden is a tree of a host's files with secrets planted in it, none of which is in
// this program's text.
type Garden struct {
	Root string
	Want map[string]int // secrets by kind and path

	t      testing.TB
	values []string
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// of returns random characters out of some.
func (g *Garden) of(chars string, n int) string {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = chars[int(b[i])%len(chars)]
	}
	s := string(b)
	g.values = append(g.values, s)
	return s
}

func (g *Garden) text(n int) string { return g.of(letters, n) }

// plant writes a file with so many secrets in it.
func (g *Garden) plant(kind, path string, secrets int, mode os.FileMode, lines ...string) {
	g.t.Helper()
	full := filepath.Join(g.Root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(strings.Join(lines, "\n")+"\n"), mode); err != nil {
		g.t.Fatal(err)
	}
	if secrets > 0 {
		g.Want[kind+" "+full] += secrets
	}
}

// key returns a private key in PEM, and keeps what is inside for the search for leaks.
func (g *Garden) key(kind string) string {
	g.t.Helper()
	block := new(pem.Block)
	switch kind {
	case "ssh":
		_, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			g.t.Fatal(err)
		}
		if block, err = ssh.MarshalPrivateKey(k, "ann"); err != nil {
			g.t.Fatal(err)
		}
	case "rsa":
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			g.t.Fatal(err)
		}
		block = &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}
	default:
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			g.t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			g.t.Fatal(err)
		}
		block = &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	}
	text := string(pem.EncodeToMemory(block))
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "-----") && len(line) > 40 {
			g.values = append(g.values, line[36:]) // behind what all keys of a kind begin with
		}
	}
	return text
}

// certificate returns one in base64, which is no secret.
func (g *Garden) certificate() string {
	g.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, k.Public(), k)
	if err != nil {
		g.t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func quoted(s string) string {
	b, _ := json.Marshal(s) // of a string
	return string(b)
}

// Plant returns a host with 46 secrets of 20 kinds, and much that is none.
func Plant(t testing.TB) *Garden {
	t.Helper()
	g := &Garden{t: t, Root: t.TempDir(), Want: make(map[string]int)}
	base64Of := func(s string) string {
		e := base64.StdEncoding.EncodeToString([]byte(s))
		g.values = append(g.values, e[len(e)-12:])
		return e
	}
	home := "home/ann/"
	g.plant("env", "opt/app/.env", 4, 0o644,
		"OPENAI_API_KEY=sk-proj-"+g.text(48), "DATABASE_URL=postgres://app:"+g.text(20)+"@db.internal/app", `SESSION_SECRET="`+g.text(32)+`"`,
		"PORT=8080", "LOG_LEVEL=debug", "API_URL=https://api.internal/v1", "STRIPE_KEY=vouch:app-stripe-key", "OTHER_KEY=changeme", "MORE_TOKEN=your-token-here",
		"#OLD_KEY=sk-proj-"+g.text(44))
	g.plant("env", "etc/default/worker", 1, 0o600, "WORKER_TOKEN="+g.text(24), "WORKER_THREADS=4")
	g.plant("shell", home+".bashrc", 2, 0o644, "alias ll='ls -l'", "export GITHUB_TOKEN=ghp_"+g.text(36), "export ANTHROPIC_API_KEY='sk-ant-api03-"+g.text(90)+"'", "export EDITOR=vi", `export PS1='\u@\h:\w\$ '`)
	g.plant("shell", "etc/profile.d/ai.sh", 1, 0o644, "export HF_TOKEN=hf_"+g.text(34))
	g.plant("shell", home+".config/fish/config.fish", 1, 0o644, "set -gx GROQ_API_KEY gsk_"+g.text(52))
	g.plant("unit", "etc/systemd/system/agent.service", 2, 0o644, "[Service]", `Environment="API_TOKEN=`+g.text(30)+`" MODE=fast`, "ExecStart=/usr/bin/agent --verbose", "SetCredential=db:"+g.text(22), "LoadCredential=ok:/run/vouchd/credentials.sock")
	g.plant("unit", "etc/systemd/system/agent.service.d/keys.conf", 1, 0o644, "[Service]", "Environment=SLACK_TOKEN=xoxb-"+g.of("0123456789", 12)+"-"+g.text(24))
	g.plant("aws", home+".aws/credentials", 2, 0o600, "[default]", "aws_access_key_id = AKIA"+g.of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16), "aws_secret_access_key = "+g.text(40),
		"[work]", "aws_access_key_id=AKIA"+g.of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16), "aws_secret_access_key="+g.text(40), "[docs]", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[leased]", "credential_process = /usr/bin/vouch aws-credential-process x")
	g.plant("gcloud", home+".config/gcloud/application_default_credentials.json", 1, 0o600, `{"type": "authorized_user", "client_id": "x.apps.googleusercontent.com", "refresh_token": "1//`+g.text(60)+`"}`)
	g.plant("gcloud", "opt/app/deploy.json", 1, 0o640, `{"type": "service_account", "client_email": "deploy@p.iam.gserviceaccount.com",`, `"private_key": `+quoted(g.key("pkcs8"))+`}`)
	g.plant("azure", home+".azure/service_principal_entries.json", 1, 0o600, `[{"client_id": "7f2e", "tenant": "common", "client_secret": "`+g.text(40)+`"}]`)
	g.plant("azure", home+".azure/msal_token_cache.json", 1, 0o600, `{"RefreshToken": {"a-b": {"secret": "0.A`+g.text(80)+`", "home_account_id": "x"}}}`)
	g.plant("kubeconfig", home+".kube/config", 2, 0o600, "apiVersion: v1", "clusters:", "- name: east", "  cluster: {server: https://east.internal}", "- name: west", "  cluster: {server: https://west.internal}",
		"contexts:", "- name: dev", "  context: {cluster: east, user: dev}", "- name: admin", "  context: {cluster: west, user: kubernetes-admin}", "users:", "- name: dev", "  user:", "    token: "+g.text(64), "- name: kubernetes-admin", "  user:", "    client-certificate-data: "+g.certificate(), "    client-key-data: "+base64Of(g.key("rsa")),
		"- name: leased", "  user:", "    exec:", "      command: vouch", "      args: [kubectl-credential]")
	g.plant("docker", home+".docker/config.json", 1, 0o600, `{"auths": {"ghcr.io": {"auth": "`+base64Of("ann:"+g.text(30))+`"}, "quay.io": {}}, "credHelpers": {"reg.internal": "vouch"}}`)
	g.plant("docker", home+".config/containers/auth.json", 1, 0o600, `{"auths": {"quay.io": {"auth": "`+base64Of("robot:"+g.text(30))+`"}}}`)
	g.plant("netrc", home+".netrc", 2, 0o600, "machine api.internal login ann password "+g.text(18), "machine ftp.internal", "  login ann", "  password "+g.text(18), "default login anonymous password changeme")
	g.plant("netrc", "etc/apt/auth.conf.d/vendor.conf", 1, 0o600, "machine apt.internal/debian login x password "+g.text(20))
	g.plant("git-credentials", home+".git-credentials", 2, 0o600, "https://ann:"+g.text(24)+"@git.internal", "https://ann:glpat-"+g.text(20)+"@gitlab.internal")
	g.plant("git-remote", "opt/app/.git/config", 2, 0o644, "[core]", "\tbare = false", `[remote "origin"]`, "\turl = https://ann:"+g.text(24)+"@git.internal/app.git", "\tfetch = +refs/heads/*:refs/remotes/origin/*",
		`[http "https://git.internal/"]`, "\textraheader = Authorization: Basic "+base64Of("x:"+g.text(30)), `[remote "clean"]`, "\turl = git@github.com:vouchd/vouchd.git")
	g.plant("ssh-key", home+".ssh/id_ed25519", 1, 0o600, g.key("ssh"))
	g.plant("npmrc", home+".npmrc", 1, 0o600, "registry=https://registry.npmjs.org/", "//registry.npmjs.org/:_authToken=npm_"+g.text(36), "//npm.internal/:_authToken=${NPM_TOKEN}")
	g.plant("pypirc", home+".pypirc", 2, 0o600, "[pypi]", "username = __token__", "password = pypi-AgE"+g.text(80), "[internal]", "username = ann", "password: "+g.text(16))
	g.plant("cargo", home+".cargo/credentials.toml", 1, 0o600, "[registry]", `token = "`+g.text(35)+`"`)
	g.plant("gh", home+".config/gh/hosts.yml", 1, 0o600, "github.com:", "    user: ann", "    oauth_token: gho_"+g.text(36), "    git_protocol: https")
	g.plant("mcp", home+".cursor/mcp.json", 3, 0o644, `{"mcpServers": {"search": {"command": "npx", "args": ["-y", "search-server", "--api-key", "`+g.text(40)+`"], "env": {"BRAVE_API_KEY": "`+g.text(32)+`", "MODE": "fast"}},`,
		`"remote": {"url": "https://mcp.internal", "headers": {"Authorization": "Bearer `+g.text(44)+`"}}, "good": {"command": "vouch", "args": ["exec", "--", "server"]}}}`)
	g.plant("mcp", home+".codex/config.toml", 1, 0o600, "model = \"gpt-5\"", "[mcp_servers.db]", `command = "db-server"`, `env = { "DB_PASSWORD" = "`+g.text(24)+`" }`)
	g.plant("mcp", home+".claude/settings.json", 1, 0o600, `{"env": {"ANTHROPIC_AUTH_TOKEN": "`+g.text(40)+`"}, "model": "opus"}`)
	g.plant("ci", "opt/app/.gitlab-ci.yml", 1, 0o644, "variables:", "  DEPLOY_TOKEN: "+g.text(32), "  POSTGRES_PASSWORD: postgres", "job:", "  script: [make]")
	g.plant("ci", "opt/app/.github/workflows/test.yml", 1, 0o644, "env:", "  NPM_TOKEN: ${{ secrets.NPM_TOKEN }}", "  SENTRY_AUTH_TOKEN: sntryu_"+g.of("0123456789abcdef", 64), "jobs:", "  x:", "    steps: [{uses: actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683}]")
	g.plant("key-file", "etc/app/tls.key", 1, 0o640, g.key("pkcs8"))
	g.plant("key-file", home+".config/sops/age/keys.txt", 1, 0o600, "# created: 2026-01-01", "AGE-SECRET-KEY-1"+g.of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58))
	g.history()
	// What is none.
	g.plant("", home+".ssh/id_ed25519.pub", 0, 0o644, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7rRkeVOkU1pYzHPSVXb1FUHnZcyVPbWB ann")
	g.plant("", "opt/app/.env.example", 0, 0o644, "OPENAI_API_KEY=sk-your-key-here", "DB_PASSWORD=secret", "APP_KEY=", "JWT_SECRET=<generate one>", "AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE")
	g.plant("", "opt/app/node_modules/x/test/key.pem", 0, 0o644, g.key("pkcs8"))
	g.plant("", "opt/app/README.md", 0, 0o644, "Set OPENAI_API_KEY to your key.")
	return g
}

// history commits two secrets, and takes them out again.
func (g *Garden) history() {
	g.t.Helper()
	dir := filepath.Join(g.Root, "srv/old")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		g.t.Fatal(err)
	}
	git := func(args ...string) {
		g.t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		if out, err := cmd.CombinedOutput(); err != nil {
			g.t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		g.t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			g.t.Fatal(err)
		}
	}
	git("init", "-q")
	write(".env", "API_SECRET="+g.text(32)+"\n")
	write("main.go", "package main\n\nconst key = \"sk-proj-"+g.text(48)+"\"\n")
	git("add", "-A")
	git("commit", "-qm", "first")
	write(".env", "API_SECRET=vouch:api\n")
	write("main.go", "package main\n")
	git("commit", "-qam", "second")
	g.Want["history "+dir] = 2
}

// HoldsNothing checks that no six characters of a planted secret stand in a text.
func (g *Garden) HoldsNothing(text string) {
	g.t.Helper()
	for _, v := range g.values {
		for i := 0; i+6 <= len(v); i++ {
			if strings.Contains(text, v[i:i+6]) {
				g.t.Errorf("the output has a part of a secret of %d characters", len(v))
				break
			}
		}
	}
}
