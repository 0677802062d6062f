package main

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

// canaryOf is a secret for a test, long and random enough for an inventory.
func canaryOf(n int) string { return fmt.Sprintf("cnry%dfQ2mZx7LpT4vK8w%d", n, n*7) }

// A planted file has a secret that a client of its own is to have.
type planted struct {
	path, text string
	args       []string // of vouch migrate, before the path
	client     func(t *testing.T, h *host)
}

func contents(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// grantAll puts every definition that was written in force, and grants all of them.
func (h *host) grantAll() {
	h.T.Helper()
	files, err := filepath.Glob(h.Path("credentials.d/*.yaml.disabled"))
	must(h.T, err)
	var names []string
	for _, file := range files {
		for _, m := range regexp.MustCompile(`(?m)^  - name: (.*)$`).FindAllStringSubmatch(contents(h.T, file), -1) {
			names = append(names, m[1])
		}
		must(h.T, os.Rename(file, strings.TrimSuffix(file, ".disabled")))
	}
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/app\", selectors: [\"unix:uid:%d\"], credentials: [%s]}\n", os.Getuid(), strings.Join(names, ", ")))
	h.OK("check")
	eventually(h.T, "the definitions are in force", func() bool {
		st, err := h.Admin().Status(h.T.Context())
		must(h.T, err)
		return st.Credentials.Count == len(names) && st.Entries.Count == 1
	})
}

