package migrate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory"
)

// What nobody can say what it means is refused, with the line and without a secret.
func TestFileThatProgramsReadDifferentlyIsRefused(t *testing.T) {
	t.Parallel()
	docker := target{"migrate docker", inventory.Docker, planDocker}
	kube := target{"migrate kubeconfig", inventory.Kubeconfig, planKubeconfig}
	aws := awsFile{}
	profiles := target{"migrate aws", inventory.AWS, aws.plan}
	mcp := target{"migrate mcp", inventory.MCP, planMCP}
	for _, tt := range []struct {
		name, path, text, want string
		target                 target
	}{
		{"a name twice", "config.json", "{\n\"auths\": {\"r.example.com\": {\"auth\": \"" + canary + "\"}},\n\"auths\": {}}", "line 3: a name is given twice", docker},
		{"a name twice, escaped", "config.json", "{\"auths\": {},\n\"\\u0061uths\": {}}", "line 2: a name is given twice", docker},
		{"deep", "config.json", strings.Repeat("[\n", 100), "line 66: it is nested deeper", docker},
		{"not UTF-8", "config.json", "{\"a\": \"\xff\"}", "not UTF-8", docker},
		{"two documents", "config.json", "{}\n{}", "line 2: something follows", docker},
		{"cut off", "config.json", "{\n\"auths\": {\"r.example.com\": {\"auth\": \"" + canary, "line 2: a string does not end", docker},
		{"a helper already", "config.json", `{"credHelpers": {"r.example.com": "pass"}, "auths": {"r.example.com": {"auth": "YW5uOmNucnk5ZlEybVp4N0xwVDR2Szh3"}}}`, "has a credential helper already", docker},
		{"a key over lines", "config", "clusters: [{name: c, cluster: {server: \"https://k.example.com\"}}]\ncontexts: [{context: {cluster: c, user: u}}]\nusers:\n- name: u\n  user: {token: " + canary + "}\n", "line 5: token of user u is not on a line of its own", kube},
		{"a token and a key", "config", "users:\n- name: u\n  user:\n    token: " + canary + "\n    client-key-data: " + canary2 + "\n", "a plug-in gives one", kube},
		{"no YAML", "config", "users: [" + canary, "it is no kubeconfig", kube},
		{"a key twice", "credentials", "[a]\naws_secret_access_key = " + canary + "\naws_secret_access_key = x\n", "line 3: aws_secret_access_key of profile a is given twice", profiles},
		{"a key without its ID", "credentials", "[a]\naws_secret_access_key = " + canary + "\n", "without the aws_access_key_id", profiles},
		{"a variable of no preset", ".mcp.json", "{\"mcpServers\": {\"s\": {\"command\": \"x\",\n\"env\": {\"SITE_TOKEN\": \"" + canary + "\"}}}}", "line 2: no preset makes calls with SITE_TOKEN", mcp},
	} {
		_, after, err := planned(t, &options{}, filepath.Join(t.TempDir(), tt.path), tt.text, tt.target)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "cnry") {
			t.Errorf("%s: %v, %q; want %s", tt.name, err, after, tt.want)
		}
	}
}

// A user's file names things so that a definition would say something else.
func TestWordsOfAFileStayWordsInADefinition(t *testing.T) {
	t.Parallel()
	text := `{"auths": {"r.example.com": {"username": "a\", git: \"https://github.com", "password": "` + canary + `"}}}`
	p, _, err := planned(t, &options{}, filepath.Join(t.TempDir(), "x\n  - name: evil", "config.json"), text, target{"migrate docker", inventory.Docker, planDocker})
	must(t, err)
	out := string(appendDefinition(p, nil, &p.seals[0].definition))
	if !strings.Contains(out, `{docker: "r.example.com", username: "a\", git: \"https://github.com"}`) || strings.Count(out, "name:") != 2 {
		t.Errorf("the definition is\n%s", out)
	}
}

// Whoever only looks needs no daemon and no configuration.
func TestDryRunNeedsNothingOfTheHost(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ".npmrc")
	must(t, os.WriteFile(path, []byte("//registry.npmjs.org/:_authToken="+canary+"\n"), 0o600))
	var out bytes.Buffer
	cmd := newFile(&cli.Options{Config: path + ".none", Output: "text"})
	cmd.SetArgs([]string{path, "--dry-run"})
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil || !strings.Contains(out.String(), "NPM_TOKEN") || !strings.Contains(out.String(), "but no preset makes calls") {
		t.Errorf("it says %v and\n%s", err, out.String())
	}
}

func FuzzTargets(f *testing.F) {
	f.Add("{\"auths\": {\"r.example.com\": {\"auth\": \"YW5uOmNucnk5ZlEybVp4N0xwVDR2Szh3\"}}, \"mcpServers\": {\"s\": {\"command\": \"x\", \"env\": {\"GITHUB_TOKEN\": \"" + canary + "\"}}}}")
	f.Add("[remote \"o\"]\n\turl = https://a:" + canary + "@h.example.com/x\n[default]\naws_access_key_id=AKIAIOSFODNN7ABCDEFG\naws_secret_access_key=" + canary)
	f.Add("[mcp_servers.s]\ncommand = \"x\"\nenv = { GH_TOKEN = \"" + canary + "\" }\n[Service]\nEnvironment=GITHUB_TOKEN=" + canary + "\nExecStart=/bin/x\n")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		aws := awsFile{}
		for i, tg := range []target{
			{"docker", inventory.Docker, planDocker}, {"aws", inventory.AWS, aws.plan}, {"git", inventory.GitRemote, planGitConfig}, {"git", inventory.GitCredentials, planGitStore},
			{"kubeconfig", inventory.Kubeconfig, planKubeconfig}, {"mcp", inventory.MCP, planMCP}, {"mcp", inventory.MCP, planCodex},
			{"file", inventory.Shell, func(p *plan) error { return planFindings(p, inventory.Shell) }}, {"file", inventory.Cargo, func(p *plan) error { return planFindings(p, inventory.Cargo) }},
		} {
			path := filepath.Join(dir, fmt.Sprint(i))
			p, after, err := planned(t, &options{disclosable: true}, path, text, tg)
			if err != nil {
				continue
			}
			j := journal{Hunks: hunksOf([]byte(text), []byte(after), p.edits)}
			if back, err := j.undone([]byte(after)); len(p.edits) > 0 && (err != nil || string(back) != text) {
				t.Errorf("%s: %q becomes %q, and undone %q, %v", tg.kind, text, after, back, err)
			}
		}
	})
}
