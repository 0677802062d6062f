package spiretest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// A Real server is SPIRE's own, whose programs are in a directory. Its agents are attested by
// join tokens, and by x509pop with the leaves of an authority of the test's.
type Real struct {
	TrustDomain spiffeid.TrustDomain
	Address     string // host and port, the same after Stop and Start
	BundleFile  string // PEM, of the roots as the server began
	WIT         bool   // it signs WIT-SVIDs

	t        testing.TB
	bin, dir string
	cmd      *exec.Cmd
	pop      *popAuthority
}

// hosts is what all agents are called besides, so that entries are theirs.
const hosts = "/hosts"

// StartReal starts a server of trust domain example.org that the test ends. The database is
// what its configuration says of one; empty: a file of its own. Agents' SVIDs live so long.
// Plugins are more blocks of the configuration.
func StartReal(t testing.TB, bin, database string, agents time.Duration, plugins ...string) *Real {
	t.Helper()
	r := newReal(t, bin, database, agents, newPopAuthority(t), plugins...)
	r.Alias("x509pop:subject:cn:" + popName)
	return r
}

// Alias has entries be those of agents with this selector, too.
func (r *Real) Alias(selector string) {
	r.t.Helper()
	r.run("entry", "create", "-node", "-spiffeID", r.id(hosts), "-selector", selector)
}

// Second starts one more server of the same trust domain, which has the same database.
func (r *Real) Second(database string) *Real {
	r.t.Helper()
	return newReal(r.t, r.bin, database, time.Hour, r.pop)
}

func newReal(t testing.TB, bin, database string, agents time.Duration, pop *popAuthority, plugins ...string) *Real {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	dir, err := os.MkdirTemp("", "spire") // sockets have short names
	must(t, err)
	r := &Real{t: t, bin: bin, dir: dir, TrustDomain: td, BundleFile: filepath.Join(dir, "bundle.pem"), pop: pop}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", ownAddress())
	must(t, err)
	r.Address = l.Addr().String()
	must(t, l.Close())
	if database == "" {
		database = fmt.Sprintf("database_type = \"sqlite3\"\nconnection_string = %q", filepath.Join(dir, "data.sqlite3"))
	}
	must(t, os.WriteFile(filepath.Join(dir, "pop.pem"), pemOf(pop.cert), 0o644))
	r.configure(witFlag, database, agents, plugins)
	if r.WIT = exec.Command(filepath.Join(bin, "spire-server"), "validate", "-config", r.path("server.conf")).Run() == nil; !r.WIT {
		r.configure("", database, agents, plugins) // of a version before the flag
	}
	r.Start()
	must(t, os.WriteFile(r.BundleFile, r.run("bundle", "show"), 0o644))
	return r
}

// witFlag has a server sign WIT-SVIDs.
const witFlag = `experimental { feature_flags = ["wit-svid"] }`

func (r *Real) configure(experimental, database string, agents time.Duration, plugins []string) {
	r.t.Helper()
	host, port, err := net.SplitHostPort(r.Address)
	must(r.t, err)
	must(r.t, os.WriteFile(r.path("server.conf"), fmt.Appendf(nil, `
server {
	bind_address = %q
	bind_port = %q
	socket_path = %q
	trust_domain = %q
	data_dir = %q
	log_file = %q
	log_level = "DEBUG"
	agent_ttl = "%v"
	default_x509_svid_ttl = "1h"
	default_jwt_svid_ttl = "5m"
	ratelimit { attestation = false } # all hosts of a test have one address
	%s
}
plugins {
	DataStore "sql" { plugin_data { %s
	} }
	KeyManager "disk" { plugin_data { keys_path = %q } }
	NodeAttestor "join_token" { plugin_data {} }
	NodeAttestor "x509pop" { plugin_data { ca_bundle_path = %q } }
%s
}
`, host, port, r.path("api.sock"), r.TrustDomain.Name(), r.dir, r.path("log"), agents, experimental, database, r.path("keys.json"), r.path("pop.pem"), strings.Join(plugins, "\n")), 0o600))
}

func (r *Real) path(name string) string { return filepath.Join(r.dir, name) }
func (r *Real) id(path string) string   { return r.TrustDomain.IDString() + path }

// Start starts the server and waits until it answers.
func (r *Real) Start() {
	r.t.Helper()
	r.cmd = exec.Command(filepath.Join(r.bin, "spire-server"), "run", "-config", r.path("server.conf"))
	r.cmd.Dir = r.dir
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(r.t, r.cmd.Start())
	cmd := r.cmd
	r.t.Cleanup(func() { end(cmd) })
	for late := time.Now().Add(time.Minute); ; {
		if exec.Command(filepath.Join(r.bin, "spire-server"), "bundle", "show", "-socketPath", r.path("api.sock")).Run() == nil {
			if c, err := net.Dial("tcp", r.Address); err == nil {
				c.Close()
				return
			}
		}
		if time.Now().After(late) {
			log, _ := os.ReadFile(r.path("log"))
			r.t.Fatalf("spire-server does not answer:\n%s", log)
		}
	}
}

