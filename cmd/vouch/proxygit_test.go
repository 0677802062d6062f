//go:build clients

package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// serveGit has nginx serve bare repositories as a host of Git does, over HTTP/1.1 or 2. It
// returns the URL; logs has what was asked.
func serveGit(t *testing.T, h *caller, listen string) (url string, asked func() string) {
	t.Helper()
	dir := h.Path("git")
	must(t, os.Mkdir(dir, 0o755))
	h.Write("git/key.pem", upstreamKey(t, h))
	port := freePort(t)
	basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + proxytest.Secret))
	h.Write("git/nginx.conf", fmt.Sprintf(`daemon off; pid %[1]s/nginx.pid; error_log %[1]s/error.log; user root;
events {}
http {
  log_format asked '$server_protocol $request_method $uri $request_length $http_content_encoding';
  access_log %[1]s/access.log asked; client_max_body_size 0;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  server {
    listen 127.0.0.1:%[2]d ssl %[3]s; ssl_certificate %[1]s/../ca.pem; ssl_certificate_key %[1]s/key.pem;
    if ($http_authorization != "Basic %[4]s") { return 401; }
    location / {
      include /etc/nginx/fastcgi_params; fastcgi_pass unix:%[1]s/cgi.sock;
      fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend; fastcgi_param GIT_PROJECT_ROOT %[1]s/repositories;
      fastcgi_param GIT_HTTP_EXPORT_ALL 1; fastcgi_param PATH_INFO $uri; fastcgi_param REMOTE_USER x; fastcgi_param HTTP_AUTHORIZATION "";
    }
  }
}
`, dir, port, listen, basic))
	for _, args := range [][]string{
		{"fcgiwrap", "-s", "unix:" + dir + "/cgi.sock"},
		{"nginx", "-e", dir + "/error.log", "-c", dir + "/nginx.conf"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stderr = t.Output()
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	daemontest.Eventually(t, "nginx serves", func() bool {
		_, err := os.Stat(dir + "/cgi.sock")
		c, dial := net.Dial("tcp", address)
		if dial == nil {
			c.Close()
		}
		return err == nil && dial == nil
	})
	return "https://" + address, func() string { return h.Read("git/access.log") }
}

// upstreamKey returns the key of the upstream's certificate, for another server.
func upstreamKey(t *testing.T, h *caller) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(h.Upstream.TLS.Certificates[0].PrivateKey)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestProxyClientsGit: git itself, against git http-backend behind nginx.
func TestProxyClientsGit(t *testing.T) {
	for name, listen := range map[string]string{"HTTP/1.1": "", "HTTP/2.0": "http2"} {
		h := newCaller(t)
		url, asked := serveGit(t, h, listen)
		h.start(map[string][]string{
			"reader": {"preset: github-git-2026-11", "variant: read-only", "upstream: " + url},
			"pusher": {"preset: github-git-2026-11", "variant: push", "upstream: " + url},
		})
		const bare = "git/repositories/a/b.git"
		must(t, os.MkdirAll(h.Path("git/repositories/a"), 0o755))
		h.run(t, "git", "init", "-q", "--bare", "-b", "main", h.Path(bare))
		h.run(t, "git", "-C", h.Path(bare), "config", "http.receivepack", "true")
		commit := func(file string, n int) {
			t.Helper()
			b := make([]byte, n)
			rand.Read(b)
			h.Write("home/b/"+file, string(b))
			h.run(t, "git", "-C", "b", "add", ".")
			h.run(t, "git", "-C", "b", "commit", "-qm", file)
		}
		head := func(of string) string { t.Helper(); return h.run(t, "git", "-C", of, "rev-parse", "main") }

		t.Run("clones an empty repository over "+name, func(t *testing.T) {
			h.run(t, h.by("pusher", "git", "clone", "-q", "https://github.com/a/b.git")...)
		})
		t.Run("pushes more than is sent with a length over "+name, func(t *testing.T) {
			commit("large", 3<<20)
			h.run(t, h.by("pusher", "git", "-C", "b", "push", "-q", "origin", "HEAD:main")...)
			if got, want := head(h.Path(bare)), head("b"); got != want {
				t.Errorf("the repository is at %s, want %s", got, want)
			}
		})
		t.Run("clones and fetches to read over "+name, func(t *testing.T) {
			h.run(t, h.by("reader", "git", "clone", "-q", "https://github.com/a/b.git", "c")...)
			for i := range 60 { // so many that what git says it has is sent compressed
				commit(fmt.Sprint(i), 10)
				h.run(t, "git", "-C", "c", "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
			}
			h.run(t, h.by("pusher", "git", "-C", "b", "push", "-q", "origin", "HEAD:main")...)
			h.run(t, h.by("reader", "git", "-C", "c", "fetch", "-q")...)
			if got, want := h.run(t, "git", "-C", "c", "rev-parse", "origin/main"), head("b"); got != want {
				t.Errorf("fetched %s, want %s", got, want)
			}
			if log := asked(); !strings.Contains(log, "/git-upload-pack") || !strings.Contains(log, " gzip") || !strings.Contains(log, name) {
				t.Errorf("the server was asked\n%s", log)
			}
		})
		t.Run("says why a push is refused over "+name, func(t *testing.T) {
			commit("more", 10)
			before := head(h.Path(bare))
			out, err := h.try(h.by("reader", "git", "-C", "b", "push", "-q", "origin", "HEAD:main")...)
			if err == nil || !strings.Contains(out, "remote: vouchd: the rules refuse the request: no rule of reader allows GET /a/b.git/info/refs") {
				t.Errorf("git prints %s (%v)", out, err)
			}
			if head(h.Path(bare)) != before {
				t.Error("it was pushed")
			}
		})
	}
}
