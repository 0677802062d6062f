package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// A catch is what left the daemon by one way.
type catch struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (c *catch) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got.Write(b)
}

func (c *catch) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.got.Bytes())
}

// TestNoSecretLeavesTheDaemonButToItsHolder hands out secrets of every kind and
// looks for them, in every writing, wherever the daemon writes.
func TestNoSecretLeavesTheDaemonButToItsHolder(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	const sealed = "canary?/8+{4f1b}&sealed-value"
	credentials, err := os.ReadFile(h.Path("credentials.d/a.yaml"))
	must(t, err)
	h.Write("credentials.d/a.yaml", string(credentials)+"\n  - {name: stripe, broker: static, static: {secret: stripe-key, disclosable: true}}\n")
	u := proxytest.NewUpstream(t)
	p := &proxytest.Host{Host: h.Host.Host, Upstream: u}
	h.Write("ca.pem", u.CA)
	p.Define("timeouts: {header: 1s}")
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [tides, stripe, api]}\n", os.Getuid()))

	const comment = "a-comment's-canary-4711"
	for _, file := range []string{"vouchd.yaml", "credentials.d/a.yaml", "entries.d/a.yaml"} {
		h.Write(file, h.Read(file)+"# "+comment+"\n")
	}
	var otlp, journal catch
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(&otlp, r.Body)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer collector.Close()
	h.Env = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL}
	h.Wrap = h.withJournal(&journal)
	h.StartProcess("--set", "log.ocsf=true", "--set", "log.otlp=true", "--set", "log.journal=true", "--set", "metrics=unix:"+h.Path("metrics.sock"), "--set", "proxy_socket="+h.Path("proxy.sock"))

	if _, stderr, code := h.VouchReads([]byte(sealed), "secret", "seal", "stripe-key"); code != 0 {
		t.Fatalf("vouch secret seal exits %d: %s", code, stderr)
	}
	if out, stderr, code := h.Vouch("get", "stripe", "--field", "value"); code != 0 || strings.TrimSpace(out) != sealed {
		t.Fatalf("vouch get exits %d: %q %s", code, out, stderr)
	}
	p.Seal()
	heard := callAllDay(t, p)
	a := leasetest.StartAgent(t, h.Host)
	addr := spiffe.WithAddr("unix://" + h.Path("agent.sock"))
	svid, err := spiffe.FetchX509SVID(t.Context(), addr)
	must(t, err)
	key, err := svid.PrivateKey.(*ecdsa.PrivateKey).Bytes()
	must(t, err)
	token, err := spiffe.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"}, addr)
	must(t, err)
	if _, err := spiffe.ValidateJWTSVID(t.Context(), token.Marshal()+"x", "api", addr); err == nil {
		t.Error("a token with a character more is valid")
	}
	signature, err := base64.RawURLEncoding.DecodeString(token.Marshal()[strings.LastIndexByte(token.Marshal(), '.')+1:])
	must(t, err)
	h.Vouch("get", "stripe", "--param", "x="+sealed) // a caller's own, in what is refused
	canaries := map[string][]byte{
		"what calls are made with": []byte(proxytest.Secret),
		"the sealed secret":        []byte(sealed), "the leased password": []byte(a.Password), "the daemon's own password": []byte("the-daemons-own"),
		"the SVID's key": key, "the token's signature": signature,
	}

	told := map[string][]byte{"what the callers heard": heard, "metrics": []byte(h.Metrics("metrics.sock"))}
	for _, args := range [][]string{
		{"status", "--output", "json"}, {"lease", "list", "--output", "json"}, {"secret", "list", "--output", "json"}, {"doctor", "--output", "json"},
		{"log", "show", "--output", "json"}, {"log", "report", "--output", "json"}, {"log", "archive", "--write", h.Path("log.tar")},
	} {
		out, stderr, _ := h.Vouch(args...)
		told["vouch "+strings.Join(args, " ")] = []byte(out + stderr)
	}
	h.OK("bugreport", "--write", h.Path("report.tar.gz"))
	report := unpack(t, h.Path("report.tar.gz"))
	for _, part := range []string{"status.json", "entries.json", "credentials.json", "leases.json", "log.txt"} {
		if len(report["bug report: vouchd-bugreport/"+part]) < 100 {
			t.Errorf("the bug report has in %s: %q", part, report["bug report: vouchd-bugreport/"+part])
		}
	}
	for name, text := range report {
		told[name] = text
		if bytes.Contains(text, []byte(comment)) {
			t.Errorf("%s has a comment of a file", name)
		}
	}
	a.Exit(t)
	eventually(t, "the end of the login is recorded", func() bool {
		out, _, _ := h.Vouch("log", "show", "--event", "lease.revoke")
		return strings.Contains(out, "process ended")
	})
	records := h.recordCount()
	eventually(t, "every record is handed on", func() bool {
		ocsf, _ := os.ReadFile(h.Path("state/ocsf.jsonl"))
		return bytes.Count(ocsf, []byte("\n")) >= records && bytes.Count(journal.bytes(), []byte("VOUCHD_LEAF_HASH")) >= records &&
			bytes.Count(otlp.bytes(), []byte("vouchd.log.leaf_hash")) >= records
	})
	proxy, err := exec.Command("pgrep", "-P", fmt.Sprint(h.Cmd.Process.Pid), "--full", "proxy --inherited").Output()
	must(t, err)
	must(t, exec.Command("kill", append([]string{"-ABRT"}, strings.Fields(string(proxy))...)...).Run()) // it prints its stacks
	eventually(t, "the proxy has ended as by a panic", func() bool { return strings.Contains(h.Stderr.String(), "SIGABRT") })
	h.Stop()
	told["standard error"], told["OTLP"], told["the journal"] = []byte(h.Stderr.String()), otlp.bytes(), journal.bytes()
	for name, text := range h.tree() {
		told[name] = text
	}
	delete(told, "password") // the administrator's own file
	if len(told["state/leases"]) == 0 && len(told["log.tar"]) == 0 {
		t.Error("the lease journal or the archive was not looked at")
	}
	for place, text := range told {
		for what, canary := range canaries {
			for _, w := range writings(canary) {
				if bytes.Contains(bytes.ToLower(text), bytes.ToLower(w)) {
					t.Errorf("%s is in %s, as %q", what, place, w)
				}
			}
		}
	}
	if !bytes.Contains(told["OTLP"], []byte("stripe")) || !bytes.Contains(told["the journal"], []byte("VOUCHD_CREDENTIAL=stripe")) {
		t.Error("what was looked at does not tell of the credential either")
	}
}