// CPU is how long the server has computed since it was last started.
func (r *Real) CPU() time.Duration {
	r.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
	must(r.t, err)
	_, fields, _ := strings.Cut(string(stat), ") ")
	var user, system int // ticks of 10 ms
	_, err = fmt.Sscan(strings.Join(strings.Fields(fields)[11:13], " "), &user, &system)
	must(r.t, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// Stop kills the server.
func (r *Real) Stop() { end(r.cmd) }

func end(cmd *exec.Cmd) {
	cmd.Process.Kill() // an error says that it has ended
	cmd.Wait()
}

// run runs a command of the server's and returns its output.
func (r *Real) run(args ...string) []byte {
	r.t.Helper()
	return r.runWith(nil, args...)
}

func (r *Real) runWith(stdin []byte, args ...string) []byte {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(r.bin, "spire-server"), append(args, "-socketPath", r.path("api.sock"))...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("spire-server %s: %v: %s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out
}

// ask is run with an answer in JSON.
func (r *Real) ask(to any, args ...string) {
	r.t.Helper()
	must(r.t, json.Unmarshal(r.run(append(args, "-output", "json")...), to))
}

// Token returns a join token for a new agent.
func (r *Real) Token() string {
	r.t.Helper()
	var token struct{ Value string }
	r.ask(&token, "token", "generate", "-spiffeID", r.id(hosts))
	return token.Value
}

// Leaf returns a certificate for a key that x509pop takes.
func (r *Real) Leaf(key crypto.PublicKey) []*x509.Certificate {
	r.t.Helper()
	return []*x509.Certificate{r.pop.leaf(r.t, key)}
}

// Add registers an entry for all agents and returns its ID.
func (r *Real) Add(e *spirev1.Entry) string {
	r.t.Helper()
	args := []string{"entry", "create", "-parentID", r.id(hosts), "-spiffeID", r.id(e.SpiffeId.Path), "-hint", e.Hint}
	for _, s := range e.Selectors {
		args = append(args, "-selector", s.Type+":"+s.Value)
	}
	for _, name := range e.DnsNames {
		args = append(args, "-dns", name)
	}
	for _, td := range e.FederatesWith {
		args = append(args, "-federatesWith", td)
	}
	if e.Downstream {
		args = append(args, "-downstream")
	}
	if e.X509SvidTtl > 0 {
		args = append(args, "-x509SVIDTTL", fmt.Sprint(e.X509SvidTtl))
	}
	var made struct {
		Results []struct{ Entry struct{ ID string } }
	}
	r.ask(&made, args...)
	if len(made.Results) != 1 || made.Results[0].Entry.ID == "" {
		r.t.Fatalf("spire-server entry create says %+v", made)
	}
	return made.Results[0].Entry.ID
}

// Remove deletes an entry.
func (r *Real) Remove(id string) {
	r.t.Helper()
	r.run("entry", "delete", "-entryID", id)
}

// Federate gives the server the bundle of another trust domain, SPIFFE's JSON.
func (r *Real) Federate(td spiffeid.TrustDomain, document []byte) {
	r.t.Helper()
	r.runWith(document, "bundle", "set", "-format", "spiffe", "-id", td.IDString())
}

// Ban bans every agent there is.
func (r *Real) Ban() {
	r.t.Helper()
	var all struct {
		Agents []struct{ ID struct{ Path string } }
	}
	r.ask(&all, "agent", "list")
	for _, a := range all.Agents {
		r.run("agent", "ban", "-spiffeID", r.id(a.ID.Path))
	}
}

// Taint has other authorities sign from now on, and says that those of before are not to be
// relied on.
func (r *Real) Taint() {
	r.t.Helper()
	type authority struct {
		ID string `json:"authority_id"`
	}
	for _, kind := range []string{"x509", "jwt"} {
		var before struct{ Active authority }
		r.ask(&before, "localauthority", kind, "show")
		var next struct {
			Prepared authority `json:"prepared_authority"`
		}
		r.ask(&next, "localauthority", kind, "prepare")
		r.run("localauthority", kind, "activate", "-authorityID", next.Prepared.ID)
		r.run("localauthority", kind, "taint", "-authorityID", before.Active.ID)
	}
}

// Agent starts SPIRE's own agent beside, and returns the address of its Workload API.
func (r *Real) Agent() string {
	r.t.Helper()
	host, port, err := net.SplitHostPort(r.Address)
	must(r.t, err)
	conf := r.path("agent.conf")
	must(r.t, os.WriteFile(conf, fmt.Appendf(nil, `
agent {
	data_dir = %q
	log_file = %q
	server_address = %q
	server_port = %q
	socket_path = %q
	trust_bundle_path = %q
	trust_domain = %q
	join_token = %q
}
plugins {
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, r.path("agent"), r.path("agent.log"), host, port, r.path("agent.sock"), r.BundleFile, r.TrustDomain.Name(), r.Token()), 0o600))
	cmd := exec.Command(filepath.Join(r.bin, "spire-agent"), "run", "-config", conf)
	cmd.Dir = r.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(r.t, cmd.Start())
	r.t.Cleanup(func() { end(cmd) })
	return "unix://" + r.path("agent.sock")
}

// ownAddress is one on the loopback device that nobody else is given while its owner is
// away for a moment.
func ownAddress() string {
	return fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(256), 1+rand.N(254))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// popName is the common name of all leaves for x509pop.
const popName = "host"

// A popAuthority certifies what hosts attest with by x509pop.
type popAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPopAuthority(t testing.TB) *popAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "the test's"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, c, c, key.Public(), key)
	must(t, err)
	c, err = x509.ParseCertificate(der)
	must(t, err)
	return &popAuthority{c, key}
}

func (a *popAuthority) leaf(t testing.TB, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(cryptorand.Reader, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: popName}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, a.cert, key, a.key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}
