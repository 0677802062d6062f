package ui

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/ui/page"
)

// A visit is a page that is served to a test.
type visit struct {
	t      *testing.T
	access *access
	h      http.Handler
	clock  time.Time
	uid    uint32
	cookie *http.Cookie // as a browser has kept it
}

func newVisit(t *testing.T) *visit {
	v := &visit{t: t, clock: sampleNow, uid: 1000}
	v.access = newAccess(func() time.Time { return v.clock }, linkLife, sessionLife)
	v.h = newHandler(newSample(), v.access)
	return v
}

// ask asks as a browser does for an address that somebody typed.
func (v *visit) ask(method, path string, change ...func(r *http.Request)) *http.Response {
	v.t.Helper()
	r := httptest.NewRequest(method, "http://127.0.0.1:8300"+path, nil)
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, v.uid))
	r.Header.Set("Sec-Fetch-Site", "none")
	if v.cookie != nil && strings.HasPrefix(path, v.cookie.Path) {
		r.AddCookie(v.cookie)
	}
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	v.h.ServeHTTP(w, r)
	return w.Result()
}

// opened opens the link.
func (v *visit) opened() *visit {
	v.t.Helper()
	resp := v.ask("GET", v.access.link())
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 || resp.Header.Get("Location") != v.access.base {
		v.t.Fatalf("opening the link: %s %v", resp.Status, resp.Header)
	}
	v.cookie = resp.Cookies()[0]
	return v
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func TestALinkWorksOnce(t *testing.T) {
	t.Parallel()
	v := newVisit(t)
	link := v.access.link()
	first, second := v.ask("GET", link), v.ask("GET", link)
	if first.StatusCode != http.StatusSeeOther {
		t.Errorf("the first time: %s", first.Status)
	}
	if second.StatusCode != http.StatusForbidden || len(second.Cookies()) > 0 || !strings.Contains(body(t, second), "used already") {
		t.Errorf("the second time: %s, %v", second.Status, second.Cookies())
	}
	c := first.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != v.access.base || len(c.Path) < 22 || c.MaxAge != 0 || len(c.Value) < 43 {
		t.Errorf("the cookie is %+v", c)
	}
	if at := first.Header.Get("Location"); strings.Contains(at, strings.TrimPrefix(link, openPath)) || strings.Contains(at, c.Value) {
		t.Errorf("%s has a secret", at)
	}
}

// TestNothingBeforeTheLinkUsesItUp: not what browsers send ahead, not another site's page.
func TestNothingBeforeTheLinkUsesItUp(t *testing.T) {
	t.Parallel()
	v := newVisit(t)
	link := v.access.link()
	for _, r := range []*http.Response{
		v.ask("HEAD", link), v.ask("POST", link), v.ask("GET", link+"x"), v.ask("GET", openPath), v.ask("GET", strings.ToLower(link)),
		v.ask("GET", link, header("Sec-Purpose", "prefetch")), v.ask("GET", link, header("Sec-Fetch-Site", "cross-site")),
		v.ask("GET", link, header("Origin", "http://evil.example")), v.ask("GET", link, func(r *http.Request) { r.Host = "evil.example:8300" }),
	} {
		if r.StatusCode < 400 || len(r.Cookies()) > 0 {
			t.Errorf("%s, %v", r.Status, r.Cookies())
		}
	}
	if r := v.ask("GET", link); r.StatusCode != http.StatusSeeOther {
		t.Errorf("the link afterwards: %s", r.Status)
	}
}

func TestALinkThatNobodyOpensEnds(t *testing.T) {
	t.Parallel()
	v := newVisit(t)
	v.clock = v.clock.Add(linkLife)
	if r := v.ask("GET", v.access.link()); r.StatusCode != http.StatusForbidden || !strings.Contains(body(t, r), "too old") {
		t.Errorf("after %v: %s", linkLife, r.Status)
	}
}

// TestOnlyTheSessionSeesThePage: who has no cookie, the cookie of another, its path alone, or
// the right cookie and is another user, is told nothing of the host.
func TestOnlyTheSessionSeesThePage(t *testing.T) {
	t.Parallel()
	v := newVisit(t)
	if r := v.ask("GET", v.access.base); r.StatusCode != http.StatusForbidden {
		t.Errorf("before the link was opened: %s", r.Status)
	}
	v.opened()
	if r := v.ask("GET", v.access.base, header("Sec-Fetch-Site", "same-origin")); r.StatusCode != http.StatusOK || !strings.Contains(body(t, r), "agent/research") {
		t.Errorf("the session: %s", r.Status)
	}
	if r := v.ask("HEAD", v.access.base); r.StatusCode != http.StatusOK {
		t.Errorf("the session's HEAD: %s", r.Status)
	}
	right := *v.cookie
	strange := []string{}
	try := func(what, path string, change ...func(r *http.Request)) {
		t.Helper()
		r := v.ask("GET", path, change...)
		if r.StatusCode < 400 || r.StatusCode >= 500 {
			t.Errorf("%s: %s", what, r.Status)
		}
		strange = append(strange, body(t, r))
	}
	v.cookie = nil
	try("no cookie", v.access.base)
	try("no cookie, an agent", v.access.base+"agent?id=spiffe://example.org/agent/research")
	v.cookie = &http.Cookie{Name: cookieName, Value: right.Value[:len(right.Value)-1] + "_", Path: right.Path}
	try("another cookie", v.access.base)
	v.cookie = &http.Cookie{Name: cookieName, Value: "", Path: right.Path}
	try("an empty cookie", v.access.base)
	v.cookie = &right
	v.uid = 1001
	try("another user with the cookie", v.access.base)
	v.uid = noUser
	try("nobody knows who", v.access.base)
	v.uid = 1000
	try("another path with the cookie", "/", func(r *http.Request) { r.AddCookie(&right) })
	try("no such page", "/favicon.ico", func(r *http.Request) { r.AddCookie(&right) })
	for _, s := range strange {
		for _, told := range []string{"build-7", "example.org", "agent/", "vouchd 1.4.0"} {
			if strings.Contains(s, told) {
				t.Errorf("a stranger is told %q: %s", told, s)
			}
		}
	}
	v.clock = v.clock.Add(sessionLife)
	try("when the session is over", v.access.base)
}

func TestOtherHostsOriginsAndMethodsAreRefused(t *testing.T) {
	t.Parallel()
	v := newVisit(t).opened()
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	for _, tt := range []struct {
		what   string
		method string
		change func(*http.Request)
		want   int
	}{
		{"localhost, by another port", "GET", host("localhost:9999"), 200},
		{"no port", "GET", host("127.0.0.1"), 200},
		{"its own origin", "GET", header("Origin", "http://127.0.0.1:8300"), 200},
		{"a name that resolves here", "GET", host("rebind.example:8300"), 421},
		{"a name that looks like it", "GET", host("127.0.0.1.example:8300"), 421},
		{"a name with user", "GET", host("localhost@evil.example"), 421},
		{"no host", "GET", host(""), 421},
		{"another loopback address", "GET", host("127.0.0.2:8300"), 421},
		{"another origin", "GET", header("Origin", "http://127.0.0.1:9000"), 403},
		{"an opaque origin", "GET", header("Origin", "null"), 403},
		{"from another port's page", "GET", header("Sec-Fetch-Site", "same-site"), 403},
		{"from another site", "GET", header("Sec-Fetch-Site", "cross-site"), 403},
		{"POST", "POST", func(*http.Request) {}, 405}, {"PUT", "PUT", func(*http.Request) {}, 405}, {"DELETE", "DELETE", func(*http.Request) {}, 405},
		{"OPTIONS", "OPTIONS", func(*http.Request) {}, 405}, {"TRACE", "TRACE", func(*http.Request) {}, 405}, {"CONNECT", "CONNECT", func(*http.Request) {}, 405},
	} {
		if r := v.ask(tt.method, v.access.base, tt.change); r.StatusCode != tt.want {
			t.Errorf("%s: %s, want %d", tt.what, r.Status, tt.want)
		}
	}
}

func TestEveryAnswerIsConfined(t *testing.T) {
	t.Parallel()
	v := newVisit(t)
	before := v.ask("GET", "/")
	v.opened()
	for _, r := range []*http.Response{before, v.ask("GET", v.access.base), v.ask("GET", v.access.base+"nothing"), v.ask("POST", v.access.base)} {
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src " + page.StyleSource() + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
			"Cache-Control":           "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Type": "text/html; charset=utf-8",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "X-Frame-Options": "DENY",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", r.Status, name, got, want)
			}
		}
		text := body(t, r)
		if m := regexp.MustCompile(`(?i)<script|\son[a-z]+=|javascript:|\sstyle=|<(form|iframe|img|object|embed|base)\b|(src|href)="?(https?:)?//`).FindString(text); m != "" {
			t.Errorf("%s: the page has %q", r.Status, m)
		}
	}
}

