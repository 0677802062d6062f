package tool

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

func fields(pairs ...string) (f []credential.Field) {
	for i := 0; i < len(pairs); i += 2 {
		f = append(f, credential.Field{Name: pairs[i], Value: secret.Of([]byte(pairs[i+1])), Public: pairs[i] == "username"})
	}
	return f
}

func TestLoginIsFoundAmongFields(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		fields []credential.Field
		given  string
		want   string // user:secret
	}{
		{"a GitHub token", fields("username", "x-access-token", "token", "s"), "", "x-access-token:s"},
		{"a database login", fields("username", "u", "password", "s", "url", "postgres://u:s@h"), "", "u:s"},
		{"the definition's user name", fields("username", "u", "access_token", "s"), "oauth2", "oauth2:s"},
		{"no user name", fields("access_token", "s"), "", ":s"},
		{"a secret of another store", fields("value", "s"), "u", "u:s"},
	} {
		l, err := LoginOf(tt.fields, tt.given)
		if got := l.Username + ":" + string(l.Secret); err != nil || got != tt.want {
			t.Errorf("%s: %s, %v", tt.name, got, err)
		}
	}
	if _, err := LoginOf(fields("username", "u", "certificate", "c"), ""); err == nil || !strings.Contains(err.Error(), "username, certificate") {
		t.Errorf("without a secret: %v", err)
	}
}

func TestGitsPathMayHaveBlanksLettersAndBrackets(t *testing.T) {
	t.Parallel()
	of, err := credential.NewTarget(credential.Git, "https://dev.azure.com/org")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{ // as git has decoded them
		"org/My Project/_git/repo": "https://dev.azure.com/org/My Project/_git/repo",
		"org/Grün/_git/repo":       "https://dev.azure.com/org/Grün/_git/repo",
		"org/Team (A)/[x]/repo":    "https://dev.azure.com/org/Team (A)/[x]/repo",
		"org/100%/50%25":           "https://dev.azure.com/org/100%/50%25",
	} {
		got, err := GitRequest{Protocol: "https", Host: "dev.azure.com", Path: path}.Target()
		if err != nil || got.Location != want || !of.Covers(got) {
			t.Errorf("%s is %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{"org x/repo", "org/../other/repo", "org\\x", "org/a\u202eb", "org/a\xff", "org/a\x7fb"} {
		if got, err := (GitRequest{Protocol: "https", Host: "dev.azure.com", Path: path}).Target(); err == nil && of.Covers(got) {
			t.Errorf("%q is below %s as %q", path, of.Location, got.Location)
		}
	}
	if got, err := (GitRequest{Protocol: "https", Host: "dev.azure.com%2forg"}).Target(); err == nil {
		t.Errorf("a host with an escape is %+v", got)
	}
}

func TestNothingElseIsToldToKeepALogin(t *testing.T) {
	t.Parallel()
	for _, knows := range []bool{false, true} {
		var out bytes.Buffer
		if err := (GitRequest{CanAuth: knows}).Answer(&out, Login{"u", []byte("p")}, time.Unix(1700000000, 0), "L"); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "capability[]=authtype\nephemeral=1\n") != knows {
			t.Errorf("to a git that knows authtype (%v) it says %q", knows, out.String())
		}
	}
}

func TestGitsRequestIsReadAndAnswered(t *testing.T) {
	t.Parallel()
	req, err := ParseGit(strings.NewReader("capability[]=authtype\ncapability[]=state\nprotocol=https\nhost=github.com:443\npath=acme/site.git\nwwwauth[]=Basic realm=\"x\"\nstate[]=other:x\nstate[]=vouch:lease=L1\nusername=u\n\nhost=ignored\n"))
	if err != nil || req != (GitRequest{"https", "github.com:443", "acme/site.git", "u", "L1", true, true}) {
		t.Fatalf("%+v, %v", req, err)
	}
	if target, err := req.Target(); err != nil || target.Location != "https://github.com/acme/site.git" {
		t.Errorf("%+v, %v", target, err)
	}
	var out bytes.Buffer
	if err := req.Answer(&out, Login{"u", []byte("p=1 ")}, time.Unix(1700000000, 0), "L2"); err != nil {
		t.Fatal(err)
	}
	if want := "capability[]=authtype\nephemeral=1\ncapability[]=state\nstate[]=vouch:lease=L2\nusername=u\npassword=p=1 \npassword_expiry_utc=1700000000\n"; out.String() != want {
		t.Errorf("answered %q, want %q", out.String(), want)
	}
	out.Reset()
	req.CanState = false
	if err := req.Answer(&out, Login{"u", []byte("p")}, time.Unix(1700000000, 0), "L2"); err != nil || strings.Contains(out.String(), "state") {
		t.Errorf("a git that keeps no state is answered %q, %v", out.String(), err)
	}
}

func TestGitIsNotAnsweredWithWhatBreaksALine(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]Login{
		"a secret of two lines": {"u", []byte("a\nhost=evil")}, "a carriage return": {"u", []byte("a\r")}, "a zero byte": {"u", []byte("a\x00")},
		"a user name of two lines": {"u\npassword=x", []byte("a")}, "no user name": {"", []byte("a")},
	} {
		var out bytes.Buffer
		if err := (GitRequest{}).Answer(&out, l, time.Now(), ""); err == nil || out.Len() > 0 || strings.Contains(err.Error(), "evil") {
			t.Errorf("%s: %q, %v", name, out.String(), err)
		}
	}
}

