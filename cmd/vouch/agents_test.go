package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.yaml.in/yaml/v3"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

// example returns a file of examples/ with what stands for this host's places in
// the place of those of a machine's.
func example(t *testing.T, name string, places ...string) string {
	t.Helper()
	b, err := os.ReadFile("../../examples/" + name)
	must(t, err)
	for i := 0; i < len(places); i += 2 {
		if !strings.Contains(string(b), places[i]) {
			t.Errorf("%s does not have %q", name, places[i])
		}
	}
	return strings.NewReplacer(places...).Replace(string(b))
}

// daemonOf starts a program that goes on until the test's end.
func daemonOf(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
}

const webEntries = `entries:
  - {spiffe_id: "spiffe://example.org/web", selectors: ["unix:uid:0"], x509_svid_ttl: %s}
  - {spiffe_id: "spiffe://example.org/client", selectors: ["unix:uid:65534"]}
  - {spiffe_id: "spiffe://example.org/stranger", selectors: ["unix:uid:65533"]}
`

func TestNginxServesWorkloadsWithFilesThatAreKeptFresh(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf(webEntries, "1h"))
	h.Start()
	must(t, os.Mkdir(h.Path("web"), 0o755))
	h.Write("nginx.conf", example(t, "nginx/nginx.conf", "/run/web-svid/", h.Path("svid")+"/", "/run/web/", h.Path("web")+"/", "127.0.0.1:8443", "unix:"+h.Path("web/tls.sock")))
	keeper := h.Follow("fetch", "x509", "--write", h.Path("svid"), "--follow", "--exec", "nginx -c "+h.Path("nginx.conf")+" -s reload")
	eventually(t, "the key is there", func() bool { _, err := os.Stat(h.Path("svid/svid.0.key")); return err == nil })
	daemonOf(t, "../../examples/nginx/app.py", h.Path("web/app.sock"), "spiffe://example.org/client")
	daemonOf(t, "nginx", "-c", h.Path("nginx.conf"), "-g", "daemon off; user root;")

	var serial string // of the server's certificate
	visit := func(client string) (int, string, error) {
		svid, err := x509svid.Load(h.Path(client+"/svid.0.pem"), h.Path(client+"/svid.0.key"))
		must(t, err)
		bundle, err := x509bundle.Load(spiffeid.RequireTrustDomainFromString("example.org"), h.Path(client+"/bundle.0.pem"))
		must(t, err)
		config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/web")))
		c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", h.Path("web/tls.sock"))
			}}}
		resp, err := c.Get("https://web/")
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		serial = resp.TLS.PeerCertificates[0].SerialNumber.String()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	for name, uid := range map[string]int{"client": 65534, "stranger": 65533} {
		must(t, os.Mkdir(h.Path(name), 0o700))
		must(t, os.Chown(h.Path(name), uid, uid))
		if _, stderr, code := h.ask("", nil, "setpriv", fmt.Sprintf("--reuid=%d", uid), "--clear-groups", "vouch", "fetch", "x509", "--write", h.Path(name)); code != 0 {
			t.Fatalf("fetching as %s: %s", name, stderr)
		}
	}
	eventually(t, "nginx serves the client", func() bool {
		status, body, err := visit("client")
		return err == nil && status == 200 && body == "spiffe://example.org/client\n"
	})
	if status, body, err := visit("stranger"); err != nil || status != 403 || body != "spiffe://example.org/stranger\n" {
		t.Errorf("another workload: %d %s, %v", status, body, err)
	}
	first := serial
	h.Write("entries.d/a.yaml", fmt.Sprintf(webEntries, "30m"))
	eventually(t, "nginx serves with the next SVID", func() bool { _, _, err := visit("client"); return err == nil && serial != first })

	// It lives through the daemon, and takes the files away at its end.
	h.Stop()
	h.Start()
	second := serial
	eventually(t, "nginx serves with the next SVID after a restart", func() bool { _, _, err := visit("client"); return err == nil && serial != second })
	must(t, keeper.Cmd.Process.Signal(syscall.SIGTERM))
	must(t, keeper.Ends(t))
	if left, err := os.ReadDir(h.Path("svid")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFollowingFilesIsRefusedWhereItMakesNoSense(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	must(t, os.Mkdir(h.Path("open"), 0o777))
	must(t, os.Chmod(h.Path("open"), 0o777))
	for want, args := range map[string][]string{
		"--follow requires --write":                 {"--follow"},
		"require --follow":                          {"--write", h.Path("svid"), "--exec", "true"},
		"--signal and --pid must be given together": {"--write", h.Path("svid"), "--follow", "--signal", "HUP"},
		"lets others replace files":                 {"--write", h.Path("open"), "--follow"},
		"is vouchd running?":                        {"--write", h.Path("svid"), "--follow"},
	} {
		if out, stderr, code := h.Vouch(append([]string{"fetch", "x509"}, args...)...); code == 0 || out != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q exits %d, want %q: %s%s", args, code, want, out, stderr)
		}
	}
}

