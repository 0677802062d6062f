package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

// page is a section of a page of the documentation.
func page(t *testing.T, file, heading string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/" + file)
	must(t, err)
	_, rest, ok := strings.Cut(string(b), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %s", file, heading)
	}
	section, _, _ := strings.Cut(rest, "\n## ")
	return section
}

// block is the fenced block of a page that begins so.
func block(t *testing.T, page, begin string) string {
	t.Helper()
	parts := strings.Split(page, "\n```")
	for i := 1; i < len(parts); i += 2 {
		if _, text, _ := strings.Cut(parts[i], "\n"); strings.HasPrefix(text, begin) {
			return text + "\n"
		}
	}
	t.Fatalf("the page has no block that begins with %q", begin)
	return ""
}

// nobody is a user that runs servers in tests.
const nobody = 65534

// runAs has a command run as a user, in an environment with more in it.
func runAs(cmd *exec.Cmd, uid uint32, more ...string) *exec.Cmd {
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}, more...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// vouchForAll returns a vouch that every user can run, and lets all reach the host.
func vouchForAll(t *testing.T, h *host) string {
	t.Helper()
	must(t, os.Chmod(h.Dir, 0o755))
	b, err := os.ReadFile(daemontest.Program(t, "vouch"))
	must(t, err)
	must(t, os.WriteFile(h.Path("vouch"), b, 0o755))
	return h.Path("vouch")
}

func TestPostgreSQLByCertificateAsThePageSays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starts processes of other users")
	}
	t.Parallel()
	text := page(t, "credentials.md", "## PostgreSQL by certificate")
	pg, err := pgtest.Start()
	must(t, err)
	t.Cleanup(pg.Stop)
	h := newHost(t)
	h.Write("entries.d/postgresql.yaml", strings.NewReplacer("unix:user:postgres", fmt.Sprintf("unix:uid:%d", nobody), "unix:user:report", "unix:uid:0").
		Replace(block(t, text, "# entries.d/postgresql.yaml")))
	h.Start()
	if said := h.OK("check"); !strings.Contains(said, "spiffe://example.org/postgresql passes for db.example.org") || !strings.Contains(said, "spiffe://example.org/report has the common name reader") {
		t.Errorf("vouch check says %s", said)
	}

	serverDir, clientDir := h.Path("server"), h.Path("client")
	must(t, os.Mkdir(serverDir, 0o700))
	must(t, os.Chown(serverDir, nobody, nobody))
	here := strings.NewReplacer("/run/postgresql/svid", serverDir, "/run/report/svid", clientDir, "host=db.example.org", fmt.Sprintf("host=db.example.org hostaddr=127.0.0.1 port=%d", pg.Port))
	socket := "SPIFFE_ENDPOINT_SOCKET=unix://" + h.Path("agent.sock")

	// The server's side: its SVID is kept fresh, and it is told.
	const fetch = `vouch fetch x509 --write /run/postgresql/svid --follow --exec 'psql -Xqc "SELECT pg_reload_conf()"'`
	if !strings.Contains(text, "\n    "+fetch+"\n") {
		t.Fatalf("the page does not say %s", fetch)
	}
	follow := runAs(exec.Command("sh", "-c", "exec "+here.Replace(strings.Replace(fetch, "vouch", vouchForAll(t, h), 1))), nobody,
		socket, "PGHOST="+pg.SocketDir, fmt.Sprintf("PGPORT=%d", pg.Port), "PGUSER=postgres", "PGPASSWORD="+pg.Password)
	stderr := daemontest.NewLines()
	follow.Stderr = stderr
	must(t, follow.Start())
	t.Cleanup(func() { follow.Process.Kill(); follow.Wait() })
	eventually(t, "the server has an SVID", func() bool {
		_, err := os.Stat(filepath.Join(serverDir, "svid.0.key")) // written last
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	})
	admin := pg.Admin(t, "postgres")
	var data string
	must(t, admin.QueryRow(t.Context(), "SHOW data_directory").Scan(&data))
	add(t, filepath.Join(data, "postgresql.conf"), "", here.Replace(block(t, text, "# postgresql.conf")))
	add(t, filepath.Join(data, "pg_hba.conf"), block(t, text, "# pg_hba.conf"), "")
	for _, statement := range []string{"CREATE ROLE reader LOGIN", "SELECT pg_reload_conf()"} {
		_, err := admin.Exec(t.Context(), statement)
		must(t, err)
	}
	eventually(t, "the server has read its settings", func() bool {
		var file string
		must(t, pg.Admin(t, "postgres").QueryRow(t.Context(), "SHOW ssl_ca_file").Scan(&file))
		return file == filepath.Join(serverDir, "bundle.0.pem")
	})

	// The client's.
	h.OK("fetch", "x509", "--write", clientDir)
	psql := here.Replace(strings.TrimSpace(block(t, text, "psql ")))
	ask := func(change ...string) (string, error) {
		line := strings.NewReplacer(change...).Replace(psql) + ` -XAtc "SELECT current_user || ' ' || ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"`
		out, err := exec.Command("sh", "-c", line).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	eventually(t, "the client is logged in", func() bool {
		out, err := ask()
		return err == nil && out == "reader true"
	})
	for name, tt := range map[string]struct{ from, to, says string }{
		"another role":        {"user=reader", "user=postgres", `certificate authentication failed for user "postgres"`},
		"another host's name": {"host=db.example.org", "host=other.example.org", `does not match host name "other.example.org"`},
		"no certificate":      {"sslcert=" + clientDir + "/svid.0.pem", "sslcert=/nonexistent", "connection requires a valid client certificate"},
		"another root":        {"sslrootcert=" + clientDir + "/bundle.0.pem", "sslrootcert=" + pg.CAFile, "certificate verify failed"},
		"no TLS":              {"sslmode=verify-full", "sslmode=disable", "no password supplied"},
	} {
		if out, err := ask(tt.from, tt.to); err == nil || !strings.Contains(out, tt.says) {
			t.Errorf("%s: psql says %s, %v; want %s", name, out, err, tt.says)
		}
	}
	if out := h.OK("log", "show", "--event", "x509_svid"); !strings.Contains(out, " named db.example.org ") || !strings.Contains(out, " named reader ") {
		t.Errorf("the log says\n%s", out)
	}
	if out := h.OK("entry", "list"); !strings.Contains(out, "DNS names: db.example.org") || !strings.Contains(out, "common name: reader") {
		t.Errorf("the entries are listed as\n%s", out)
	}
}