func TestGitsMalformedRequestIsRefusedInBounds(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"no key":             "=x\n",
		"no equals sign":     "protocol=https\nsecret-without-a-key\n",
		"a zero byte":        "host=a\x00b\n",
		"a carriage return":  "host=a\r\n",
		"too many bytes":     "host=" + strings.Repeat("a", maxGitInput) + "\n",
		"too many lines":     strings.Repeat("a=b\n", maxGitLines+1),
		"no line end at all": strings.Repeat("a", 2*maxGitInput),
	} {
		if req, err := ParseGit(strings.NewReader(in)); err == nil || strings.Contains(err.Error(), "secret") || req != (GitRequest{}) {
			t.Errorf("%s: %+v, %v", name, req, err)
		}
	}
	for _, r := range []GitRequest{{}, {Protocol: "https"}, {Protocol: "smtp", Host: "x"}, {Protocol: "http", Host: "github.com"}, {Protocol: "https", Host: "a@b"}, {Protocol: "https", Host: "a/b"}, {Protocol: "https", Host: "a", Path: "../b"}, {Protocol: "https", Host: "a", Path: "b?c"}} {
		if target, err := r.Target(); err == nil {
			t.Errorf("%+v is %+v", r, target)
		}
	}
}

func TestDockersRequestIsReadAndAnswered(t *testing.T) {
	t.Parallel()
	server, err := ParseDocker(strings.NewReader("https://index.docker.io/v1/\n"))
	if err != nil || server != "https://index.docker.io/v1/" {
		t.Fatalf("%q, %v", server, err)
	}
	if target, err := DockerTarget(server); err != nil || target.Location != "docker.io" {
		t.Errorf("%+v, %v", target, err)
	}
	var out bytes.Buffer
	if err := AnswerDocker(&out, server, Login{Secret: []byte(`s"<`)}); err != nil {
		t.Fatal(err)
	}
	var got struct{ ServerURL, Username, Secret string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.ServerURL != server || got.Username != "vouch" || got.Secret != `s"<` {
		t.Errorf("answered %s, %v", out.String(), err)
	}
	if err := AnswerDocker(&out, server, Login{Secret: []byte{0xff}}); !errors.Is(err, errText) {
		t.Errorf("a secret that JSON would change: %v", err)
	}
	out.Reset()
	if err := ListDocker(&out, map[string]string{"docker.io": "", "r:5000": "u"}); err != nil || out.String() != `{"https://index.docker.io/v1/":"vouch","r:5000":"u"}`+"\n" {
		t.Errorf("list %s, %v", out.String(), err)
	}
	for in, want := range map[string]error{"": ErrDockerServer, "\n": ErrDockerServer, "a\nb": nil, strings.Repeat("a", 5000): nil, "a\x00b": nil} {
		if server, err := ParseDocker(strings.NewReader(in)); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%.20q is read as %.20q, %v", in, server, err)
		}
	}
}

func TestClusterIsNamedForClientsThatDoNotSayIt(t *testing.T) {
	t.Parallel()
	none, err := ParseExecInfo("")
	if err != nil {
		t.Fatal(err)
	}
	if target, err := none.Target("https://K8s.internal:6443/"); err != nil || target.Location != "https://k8s.internal:6443" {
		t.Errorf("%+v, %v", target, err)
	}
	said := ExecInfo{"https://k8s.internal:6443"}
	if target, err := said.Target("https://k8s.internal:6443"); err != nil || target.Location != said.server {
		t.Errorf("the same twice: %+v, %v", target, err)
	}
	if target, err := said.Target("https://other.internal"); err == nil {
		t.Errorf("another than the client says: %+v", target)
	}
	if target, err := none.Target("http://k8s.internal"); err == nil {
		t.Errorf("in clear: %+v", target)
	}
}

