package migrate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/inventory"
)

func TestOnlyAPlainFileOfOneNameIsOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) { must(t, os.WriteFile(at(name), []byte(text), 0o600)) }
	write("plain", "x")
	write("linked", "x")
	must(t, os.Symlink(at("plain"), at("link")))
	must(t, os.Link(at("linked"), at("second")))
	must(t, syscall.Mkfifo(at("fifo"), 0o600))
	write("large", strings.Repeat("x", maxLen+1))
	must(t, os.Mkdir(at("dir"), 0o700))
	write("dir/file", "y")
	must(t, os.Symlink("dir", at("to-dir")))
	must(t, os.Symlink("loop", at("loop")))
	for name, want := range map[string]string{
		"link": "symbolic link", "linked": "2 hard links", "fifo": "not a regular file", "large": "larger than", "dir": "not a regular file", "missing": "no such file", "loop/x": "too many levels",
	} {
		if f, err := openFile(at(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %s", name, f, err, want)
		}
	}
	f, err := openFile(at("to-dir/file"))
	must(t, err)
	defer f.close()
	if f.path != at("dir/file") || string(f.data) != "y" {
		t.Errorf("by a link of our own it is %s with %q", f.path, f.data)
	}
}

// A user has the path to a file lead elsewhere, before root opens it and after.
func TestUserCannotHaveAnotherFileWritten(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "migrate") // one that others may pass through
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	const user = 12345
	home, other := filepath.Join(dir, "home"), filepath.Join(dir, "other")
	for _, d := range []string{home, home + "/x", other} {
		must(t, os.Mkdir(d, 0o755))
		must(t, os.WriteFile(d+"/file", []byte("old"), 0o600))
	}
	must(t, os.Chown(home, user, user))
	must(t, os.Symlink(other, home+"/link"))
	must(t, os.Lchown(home+"/link", user, user))
	if _, err := openFile(home + "/link/file"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("a link of user %d", user)) {
		t.Errorf("by a user's link: %v", err)
	}
	f, err := openFile(home + "/x/file")
	must(t, err)
	defer f.close()
	must(t, os.Rename(home+"/x", home+"/y"))
	must(t, os.Symlink(other, home+"/x"))
	must(t, f.replace([]byte("new")))
	for path, want := range map[string]string{other + "/file": "old", home + "/y/file": "new"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", path, got, err)
		}
	}
}

// Somebody edits the file while its secrets are being sealed.
func TestFileThatChangedMeanwhileIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ".env")
	write := func(text string) { must(t, os.WriteFile(path, []byte(text), 0o600)) }
	for name, change := range map[string]func(){
		"edited":         func() { write("A_KEY=newer\n") },
		"replaced":       func() { os.Rename(path, path+".old"); write("A_KEY=old\n") },
		"made a link":    func() { os.Rename(path, path+".old"); os.Symlink(path+".old", path) },
		"given two ones": func() { os.Link(path, path+".second") },
	} {
		os.Remove(path)
		os.Remove(path + ".second")
		write("A_KEY=old\n")
		f, err := openFile(path)
		must(t, err)
		change()
		now, err := os.ReadFile(path)
		must(t, err)
		if err := f.replace([]byte("A_KEY=vouch:a\n")); err == nil {
			t.Errorf("%s: it is replaced", name)
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != string(now) {
			t.Errorf("%s: the file is %q, %v", name, after, err)
		}
		if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "..env*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %q is left", name, left)
		}
		f.close()
	}
}

func TestReplacedFileKeepsOwnerModeAndAccessList(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	must(t, os.Chown(path, 1234, 2345))
	must(t, os.Chmod(path, 0o640))
	f, err := openFile(path)
	must(t, err)
	defer f.close()
	must(t, f.replace([]byte("new")))
	info, err := os.Lstat(path)
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o640 || st.Uid != 1234 || st.Gid != 2345 {
		t.Errorf("it has mode %v and owner %d:%d", info.Mode(), st.Uid, st.Gid)
	}
}

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
	out := string(p.appendDefinition(nil, &p.seals[0].definition))
	if !strings.Contains(out, `{docker: "r.example.com", username: "a\", git: \"https://github.com"}`) || strings.Count(out, "name:") != 2 {
		t.Errorf("the definition is\n%s", out)
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