// callAllDay has calls made that go well, and in each of the ways that they may not; it
// returns all that came back.
func callAllDay(t *testing.T, p *proxytest.Host) []byte {
	t.Helper()
	p.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Authorization")
		w.Header().Set("X-Echo", key)
		switch r.URL.Path {
		case "/late":
			<-r.Context().Done()
		case "/broken":
			w.Header().Set("Content-Length", "100000")
			io.WriteString(w, key)
			panic(http.ErrAbortHandler)
		case "/encoded":
			w.Header().Set("Content-Encoding", key)
		case "/moved":
			http.Redirect(w, r, "/?key="+url.QueryEscape(key), http.StatusFound)
		case "/failed":
			http.Error(w, "wrong: "+key, http.StatusInternalServerError)
		default:
			io.WriteString(w, "you sent "+key)
		}
	})
	var heard bytes.Buffer
	for _, c := range []*http.Client{p.Client(), p.HTTP2()} {
		for _, path := range []string{"echo", "late", "broken", "encoded", "moved", "failed", "../x"} {
			for _, own := range []string{"", "Bearer of-their-own"} {
				r, err := http.NewRequest(http.MethodGet, "http://localhost/api/"+path, nil)
				must(t, err)
				if own != "" {
					r.Header.Set("Authorization", own)
				}
				resp, err := c.Transport.RoundTrip(r)
				if err != nil {
					fmt.Fprintln(&heard, err)
					continue
				}
				b, _ := httputil.DumpResponse(resp, true) // broken ones as far as they go
				resp.Body.Close()
				heard.Write(b)
			}
		}
	}
	if !bytes.Contains(heard.Bytes(), []byte("you sent Bearer [redacted]")) {
		t.Errorf("no call was made: %s", heard.Bytes())
	}
	return heard.Bytes()
}

