package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

const agentID = "spiffe://example.org/agent"

// disableAgent cuts the agents' identity off.
func disableAgent(t *testing.T, h *host) {
	t.Helper()
	out, stderr, code := h.Vouch("identity", "disable", agentID, "--reason", "incident 4211")
	if code != 0 || !strings.Contains(out, agentID+" is disabled") {
		t.Fatalf("disabling exits %d: %s%s", code, out, stderr)
	}
}

func TestDisablingAnIdentityCutsItOffAtOnce(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.StartProcess()
	stream := openStream(t, h)
	a := leasetest.StartAgent(t, h.Host)
	session := a.Thief(t, pg)
	client, err := client.New("unix://" + h.Path("agent.sock"))
	must(t, err)
	defer client.Close()
	watched := make(chan error, 1)
	delivered := make(chan struct{}, 8)
	go func() {
		watched <- client.Watch(t.Context(), &credentialv1.GrantCredentialRequest{Name: "tides"}, func(*credentialv1.Lease, []credential.Field) error {
			delivered <- struct{}{}
			return nil
		})
	}()
	<-delivered

	disableAgent(t, h)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("the stream of SVIDs ends with %v", err)
	}
	if err := <-watched; status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream of credentials ends with %v", err)
	}
	if session.Ping(t.Context()) == nil {
		t.Error("a session of its login is open")
	}
	refused := func(when string) {
		t.Helper()
		for _, args := range [][]string{
			{"fetch", "x509"}, {"fetch", "jwt", "--audience", "a"}, {"fetch", "jwt", "--audience", "a", "--spiffe-id", agentID},
			{"get", "tides-for-all"}, {"exec", "--credential", "tides=PG", "--", "true"},
		} {
			if _, stderr, code := h.Vouch(args...); code != 1 || !strings.Contains(stderr, "the identity is disabled") {
				t.Errorf("%s, vouch %s exits %d: %s", when, strings.Join(args, " "), code, stderr)
			}
		}
	}
	refused("afterwards")
	for _, tt := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"entry", "list"}, 0, `agent  \(.*\)  DISABLED since \S+ by user 0: incident 4211`},
		{[]string{"entry", "explain", "--self"}, 1, `(?s)matches:\s+spiffe://example.org/agent .*DISABLED`},
		{[]string{"entry", "list", "--output", "json"}, 0, `"reason": "incident 4211"`},
		{[]string{"status"}, 0, `1 identity disabled`},
		{[]string{"identity", "disable", agentID}, 0, `is disabled, as before; 0 leases`},
		{[]string{"log", "show", "--spiffe-id", agentID, "--event", "admin.request"}, 0, `disable the identity: incident 4211`},
		{[]string{"lease", "list"}, 0, `^$`},
	} {
		if out, stderr, code := h.Vouch(tt.args...); code != tt.code || !matches(tt.out, out) {
			t.Errorf("vouch %s exits %d, want %d with %s:\n%s%s", strings.Join(tt.args, " "), code, tt.code, tt.out, out, stderr)
		}
	}

	h.Kill()
	h.StartProcess()
	refused("after a restart")
	if out, stderr, code := h.Vouch("identity", "enable", agentID); code != 0 || !strings.Contains(out, "is enabled") {
		t.Fatalf("enabling exits %d: %s%s", code, out, stderr)
	}
	if out, _, code := h.Vouch("identity", "enable", agentID); code != 0 || !strings.Contains(out, "was not disabled") {
		t.Errorf("enabling again exits %d: %s", code, out)
	}
	leasetest.StartAgent(t, h.Host)
}

func TestDisablingOneIdentityLeavesTheOthers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	entry := "  - {spiffe_id: \"%s\", selectors: [\"unix:uid:%d\"]}\n"
	h.Write("entries.d/a.yaml", "entries:\n"+fmt.Sprintf(entry, agentID, os.Getuid())+fmt.Sprintf(entry, "spiffe://example.org/other", os.Getuid()))
	h.Start()
	stream := openStream(t, h)
	disableAgent(t, h)
	left, err := stream.Recv()
	if err != nil || len(left.Svids) != 1 || left.Svids[0].SpiffeId != "spiffe://example.org/other" {
		t.Errorf("the stream is sent %v, %v", left.GetSvids(), err)
	}
	if _, stderr, code := h.Vouch("fetch", "jwt", "--audience", "a", "--spiffe-id", agentID); code != 1 || !strings.Contains(stderr, "not entitled to the requested SPIFFE ID") {
		t.Errorf("a token of the disabled identity: exits %d: %s", code, stderr)
	}
	if out, _, code := h.Vouch("entry", "explain", "--self"); code != 0 || strings.Count(out, "DISABLED") != 1 {
		t.Errorf("explain exits %d: %s", code, out)
	}
	for _, tt := range []struct {
		id, err string
		code    int
	}{
		{"spiffe://example.org/agnet", "no entry in force has this identity", 1},
		{"agent", "is not a SPIFFE ID", 2},
	} {
		if _, stderr, code := h.Vouch("identity", "disable", tt.id); code != tt.code || !strings.Contains(stderr, tt.err) {
			t.Errorf("disabling %s exits %d: %s", tt.id, code, stderr)
		}
	}
}

func TestLeasesOfADisabledIdentityEndAtTheNextStart(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.StartProcess()
	a := leasetest.StartAgent(t, h.Host)
	session := a.Thief(t, pg)
	h.Kill()
	// As if it had been killed between the list and the leases.
	other := newHost(t)
	other.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"%s\", selectors: [\"unix:uid:%d\"]}\n", agentID, os.Getuid()))
	other.StartProcess()
	disableAgent(t, other)
	list, err := os.ReadFile(other.Path("state/disabled-identities"))
	must(t, err)
	must(t, os.WriteFile(h.Path("state/disabled-identities"), list, 0o600))
	h.StartProcess()
	eventually(t, "its session ends", func() bool { return session.Ping(t.Context()) != nil })
}

func TestDamagedListOfDisabledIdentitiesIsNoEmptyOne(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"%s\", selectors: [\"unix:uid:%d\"]}\n", agentID, os.Getuid()))
	h.Start()
	disableAgent(t, h)
	h.Stop()
	path := h.Path("state/disabled-identities")
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte(strings.Replace(string(b), "agent", "agenx", 1)), 0o600))
	h.Launch()
	if err := h.Wait(); err == nil || !strings.Contains(h.Stderr.String(), "disabled-identities is damaged") {
		t.Errorf("the daemon ends with %v and says:\n%s", err, h.Stderr)
	}
}
