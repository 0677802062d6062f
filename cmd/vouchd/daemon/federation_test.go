package daemon_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// newDomain returns a host of a trust domain of its own. This process is /work in it, and
// vouch is /bundle.
func newDomain(t *testing.T, td string) *host {
	h := &host{daemontest.NewOf(t, td)}
	h.federates("")
	return h
}

// federates has /work be given these trust domains' bundles.
func (h *host) federates(with string) {
	h.T.Helper()
	h.Write("entries.d/a.yaml", fmt.Sprintf(`entries:
  - {spiffe_id: "spiffe://%[1]s/bundle", selectors: ["unix:uid:%[2]d", "unix:path:%[3]s"]}
  - {spiffe_id: "spiffe://%[1]s/work", selectors: ["unix:uid:%[2]d"], federates_with: [%[4]s]}
`, h.TrustDomain, os.Getuid(), daemontest.Program(h.T, "vouch"), with))
}

func (h *host) workID() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + h.TrustDomain + "/work")
}

// a served is what vouch bundle serve says of itself.
type served struct {
	SPIFFEID string `json:"endpoint_spiffe_id"`
	Address  string `json:"address"`
	Path     string `json:"path"`
	Sequence uint64 `json:"sequence"`

	stop func()
}

func (s served) url() string { return "https://" + s.Address + s.Path }

// serveBundle runs vouch bundle serve on the host.
func (h *host) serveBundle(args ...string) (s served) {
	h.T.Helper()
	cmd := exec.Command(daemontest.Program(h.T, "vouch"), append([]string{"bundle", "serve", "--listen", "127.0.0.1:0", "--output", "json"}, args...)...)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
	cmd.Stderr = io.Discard
	out, err := cmd.StdoutPipe()
	must(h.T, err)
	must(h.T, cmd.Start())
	s.stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 0 {
			h.T.Errorf("vouch bundle serve ends with %v", err)
		}
		s.stop = func() {}
	}
	h.T.Cleanup(func() { s.stop() })
	must(h.T, json.NewDecoder(bufio.NewReader(out)).Decode(&s))
	return s
}

// trusts configures another trust domain by its endpoint.
func (h *host) trusts(of *host, s served) {
	h.T.Helper()
	name := of.TrustDomain
	text := fmt.Sprintf("federation:\n  - trust_domain: %s\n    bundle_endpoint_url: %s\n", name, s.url())
	if s.SPIFFEID == "" {
		text += "    profile: https_web\n"
	} else {
		h.Write("federation.d/"+name+".bundle", of.OK("bundle", "spiffe"))
		text += fmt.Sprintf("    profile: https_spiffe\n    endpoint_spiffe_id: %s\n    bundle_file: %s\n", s.SPIFFEID, h.Path("federation.d/"+name+".bundle"))
	}
	h.Write("federation.d/"+name+".yaml", text)
}

func (h *host) source(t *testing.T) *spiffe.X509Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	source, err := spiffe.NewX509Source(ctx, spiffe.WithClientOptions(spiffe.WithAddr("unix://"+h.Path("agent.sock"))))
	must(t, err)
	t.Cleanup(func() { source.Close() })
	return source
}

// foreign returns what status says of another trust domain.
func (h *host) foreign(td string) (f view.ForeignStatus) {
	h.T.Helper()
	st, err := h.Admin().Status(context.Background())
	must(h.T, err)
	for _, f := range st.Federation.TrustDomains {
		if f.TrustDomain == td {
			return f
		}
	}
	return f
}

// greets serves mutual TLS as a workload of a host, to one ID.
func greets(t *testing.T, source *spiffe.X509Source, id spiffeid.ID) (address string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id)))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.WriteString(c, "hello\n") }()
		}
	}()
	return l.Addr().String()
}

// greeted reports what came of connecting by mutual TLS.
func greeted(t *testing.T, source *spiffe.X509Source, address string, id spiffeid.ID) error {
	t.Helper()
	dialer := tls.Dialer{Config: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello\n" {
		return fmt.Errorf("came %q, %w", got, err)
	}
	return nil
}