func TestEachKindOfFileIsMigratedUsedAndUndone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	repositories := h.Path("repositories")
	ran(t, nil, "git", "init", "-q", "--bare", repositories+"/acme/site.git")
	ran(t, nil, "git", "init", "-q", h.Path("site"))
	backend := &cgi.Handler{
		Path: strings.TrimSpace(ran(t, nil, "git", "--exec-path")) + "/git-http-backend", Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + repositories, "GIT_HTTP_EXPORT_ALL=1"},
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); {
		case user == "ann" && password == canaryOf(1):
			backend.ServeHTTP(w, r)
		case token == canaryOf(4):
			fmt.Fprint(w, `{"major":"1","minor":"32"}`)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
		}
	}))
	defer server.Close()
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+canaryOf(5) {
			w.WriteHeader(401)
			return
		}
		fmt.Fprint(w, `{"username": "ann-of-npm"}`)
	}))
	defer registry.Close()
	ca := h.Path("ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	at := strings.TrimPrefix(server.URL, "https://")
	login := base64.StdEncoding.EncodeToString([]byte("ann:" + canaryOf(2)))
	clientKey := ran(t, nil, "openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1")
	files := []planted{
		{"site/.git/config", fmt.Sprintf("[core]\n\trepositoryformatversion = 0\n[remote \"origin\"]\n\turl = https://ann:%s@%s/acme/site.git\n", canaryOf(1), at), []string{"git"}, func(t *testing.T, h *host) {
			ran(t, append(h.helpers(), "GIT_SSL_CAINFO="+ca), "git", "-C", h.Path("site"), "ls-remote", "origin")
		}},
		{".docker/config.json", fmt.Sprintf("{\n  \"auths\": {\"reg.example.com\": {\"auth\": %q}},\n  \"detachKeys\": \"ctrl-e,e\"\n}", login), []string{"docker"}, func(t *testing.T, h *host) {
			out, stderr, _ := h.ask("reg.example.com", nil, "docker-credential-vouch", "get")
			if !strings.Contains(out, `"Username":"ann"`) || !strings.Contains(out, canaryOf(2)) {
				t.Errorf("docker's helper says %s%s", out, stderr)
			}
		}},
		{".aws/credentials", fmt.Sprintf("[default]\naws_access_key_id = AKIAIOSFODNN7ABCDEFG\naws_secret_access_key = %s\n", canaryOf(3)), []string{"aws"}, func(t *testing.T, h *host) {
			line := regexp.MustCompile(`credential_process = (.*)`).FindStringSubmatch(read(t, h.Path(".aws/credentials")))
			var got struct{ AccessKeyID, SecretAccessKey string }
			must(t, json.Unmarshal([]byte(ran(t, h.helpers(), strings.Fields(line[1])...)), &got))
			if got.SecretAccessKey != canaryOf(3) {
				t.Error("an SDK gets another key")
			}
		}},
		{".kube/config", fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: %s\n    insecure-skip-tls-verify: true\ncontexts:\n- name: c\n  context: {cluster: c, user: u}\nusers:\n- name: u\n  user:\n    token: %s # old\n", server.URL, canaryOf(4)), []string{"kubeconfig"}, func(t *testing.T, h *host) {
			if out := ran(t, append(h.helpers(), "KUBECONFIG="+h.Path(".kube/config")), "kubectl", "get", "--raw", "/version"); !strings.Contains(out, `"32"`) {
				t.Errorf("kubectl says %s", out)
			}
		}},
		{"k8s/kubeconfig", fmt.Sprintf(`{"clusters": [{"name": "c", "cluster": {"server": "https://k8s.example.com"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
 "users": [{"name": "u", "user": {"client-certificate-data": %q, "client-key-data": %q}}]}`, base64.StdEncoding.EncodeToString([]byte("a certificate")), base64.StdEncoding.EncodeToString([]byte(clientKey))),
			[]string{"kubeconfig"}, func(t *testing.T, h *host) {
				var config struct {
					Users []struct {
						User struct {
							Exec struct {
								Command string
								Args    []string
							}
						}
					}
				}
				must(t, json.Unmarshal([]byte(read(t, h.Path("k8s/kubeconfig"))), &config))
				plugin := config.Users[0].User.Exec
				out := ran(t, append(h.helpers(), `KUBERNETES_EXEC_INFO={"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {"cluster": {"server": "https://k8s.example.com"}}}`),
					append([]string{plugin.Command}, plugin.Args...)...)
				var got struct {
					Status struct{ ClientCertificateData, ClientKeyData string }
				}
				must(t, json.Unmarshal([]byte(out), &got))
				if got.Status.ClientKeyData != clientKey || got.Status.ClientCertificateData != "a certificate" {
					t.Error("kubectl is given another key or certificate")
				}
			}},
		{".npmrc", fmt.Sprintf("registry=%s/\n//%s/:_authToken=%s\nfetch-retries=0\n", registry.URL, strings.TrimPrefix(registry.URL, "http://"), canaryOf(5)), []string{"file", "--disclosable"}, func(t *testing.T, h *host) {
			variable := regexp.MustCompile(`\$\{(.*)\}`).FindStringSubmatch(read(t, h.Path(".npmrc")))[1]
			credential := regexp.MustCompile(`name: (npmrc-.*)`).FindStringSubmatch(read(t, h.Path("credentials.d/npmrc.yaml")))[1]
			out := ran(t, append(h.helpers(), "npm_config_cache="+h.Path("npm")), "vouch", "exec", "--credential", credential+"="+variable, "--", "npm", "--userconfig", h.Path(".npmrc"), "whoami")
			if !strings.Contains(out, "ann-of-npm") {
				t.Errorf("npm says %s", out)
			}
		}},
		{".mcp.json", fmt.Sprintf("{\"mcpServers\": {\"s\": {\n  \"command\": \"sh\", \"args\": [\"server\"],\n  \"env\": {\"SITE_TOKEN\": %q}}}}\n", canaryOf(6)), []string{"mcp", "--disclosable"}, func(t *testing.T, h *host) {
			var settings struct {
				Servers map[string]struct {
					Command string
					Args    []string
					Env     map[string]string
				} `json:"mcpServers"`
			}
			must(t, json.Unmarshal([]byte(read(t, h.Path(".mcp.json"))), &settings))
			s := settings.Servers["s"]
			h.Write("server", `test "$SITE_TOKEN" = `+canaryOf(6))
			defer os.Remove(h.Path("server"))
			cmd := program(append(h.helpers(), "SITE_TOKEN="+s.Env["SITE_TOKEN"]), "", append([]string{s.Command}, s.Args...)...)
			cmd.Dir = h.Dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("the server does not start with its key: %v: %s", err, out)
			}
		}},
		{".bashrc", fmt.Sprintf("export API_KEY='%s'\nalias l=ls\n", canaryOf(7)), []string{"file", "--disclosable"}, nil},
	}
	h.Start()
	for _, f := range files {
		must(t, os.MkdirAll(filepath.Dir(h.Path(f.path)), 0o755))
		must(t, os.WriteFile(h.Path(f.path), []byte(f.text), 0o600))
		must(t, os.Chmod(h.Path(f.path), 0o600))
		must(t, os.Chown(h.Path(f.path), 1234, 2345))
		args := append(append([]string{"migrate"}, f.args...), h.Path(f.path), "--credential-prefix", strings.Trim(filepath.Base(f.path), "."))
		if f.path == ".npmrc" || f.path == ".aws/credentials" {
			args[len(args)-1] = map[string]string{".npmrc": "npmrc", ".aws/credentials": "aws"}[f.path]
		}
		for _, more := range [][]string{{"--dry-run"}, {"--dry-run", "--output", "json"}, nil} {
			out := h.OK(slices.Concat(args, more)...)
			if strings.Contains(out, "cnry") || strings.Contains(out, login) {
				t.Fatalf("vouch %s shows a secret:\n%s", strings.Join(args, " "), out)
			}
			if same := read(t, h.Path(f.path)) == f.text; same != (more != nil) {
				t.Fatalf("vouch %s %v: unchanged is %v", strings.Join(args, " "), more, same)
			}
		}
		if out := h.OK(args...); !strings.Contains(out, "there is nothing to do") {
			t.Errorf("once more it says\n%s", out)
		}
		info, err := os.Stat(h.Path(f.path))
		must(t, err)
		if info.Mode() != 0o600 || owner(info) != [2]uint32{1234, 2345} {
			t.Errorf("%s has mode %v and owner %v", f.path, info.Mode(), owner(info))
		}
	}
	for i := range 8 {
		h.CheckSecret(leasetest.Login{Password: canaryOf(i + 1)})
	}
	h.CheckSecret(leasetest.Login{Password: login})
	// An inventory finds nothing that is left.
	for _, f := range files {
		if out, stderr, code := h.Vouch("inventory", "--fail-on", "static", filepath.Dir(h.Path(f.path))); code != 0 && strings.Contains(out, f.path) {
			t.Errorf("an inventory of %s: %s%s", f.path, out, stderr)
		}
	}
	h.grantAll()
	for _, f := range files {
		if f.client != nil {
			must(t, os.Chown(h.Path(f.path), os.Getuid(), os.Getgid())) // clients want their own
			f.client(t, h)
			must(t, os.Chown(h.Path(f.path), 1234, 2345))
		}
	}

	if out := h.OK("migrate", "undo", "--list"); strings.Count(out, "undo-") != len(files) {
		t.Errorf("what can be undone:\n%s", out)
	}
	for _, f := range files {
		must(t, os.Chmod(h.Path(f.path), 0o644))
		h.OK("migrate", "undo", h.Path(f.path))
		info, err := os.Stat(h.Path(f.path))
		must(t, err)
		if got := read(t, h.Path(f.path)); got != f.text || info.Mode() != 0o600 || owner(info) != [2]uint32{1234, 2345} {
			t.Errorf("%s undone has mode %v and owner %v, and is\n%s", f.path, info.Mode(), owner(info), got)
		}
	}
	if out := h.OK("migrate", "undo", "--list"); out != "" {
		t.Errorf("what can be undone still:\n%s", out)
	}
	if out := h.OK("log", "show", "--event", "secret.undo"); strings.Count(out, "undo-") < len(files) {
		t.Errorf("the log has of the undoing\n%s", out)
	}
}

