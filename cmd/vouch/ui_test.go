package main

import (
	"bufio"
	"context"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// An onPage is what vouch ui serves, and a browser that opened its link.
type onPage struct {
	t    *testing.T
	cmd  *exec.Cmd
	said *daemontest.Lines
	http http.Client
	base *url.URL
}

// showUI runs vouch ui and opens its link, by way of a socket if there is one.
func showUI(t *testing.T, h *daemontest.Host, socket string, args ...string) *onPage {
	t.Helper()
	s := &onPage{t: t, cmd: exec.Command(daemontest.Program(t, "vouch"), append([]string{"ui"}, args...)...), said: daemontest.NewLines()}
	s.cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"))
	s.cmd.Stderr = s.said
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	must(t, s.cmd.Start())
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	link := ""
	for lines := bufio.NewScanner(out); link == "" && lines.Scan(); {
		link = regexp.MustCompile(`http://127\.0\.0\.1:\d+/open/\S+`).FindString(lines.Text())
	}
	go io.Copy(io.Discard, out)
	s.http.Jar, err = cookiejar.New(nil)
	must(t, err)
	if socket != "" {
		s.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}
	}
	resp, err := s.http.Get(link)
	if err != nil {
		t.Fatalf("%v; vouch ui said:\n%s", err, s.said)
	}
	defer resp.Body.Close()
	if s.base = resp.Request.URL; resp.StatusCode != http.StatusOK || strings.Contains(s.base.Path, "open") {
		t.Fatalf("the link leads to %s: %s", s.base, resp.Status)
	}
	return s
}

// text is what people read of a page below the base.
func (s *onPage) text(path string) string {
	s.t.Helper()
	at, err := s.base.Parse(path)
	must(s.t, err)
	resp, err := s.http.Get(at.String())
	must(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(s.t, err)
	_, page, _ := strings.Cut(string(b), "</style>")
	page = regexp.MustCompile(`</(p|h[1-6]|li|td|th|dt|dd|div|span|code|small)>`).ReplaceAllString(page, "$0 ")
	return strings.Join(strings.Fields(html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, ""))), " ")
}

// shows waits until a page has all of that.
func (s *onPage) shows(path string, wants ...string) {
	s.t.Helper()
	text := ""
	for _, want := range wants {
		defer func() {
			if s.t.Failed() {
				s.t.Logf("the page at %q: %s\nvouch ui said: %s", path, text, s.said)
			}
		}()
		eventually(s.t, "the page shows "+want, func() bool {
			text = s.text(path)
			return matches(want, text)
		})
	}
}

// refusesAnotherUser has nobody ask for the page, with the cookie.
func (s *onPage) refusesAnotherUser() {
	s.t.Helper()
	const nobody = 65534
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nCookie: %s\r\n\r\n", s.base.Path, s.base.Host, s.http.Jar.Cookies(s.base)[0])
	script := `exec 3<>/dev/tcp/127.0.0.1/$0 && cat >&3; cat <&3`
	ask := func(uid uint32) string {
		cmd := exec.Command("bash", "-c", script, s.base.Port())
		cmd.Stdin = strings.NewReader(request)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, _ := cmd.Output() // it fails where nobody answers
		return string(out)
	}
	if out := ask(uint32(os.Getuid())); !strings.Contains(out, "200 OK") {
		s.t.Errorf("this user is told %q", out)
	}
	if out := ask(nobody); out != "" {
		s.t.Errorf("nobody is told %q", out)
	}
	s.said.Wait(s.t, fmt.Sprintf("refused a connection of nobody (user %d)", nobody))
}

