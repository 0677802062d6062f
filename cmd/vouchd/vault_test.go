package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

// A vaultServer is a protocol fake of what the broker needs of Vault, written from
// its documents: tokens of those who log in, leases that hang on them, and kv.
// That the real ones agree, make test-vault shows.
type vaultServer struct {
	*leasetest.Upstream
	tokens map[string]string // who logged in, by token
	leases map[string]string // token, by lease

	refuseRevoke bool
}

func newVaultServer(t testing.TB, h *host) *vaultServer {
	v := &vaultServer{tokens: make(map[string]string), leases: make(map[string]string)}
	v.Upstream = leasetest.NewUpstream(t, h.Host, func(_ *leasetest.Upstream, w http.ResponseWriter, r *http.Request) { v.answer(w, r) })
	return v
}

func (v *vaultServer) answer(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	switch path {
	case "auth/jwt/login":
		token, _ := body["jwt"].(string)
		v.logIn(w, v.Host.Subject(token, v.URL), "jwt")
		return
	case "auth/cert/login":
		v.logIn(w, v.certified(r.TLS.PeerCertificates), "cert")
		return
	}
	token := r.Header.Get("X-Vault-Token")
	if v.tokens[token] == "" {
		leasetest.Send(w, 403, map[string]any{"errors": []string{"permission denied"}})
		return
	}
	switch path {
	case "auth/token/renew-self":
		leasetest.Send(w, 200, map[string]any{"auth": map[string]any{"client_token": token, "lease_duration": body["increment"], "renewable": true}})
	case "auth/token/lookup-self":
		leasetest.Send(w, 200, map[string]any{"data": map[string]any{"ttl": 60}})
	case "auth/token/revoke-self":
		if v.refuseRevoke {
			leasetest.Send(w, 500, map[string]any{"errors": []string{"internal error"}})
			return
		}
		delete(v.tokens, token)
		for lease, of := range v.leases {
			if of == token {
				delete(v.leases, lease)
			}
		}
		w.WriteHeader(204)
	case "database/creds/readonly":
		lease := path + "/" + rand.Text()
		v.leases[lease] = token
		leasetest.Send(w, 200, map[string]any{"lease_id": lease, "lease_duration": 300, "renewable": true, "data": map[string]any{"username": "v-" + rand.Text(), "password": v.Canary}})
	case "kv/data/app":
		leasetest.Send(w, 200, map[string]any{"data": map[string]any{"data": map[string]any{"key": v.Canary}, "metadata": map[string]any{"version": 1}}})
	default:
		leasetest.Send(w, 403, map[string]any{"errors": []string{"permission denied"}})
	}
}

func (v *vaultServer) logIn(w http.ResponseWriter, who, how string) {
	if who == "" {
		leasetest.Send(w, 400, map[string]any{"errors": []string{"permission denied"}})
		return
	}
	v.Seen = append(v.Seen, how+" "+who)
	token := "hvs." + rand.Text()
	v.tokens[token] = who
	leasetest.Send(w, 200, map[string]any{"auth": map[string]any{"client_token": token, "accessor": rand.Text(), "lease_duration": 60, "renewable": true}})
}

// certified returns whose X509-SVID a chain is, with the common name that Vault
// wants for an alias; "" if it is none.
func (v *vaultServer) certified(chain []*x509.Certificate) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	bundles, err := spiffe.FetchX509Bundles(ctx, spiffe.WithAddr("unix://"+v.Host.Path("agent.sock")))
	if err != nil || len(chain) == 0 {
		return ""
	}
	id, _, err := x509svid.Verify(chain, bundles)
	if err != nil || chain[0].Subject.CommonName != id.String() {
		return ""
	}
	return id.String()
}

// left returns how many tokens and leases there are.
func (v *vaultServer) left() (tokens, leases int) {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	return len(v.tokens), len(v.leases)
}

func TestVaultSeesTheWorkloadAndItsLeaseEndsWithIt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := newVaultServer(t, h)
	server := fmt.Sprintf("address: %q, ca_file: %q, role: research", v.URL, v.CAFile)
	h.Grants(fmt.Sprintf(`  - {name: by-jwt, broker: vault, vault: {%[1]s, path: database/creds/readonly}}
  - {name: by-cert, broker: vault, vault: {%[1]s, auth: cert, path: database/creds/readonly}}
  - {name: static, broker: vault, bind: lease, vault: {%[1]s, path: kv/data/app, static: true}}
`, server), "by-jwt, by-cert, static")
	h.StartProcess()
	for _, how := range []string{"jwt", "cert"} {
		out, stderr, code := h.Vouch("exec", "--credential", "by-"+how+":password=P", "--", "sh", "-c", "echo $P")
		if code != 0 || out != v.Canary+"\n" {
			t.Fatalf("by %s it exits %d with %s%s; the daemon said:\n%s", how, code, out, stderr, h.Stderr)
		}
		if v.Mu.Lock(); v.Seen[len(v.Seen)-1] != how+" spiffe://example.org/agent" {
			t.Errorf("the server saw %q", v.Seen)
		}
		v.Mu.Unlock()
		if tokens, leases := v.left(); tokens != 0 || leases != 0 {
			t.Errorf("by %s, %d tokens and %d leases outlive the command", how, tokens, leases)
		}
	}

	f := h.Follow("exec", "--credential", "by-jwt=PG", "--", "setpriv", "--pdeathsig", "KILL", "sh", "-c", "echo runs >&2; exec sleep 1000")
	f.Stderr.Wait(t, "runs")
	h.Kill()
	must(t, f.Cmd.Process.Kill())
	<-f.Waited
	if _, leases := v.left(); leases != 1 {
		t.Fatal("the lease ended without a daemon to end it")
	}
	h.StartProcess()
	eventually(t, "the next start ends it", func() bool { tokens, leases := v.left(); return tokens == 0 && leases == 0 })

	out, stderr, code := h.Vouch("get", "static", "--field", "key")
	if code != 0 || out != v.Canary {
		t.Fatalf("kv exits %d with %s%s", code, out, stderr)
	}
	if tokens, _ := v.left(); tokens != 0 {
		t.Error("the token that read kv is left")
	}
	for name, want := range map[string]string{"by-jwt": `"revocation":"hard"`, "static": `"revocation":"none"`} {
		if out, _, _ := h.Vouch("log", "show", "--credential", name, "--output", "json"); !strings.Contains(out, want) {
			t.Errorf("the log does not say %s of %s:\n%s", want, name, out)
		}
	}
	h.CheckSecret(leasetest.Login{Password: v.Canary})
}