// An api is one that the agents of examples/ call: it wants a token that the
// upstream gives.
func newAPI(t *testing.T, u *leasetest.Upstream) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.Mu.Lock()
		canary := u.Canary
		u.Mu.Unlock()
		if r.URL.Path != "/v1/models" || r.Header.Get("Authorization") != "Bearer "+canary {
			w.WriteHeader(401)
			return
		}
		io.WriteString(w, `{"data":[{"id":"model-of-the-test"}]}`)
	}))
	t.Cleanup(s.Close)
	return s
}

// newModelHost returns a host that is granted a model's token, and the model's
// API.
func newModelHost(t *testing.T) (*host, *httptest.Server) {
	t.Helper()
	h := newHost(t)
	u := leasetest.NewUpstream(t, h.Host, leasetest.OpenAI)
	h.Grants(fmt.Sprintf(`  - {name: openai-research, broker: federation, max_ttl: 1h, federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1",
      endpoint: %q, ca_file: %q, identity_provider_id: idp_1, service_account_id: sa_1}}
`, u.URL+"/oauth/token", u.CAFile), "openai-research")
	h.Start()
	return h, newAPI(t, u)
}

func TestPythonAgentReadsItsCredentialFromAFile(t *testing.T) {
	t.Parallel()
	h, api := newModelHost(t)
	must(t, os.Mkdir(h.Path("run"), 0o700))
	unit := example(t, "systemd/research-credential.service", "/run/research/", h.Path("run")+"/")
	_, command, ok := strings.Cut(unit, "\nExecStart=/usr/bin/vouch ")
	if !ok {
		t.Fatal("the unit does not start vouch")
	}
	command, _, _ = strings.Cut(command, "\n")
	h.Follow(strings.Fields(command)...)
	file := h.Path("run/credential.json")
	eventually(t, "the file is there", func() bool { _, err := os.Stat(file); return err == nil })
	env := []string{"API_URL=" + api.URL, "API_CREDENTIAL_FILE=" + file}
	if out := ran(t, env, "python3", "../../examples/python/agent.py"); out != "model-of-the-test\n" {
		t.Errorf("the agent says %q", out)
	}
	out, err := program([]string{"API_URL=" + api.URL, "API_CREDENTIAL_FILE=/nonexistent"}, "", "python3", "../../examples/python/agent.py").CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "agent: ") {
		t.Errorf("without its file: %v: %s", err, out)
	}
}

