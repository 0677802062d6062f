package sshca_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/ssh"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/sshca"
	"github.com/vouchd/vouchd/credential/sshca/sshdtest"
	"github.com/vouchd/vouchd/state"
)

var id = spiffeid.RequireFromString("spiffe://example.org/agent/deploy")

// machine returns the keys in a TPM.
func machine(t *testing.T) *node.Node {
	t.Helper()
	tpm, err := node.Open(t.Context(), tpmtest.Start(t).Address)
	must(t, err)
	t.Cleanup(func() { tpm.Close() })
	dir, err := state.Open(t.TempDir())
	must(t, err)
	t.Cleanup(func() { dir.Close() })
	n, err := node.Load(t.Context(), tpm, dir)
	must(t, err)
	return n
}

func open(t *testing.T, keys sshca.Keys, settings string) credential.Broker {
	t.Helper()
	return credentialtest.Broker(t, "ssh", sshca.Opener(keys), fmt.Sprintf(`
credentials:
  - name: web
    broker: ssh
    parameters: [{name: host, pattern: ".+", default: web1}]
    ssh: {%s}
`, settings))
}

func issue(t *testing.T, b credential.Broker, ttl time.Duration, params map[string]string) (credential.Plan, credential.Issued, error) {
	t.Helper()
	r := credential.Request{
		LeaseID: "LEASE-NOBODY-MAY-SEE", RequestID: "request-7", Holder: credential.Holder{ID: id}, TTL: ttl,
		Params: map[string]string{"host": "web1", "public_key": "new"},
	}
	for k, v := range params {
		r.Params[k] = v
	}
	p, err := b.Plan(t.Context(), r)
	must(t, err)
	i, err := b.Issue(t.Context(), r, p)
	return p, i, err
}

// identity writes what was issued where ssh finds it, and returns its options.
func identity(t *testing.T, i credential.Issued) []string {
	t.Helper()
	key := filepath.Join(t.TempDir(), "id")
	must(t, os.WriteFile(key, field(t, i, "private_key"), 0o600))
	must(t, os.WriteFile(key+"-cert.pub", field(t, i, "certificate"), 0o600))
	return []string{"-o", "IdentitiesOnly=yes", "-i", key, "-o", "CertificateFile=" + key + "-cert.pub"}
}

func field(t *testing.T, i credential.Issued, name string) []byte {
	t.Helper()
	for _, f := range i.Fields {
		if f.Name == name {
			return f.Value.Reveal()
		}
	}
	t.Fatalf("there is no field %s", name)
	return nil
}

func certificate(t *testing.T, i credential.Issued) *ssh.Certificate {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey(field(t, i, "certificate"))
	must(t, err)
	return k.(*ssh.Certificate)
}

func TestServerLetsInWhomTheAuthorityCertified(t *testing.T) {
	t.Parallel()
	keys := machine(t)
	ca, err := sshca.PublicKey(t.Context(), keys, "default")
	must(t, err)
	server := sshdtest.Start(t, ca)
	b := open(t, keys, `principals: [deploy, "on-{{host}}"], source_address: [127.0.0.0/8], extensions: [permit-pty]`)
	p, i, err := issue(t, b, 5*time.Minute, nil)
	must(t, err)
	out, err := exec.Command("ssh", server.Args(identity(t, i), "echo", "let in")...).CombinedOutput()
	if err != nil || string(out) != "let in\n" {
		t.Fatalf("ssh: %v\n%s%s", err, out, server.Log())
	}
	serial, ok := strings.CutPrefix(p.Handle.Name, "serial ")
	want := regexp.MustCompile(`ID ` + regexp.QuoteMeta(id.String()+" request request-7") + ` \(serial ` + serial + `\) CA ECDSA`)
	if log := server.Log(); !ok || !want.MatchString(log) || strings.Contains(log, "NOBODY") {
		t.Errorf("the server's log does not say who it was, %s:\n%s", want, log)
	}
	if scope := strings.Join(i.Scope, " "); !strings.HasPrefix(scope, "principal=deploy principal=on-web1 source-address=127.0.0.0/8 permit-pty key=SHA256:") {
		t.Errorf("scope %q", scope)
	}
	c := certificate(t, i)
	if left := time.Until(time.Unix(int64(c.ValidBefore), 0)); left > 5*time.Minute || left < 4*time.Minute || !i.NotAfter.Equal(time.Unix(int64(c.ValidBefore), 0)) {
		t.Errorf("it ends in %v, and the lease says %v", left, i.NotAfter)
	}
}

