package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func TestUpstreamThatFailsIsToldAndRecordedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var fault func(w http.ResponseWriter, r *http.Request) bool // guarded by the upstream's lock
	u := leasetest.NewUpstream(t, h.Host, func(u *leasetest.Upstream, w http.ResponseWriter, r *http.Request) {
		if fault == nil || !fault(w, r) {
			leasetest.OpenAI(u, w, r)
		}
	})
	other := newCA(t, h)
	definition := `  - {name: %s, broker: federation, max_ttl: 1h, federation: {profile: openai-2026-06, audience: "https://api.openai.com/v1", endpoint: %q, ca_file: %q, identity_provider_id: idp_1, service_account_id: sa_1}}
`
	h.Grants(fmt.Sprintf(definition, "model", u.URL+"/oauth/token", u.CAFile)+
		fmt.Sprintf(definition, "stranger", u.URL+"/oauth/token", other)+
		fmt.Sprintf(definition, "down", "https://127.0.0.1:1/oauth/token", u.CAFile), "model, stranger, down")
	h.Start()
	status := func(code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			io.WriteString(w, body)
			return true
		}
	}
	const unavailable, refused = "cannot be reached, or gave no answer that makes sense", "the source of the credential refused"
	for _, tt := range []struct {
		name, credential, says string
		fault                  func(http.ResponseWriter, *http.Request) bool
		args                   []string
	}{
		{"500", "model", unavailable, status(500, `{"error":"server_error"}`), nil},
		{"garbage", "model", unavailable, status(200, "<html>\x00\xff"), nil},
		{"no token", "model", unavailable, status(200, `{"token_type":"Bearer","expires_in":300}`), nil},
		{"a redirect", "model", unavailable, func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusTemporaryRedirect)
			return true
		}, nil},
		{"a refusal", "model", refused, status(400, `{"error":"invalid_grant"}`), nil},
		{"a cut connection", "model", unavailable, func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, nil},
		{"slow", "model", "no answer in time", func(_ http.ResponseWriter, r *http.Request) bool {
			io.Copy(io.Discard, r.Body) // else the server does not notice that the client has left
			<-r.Context().Done()
			return true
		}, []string{"--timeout", "1s"}},
		{"another certificate", "stranger", unavailable, nil, nil},
		{"down", "down", unavailable, nil, nil},
	} {
		u.Mu.Lock()
		fault = tt.fault
		u.Mu.Unlock()
		before := h.failedGrants()
		_, stderr, code := h.Vouch(append([]string{"exec", "--credential", tt.credential + "=KEY"}, append(tt.args, "--", "true")...)...)
		if code != 1 || !matches(tt.says, stderr) || strings.Contains(stderr, u.Canary) {
			t.Errorf("%s: exits %d: %s", tt.name, code, stderr)
		}
		eventually(t, tt.name+" is recorded", func() bool { return h.failedGrants() == before+1 })
	}
	u.Mu.Lock()
	fault = nil
	u.Mu.Unlock()
	if out, stderr, code := h.Vouch("exec", "--credential", "model=KEY", "--", "sh", "-c", "echo $KEY"); code != 0 || out != u.Canary+"\n" {
		t.Errorf("once it is well again, exits %d: %s", code, stderr)
	}
	h.CheckSecret(leasetest.Login{Password: u.Canary})
}

// failedGrants counts the records of grants of which nothing came.
func (h *host) failedGrants() (n int) {
	h.T.Helper()
	out, stderr, code := h.Vouch("log", "show", "--event", "lease.grant", "--output", "json")
	if code != 0 {
		h.T.Fatalf("vouch log show: %s", stderr)
	}
	for line := range strings.Lines(out) {
		var r leasetest.Record
		must(h.T, json.Unmarshal([]byte(line), &r))
		if r.Event == "lease.grant" && r.Outcome != "success" {
			n++
		}
	}
	return n
}

// newCA writes a certificate that certifies no server here.
func newCA(t *testing.T, h *host) string {
	t.Helper()
	der, err := credentialtest.NewWorkload(t, spiffeid.RequireFromString(agentID)).Authority()
	must(t, err)
	path := h.Path("other-ca.pem")
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	return path
}