func TestNodeAgentTakesItsCredentialFromTheEnvironment(t *testing.T) {
	t.Parallel()
	h, api := newModelHost(t)
	out, stderr, code := h.ask("", []string{"API_URL=" + api.URL}, "vouch", "exec", "--credential", "openai-research=API_KEY", "--", "node", "../../examples/node/agent.mjs")
	if code != 0 || out != "model-of-the-test\n" {
		t.Errorf("exits %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := h.ask("", []string{"API_URL=" + api.URL}, "node", "../../examples/node/agent.mjs"); code != 1 || !strings.Contains(stderr, "run it under vouch exec") {
		t.Errorf("by itself it exits %d: %s%s", code, out, stderr)
	}
}

func TestPsqlFindsItsPasswordInAFileAlone(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	h.Start()
	psql := []string{"vouch", "exec", "--credential", "tides=LEASED", "--", "../../examples/psql/psql-leased", "-AtX"}
	out, stderr, code := h.ask("", nil, append(psql, "-c", "SELECT height FROM tides", "-c", `\! tr '\0' '\n' </proc/self/environ; cat $PGPASSFILE; ls -l $PGPASSFILE`)...)
	if code != 0 || !strings.HasPrefix(out, "7\n") {
		t.Fatalf("exits %d: %s%s", code, out, stderr)
	}
	_, password, ok := strings.Cut(out, ":vouch_tides_")
	_, password, _ = strings.Cut(password, ":")
	password, _, _ = strings.Cut(password, "\n")
	if !ok || password == "" || strings.Count(out, password) != 1 || !strings.Contains(out, "-rw-------") {
		t.Errorf("the password is not in the file alone:\n%s", out)
	}
	if out, stderr, code := h.ask("", nil, append(psql, "-c", "SELECT nothing")...); code != 1 || !strings.Contains(stderr, "nothing") {
		t.Errorf("exits %d: %s%s", code, out, stderr)
	}
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm"} {
		if left, _ := filepath.Glob(dir + "/psql-leased.*"); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestConfigurationOfToolsIsWhatTheyRead(t *testing.T) {
	t.Parallel()
	h, f := newForge(t)
	// git's, with the forge in GitHub's place.
	h.Write("gitconfig", example(t, "git/gitconfig", "https://github.com\"", f.git.URL+"\""))
	env := append(h.helpers(), "GIT_SSL_CAINFO="+f.caFile, "GIT_CONFIG_GLOBAL="+h.Path("gitconfig"))
	ran(t, env, "git", "clone", "-q", f.git.URL+"/acme/site.git", h.Path("clone"))

	// Docker runs docker-credential-NAME for each registry of credHelpers.
	var docker struct{ CredHelpers map[string]string }
	must(t, json.Unmarshal([]byte(example(t, "docker/config.json")), &docker))
	if len(docker.CredHelpers) == 0 {
		t.Error("no registry has a helper")
	}
	for registry, helper := range docker.CredHelpers {
		if out, stderr, code := h.ask(registry, nil, "docker-credential-"+helper, "get"); code != 0 || !strings.Contains(out, `"Username":"x-access-token"`) {
			t.Errorf("the helper of %s exits %d: %s%s", registry, code, out, stderr)
		}
	}

	// kubectl runs the user's exec, and tells it the cluster.
	var kube struct {
		Clusters []struct{ Cluster struct{ Server string } }
		Users    []struct {
			User struct {
				Exec struct {
					APIVersion         string `yaml:"apiVersion"`
					Command            string
					Args               []string
					ProvideClusterInfo bool `yaml:"provideClusterInfo"`
				}
			}
		}
	}
	must(t, yaml.Unmarshal([]byte(example(t, "kubectl/kubeconfig.yaml", "https://k8s.internal:6443", "https://10.0.0.1:6443")), &kube))
	plugin := kube.Users[0].User.Exec
	info := fmt.Sprintf(`KUBERNETES_EXEC_INFO={"apiVersion":%q,"kind":"ExecCredential","spec":{"cluster":{"server":%q},"interactive":false}}`, plugin.APIVersion, kube.Clusters[0].Cluster.Server)
	if out, stderr, code := h.ask("", []string{info}, append([]string{plugin.Command}, plugin.Args...)...); code != 0 || !plugin.ProvideClusterInfo || !strings.Contains(out, `"token":"ghs_`) {
		t.Errorf("kubectl's plug-in exits %d: %s%s", code, out, stderr)
	}
}

func TestUnitsOfTheExamplesAreInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	units, err := filepath.Glob("../../examples/systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("no units: %v", err)
	}
	args := []string{"verify", "--man=no", "--recursive-errors=no"}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		must(t, err)
		// What the units start and order themselves by is not installed here.
		path := filepath.Join(dir, filepath.Base(unit))
		must(t, os.WriteFile(path, []byte(strings.NewReplacer("/usr/bin/vouch ", "/bin/true ", "/usr/bin/python3", "/bin/true", "User=research", "User=daemon", "User=deploy", "User=daemon").Replace(string(text))), 0o644))
		args = append(args, path)
	}
	must(t, os.WriteFile(filepath.Join(dir, "vouchd.socket"), []byte("[Socket]\nListenStream=/run/vouchd/agent.sock\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "vouchd.service"), []byte("[Service]\nExecStart=/bin/true\n"), 0o644))
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) || strings.HasPrefix(line, "web-svid") || strings.HasPrefix(line, "research-") || strings.HasPrefix(line, "deploy-") || strings.HasPrefix(line, "bundle-") {
			t.Error(strings.TrimSpace(line))
		}
	}
}

func TestAWSProfileOfTheExampleRunsItsCredentialProcess(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	u := leasetest.NewUpstream(t, h.Host, leasetest.STS)
	h.Grants(fmt.Sprintf(`  - {name: sandbox, broker: federation, max_ttl: 1h, federation: {profile: aws-2011-06-15, audience: sts.amazonaws.com,
      endpoint: %q, ca_file: %q, region: eu-central-1, role_arn: "arn:aws:iam::123456789012:role/agent"}}
`, u.URL+"/", u.CAFile), "sandbox")
	h.Start()
	_, process, ok := strings.Cut(example(t, "aws/config", "/usr/bin/vouch", h.Path("bin/vouch")), "\ncredential_process = ")
	if !ok {
		t.Fatal("the profile runs no process")
	}
	h.helpers() // makes bin/vouch
	got, err := processcreds.NewProvider(strings.TrimSpace(process) + " --socket unix://" + h.Path("agent.sock")).Retrieve(t.Context())
	if err != nil || got.SecretAccessKey != u.Canary {
		t.Errorf("the SDK got %+v, %v", got, err)
	}
}
