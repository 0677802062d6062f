package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/vouchd/vouchd/credential/githubtest"
)

// A forge is GitHub with repositories that git can clone, acme/site and
// other/site, from whom it has given a token.
type forge struct {
	*githubtest.Server
	git    *httptest.Server
	caFile string // of git
}

// newForge returns a forge and a host whose daemon has a key of its app, and gives
// acme's tokens for more places than GitHub's too.
func newForge(t *testing.T, more ...string) (*host, *forge) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	h := newHost(t)
	must(t, os.WriteFile(h.Path("app.pem"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	f := &forge{Server: githubtest.Start(t, &key.PublicKey), caFile: h.Path("git-ca.pem")}
	f.serve(t, h.Path("repositories"))
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [acme]}\n"+
		"  - {spiffe_id: \"spiffe://example.org/other\", selectors: [\"unix:uid:65534\"], credentials: [other]}\n", os.Getuid()))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	definition := `
  - name: %s
    broker: github
    ttl: 10m
    bind: lease
    for:
      - {git: %q}
      - {docker: %s}
      - {kubernetes: %q}
%s    github: {api_url: %q, ca_file: %s, app_id: %s, installation_id: 42, app_key_file: %s, repositories: [site], permissions: [contents:read]}
`
	text := "credentials:"
	for name, of := range map[string][4]string{
		"acme":  {f.git.URL + "/acme", "ghcr.io", "https://10.0.0.1:6443", strings.Join(more, "")},
		"other": {f.git.URL + "/other", "docker.io", "https://10.0.0.2:6443"},
	} {
		text += fmt.Sprintf(definition, name, of[0], of[1], of[2], of[3], f.URL, f.CAFile, githubtest.App, h.Path("app.pem"))
	}
	h.Write("credentials.d/a.yaml", text)
	h.Start()
	return h, f
}

// serve lets git clone over https who has a living token of the app.
func (f *forge) serve(t *testing.T, root string) {
	t.Helper()
	for _, name := range []string{"acme/site.git", "other/site.git"} {
		ran(t, nil, "git", "init", "-q", "--bare", filepath.Join(root, name))
	}
	backend := &cgi.Handler{
		Path: strings.TrimSpace(ran(t, nil, "git", "--exec-path")) + "/git-http-backend", Root: "/", Logger: nil,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"},
	}
	f.git = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if !(user == "x-access-token" && f.Lives(password)) && password != "of the next helper" {
			w.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
			w.WriteHeader(401)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(f.git.Close)
	must(t, os.WriteFile(f.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.git.Certificate().Raw}), 0o644))
}