func TestQuestionsThatMakeNoSenseAreAnswered(t *testing.T) {
	t.Parallel()
	v := newVisit(t).opened()
	for path, want := range map[string]int{
		"?range=1h": 200, "?range=year": 200, "?range=30d&refresh=30": 200, "agent?id=spiffe://example.org/agent/research": 200,
		"agent?id=spiffe://example.org/nobody": 200, "agent?id=javascript:alert(1)": 400, "agent": 400, "agent?id=spiffe://example.org/%22%3E%3Cb%3E": 400,
		"agent/": 404, "../": 404, "page.html": 404,
	} {
		if r := v.ask("GET", v.access.base+path); r.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, r.Status, want)
		}
	}
	if !strings.Contains(body(t, v.ask("GET", v.access.base+"?refresh=30")), `http-equiv="refresh" content="30"`) {
		t.Error("it does not refresh itself")
	}
}

// TestTheConnectionOfAnotherUserIsClosed: it is not answered, and the command says whose it was.
func TestTheConnectionOfAnotherUserIsClosed(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		l, err := listenOn("127.0.0.1:0", map[string]string{"unix": filepath.Join(t.TempDir(), "s")}[network])
		if err != nil {
			t.Fatal(err)
		}
		var said lines
		g := guarded(l, &said)
		us := uint32(os.Geteuid())
		g.users = []uint32{us + 1} // somebody else
		h := &http.Server{Handler: newHandler(newSample(), newAccess(time.Now, linkLife, sessionLife)), ConnContext: withPeer}
		go h.Serve(g)
		for range 2 {
			c, err := net.Dial(l.Addr().Network(), l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") // it may be closed already
			c.SetDeadline(time.Now().Add(30 * time.Second))
			if got, _ := io.ReadAll(c); len(got) > 0 {
				t.Errorf("%s: it was told %q", network, got)
			}
			c.Close()
		}
		h.Close()
		if got := said.String(); got != "vouch: refused a connection of "+userName(us)+"\n" {
			t.Errorf("%s: the command said %q", network, got)
		}
	}
}