func TestRevocationThatIsRefusedIsTriedUntilItIsNot(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := newVaultServer(t, h)
	v.refuseRevoke = true
	h.Grants(fmt.Sprintf("  - {name: db, broker: vault, vault: {address: %q, ca_file: %q, role: research, path: database/creds/readonly}}\n", v.URL, v.CAFile), "db")
	h.Start()
	f := h.Follow("exec", "--credential", "db=PG", "--", "setpriv", "--pdeathsig", "KILL", "sh", "-c", "echo runs >&2; exec sleep 1000")
	f.Stderr.Wait(t, "runs")
	must(t, f.Cmd.Process.Kill())
	<-f.Waited
	eventually(t, "it was tried twice", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		must(t, err)
		return len(leases) == 1 && leases[0].State == "revoking" && leases[0].Attempts >= 2 && leases[0].Reason == "process ended"
	})
	v.Mu.Lock()
	v.refuseRevoke = false
	v.Mu.Unlock()
	eventually(t, "it has ended", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		must(t, err)
		tokens, left := v.left()
		return len(leases) == 0 && tokens == 0 && left == 0
	})
}

// The agent, at whatever message of the grant its process ends: the upstream's
// answer belongs to nobody then.
func TestAgentKilledWhileItsUpstreamIsAskedLeavesNothing(t *testing.T) {
	t.Parallel()
	pg, err := leasetest.Database()
	must(t, err)
	h, g := newGatedHost(t, pg, "exits")
	h.Start()
	for n := 1; ; n++ {
		cmd := exec.Command(daemontest.Program(t, "vouch"), "exec", "--credential", "exits=PG", "--", "true")
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		started := make(chan struct{})
		g.arm(n, done, false, func() { <-started; cmd.Process.Kill(); cmd.Process.Wait() })
		must(t, cmd.Start())
		close(started)
		err := cmd.Wait()
		h.nothingLeft(pg, "exits", fmt.Sprintf("the agent was killed at message %d", n))
		if err == nil {
			if n < 6 {
				t.Errorf("only %d messages make a lease", n)
			}
			return
		}
	}
}

// The caller goes on, but its stream is cut at whatever message of the grant.
func TestStreamCutWhileItsUpstreamIsAskedLeavesNothing(t *testing.T) {
	t.Parallel()
	pg, err := leasetest.Database()
	must(t, err)
	h, g := newGatedHost(t, pg, "cut")
	h.Start()
	enough := errors.New("delivered")
	for n := 1; ; n++ {
		client, err := client.New("unix://" + h.Path("agent.sock"))
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		g.arm(n, done, false, func() { client.Close(); cancel() })
		var lease string
		err = client.Watch(ctx, &credentialv1.GrantCredentialRequest{Name: "cut"}, func(l *credentialv1.Lease, _ []credential.Field) error {
			lease = l.Id
			return enough
		})
		if err == enough {
			g.arm(0, "", false, nil)
			must(t, client.Revoke(t.Context(), lease))
			client.Close()
			cancel()
			if n < 3 {
				t.Errorf("only %d messages make a grant", n)
			}
			break
		}
		h.nothingLeft(pg, "cut", fmt.Sprintf("the stream was cut at message %d", n))
	}
	h.nothingLeft(pg, "cut", "and its last was revoked")
}

func TestSecretOfEveryByteValueComesBackAsItIs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	h.Grants("  - {name: bytes, broker: static, bind: lease, static: {disclosable: true}}\n", "bytes")
	h.Start()
	seal := exec.Command(daemontest.Program(t, "vouch"), "secret", "seal", "bytes")
	seal.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"))
	seal.Stdin = strings.NewReader(string(all[:]))
	if out, err := seal.CombinedOutput(); err != nil {
		t.Fatalf("sealing: %v: %s", err, out)
	}
	if out, stderr, code := h.Vouch("get", "bytes", "--field", "value"); code != 0 || out != string(all[:]) {
		t.Errorf("exits %d with %q: %s", code, out, stderr)
	}
	out, stderr, code := h.Vouch("get", "bytes", "--output", "json")
	var view struct {
		Base64 map[string][]byte `json:"fields_base64"`
	}
	if err := json.Unmarshal([]byte(out), &view); err != nil || code != 0 || string(view.Base64["value"]) != string(all[:]) {
		t.Errorf("JSON exits %d with %s: %s", code, out, stderr)
	}
	path := h.Path("bytes")
	if _, stderr, code := h.Vouch("get", "bytes", "--output", "file", "--path", path, "--field", "value"); code != 0 {
		t.Errorf("a file exits %d: %s", code, stderr)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(all[:]) {
		t.Errorf("the file holds %q, %v", b, err)
	}
	for _, args := range [][]string{{"get", "bytes", "--output", "env"}, {"exec", "--credential", "bytes=B", "--", "true"}} {
		if _, stderr, code := h.Vouch(args...); code != 1 || !strings.Contains(stderr, "zero byte") {
			t.Errorf("vouch %s exits %d: %s", strings.Join(args, " "), code, stderr)
		}
	}
}