// ran runs a command that has to succeed.
func ran(t *testing.T, env []string, args ...string) string {
	t.Helper()
	out, err := program(env, "", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func program(env []string, stdin string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// helpers returns the environment in which tools find vouch by the names of their
// helpers, and nothing of this machine's own configuration.
func (h *host) helpers() []string {
	h.T.Helper()
	bin := h.Path("bin")
	must(h.T, os.MkdirAll(bin, 0o755))
	for _, name := range []string{"vouch", "git-credential-vouch", "docker-credential-vouch"} {
		if err := os.Symlink(daemontest.Program(h.T, "vouch"), filepath.Join(bin, name)); err != nil && !os.IsExist(err) {
			h.T.Fatal(err)
		}
	}
	return []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "SPIFFE_ENDPOINT_SOCKET=unix://" + h.Path("agent.sock"), "HOME=" + h.Dir,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false",
	}
}

// ask runs a helper as its tool does.
func (h *host) ask(stdin string, env []string, args ...string) (stdout, stderr string, code int) {
	h.T.Helper()
	cmd := program(append(h.helpers(), env...), stdin, append([]string{"env"}, args...)...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		h.T.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestGitClonesWithALeaseOfItsOwn(t *testing.T) {
	t.Parallel()
	h, f := newForge(t)
	env := append(h.helpers(), "GIT_SSL_CAINFO="+f.caFile)
	clone := func(url, to string, config ...string) (string, error) {
		args := []string{"git"}
		for _, c := range config {
			args = append(args, "-c", c)
		}
		out, err := program(env, "", append(args, "clone", "-q", url, h.Path(to))...).CombinedOutput()
		return string(out), err
	}
	withPath := "credential." + f.git.URL + ".useHttpPath=true"
	if out, err := clone(f.git.URL+"/acme/site.git", "a", "credential.helper=vouch", withPath); err != nil {
		t.Fatalf("git clone: %v\n%s", err, out)
	}
	if n := f.Living(); n != 1 {
		t.Errorf("%d tokens live", n)
	}
	// Without the path vouch cannot know that it is acme's, and says so.
	if out, err := clone(f.git.URL+"/acme/site.git", "b", "credential.helper=!vouch git-credential"); err == nil || !strings.Contains(out, "useHttpPath true") {
		t.Errorf("without a path: %v\n%s", err, out)
	}
	// What is not granted is left to the next helper.
	next := `credential.helper=!f() { test "$1" = get && echo username=u && echo "password=of the next helper"; }; f`
	if out, err := clone(f.git.URL+"/other/site.git", "c", "credential.helper=vouch", next, withPath); err != nil || strings.Contains(out, "vouch:") {
		t.Errorf("with the next helper: %v\n%s", err, out)
	}
	if out, err := clone(f.git.URL+"/other/site.git", "d", "credential.helper=vouch", withPath); err == nil {
		t.Errorf("what is not granted can be cloned:\n%s", out)
	}
	if f.Living() != 1 {
		t.Error("a token was given for what is not granted")
	}
	if out, _, _ := h.Vouch("log", "show", "--credential", "acme", "--output", "json"); !strings.Contains(out, `"exposure":"memory"`) {
		t.Errorf("the log does not say where it went:\n%s", out)
	}
	if _, stderr, code := h.Vouch("lease", "revoke", "--all"); code != 0 || f.Living() != 0 {
		t.Errorf("revoking exits %d: %s; %d tokens live", code, stderr, f.Living())
	}
}

func TestGitHelperSpeaksTheProtocol(t *testing.T) {
	t.Parallel()
	h, f := newForge(t)
	request := "protocol=https\nhost=" + strings.TrimPrefix(f.git.URL, "https://") + "\npath=acme/site.git\n"
	out, stderr, code := h.ask("capability[]=authtype\ncapability[]=state\n"+request, nil, "vouch", "git-credential", "get")
	if code != 0 || !strings.HasPrefix(out, "capability[]=authtype\nephemeral=1\ncapability[]=state\nstate[]=vouch:lease=") || !matches(`\nusername=x-access-token\npassword=ghs_\S+\npassword_expiry_utc=\d+\n$`, out) {
		t.Fatalf("get exits %d: %s%s", code, out, stderr)
	}
	if f.Living() != 1 {
		t.Errorf("%d tokens live", f.Living())
	}
	for _, action := range []string{"store", "approve-of-later"} {
		if out, stderr, code := h.ask(request+"username=u\npassword=p\n", nil, "vouch", "git-credential", action); code != 0 || out+stderr != "" {
			t.Errorf("%s exits %d: %s%s", action, code, out, stderr)
		}
	}
	if out, stderr, code := h.ask(request, nil, "vouch", "git-credential", "erase"); code != 0 || out+stderr != "" || f.Living() != 1 {
		t.Errorf("erase of nothing that is known exits %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := h.ask(out, nil, "vouch", "git-credential", "erase"); code != 0 || out+stderr != "" || f.Living() != 0 {
		t.Errorf("erase exits %d: %s%s, and %d tokens live", code, out, stderr, f.Living())
	}
	for name, in := range map[string]string{
		"another path":      strings.Replace(request, "acme", "acme-evil", 1),
		"another host":      "protocol=https\nhost=github.com\n",
		"another user":      request + "username=alice\n",
		"plain http":        strings.Replace(request, "https", "http", 1),
		"another protocol":  "protocol=smtp\nhost=mail.example.com:587\n",
		"nothing":           "",
		"what is another's": strings.Replace(request, "acme", "other", 1),
	} {
		if out, stderr, code := h.ask(in, nil, "vouch", "git-credential", "get"); code != 0 || out+stderr != "" {
			t.Errorf("%s: exits %d: %s%s", name, code, out, stderr)
		}
	}
	other := strings.Replace(request, "acme", "acme-evil", 1)
	if out, stderr, code := h.ask(other, nil, "vouch", "git-credential", "get", "--verbose"); code != 0 || out != "" ||
		!strings.Contains(stderr, "git asks for "+f.git.URL+"/acme-evil/site.git") || !strings.Contains(stderr, "credential acme for "+f.git.URL+"/acme: does not match\n") {
		t.Errorf("asked why, it exits %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := h.ask(request+"username=alice\n", nil, "vouch", "git-credential", "get", "--verbose"); code != 1 || out != "" || !strings.Contains(stderr, "names another user") || f.Living() != 0 {
		t.Errorf("asked for another's login, it exits %d: %s%s; %d tokens live", code, out, stderr, f.Living())
	}
	if out, stderr, code := h.ask("secret\n", nil, "vouch", "git-credential", "get"); code != 1 || out != "" || !strings.Contains(stderr, "is not key=value") || strings.Contains(stderr, "secret") {
		t.Errorf("malformed: exits %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := h.ask(request, []string{"SPIFFE_ENDPOINT_SOCKET=unix:///nonexistent"}, "vouch", "git-credential", "get", "--timeout", "1s"); code != 1 || out != "" || !strings.Contains(stderr, "/nonexistent") {
		t.Errorf("without a daemon: exits %d: %s%s", code, out, stderr)
	}
}

func TestDockerHelperSpeaksTheProtocol(t *testing.T) {
	t.Parallel()
	h, f := newForge(t)
	out, stderr, code := h.ask("https://ghcr.io\n", nil, "docker-credential-vouch", "get")
	var got struct{ ServerURL, Username, Secret string }
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.ServerURL != "https://ghcr.io" || got.Username != "x-access-token" || !f.Lives(got.Secret) {
		t.Fatalf("get exits %d: %s%s", code, out, stderr)
	}
	for name, tt := range map[string]struct {
		in   string
		args []string
		code int
		out  string
	}{
		"list":                  {"", []string{"list"}, 0, `{"ghcr.io":"vouch"}`},
		"another registry":      {"registry.example.com\n", []string{"get"}, 1, "credentials not found in native keychain"},
		"what is another's":     {"https://index.docker.io/v1/\n", []string{"get"}, 1, "credentials not found in native keychain"},
		"what is no registry":   {"a b\n", []string{"get"}, 1, "credentials not found in native keychain"},
		"no server":             {"\n", []string{"get"}, 1, "no credentials server URL"},
		"a request of 5000":     {strings.Repeat("a", 5000), []string{"get"}, 1, "standard input has more than 4096 bytes"},
		"store":                 {`{"ServerURL":"ghcr.io","Username":"u","Secret":"s"}`, []string{"store"}, 1, "vouch does not store logins"},
		"erase":                 {"ghcr.io", []string{"erase"}, 0, ""},
		"version":               {"", []string{"version"}, 0, "docker-credential-vouch "},
		"without an identity":   {"ghcr.io", []string{"get"}, 1, "credentials not found in native keychain"},
		"without a daemon":      {"ghcr.io", []string{"get", "--timeout", "1s"}, 1, "/nonexistent"},
		"an action of no name":  {"", []string{"delete"}, 2, ""},
		"no action at all, too": {"", nil, 2, ""},
	} {
		var env []string
		switch name {
		case "without a daemon":
			env = []string{"SPIFFE_ENDPOINT_SOCKET=unix:///nonexistent"}
		case "without an identity":
			tt.args = append([]string{"setpriv", "--reuid=65533", "--clear-groups", "docker-credential-vouch"}, tt.args...)
		}
		args := append([]string{"docker-credential-vouch"}, tt.args...)
		if name == "without an identity" {
			args = tt.args
		}
		out, stderr, code := h.ask(tt.in, env, args...)
		if code != tt.code || !strings.HasPrefix(out, tt.out) && !strings.Contains(out, tt.out) || tt.code == 1 && stderr != "" {
			t.Errorf("%s: exits %d: %s%s", name, code, out, stderr)
		}
	}
}

func TestKubectlPluginSpeaksTheProtocol(t *testing.T) {
	t.Parallel()
	h, f := newForge(t)
	info := func(server string) []string {
		return []string{`KUBERNETES_EXEC_INFO={"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"cluster":{"server":"` + server + `"},"interactive":false}}`}
	}
	var got struct {
		APIVersion, Kind string
		Status           struct {
			Token               string
			ExpirationTimestamp time.Time
		}
	}
	out, stderr, code := h.ask("", info("https://10.0.0.1:6443"), "vouch", "kubectl-credential")
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.APIVersion != "client.authentication.k8s.io/v1" || got.Kind != "ExecCredential" || !f.Lives(got.Status.Token) ||
		time.Until(got.Status.ExpirationTimestamp) > 10*time.Minute || time.Until(got.Status.ExpirationTimestamp) < 9*time.Minute {
		t.Fatalf("exits %d: %s%s", code, out, stderr)
	}
	out, stderr, code = h.ask("", info("https://any.cluster"), "vouch", "kubectl-credential", "--audience", "kubernetes")
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || !got.Status.ExpirationTimestamp.After(time.Now()) {
		t.Fatalf("--audience exits %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := h.ask("", []string{"KUBERNETES_EXEC_INFO="}, "vouch", "kubectl-credential", "--audience", "kubernetes"); code != 0 || !strings.Contains(out, `"token"`) {
		t.Errorf("for a client that says nothing, --audience exits %d: %s", code, stderr)
	}
	if out, stderr, code := h.ask("", []string{"KUBERNETES_EXEC_INFO="}, "vouch", "kubectl-credential", "--cluster", "https://10.0.0.1:6443"); code != 0 || !strings.Contains(out, `"token"`) {
		t.Errorf("for a client that says nothing, --cluster exits %d: %s", code, stderr)
	}
	var claims struct {
		Sub string
		Aud string
	}
	if header, err := base64.RawURLEncoding.DecodeString(strings.Split(got.Status.Token, ".")[0]); err != nil || !strings.Contains(string(header), `"alg":"RS256"`) {
		t.Errorf("its header is %s, %v", header, err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(got.Status.Token, ".")[1])
	must(t, err)
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Sub != "spiffe://example.org/agent" || claims.Aud != "kubernetes" {
		t.Errorf("claims %s, %v", payload, err)
	}
	for want, env := range map[string][]string{
		"no credential for cluster https://10.0.0.3:6443 is granted to this process": info("https://10.0.0.3:6443"),
		"no credential for cluster https://10.0.0.2:6443":                            info("https://10.0.0.2:6443"), // another's
		"provideClusterInfo: true":                                                   info(""),
		"or give --cluster":                                                          {"KUBERNETES_EXEC_INFO="},
		"set apiVersion":                                                             {`KUBERNETES_EXEC_INFO={"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential"}`},
	} {
		if out, stderr, code := h.ask("", env, "vouch", "kubectl-credential"); code != 1 || out != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: exits %d: %s%s", want, code, out, stderr)
		}
	}
}

func TestWrongAppKeyIsExplainedInTheLogAndNotToTheCaller(t *testing.T) {
	t.Parallel()
	h, f := newForge(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	f.SetKey(&other.PublicKey)
	_, stderr, code := h.Vouch("get", "acme", "--field", "token")
	if code != 1 || !strings.Contains(stderr, "the source of the credential refused") || strings.Contains(stderr, h.Path("app.pem")) {
		t.Errorf("the caller is told, with %d: %s", code, stderr)
	}
	out, _, _ := h.Vouch("log", "show", "--event", "lease.grant", "--credential", "acme")
	if !strings.Contains(out, "does not accept the key of app "+githubtest.App) || !strings.Contains(out, h.Path("app.pem")) {
		t.Errorf("the log does not say what to do:\n%s", out)
	}
	// The key of the app that is there now takes over, without a restart.
	must(t, os.WriteFile(h.Path("app.pem"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(other)}), 0o600))
	if out, stderr, code := h.Vouch("get", "acme", "--field", "token"); code != 0 || !f.Lives(out) {
		t.Errorf("with its key: exits %d: %s%s", code, out, stderr)
	}
}