// webCA is an authority of the Web PKI, and a certificate of it for the loopback address, in
// files of the host.
func (h *host) webCA() (ca, cert, key string) {
	h.T.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(h.T, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	must(h.T, err)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(h.T, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: template.NotBefore, NotAfter: template.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, template, leafKey.Public(), caKey)
	must(h.T, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	must(h.T, err)
	for name, block := range map[string]*pem.Block{
		"web-ca.pem": {Type: "CERTIFICATE", Bytes: caDER}, "web.pem": {Type: "CERTIFICATE", Bytes: leafDER}, "web.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		h.Write(name, string(pem.EncodeToMemory(block)))
	}
	return h.Path("web-ca.pem"), h.Path("web.pem"), h.Path("web.key")
}

// Two hosts that share nothing exchange bundles, one by each profile, and then their
// workloads trust each other: those alone that are to, and only as long as they are.
func TestHostsOfTwoTrustDomainsTrustEachOtherWhereEntriesSaySo(t *testing.T) {
	t.Parallel()
	a, b := newDomain(t, "a.example"), newDomain(t, "b.example")
	ca, cert, key := a.webCA()
	b.Env = []string{"SSL_CERT_FILE=" + ca}
	a.Start()
	b.StartProcess()
	bServes := b.serveBundle()
	if bServes.SPIFFEID != "spiffe://b.example/bundle" || bServes.Sequence == 0 {
		t.Errorf("the endpoint of B is %+v", bServes)
	}
	a.trusts(b, bServes)
	b.trusts(a, a.serveBundle("--profile", "https_web", "--cert", cert, "--key", key))
	for _, x := range []struct {
		h    *host
		from string
	}{{a, "b.example"}, {b, "a.example"}} {
		eventually(t, x.h.TrustDomain+" has the bundle of "+x.from, func() bool {
			f := x.h.foreign(x.from)
			return !f.Fetched.IsZero() && len(f.RootSHA256) == 1 && f.Keys > 0 && f.Sequence > 0 && f.Error == ""
		})
	}
	if st := b.OK("status"); !strings.Contains(st, a.foreign("b.example").RootSHA256[0]) {
		t.Errorf("B says of its root\n%s\nand A has %q", st, a.foreign("b.example").RootSHA256)
	}

	if st := a.OK("status"); !matches(`federation +b\.example: sequence \d+, 1 root, \d JWT keys, for 0 entries`, st) || !matches(`from https://\S+ \(https_spiffe\)\n +last fetched 20\S+, next 20`, st) || !strings.Contains(st, "no entry has b.example in federates_with") {
		t.Errorf("A says\n%s", st)
	}

	// Nobody is given a bundle for the host's having it.
	atA, atB := a.source(t), b.source(t)
	address := greets(t, atB, a.workID())
	if err := greeted(t, atA, address, b.workID()); err == nil {
		t.Error("workloads of both trust each other though no entry says so")
	}
	if _, err := atA.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("b.example")); err == nil {
		t.Error("a workload of A is given the bundle of B though its entry doesn't say so")
	}
	a.federates("b.example")
	eventually(t, "an open stream at A has the bundle of B", func() bool {
		_, err := atA.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("b.example"))
		return err == nil
	})
	if err := greeted(t, atA, address, b.workID()); err == nil {
		t.Error("B's workload trusts A's though its own entry doesn't say so")
	}
	b.federates("a.example")
	eventually(t, "workloads of both trust each other", func() bool { return greeted(t, atA, address, b.workID()) == nil })

	// A program that knows files alone, and nothing of SPIFFE.
	a.Write("entries.d/vouch.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://a.example/bundle\", selectors: [\"unix:uid:%d\", \"unix:gid:%d\", \"unix:path:%s\"]}\n", os.Getuid(), os.Getgid(), daemontest.Program(t, "vouch")))
	files := a.Path("svid")
	a.OK("fetch", "x509", "--write", files)
	written, err := os.ReadFile(files + "/federated.b.example.pem")
	must(t, err)
	if root := a.OK("fetch", "bundle", "--trust-domain", "b.example"); root != string(written) || root != b.OK("fetch", "bundle") {
		t.Errorf("the files have the root\n%s\nand vouch fetch bundle\n%s", written, root)
	}
	client := exec.Command("openssl", "s_client", "-connect", greets(t, atB, spiffeid.RequireFromString("spiffe://a.example/bundle")), "-quiet", "-verify_quiet", "-verify_return_error",
		"-CAfile", files+"/federated.b.example.pem", "-cert", files+"/svid.0.pem", "-cert_chain", files+"/svid.0.pem", "-key", files+"/svid.0.key")
	if out, err := client.Output(); err != nil || string(out) != "hello\n" {
		t.Errorf("openssl with the files: %q, %v", out, err)
	}

	// Tokens too, and of A nobody but who federates.
	ctx := t.Context()
	tokens, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+b.Path("agent.sock")))
	must(t, err)
	defer tokens.Close()
	token, err := tokens.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"})
	must(t, err)
	validator, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+a.Path("agent.sock")))
	must(t, err)
	defer validator.Close()
	if got, err := validator.ValidateJWTSVID(ctx, token.Marshal(), "a"); err != nil || got.ID != b.workID() {
		t.Errorf("a token of B at A: %v, %v", got, err)
	}
	keys, err := validator.FetchJWTBundles(ctx)
	must(t, err)
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), keys, []string{"a"}); err != nil || keys.Len() != 2 {
		t.Errorf("with the %d JWT bundles of A: %v", keys.Len(), err)
	}
	a.federates("")
	eventually(t, "it ends where the entry says no more", func() bool {
		return greeted(t, atA, address, b.workID()) != nil
	})
	if got, err := validator.ValidateJWTSVID(ctx, token.Marshal(), "a"); err == nil {
		t.Errorf("a token of B is good at A for one who does not federate: %v", got)
	}

	for _, l := range a.Records("federation.bundle", audit.Success) {
		f := l.Federation
		if f == nil || f.TrustDomain != "b.example" || f.Roots != 1 || len(f.SHA256) != 64 {
			t.Errorf("recorded is %+v", f)
		}
	}
	if out := a.OK("log", "show", "--event", "federation.bundle"); !matches(`b\.example from \S+  sequence \d+, 1 root, \d+ keys?`, out) {
		t.Errorf("the log shows %s", out)
	}
	a.Stop()
	a.VerifyLog()
}