// add writes more before and after what a file holds.
func add(t *testing.T, file, before, after string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte(before+string(b)+"\n"+after), 0o600))
}

// serveSVID serves HTTPS with the SVID of the host's entry for this process, and returns
// its port and the file of the bundle.
func serveSVID(t *testing.T, h *host) (port, bundle string) {
	t.Helper()
	dir := h.Path("svid")
	h.OK("fetch", "x509", "--write", dir)
	cert, err := tls.LoadX509KeyPair(dir+"/svid.0.pem", dir+"/svid.0.key")
	must(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "tides\n") }))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL[strings.LastIndexByte(server.URL, ':')+1:], dir + "/bundle.0.pem"
}

// namedHosts are two hosts whose entry gives this process a host's name: its own root,
// and below an organisation's, which has name constraints.
func namedHosts(t *testing.T) map[string]*host {
	t.Helper()
	entry := fmt.Sprintf("entries:\n  - {spiffe_id: spiffe://example.org/web, selectors: [\"unix:uid:%d\"], dns_names: [www.example.org]}\n", os.Getuid())
	own, below := newHost(t), newHost(t)
	own.Write("entries.d/a.yaml", entry)
	own.Start()
	below.Configure(enrolledMode)
	below.Write("entries.d/a.yaml", entry)
	below.Start()
	desk := daemontest.NewDesk(t)
	root := desk.Found("--tpm", tpmtest.Start(t).Address)
	below.OK("node", "install", desk.Approve(below.Host.Host, "720h"), "--root", root)
	return map[string]*host{"its own root": own, "an organisation's root": below}
}

func TestCurlVerifiesTheNameInAnSVID(t *testing.T) {
	t.Parallel()
	for name, h := range namedHosts(t) {
		t.Run(name, func(t *testing.T) {
			port, bundle := serveSVID(t, h)
			ask := func(host string) (string, error) {
				out, err := exec.Command("curl", "-sS", "--noproxy", "*", "--cacert", bundle, "--resolve", host+":"+port+":127.0.0.1", "https://"+host+":"+port).CombinedOutput()
				return string(out), err
			}
			if out, err := ask("www.example.org"); err != nil || out != "tides\n" {
				t.Errorf("curl: %s, %v", out, err)
			}
			if out, err := ask("other.example.org"); err == nil || !strings.Contains(out, "no alternative certificate subject name matches") {
				t.Errorf("of another name: %s, %v", out, err)
			}
		})
	}
}
