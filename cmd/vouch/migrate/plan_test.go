package migrate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/inventory"
)

// planned is what a target makes of a file, which is not changed.
func planned(t *testing.T, m *options, path, text string, tg target) (p *plan, after string, err error) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o600))
	f, err := held.Open(path)
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(f.Close)
	m.Options = &cli.Options{}
	if m.prefix == "" {
		m.prefix = "app"
	}
	p = newPlan(m, f, "vouch "+tg.command)
	found, _ := inventory.ReadFile(tg.kind, f.Path, f.Data)
	for _, s := range found {
		p.hide(s.Start, s.End)
	}
	if err := tg.plan(p); err != nil {
		return p, "", err
	}
	b, err := p.finish()
	if err != nil {
		return p, "", err
	}
	leftBehind(p, tg.kind, b)
	sealedStays(p, b)
	return p, string(b), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What is long enough, and random enough, for an inventory.
const (
	canary  = "cnry9fQ2mZx7LpT4vK8w"
	canary2 = "cnry3Hs6bWd1RgY5nJ0e"
)

// Each case is a file, what it becomes, and what is not to be in the changes.
func TestFileKeepsEverythingButItsSecrets(t *testing.T) {
	t.Parallel()
	vouch, err := program()
	must(t, err)
	aws := awsFile{}
	generic := func(kind string) target {
		return target{"migrate file", kind, func(p *plan) error { return planFindings(p, kind) }}
	}
	mcp := target{"migrate mcp", inventory.MCP, planMCP}
	for _, tt := range []struct {
		name, path, text, want string
		target                 target
	}{
		{"docker", ".docker/config.json", "{\n\t\"auths\": {\n\t\t\"reg.example.com\": {\n\t\t\t\"auth\": \"YWxpY2U6Y25yeTlmUTJtWng3THBUNHZLOHc=\",\n\t\t\t\"email\": \"a@b\"\n\t\t},\n\t\t\"other.example.com\": {}\n\t},\n\t\"psFormat\": \"x\" // mine\n}\n",
			"{\n\t\"auths\": {\n\t\t\"reg.example.com\": {\n\t\t\t\"email\": \"a@b\"\n\t\t},\n\t\t\"other.example.com\": {}\n\t},\n\t\"psFormat\": \"x\",\n\t\"credHelpers\": {\"reg.example.com\": \"vouch\"} // mine\n}\n",
			target{"migrate docker", inventory.Docker, planDocker}},
		{"docker with CRLF and a byte order mark", ".docker/config.json", "\xef\xbb\xbf{\"credHelpers\": {},\r\n \"auths\": {\"reg.example.com\": {\"identitytoken\": \"" + canary + "\", \"auth\": \"\"}}}\r\n",
			"\xef\xbb\xbf{\"credHelpers\": {\"reg.example.com\": \"vouch\"},\r\n \"auths\": {\"reg.example.com\": {}}}\r\n", target{"migrate docker", inventory.Docker, planDocker}},
		{"aws", ".aws/credentials", "# mine\n[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPL0\naws_secret_access_key = " + canary + canary2 + "\nregion=eu\n\n[other]\nregion = us\n",
			"# mine\n[default]\ncredential_process = " + vouch + " aws-credential-process app-default --access-key-id AKIAIOSFODNN7EXAMPL0\nregion=eu\n\n[other]\nregion = us\n",
			target{"migrate aws", inventory.AWS, aws.plan}},
		{"a configuration of git", ".git/config", "[core]\n\tbare = false ; mine\n[remote \"origin\"]\n\turl = https://ann:" + canary + "@git.example.com/acme/site.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\tpushurl = https://" + canary2 + canary + "@github.com/acme/site.git\n[http \"https://ci.example.com/\"]\n\textraheader = AUTHORIZATION: basic YW5uOmNucnk5ZlEybVp4N0xwVDR2Szh3\n",
			"[core]\n\tbare = false ; mine\n[remote \"origin\"]\n\turl = https://git.example.com/acme/site.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\tpushurl = https://github.com/acme/site.git\n[http \"https://ci.example.com/\"]\n" +
				"[credential \"https://git.example.com\"]\n\thelper = vouch\n\tuseHttpPath = true\n[credential \"https://github.com\"]\n\thelper = vouch\n\tuseHttpPath = true\n[credential \"https://ci.example.com\"]\n\thelper = vouch\n",
			target{"migrate git", inventory.GitRemote, planGitConfig}},
		{"a store of git", ".git-credentials", "https://ann:" + canary + "@git.example.com\nhttps://bob@plain.example.com\n", "https://bob@plain.example.com\n", target{"migrate git", inventory.GitCredentials, planGitStore}},
		{"kubeconfig", ".kube/config", "apiVersion: v1\nclusters:\n- name: c\n  cluster: {server: https://k8s.example.com}\ncontexts:\n- name: x\n  context: {cluster: c, user: ann}\nusers:\n# mine\n- name: ann\n  user:\n    token: " + canary + " # old\n    as: bob\n",
			"apiVersion: v1\nclusters:\n- name: c\n  cluster: {server: https://k8s.example.com}\ncontexts:\n- name: x\n  context: {cluster: c, user: ann}\nusers:\n# mine\n- name: ann\n  user:\n    exec: {\"apiVersion\": \"client.authentication.k8s.io/v1\", \"command\": \"" + vouch + "\", \"args\": [\"kubectl-credential\"], \"interactiveMode\": \"Never\", \"provideClusterInfo\": true}\n    as: bob\n",
			target{"migrate kubeconfig", inventory.Kubeconfig, planKubeconfig}},
		{"kubeconfig in JSON", "kubeconfig.json", `{"clusters": [{"name": "c", "cluster": {"server": "https://k8s.example.com"}}], "contexts": [{"context": {"cluster": "c", "user": "ann"}}], "users": [{"name": "ann", "user": {"token": "` + canary + `"}}]}`,
			`{"clusters": [{"name": "c", "cluster": {"server": "https://k8s.example.com"}}], "contexts": [{"context": {"cluster": "c", "user": "ann"}}], "users": [{"name": "ann", "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "` + vouch + `", "args": ["kubectl-credential"], "interactiveMode": "Never", "provideClusterInfo": true}}}]}`,
			target{"migrate kubeconfig", inventory.Kubeconfig, planKubeconfig}},
		{"mcp", ".mcp.json", "{\n  // mine\n  \"mcpServers\": {\n    \"gh\": {\n      \"command\": \"npx\",\n      \"args\": [\"-y\", \"server\"],\n      \"env\": {\"GITHUB_TOKEN\": \"" + canary + "\", \"LOG\": \"info\"},\n    },\n    \"far\": {\"url\": \"https://x.example.com\", \"headers\": {\"Authorization\": \"Bearer " + canary2 + "\"}}\n  }\n}\n",
			"{\n  // mine\n  \"mcpServers\": {\n    \"gh\": {\n      \"command\": \"" + vouch + "\",\n      \"args\": [\"exec\", \"--credential\", \"app-gh-github-token=GITHUB_TOKEN\", \"--\", \"npx\", \"-y\", \"server\"],\n      \"env\": {\"GITHUB_TOKEN\": \"vouch:app-gh-github-token\", \"LOG\": \"info\"},\n    },\n    \"far\": {\"url\": \"https://x.example.com\", \"headers\": {\"Authorization\": \"Bearer ${FAR_AUTHORIZATION}\"}}\n  }\n}\n", mcp},
		{"mcp without arguments", ".mcp.json", `{"mcpServers": {"a": {"command": "server", "env": {"GITHUB_TOKEN": "` + canary + `"}}}}`,
			`{"mcpServers": {"a": {"command": "` + vouch + `", "args": ["exec", "--credential", "app-a-github-token=GITHUB_TOKEN", "--", "server"], "env": {"GITHUB_TOKEN": "vouch:app-a-github-token"}}}}`, mcp},
		{"codex", ".codex/config.toml", "model = \"o\" # mine\n\n[mcp_servers.gh]\nargs = [\n  \"-y\", \"server\",\n]\ncommand = \"npx\"\n\n[mcp_servers.gh.env]\nGITHUB_TOKEN = \"" + canary + "\"\n\n[mcp_servers.b]\ncommand = \"b\"\nenv = { GH_TOKEN = \"" + canary2 + "\" }\n",
			"model = \"o\" # mine\n\n[mcp_servers.gh]\nargs = [\"exec\", \"--credential\", \"app-gh-github-token=GITHUB_TOKEN\", \"--\", \"npx\", \n  \"-y\", \"server\",\n]\ncommand = \"" + vouch + "\"\n\n[mcp_servers.gh.env]\nGITHUB_TOKEN = \"vouch:app-gh-github-token\"\n\n[mcp_servers.b]\ncommand = \"" + vouch + "\"\nargs = [\"exec\", \"--credential\", \"app-b-gh-token=GH_TOKEN\", \"--\", \"b\"]\nenv = { GH_TOKEN = \"vouch:app-b-gh-token\" }\n",
			target{"migrate mcp", inventory.MCP, planCodex}},
		{"a profile of a shell", ".bashrc", "# mine\nexport API_TOKEN=\"" + canary + "\" # old\nalias ll='ls -l'\nexport B_TOKEN=vouch:x\n", "# mine\nexport API_TOKEN=\"vouch:app-api-token\" # old\nalias ll='ls -l'\nexport B_TOKEN=vouch:x\n", generic(inventory.Shell)},
		{"netrc", ".netrc", "machine x.example.com login ann password " + canary + "\nmachine y.example.com\n  login bob\n  password " + canary2 + "\n", "machine x.example.com login ann password vouch:app-x-example-com\nmachine y.example.com\n  login bob\n  password vouch:app-y-example-com\n", generic(inventory.Netrc)},
		{"npmrc", ".npmrc", "registry=https://registry.npmjs.org/\n//registry.npmjs.org/:_authToken=" + canary + "\n//r.example.com/:_authToken=" + canary2 + "\n", "registry=https://registry.npmjs.org/\n//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n//r.example.com/:_authToken=${R_EXAMPLE_COM_TOKEN}\n", generic(inventory.Npmrc)},
		{"pypirc", ".pypirc", "[pypi]\nusername = __token__\npassword = " + canary + "\n", "[pypi]\nusername = __token__\n", generic(inventory.Pypirc)},
		{"cargo", ".cargo/credentials.toml", "[registry]\ntoken = \"" + canary + "\"\n", "[registry]\n", generic(inventory.Cargo)},
		{"gh", "gh/hosts.yml", "github.com:\n    user: ann\n    oauth_token: " + canary + "\n    git_protocol: https\n", "github.com:\n    user: ann\n    git_protocol: https\n", generic(inventory.GH)},
		{"a pipeline", "x/.gitlab-ci.yml", "variables:\n  DEPLOY_TOKEN: \"" + canary + canary2 + "\"\n", "variables:\n  DEPLOY_TOKEN: \"$DEPLOY_TOKEN\"\n", generic(inventory.CI)},
	} {
		m := &options{disclosable: strings.HasPrefix(tt.target.command, "migrate file") && tt.name != "netrc" || tt.name == "mcp"}
		path := filepath.Join(t.TempDir(), tt.path)
		p, after, err := planned(t, m, path, tt.text, tt.target)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if after != tt.want {
			t.Errorf("%s: it becomes\n%s\nwant\n%s", tt.name, after, tt.want)
		}
		var shown strings.Builder
		p.writeText(&shown)
		if strings.Contains(shown.String(), "cnry") || strings.Contains(shown.String(), "Y25yeT") {
			t.Errorf("%s: a secret is shown in\n%s", tt.name, shown.String())
		}
		if len(p.Left) > 0 || len(p.Sealed) == 0 || len(p.Changes) == 0 {
			t.Errorf("%s: sealed %v, left %v", tt.name, p.Sealed, p.Left)
		}

		j := journal{Hunks: hunksOf([]byte(tt.text), []byte(after), p.edits)}
		for name, now := range map[string]string{"as it is": after, "as it was": tt.text} {
			if back, err := j.undone([]byte(now)); err != nil || string(back) != tt.text {
				t.Errorf("%s: undone %s it is\n%s\n%v", tt.name, name, back, err)
			}
		}
		again, same, err := planned(t, &options{disclosable: true}, path, after, tt.target)
		if err != nil || same != after || len(again.edits)+len(again.Sealed)+len(again.Left) > 0 {
			t.Errorf("%s: once more: sealed %v, left %v, %v\n%s", tt.name, again.Sealed, again.Left, err, same)
		}
	}
}