func TestServerRefusesWhatTheDefinitionDoesNotAllow(t *testing.T) {
	t.Parallel()
	keys := machine(t)
	ca, err := sshca.PublicKey(t.Context(), keys, "default")
	must(t, err)
	server := sshdtest.Start(t, ca)
	for _, tt := range []struct {
		name, settings string
		log            string // of the server
	}{
		{"another principal", `principals: [backup]`, "does not contain an authorized principal"},
		{"another network", `principals: [deploy], source_address: [192.0.2.0/24, "2001:db8::/32"]`, "not from a permitted source address"},
		{"another authority", `ca: other, principals: [deploy]`, "Failed publickey"},
	} {
		_, i, err := issue(t, open(t, keys, tt.settings), 5*time.Minute, nil)
		must(t, err)
		out, err := exec.Command("ssh", server.Args(identity(t, i), "echo", "let in")...).CombinedOutput()
		if err == nil || strings.Contains(string(out), "let in") || !strings.Contains(server.Log(), tt.log) {
			t.Errorf("%s: %v\n%s\nthe server says, want %q:\n%s", tt.name, err, out, tt.log, server.Log())
		}
	}
	// A command that is not the one allowed is not run.
	_, i, err := issue(t, open(t, keys, `principals: [deploy], force_command: "echo only this"`), 5*time.Minute, nil)
	must(t, err)
	out, err := exec.Command("ssh", server.Args(identity(t, i), "echo", "anything")...).CombinedOutput()
	if err != nil || string(out) != "only this\n" {
		t.Errorf("with a forced command: %v\n%s", err, out)
	}
}

func TestCertificateEndsByItsClock(t *testing.T) {
	t.Parallel()
	keys := machine(t)
	ca, err := sshca.PublicKey(t.Context(), keys, "default")
	must(t, err)
	server := sshdtest.Start(t, ca)
	b := open(t, keys, "principals: [deploy]")
	_, i, err := issue(t, b, -time.Second, nil)
	must(t, err)
	if out, err := exec.Command("ssh", server.Args(identity(t, i), "true")...).CombinedOutput(); err == nil || !strings.Contains(server.Log(), "Certificate invalid: expired") {
		t.Errorf("after its end: %v\n%s%s", err, out, server.Log())
	}
	if tr := b.Traits(); tr.Revocation != credential.ExpiryOnly || tr.Renews {
		t.Errorf("traits %+v claim what no server hears of", tr)
	}
	if _, err := b.Revoke(t.Context(), credential.Handle{}); !errors.Is(err, credential.ErrOnlyExpires) {
		t.Errorf("Revoke: %v", err)
	}
}

func TestCallersOwnKeyIsCertifiedAndNoOtherReturned(t *testing.T) {
	t.Parallel()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	key, err := ssh.NewPublicKey(public)
	must(t, err)
	text := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	b := open(t, machine(t), "principals: [deploy]")
	_, i, err := issue(t, b, time.Minute, map[string]string{"public_key": text})
	must(t, err)
	if len(i.Fields) != 1 || string(certificate(t, i).Key.Marshal()) != string(key.Marshal()) {
		t.Errorf("fields %v", i.Fields)
	}
	for _, bad := range []string{"ssh-ed25519 AAAA", text + " comment", "ssh-ed25519 " + strings.Repeat("A", 68), text[:len(text)-4]} {
		if _, _, err := issue(t, b, time.Minute, map[string]string{"public_key": bad}); !errors.Is(err, credential.ErrParameter) {
			t.Errorf("key %q: %v", bad, err)
		}
	}
}

func TestCallersValueIsOnePrincipal(t *testing.T) {
	t.Parallel()
	b := open(t, machine(t), `principals: ["on-{{host}}"]`)
	for _, bad := range []string{"a,root", "a root", "*", "a\tb", "-x", "ä"} {
		if _, _, err := issue(t, b, time.Minute, map[string]string{"host": bad}); !errors.Is(err, credential.ErrParameter) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSerialNumbersAndKeysDiffer(t *testing.T) {
	t.Parallel()
	b := open(t, machine(t), "principals: [deploy]")
	p1, i1, err := issue(t, b, time.Minute, nil)
	must(t, err)
	p2, i2, err := issue(t, b, time.Minute, nil)
	must(t, err)
	c1, c2 := certificate(t, i1), certificate(t, i2)
	if c1.Serial == c2.Serial || p1.Handle.Name == p2.Handle.Name || slices.Equal(c1.Key.Marshal(), c2.Key.Marshal()) {
		t.Errorf("serials %d and %d", c1.Serial, c2.Serial)
	}
	if c1.Serial != binary.BigEndian.Uint64(p1.Handle.Data.Reveal()) || p1.Handle.Name != fmt.Sprintf("serial %d", c1.Serial) {
		t.Errorf("the plan's handle %s is not the certificate's serial %d", p1.Handle.Name, c1.Serial)
	}
}

// noTPM is a machine whose TPM is gone.
type noTPM struct{}

func (noTPM) Key(context.Context, string) (crypto.Signer, error) { return nil, node.ErrNoTPM }

func TestNothingIsCertifiedWithoutTheTPM(t *testing.T) {
	t.Parallel()
	_, i, err := issue(t, open(t, noTPM{}, "principals: [deploy]"), time.Minute, nil)
	if !errors.Is(err, credential.ErrUpstream) || len(i.Fields) != 0 {
		t.Errorf("%v, %v", i, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