// The documents are those of "client-go credential plugins" of Kubernetes.
func TestKubectlsRequestIsReadAndAnswered(t *testing.T) {
	t.Parallel()
	info, err := ParseExecInfo(`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"cluster":{"server":"https://172.17.4.100:6443","certificate-authority-data":"LS0t","config":{"arbitrary":1}},"interactive":true}}`)
	if err != nil {
		t.Fatal(err)
	}
	if target, err := info.Target(""); err != nil || target.Location != "https://172.17.4.100:6443" {
		t.Errorf("%+v, %v", target, err)
	}
	expires := time.Date(2030, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	for want, f := range map[string][]credential.Field{
		`"status":{"expirationTimestamp":"2030-01-02T02:04:05Z","token":"t"}`:                                     fields("access_token", "t"),
		`"status":{"expirationTimestamp":"2030-01-02T02:04:05Z","clientCertificateData":"c","clientKeyData":"k"}`: fields("certificate", "c", "private_key", "k"),
		`"status":{"expirationTimestamp":"2030-01-02T02:04:05Z","token":"only a certificate would not do"}`:       fields("certificate", "c", "token", "only a certificate would not do"),
	} {
		var out bytes.Buffer
		if err := AnswerExec(&out, f, expires); err != nil || out.String() != `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",`+want+"}\n" {
			t.Errorf("answered %s, %v", out.String(), err)
		}
	}
	var out bytes.Buffer
	if err := AnswerExec(&out, fields("token", "\xff"), expires); !errors.Is(err, errText) || out.Len() > 0 {
		t.Errorf("a token that JSON would change: %v", err)
	}
	if err := AnswerExec(&out, fields("username", "u"), expires); err == nil || out.Len() > 0 {
		t.Error("answered without a secret")
	}
}

func TestKubectlsMalformedRequestSaysWhatToSet(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"{": "is not JSON",
		`{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential"}`: "set apiVersion: client.authentication.k8s.io/v1",
		`{"apiVersion":"client.authentication.k8s.io/v1","kind":"Secret"}`:              `asks for "Secret"`,
		strings.Repeat(" ", maxExecInfo+1):                                              "bytes and may have",
	} {
		if _, err := ParseExecInfo(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v", in, err)
		}
	}
	for server, want := range map[string]string{"": "provideClusterInfo: true", "http://10.0.0.1": "is not https"} {
		if _, err := (ExecInfo{server}).Target(""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("server %q: %v", server, err)
		}
	}
}

func FuzzParseGit(f *testing.F) {
	f.Add([]byte("protocol=https\nhost=github.com\npath=a/b\n\n"))
	f.Add([]byte("state[]=vouch:lease=x\ncapability[]=state\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := ParseGit(bytes.NewReader(in))
		if err != nil {
			return
		}
		target, err := req.Target()
		if err != nil {
			return
		}
		again, err := credential.NewTarget(credential.Git, target.Location)
		if err != nil || again != target {
			t.Errorf("%q is %+v, and that is %+v, %v", in, target, again, err)
		}
		if !strings.HasPrefix(target.Location, "https://") && !strings.HasPrefix(target.Location, "http://") || strings.Contains(target.Location, "@") {
			t.Errorf("%q is %+v", in, target)
		}
	})
}

func FuzzParseDocker(f *testing.F) {
	f.Add([]byte("https://index.docker.io/v1/\n"))
	f.Add([]byte("registry:5000"))
	f.Fuzz(func(t *testing.T, in []byte) {
		server, err := ParseDocker(bytes.NewReader(in))
		if err != nil {
			return
		}
		target, err := DockerTarget(server)
		if err != nil {
			return
		}
		if again, err := DockerTarget(target.Location); err != nil || again != target {
			t.Errorf("%q is %+v, and that is %+v, %v", in, target, again, err)
		}
	})
}

func FuzzParseExecInfo(f *testing.F) {
	f.Add(`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"cluster":{"server":"https://k:6443"}}}`)
	f.Fuzz(func(t *testing.T, in string) {
		info, err := ParseExecInfo(in)
		if err != nil {
			return
		}
		if target, err := info.Target(""); err == nil && !strings.HasPrefix(target.Location, "http") {
			t.Errorf("%q is %+v", in, target)
		}
	})
}
