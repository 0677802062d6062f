package daemontest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// EntriesFor returns entries of n identities, /agent/0 and so on, the first of
// which is this user's.
func EntriesFor(n int) string {
	var b strings.Builder
	b.WriteString("entries:\n")
	for i := range n {
		uid := os.Getuid()
		if i > 0 {
			uid = 100_000 + i
		}
		fmt.Fprintf(&b, "  - {spiffe_id: \"spiffe://example.org/agent/%d\", selectors: [\"unix:uid:%d\"]}\n", i, uid)
	}
	return b.String()
}

// EntriesForVouch returns entries that entitle the command line, and one that
// almost does.
func EntriesForVouch() string {
	return fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/cli\", selectors: [\"unix:uid:%d\"]}\n"+
		"  - {spiffe_id: \"spiffe://example.org/other\", selectors: [\"unix:uid:%[1]d\", \"unix:gid:64999\"]}\n", os.Getuid())
}

// Fetch fetches as this process.
func (h *Host) Fetch() (id string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	svid, err := spiffe.FetchX509SVID(ctx, spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	if err != nil {
		return "", err
	}
	return svid.ID.String(), nil
}

// Problems returns the problems that status reports.
func (h *Host) Problems() []string {
	h.T.Helper()
	st, err := h.Admin().Status(context.Background())
	must(h.T, err)
	return st.Problems
}

// VerifyLog has vouch verify the log of a stopped daemon.
func (h *Host) VerifyLog() {
	h.T.Helper()
	if out, stderr, code := h.Vouch("log", "verify"); code != 0 {
		h.T.Fatalf("vouch log verify exits %d:\n%s%s", code, out, stderr)
	}
}

// Learn puts a policy in force that the machine passes as it is.
func (h *Host) Learn() {
	h.T.Helper()
	h.Write("node-policy.yaml", h.OK("node", "policy", "learn"))
	h.InState(view.NodePassed)
}

// InState waits until the daemon says so of its node.
func (h *Host) InState(want string) {
	h.T.Helper()
	var st view.Status
	Eventually(h.T, "the node's state is "+want, func() bool {
		var err error
		st, err = h.Admin().Status(context.Background())
		return err == nil && st.Node.State == want
	})
}

// Records returns the log's records of an event with that outcome, of which there must be one.
func (h *Host) Records(event string, outcome audit.Outcome) []audit.Leaf {
	h.T.Helper()
	found := RecordsYet(h, event, outcome)
	if len(found) == 0 {
		h.T.Fatalf("the log has no record of %s with outcome %s", event, outcome)
	}
	return found
}

// RecordsYet returns those that there are, of what is recorded a moment later.
func RecordsYet(h *Host, event string, outcome audit.Outcome) (found []audit.Leaf) {
	h.T.Helper()
	for line := range strings.Lines(h.OK("log", "show", "--event", event, "--output", "json")) {
		leaf, err := audit.DecodeLeaf([]byte(strings.TrimSpace(line)))
		must(h.T, err)
		if leaf.Outcome == outcome {
			found = append(found, leaf)
		}
	}
	return found
}

// Metrics asks for the metrics on a socket of the host.
func (h *Host) Metrics(socket string) (text string) {
	h.T.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.Path(socket))
	}}}
	defer client.CloseIdleConnections()
	Eventually(h.T, "the metrics are served", func() bool {
		resp, err := client.Get("http://vouchd/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		text = string(b)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return text
}

// LogKey is what the log is signed with.
func LogKey(h *Host) string {
	h.T.Helper()
	out, stderr, code := h.Vouch("log", "verify", "--live")
	if code != 0 {
		h.T.Fatalf("vouch log verify exits %d: %s%s", code, out, stderr)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "key" {
			return f[1]
		}
	}
	h.T.Fatalf("no key in %s", out)
	return ""
}