// A webDomain is a trust domain whose https_web endpoint a test answers.
type webDomain struct {
	*httptest.Server
	name     string
	document atomic.Pointer[[]byte]
	asked    atomic.Int64
	roots    []*x509.Certificate
}

func newWebDomain(t *testing.T, h *host, name string) *webDomain {
	t.Helper()
	ca, cert, key := h.webCA()
	h.Env = []string{"SSL_CERT_FILE=" + ca}
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	d := &webDomain{name: name}
	d.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		d.asked.Add(1)
		w.Write(*d.document.Load())
	}))
	d.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	d.StartTLS()
	t.Cleanup(d.Close)
	h.Write("federation.d/web.yaml", fmt.Sprintf("federation:\n  - {trust_domain: %s, bundle_endpoint_url: %q, profile: https_web}\n", name, d.URL+"/bundle"))
	return d
}

// rotate adds a root and serves the last two.
func (d *webDomain) rotate(t *testing.T, sequence uint64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(sequence)), Subject: pkix.Name{CommonName: d.name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: d.name}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	root, err := x509.ParseCertificate(der)
	must(t, err)
	d.roots = append(d.roots, root)
	d.serve(t, sequence, d.roots[max(0, len(d.roots)-2):]...)
	return root
}

func (d *webDomain) serve(t *testing.T, sequence uint64, roots ...*x509.Certificate) {
	t.Helper()
	b := spiffebundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(d.name), roots)
	b.SetSequenceNumber(sequence)
	document, err := b.Marshal()
	must(t, err)
	d.document.Store(&document)
}

// poll has the daemon ask now, and returns once it has.
func (d *webDomain) poll(h *host) {
	h.T.Helper()
	before := d.asked.Load()
	must(h.T, h.Cmd.Process.Signal(syscall.SIGHUP))
	eventually(h.T, "the endpoint is asked", func() bool { return d.asked.Load() > before })
}

func TestRotationAndWithdrawalReachOpenStreamsAndRestartsGoWithoutTheNetwork(t *testing.T) {
	t.Parallel()
	a := newDomain(t, "a.example")
	d := newWebDomain(t, a, "web.example")
	td := spiffeid.RequireTrustDomainFromString(d.name)
	first := d.rotate(t, 5)
	a.federates(d.name)
	a.StartProcess()
	source := a.source(t)
	has := func(what string, want ...*x509.Certificate) {
		t.Helper()
		eventually(t, what, func() bool {
			b, err := source.GetX509BundleForTrustDomain(td)
			return err != nil && len(want) == 0 || err == nil && len(b.X509Authorities()) == len(want) && !slices.ContainsFunc(want, func(c *x509.Certificate) bool { return !b.HasX509Authority(c) })
		})
	}
	has("a stream has the first root", first)
	second := d.rotate(t, 6)
	d.poll(a)
	has("an open stream has the second root too", first, second)

	// One that goes back is refused, and recorded once.
	d.serve(t, 4, first)
	for range 3 {
		d.poll(a)
	}
	eventually(t, "status tells", func() bool {
		return slices.ContainsFunc(a.Problems(), func(p string) bool { return strings.Contains(p, "its sequence is 4 after 6") })
	})
	if n := len(a.Records("federation.bundle", audit.Denied)); n != 1 {
		t.Errorf("it is recorded %d times", n)
	}
	has("the stream stays as it was", first, second)

	// Killed, and started without the network.
	a.Kill()
	d.Listener.Close()
	a.StartProcess()
	source = a.source(t)
	has("after a restart without the network", first, second)
	must(t, a.Cmd.Process.Signal(syscall.SIGHUP))
	eventually(t, "status says why", func() bool { return strings.Contains(a.foreign(d.name).Error, "cannot be reached") })
	if f := a.foreign(d.name); f.Fetched.IsZero() || f.Sequence != 6 || f.Next.IsZero() {
		t.Errorf("status says %+v", f)
	}

	must(t, os.Remove(a.Path("federation.d/web.yaml")))
	has("nothing once the trust domain is removed")
	eventually(t, "status says which entry asks for it", func() bool {
		return slices.ContainsFunc(a.Problems(), func(p string) bool { return strings.Contains(p, "federates with web.example, which is not in force") })
	})
	a.Stop()
	a.VerifyLog()
}

