package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// contexts keeps what a stream brings.
type contexts struct {
	mu    sync.Mutex // guards got and errs
	got   int
	errs  []error
	first chan struct{} // closed at the first error
}

func (w *contexts) OnX509ContextUpdate(*spiffe.X509Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got++
}

func (w *contexts) OnX509ContextWatchError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.errs = append(w.errs, err); len(w.errs) == 1 {
		close(w.first)
	}
}

func (w *contexts) updates() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got
}

// watch opens a stream of X509-SVIDs and returns once it brought the first.
func (h *host) watch() *contexts {
	h.T.Helper()
	w := &contexts{first: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		spiffe.WatchX509Context(ctx, w, spiffe.WithAddr("unix://"+h.Path("agent.sock")))
	}()
	h.T.Cleanup(func() { stop(); <-ended })
	eventually(h.T, "the stream brings an identity", func() bool { return w.updates() > 0 })
	return w
}

func TestAHostWhosePCRsChangeStopsIssuingWithinASecondAndRecovers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	h.Learn()
	w := h.watch()
	if _, err := h.Fetch(); err != nil {
		t.Fatal(err)
	}

	h.TPM.Extend(7, "another Secure Boot key")
	out, stderr, code := h.Vouch("node", "attest")
	if code != 1 || !matches("failed  PCR 7: ", out) {
		t.Errorf("vouch node attest exits %d:\n%s%s", code, out, stderr)
	}
	select {
	case <-w.first:
	case <-time.After(10 * time.Second):
		t.Fatal("the open stream goes on")
	}
	if err := w.errs[0]; status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "PCR 7") {
		t.Errorf("the stream ended with %v, want PermissionDenied and the reason", err)
	}
	if id, err := h.Fetch(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "PCR 7") {
		t.Errorf("a fetch brings %q, %v, want PermissionDenied and the reason", id, err)
	}
	if _, stderr, code := h.Vouch("fetch", "jwt", "--audience", "api"); code != 1 || !strings.Contains(stderr, "PCR 7") {
		t.Errorf("a JWT-SVID: exits %d, %s", code, stderr)
	}
	if out, _, code := h.Vouch("status"); code != 1 || !matches(`node +failed the policy`, out) || !matches("problem: nothing is issued: .*PCR 7", out) {
		t.Errorf("vouch status exits %d:\n%s", code, out)
	}

	before := w.updates()
	h.Learn() // the machine as it is now is good
	eventually(t, "the watcher's next stream brings an identity", func() bool { return w.updates() > before })
	if _, err := h.Fetch(); err != nil {
		t.Errorf("after recovering: %v", err)
	}
	h.Stop()
	h.VerifyLog()
	denied := h.Records("node.attest", audit.Denied)[0].Mono
	ended := h.Records("stream.end", audit.Denied)[0].Mono
	if took := ended - denied; took > time.Second {
		t.Errorf("the stream ended %v after the appraisal, want at most a second", took)
	} else {
		t.Logf("from the appraisal's record to that of the stream's end: %v", took)
	}
	for filter, want := range map[string]string{
		"node.attest": `(?s)success  node\.attest.*denied   node\.attest.*PCR 7.*success  node\.attest`,
		"stream.end":  `denied   stream\.end.*PCR 7`,
		"x509_svid":   `(?s)success  x509_svid.*denied   x509_svid.*PCR 7.*success  x509_svid`,
		"jwt_svid":    `denied   jwt_svid.*PCR 7`,
	} {
		if out := h.OK("log", "show", "--event", filter); !matches(want, out) {
			t.Errorf("the log's %s records are\n%s", filter, out)
		}
	}
}