// What is proposed instead of a sealed key is checked as somebody has it who fills it in.
func TestBetterDefinitionsPassTheCheckOnceTheyAreFilledIn(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.Write("app.env", "OPENAI_API_KEY=cnry1fQ2mZx7LpT4vK8w\nANTHROPIC_API_KEY=cnry2fQ2mZx7LpT4vK8w\nGITHUB_TOKEN=cnry3fQ2mZx7LpT4vK8w\n"+
		"AZURE_CLIENT_SECRET=cnry4fQ2mZx7LpT4vK8w\nDATABASE_URL=postgres://app:cnry5fQ2mZx7LpT4vK8w@db.example.org/app\n")
	must(t, os.MkdirAll(h.Path("site/.git"), 0o755))
	h.Write("site/.git/config", "[remote \"o\"]\n\turl = https://ann:cnry6fQ2mZx7LpT4vK8w@github.com/acme/site.git\n")
	must(t, os.MkdirAll(h.Path(".aws"), 0o755))
	h.Write(".aws/credentials", "[default]\naws_access_key_id = AKIAIOSFODNN7ABCDEFG\naws_secret_access_key = cnry7fQ2mZx7LpT4vK8w\n")
	key := ran(t, nil, "openssl", "genrsa", "-traditional", "2048")
	account, err := json.Marshal(map[string]string{"type": "service_account", "private_key": key, "client_email": "a@p.iam.gserviceaccount.com"})
	must(t, err)
	h.Write("application_default_credentials.json", string(account))
	ran(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", h.Path("deploy_ed25519"))
	h.Start()
	said := h.OK("migrate", "file", h.Path("deploy_ed25519"), "--disclosable") + h.OK("migrate", "env", h.Path("app.env"), "--credential-prefix", "app", "--proxy-later") +
		h.OK("migrate", "git", h.Path("site")) + h.OK("migrate", "aws", h.Path(".aws/credentials")) +
		h.OK("migrate", "file", h.Path("application_default_credentials.json"), "--disclosable")
	h.CheckSecret(leasetest.Login{Password: strings.Split(key, "\n")[1]})
	values := map[string]string{
		"installation_id": "12345678", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/v", "region": "eu-central-1",
		"provider": "projects/1/locations/global/workloadIdentityPools/p/providers/v", "service_account": "a@p.iam.gserviceaccount.com", "role_arn": "arn:aws:iam::123456789012:role/agent",
		"repositories": "site", "app_id": "Iv23liExampleExample", "user": "owner", "principals": "deploy",
	}
	files, err := filepath.Glob(h.Path("credentials.d/*.yaml.disabled"))
	must(t, err)
	better := 0
	for _, file := range files {
		text := "credentials:\n"
		for line := range strings.Lines(read(t, file)) {
			line, ok := strings.CutPrefix(line, "  #")
			if !ok {
				continue
			}
			if m := regexp.MustCompile(`^ +([a-z_]+): \[?FILL_IN`).FindStringSubmatch(line); m != nil {
				if !strings.Contains(said, m[1]) {
					t.Errorf("nothing says that %s is to be filled in", m[1])
				}
				value := values[m[1]]
				if value == "" {
					value = "00000000-0000-0000-0000-000000000000"
				}
				line = strings.Replace(line, "FILL_IN", value, 1)
			}
			if strings.Contains(line, "- name:") {
				better++
			}
			text += " " + line
		}
		must(t, os.WriteFile(strings.TrimSuffix(file, ".disabled"), []byte(text), 0o644))
	}
	h.OK("check")
	if better != 9 {
		t.Errorf("there are %d better definitions, want 9", better)
	}
}