func TestTrustDomainThatWithdrawsItsKeysIsTrustedNoMore(t *testing.T) {
	t.Parallel()
	a := newDomain(t, "a.example")
	d := newWebDomain(t, a, "web.example")
	td := spiffeid.RequireTrustDomainFromString(d.name)
	d.rotate(t, 1)
	a.federates(d.name)
	a.StartProcess()
	source := a.source(t)
	eventually(t, "a stream has the root", func() bool { _, err := source.GetX509BundleForTrustDomain(td); return err == nil })
	withdrawn := []byte(`{"keys": [], "spiffe_sequence": 2}`)
	d.document.Store(&withdrawn)
	d.poll(a)
	eventually(t, "the stream has it no more", func() bool { _, err := source.GetX509BundleForTrustDomain(td); return err != nil })
	if p := a.Problems(); len(p) != 1 || !strings.Contains(p[0], "web.example has withdrawn all its keys") {
		t.Errorf("problems are %q", p)
	}
}

func TestEndpointServesTheBundleAndNothingElse(t *testing.T) {
	t.Parallel()
	b := newDomain(t, "b.example")
	b.Start()
	td := spiffeid.RequireTrustDomainFromString("b.example")
	trust, err := spiffebundle.Parse(td, []byte(b.OK("bundle", "spiffe"))) // waits for all keys
	must(t, err)
	s := b.serveBundle("--path", "/spiffe/bundle")
	transport := &http.Transport{TLSClientConfig: tlsconfig.TLSClientConfig(trust, tlsconfig.AuthorizeID(spiffeid.RequireFromString(s.SPIFFEID)))}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	ask := func(method, path, body string) (*http.Response, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+s.Address+path, strings.NewReader(body))
		must(t, err)
		resp, err := client.Do(req)
		must(t, err)
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp, got
	}
	resp, got := ask("GET", "/spiffe/bundle", "")
	bundle, err := spiffebundle.Parse(td, got)
	must(t, err)
	if n, ok := bundle.SequenceNumber(); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || !ok || n != s.Sequence {
		t.Errorf("GET answers %d, %v, %s", resp.StatusCode, resp.Header, got)
	}
	if hint, ok := bundle.RefreshHint(); !ok || hint != 5*time.Minute || !bundle.X509Bundle().Equal(trust.X509Bundle()) || !bundle.JWTBundle().Equal(trust.JWTBundle()) {
		t.Errorf("the endpoint has %s, and vouch bundle spiffe another", got)
	}
	if resp, got := ask("HEAD", "/spiffe/bundle", ""); resp.StatusCode != 200 || len(got) > 0 {
		t.Errorf("HEAD answers %d, %q", resp.StatusCode, got)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"} {
		if resp, got := ask(method, "/spiffe/bundle", "x"); resp.StatusCode != 405 || strings.Contains(string(got), "keys") {
			t.Errorf("%s answers %d, %s", method, resp.StatusCode, got)
		}
	}
	for _, path := range []string{"/", "/bundle", "/spiffe/", "/spiffe/bundle/", "/spiffe/bundle/../bundle", "/../etc/passwd", "//spiffe/bundle"} {
		if resp, _ := ask("GET", path, ""); resp.StatusCode != 404 {
			t.Errorf("GET %s answers %d", path, resp.StatusCode)
		}
	}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		old := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
		if conn, err := tls.Dial("tcp", s.Address, old); err == nil {
			conn.Close()
			t.Errorf("TLS version %x is spoken", version)
		}
	}

	// The agent goes away and comes back: the last bundle is served meanwhile, and no new
	// process is needed.
	b.Stop()
	if resp, again := ask("GET", "/spiffe/bundle", ""); resp.StatusCode != 200 || string(again) != string(got) {
		t.Errorf("without the agent GET answers %d, %s", resp.StatusCode, again)
	}
	b.Start()
	s.stop()
	if _, err := net.DialTimeout("tcp", s.Address, time.Second); err == nil {
		t.Error("it listens after its end")
	}
}