// TestThePageShowsWhatAnAgentDid: it fetched, was refused, leased and called.
func TestThePageShowsWhatAnAgentDid(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, `rules: [{name: read, effect: allow, methods: [GET], paths: ["/**"]}]`)
	h.Start()
	h.OK("fetch", "x509")
	if _, _, code := h.Vouch("get", "ungranted"); code == 0 {
		t.Fatal("got what is not granted")
	}
	if _, _, err := leasetest.GrantHandle(t.Context(), h.Path("agent.sock"), "api"); err != nil {
		t.Fatal(err)
	}
	client := h.Client()
	call := func(method string) {
		t.Helper()
		req, err := http.NewRequest(method, "http://localhost/api/v1/models", nil)
		must(t, err)
		resp, err := client.Do(req)
		must(t, err)
		resp.Body.Close()
	}
	call("GET")
	call("DELETE")
	held := make(chan struct{})
	arrived := make(chan struct{})
	h.Upstream.Handle(func(w http.ResponseWriter, _ *http.Request) { close(arrived); <-held })
	under := make(chan struct{})
	go func() { defer close(under); call("GET") }()
	<-arrived

	s := showUI(t, h.Host, "")
	pid := fmt.Sprint(os.Getpid())
	s.shows("", `No problems|\d problem`,
		`agent [^ ]+ pid `+pid+` api other .*\d+ calls?, .*\d+ SVIDs?`,
		`Leases .* api agent .* pid `+pid+` with its process, by `,
		`Calls under way .* GET /\*\* by rule read agent api `,
		`Refused a lease of ungranted .*vouch log explain \d+`,
		`Refused a call with api: DELETE /v1/models .*vouch log explain \d+ vouch entry explain `+pid,
		`Verified (now|\d+ s ago): the log holds`,
		`Last anchor .*: the TPM binds the first`,
		`Appraisal none: there is no policy in `,
		`Boot state PCRs [0-9a-f]{16}…`,
	)
	s.shows("agent?id=spiffe://example.org/agent", `spiffe://example\.org/agent`, `api static, https://.* allow GET /\*\* read`, `ungranted not granted`, `unix:uid:`+fmt.Sprint(os.Getuid()))
	if text := s.text("") + s.text("agent?id=spiffe://example.org/agent"); strings.Contains(text, proxytest.Secret) {
		t.Error("the page has the secret")
	}
	s.refusesAnotherUser()
	close(held)
	<-under
	s.shows("", `Calls under way No call is under way`)

	h.Stop()
	s.shows("", `1 problem Problem The daemon does not answer: .* What follows is from its log alone\. vouch doctor`, `Leases Only the daemon knows`, `Refused a call with api: DELETE /v1/models`)
	must(t, s.cmd.Process.Signal(syscall.SIGINT))
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("interrupted, vouch ui ends with %v: %s", err, s.said)
	}
}

// TestThePageIsServedOnASocketAndOfACopy as well.
func TestThePageIsServedOnASocketAndOfACopy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	h.OK("fetch", "x509")
	h.Stop()
	must(t, os.CopyFS(h.Path("copy"), os.DirFS(h.Path("state/log"))))
	s := showUI(t, h.Host.Host, h.Path("ui.sock"), "--socket", h.Path("ui.sock"), "--dir", h.Path("copy"))
	s.shows("", `a copy of a log, up to `, `cli .*1 SVID`, `Verified .*the log holds`, `vouch log verify --live `+regexp.QuoteMeta(h.Path("copy")))
	if text := s.text(""); strings.Contains(text, "daemon does not answer") {
		t.Errorf("a daemon was asked: %s", text)
	}
	must(t, s.cmd.Process.Signal(syscall.SIGTERM))
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("vouch ui ends with %v: %s", err, s.said)
	}
	if _, err := os.Stat(h.Path("ui.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind (%v)", err)
	}
}

func TestUIRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--listen", "0.0.0.0:80"}, 2, "want 127.0.0.1:PORT"},
		{[]string{"--listen", "127.0.0.1:0", "--socket", "s"}, 2, "give one"},
		{[]string{"--output", "json"}, 2, "vouch status"},
		{[]string{"--dir", h.Path("nothing")}, 1, "no such file"},
		{[]string{"--socket", h.Path("vouchd.yaml")}, 1, "not a socket"},
		{[]string{"more"}, 2, "unknown command"},
	} {
		if _, stderr, code := h.Vouch(append([]string{"ui"}, tt.args...)...); code != tt.code || !strings.Contains(stderr, tt.says) {
			t.Errorf("vouch ui %q exits %d: %s", tt.args, code, stderr)
		}
	}
}