// lines is what is written, by several at once.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestItIsServedOnLoopbackAlone(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:80", "localhost:0", "127.0.0.1", "127.0.0.1:http", "127.0.0.2:0", "[::1]:0", ""} {
		l, err := listenOn(address, "")
		if err == nil {
			l.Close()
		}
		if !cli.IsUsage(err) || !strings.Contains(err.Error(), "want 127.0.0.1:PORT") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestASocketIsItsUsersAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second replaces what the first has left
		l, err := listenOn("", path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its mode is %v (%v)", info.Mode(), err)
		}
		if _, err := listenOn("", path); err == nil || !strings.Contains(err.Error(), "serves on") {
			t.Errorf("beside one that serves: %v", err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenOn("", path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file has %q (%v)", b, err)
	}
}

// TestTheCommandEnds when it is interrupted, when nobody opens the link, and when the session
// is over.
func TestTheCommandEnds(t *testing.T) {
	t.Parallel()
	start := func(link, session time.Duration) (cancel context.CancelFunc, url string, ended chan error) {
		t.Helper()
		src, err := newSource(&cli.Options{}, emptyLog(t))
		if err != nil {
			t.Fatal(err)
		}
		l, err := listenOn("127.0.0.1:0", "")
		if err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		ctx, stop := context.WithCancel(context.Background())
		s := server{access: newAccess(time.Now, link, session), source: src, out: w, problems: io.Discard}
		ended = make(chan error, 1)
		go func() { ended <- s.run(ctx, l); w.Close() }()
		said := bufio.NewScanner(r)
		for said.Scan() && url == "" {
			url = regexp.MustCompile(`http://\S+`).FindString(said.Text())
		}
		go io.Copy(io.Discard, r)
		return stop, url, ended
	}
	cancel, url, ended := start(time.Hour, time.Hour)
	if resp, err := http.Get(url); err != nil || resp.StatusCode != http.StatusForbidden { // Go's client keeps no cookie, and follows
		t.Errorf("%s: %v %v", url, resp, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
	cancel, _, ended = start(time.Millisecond, time.Hour)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "nobody opened the link") {
		t.Errorf("not opened: %v", err)
	}
	cancel()
	cancel, url, ended = start(time.Hour, time.Millisecond)
	if resp, err := http.Get(url); err == nil {
		resp.Body.Close()
	}
	if err := <-ended; err != nil {
		t.Errorf("over: %v", err)
	}
	cancel()
}

func TestACopyThatIsNotThereIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	if _, err := newSource(&cli.Options{}, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("it was opened")
	}
}

// emptyLog is a directory of a log without records.
func emptyLog(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