func TestAHostThatDoesNotPassAtItsStartIssuesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	for name, policy := range map[string]string{
		"a policy that names nothing":           "{}\n",
		"a policy that is broken":               "endorsement: [",
		"a policy that is for another machine":  "boot_state: any\nendorsement: {keys: [" + strings.Repeat("ab", 32) + "]}\n",
		"a policy that says nothing about boot": "endorsement: {keys: [" + strings.Repeat("ab", 32) + "]}\n",
	} {
		h.Write("node-policy.yaml", policy)
		h.Start()
		if id, err := h.Fetch(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: a fetch brings %q, %v", name, id, err)
		}
		if p := h.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "nothing is issued: ") {
			t.Errorf("%s: problems are %q", name, p)
		}
		h.Stop()
	}
	h.VerifyLog()
}

func TestABrokenPolicyNeverReplacesTheOneInForce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	if out := h.OK("status"); !matches("node +not appraised, no policy in .*vouch node policy learn", out) {
		t.Errorf("without a policy:\n%s", out)
	}
	if _, stderr, code := h.Vouch("node", "attest"); code != 1 || !strings.Contains(stderr, "vouch node policy learn") {
		t.Errorf("attest without a policy exits %d: %s", code, stderr)
	}
	h.Learn()
	for name, change := range map[string]func(){
		"is broken": func() { h.Write("node-policy.yaml", "pcrs: 7") },
		"is gone":   func() { must(t, os.Remove(h.Path("node-policy.yaml"))) },
	} {
		change()
		eventually(t, "status says that the policy "+name, func() bool {
			p := h.Problems()
			return len(p) == 1 && strings.Contains(p[0], "node-policy.yaml")
		})
		if _, err := h.Fetch(); err != nil {
			t.Errorf("while the policy %s: %v", name, err)
		}
		h.InState(view.NodePassed)
	}
	h.TPM.Extend(4, "another boot loader") // the policy that was learned is still in force
	if _, _, code := h.Vouch("node", "attest"); code != 1 {
		t.Errorf("attest exits %d, want 1", code)
	}
	if id, err := h.Fetch(); err == nil {
		t.Errorf("a fetch brings %s", id)
	}
}

func TestAnEntryCanAskForTheMachineWhileItPasses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Start()
	st, err := h.Admin().Status(t.Context())
	must(t, err)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/pinned\", selectors: [\"unix:uid:%d\", \"tpm:ek:sha256:%s\"]}\n",
		os.Getuid(), st.TPM.EKSHA256))
	eventually(t, "the entry is in force", func() bool {
		st, err := h.Admin().Status(t.Context())
		return err == nil && st.Entries.Count == 1
	})
	if id, err := h.Fetch(); err == nil {
		t.Errorf("a machine that was not appraised is issued %s", id)
	}
	h.Learn()
	if id, err := h.Fetch(); err != nil || id != "spiffe://example.org/pinned" {
		t.Errorf("a machine that passes is issued %q, %v", id, err)
	}
	if out := h.OK("entry", "explain", fmt.Sprint(os.Getpid())); !matches("TPM-enforced +tpm:ek:sha256:"+st.TPM.EKSHA256, out) {
		t.Errorf("explain says\n%s", out)
	}
}

func TestAPassOutlivesATPMThatIsAwayForAMoment(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	h.Learn()
	h.TPM.Kill()
	if _, stderr, code := h.Vouch("node", "attest"); code != 1 || !strings.Contains(stderr, "swtpm") {
		t.Errorf("attest exits %d: %s", code, stderr)
	}
	if _, err := h.Fetch(); err != nil {
		t.Errorf("with the TPM away: %v", err)
	}
	if p := h.Problems(); !strings.Contains(strings.Join(p, "\n"), "still using the last result") {
		t.Errorf("problems with the TPM away: %q", p)
	}
	h.TPM.Restart()
	var r appraisal.Result
	eventually(t, "an appraisal passes again", func() bool {
		out, _, code := h.Vouch("node", "attest", "--output", "json")
		return code == 0 && json.Unmarshal([]byte(out), &r) == nil && r.Passed
	})
	if p := h.Problems(); len(p) != 0 {
		t.Errorf("problems with the TPM back: %q", p)
	}
}