// writings are the forms in which a secret might slip out.
func writings(s []byte) [][]byte {
	list := [][]byte{s, []byte(hex.EncodeToString(s)), []byte(url.QueryEscape(string(s))), []byte(url.PathEscape(string(s)))}
	if b, err := json.Marshal(string(s)); err == nil {
		list = append(list, bytes.Trim(b, `"`))
	}
	for lead := range 3 { // base64 of something that holds it, at each alignment
		padded := append(make([]byte, lead), s...)
		padded = padded[:len(padded)/3*3]
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			if lead > 0 {
				text = text[4:]
			}
			list = append(list, []byte(text))
		}
	}
	return list
}

// withJournal returns what gives the daemon a journal of its own.
func (h *host) withJournal(c *catch) []string {
	h.T.Helper()
	dir := h.Path("journal")
	must(h.T, os.Mkdir(dir, 0o755))
	conn, err := net.ListenPacket("unixgram", filepath.Join(dir, "socket"))
	must(h.T, err)
	h.T.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 1<<20)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			c.Write(b[:n])
		}
	}()
	return []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind "$0" /run/systemd/journal && exec "$@"`, dir}
}

func (h *host) recordCount() int {
	h.T.Helper()
	st, err := h.Admin().Status(h.T.Context())
	must(h.T, err)
	return int(st.Log.Records)
}

// tree reads every file of the host.
func (h *host) tree() map[string][]byte {
	h.T.Helper()
	files := make(map[string][]byte)
	must(h.T, fs.WalkDir(os.DirFS(h.Dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files[name], err = os.ReadFile(h.Path(name))
		return err
	}))
	return files
}

// TestCrashLeavesNoCore has the daemon end by a signal that makes the kernel dump
// what may be dumped.
func TestCrashLeavesNoCore(t *testing.T) {
	t.Parallel()
	shell := exec.Command("sh", "-c", "ulimit -c unlimited; kill -ABRT $$")
	shell.Dir = t.TempDir()
	shell.Run()
	if !shell.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
		t.Log("this system dumps nothing of any process; what follows shows less")
	}
	h := newHost(t)
	h.Env = []string{"GOTRACEBACK=crash"}
	h.Wrap = []string{"sh", "-c", `ulimit -c unlimited; cd "$0" && exec "$@"`, t.TempDir()}
	h.StartProcess()
	must(t, h.Cmd.Process.Signal(syscall.SIGABRT))
	h.Wait()
	status := h.Cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGABRT {
		t.Fatalf("ended with %v, want the signal; it said:\n%s", h.Cmd.ProcessState, h.Stderr)
	}
	if status.CoreDump() {
		t.Error("the kernel dumped the daemon's memory")
	}
	if left, err := os.ReadDir(h.Wrap[len(h.Wrap)-1]); err != nil || len(left) > 0 {
		t.Errorf("left in the working directory: %v, %v", left, err)
	}
}

// unpack returns the files of a report.
func unpack(t *testing.T, file string) map[string][]byte {
	t.Helper()
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the bug report has mode %v", info.Mode())
	}
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	files := make(map[string][]byte)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		must(t, err)
		text, err := io.ReadAll(r)
		must(t, err)
		files["bug report: "+h.Name] = text
	}
}
