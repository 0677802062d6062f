package daemon_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// TestSandboxedCommandReachesWhatItIsGrantedAndNothingElse: by the variables of a proxy,
// by a name, and by an address; what it tries besides is in the log.
func TestSandboxedCommandReachesWhatItIsGrantedAndNothingElse(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t, "hosts: [api.example.com]", `environment: [{name: API_URL, value: "{{url}}/v1"}, {name: API_KEY, value: "{{handle}}"}]`)
	h.Start()
	box := func(script string) string {
		return sh(t, h, `$vouch exec --sandbox --proxy api -- sh -c '`+script+`'`)
	}
	for name, script := range map[string]string{
		"by its base URL":               `curl -sS -H "Authorization: Bearer $API_KEY" $API_URL/models`,
		"by the variables of a proxy":   `curl -sS https://api.example.com/models`,
		"by a name, without those":      `env -i curl -sS https://api.example.com/models`,
		"by any address":                `curl -sS --noproxy "*" --resolve api.example.com:443:203.0.113.7 https://api.example.com/models`,
		"by any address of version six": `curl -sS --noproxy "*" --resolve "api.example.com:443:[2001:db8::7]" https://api.example.com/models`,
		"without TLS":                   `curl -sS --noproxy "*" http://api.example.com/models`,
	} {
		if out := box(script); out != "ok" {
			t.Errorf("%s: %s", name, out)
		}
	}
	if got := h.Upstream.Got(); len(got) != 6 || got[5].Header.Get("Authorization") != "Bearer "+proxytest.Secret {
		t.Errorf("the upstream got %d requests", len(got))
	}
	for script, want := range map[string]struct{ kind, target string }{
		`curl -sS --noproxy "*" https://203.0.113.7/`:                       {"tls", "203.0.113.7:443"},
		`curl -sS --noproxy "*" http://203.0.113.7/`:                        {"http", "203.0.113.7"},
		`curl -sS --noproxy "*" -m 5 http://203.0.113.7:8080/`:              {"tcp", "203.0.113.7:8080"},
		`curl -sS https://evil.example/`:                                    {"connect", "evil.example:443"},
		`bash -c "echo x >/dev/udp/203.0.113.7/53"`:                         {"udp", "203.0.113.7:53"},
		`python3 -c "import socket; socket.socket(socket.AF_UNIX)"`:         {"socket", "AF_UNIX"},
		`curl -sS --noproxy "*" https://secret.evil.example/ -m 5`:          {"dns", "evil.example"},
		`python3 -c "import socket; socket.socket(40, socket.SOCK_STREAM)"`: {"socket", "AF_VSOCK"},
	} {
		box(script)
		found := false
		for _, r := range h.Records("proxy.call", audit.Denied) {
			found = found || r.Call.Method == want.kind && strings.Contains(r.Call.Path, want.target) && r.SPIFFEID != ""
		}
		if !found {
			t.Errorf("%s: not recorded as %s %s", script, want.kind, want.target)
		}
	}
}

// TestSandboxedCommandConnectsToItsDatabases: it has no Unix sockets, so that they are at
// addresses, and other databases are nowhere.
func TestSandboxedCommandConnectsToItsDatabases(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	run := func(script string) string {
		cmd := exec.Command(daemontest.Program(t, "vouch"), "exec", "--sandbox", "--", "sh", "-c", script)
		cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%s: %v", script, err)
		}
		return string(out)
	}
	if out := run(`psql -Atc "SELECT height FROM tides" && psql "$DATABASE_URL" -Atc "SELECT height + 1 FROM tides"`); out != "7\n8\n" {
		t.Errorf("psql prints %s", out)
	}
	if out := run(`PGCONNECT_TIMEOUT=9 psql -h 203.0.113.7 -c "SELECT 1"`); !strings.Contains(out, "server closed the connection unexpectedly") {
		t.Errorf("psql prints %s", out)
	}
	if r := h.Records("proxy.call", audit.Denied); len(r) == 0 || r[len(r)-1].Call.Method != "tcp" || r[len(r)-1].Call.Path != "203.0.113.7:5432" {
		t.Errorf("recorded is %+v", r)
	}
}
