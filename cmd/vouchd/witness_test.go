package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit/witness/witnesstest"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// The log is set back with everything that lies on the machine; the witness
// is beyond reach.
func TestWitnessTellsThatTheLogWasSetBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("entries.d/a.yaml", entriesFor(1))
	w := witnesstest.Start(t, "witness.example.org/w1")
	h.configure(fmt.Sprintf("log:\n  anchor_every: 1s\n  witnesses:\n    - {url: %q, key: %q, interval: 10s}\n", w.URL, w.Key))
	h.start()
	key := h.logKey()
	eventually(t, "an unknown log is a problem", func() bool {
		return strings.Contains(strings.Join(h.problems(), "\n"), "it does not know this log (status 404); give its operator the log's key, "+key)
	})
	if _, _, code := h.vouch("doctor"); code != 1 {
		t.Errorf("vouch doctor exits %d without a witness, want 1", code)
	}
	w.Know(t, key)
	h.stop() // has the end witnessed
	if w.Size() == 0 {
		t.Fatalf("the end of the log was not witnessed; the daemon said:\n%s", h.stderr)
	}
	out, stderr, code := h.vouch("log", "verify", "--witness", w.Key)
	if code != 0 || !strings.Contains(out, fmt.Sprintf("witness.example.org/w1 saw %d records", w.Size())) {
		t.Fatalf("vouch log verify exits %d: %s%s", code, out, stderr)
	}

	old := t.TempDir()
	must(t, os.CopyFS(old, os.DirFS(h.path("state"))))
	h.start()
	_, err := h.fetch() // what shall be forgotten
	must(t, err)
	h.stop()
	kept, err := filepath.Glob(h.path("state/log/witness/*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept of witnesses: %q, %v", kept, err)
	}
	elsewhere, err := os.ReadFile(kept[0])
	must(t, err)
	h.write("checkpoint", string(elsewhere))
	if out, stderr, code := h.vouch("log", "verify", "--checkpoint", h.path("checkpoint")); code != 0 {
		t.Fatalf("vouch log verify exits %d: %s%s", code, out, stderr)
	}

	must(t, os.RemoveAll(h.path("state")))
	must(t, os.CopyFS(h.path("state"), os.DirFS(old)))
	must(t, os.Chmod(h.path("state"), 0o700))
	if out, _, code := h.vouch("log", "verify", "--checkpoint", h.path("checkpoint")); code != 1 || !strings.Contains(out, "failure: rolled-back") {
		t.Errorf("vouch log verify of the old state exits %d: %s", code, out)
	}
	h.start()
	eventually(t, "status says that the log was set back", func() bool {
		return strings.Contains(strings.Join(h.problems(), "\n"), "unless the witness errs, the log was set back")
	})
	var st view.Status
	st, err = h.admin().Status(t.Context())
	must(t, err)
	if len(st.Log.Witnesses) != 1 || st.Log.Witnesses[0].Error == "" || st.Log.Witnesses[0].Records >= w.Size() {
		t.Errorf("%+v", st.Log.Witnesses)
	}
	if _, err := h.fetch(); err != nil { // a witness has no power over the machine
		t.Error(err)
	}
	h.stop()
	out, _, code = h.vouch("log", "verify", "--checkpoint", h.path("checkpoint"))
	for _, want := range []string{"failure: fork", "failure: counter-gap", "warning: witness-refused"} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("vouch log verify exits %d without %q: %s", code, want, out)
		}
	}
}

func TestWitnessThatHangsDelaysNobody(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("entries.d/a.yaml", entriesFor(1))
	w := witnesstest.Start(t, "witness.example.org/w1")
	asked := make(chan struct{}, 100)
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // so that the server sees the client go
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer hangs.Close()
	h.configure(fmt.Sprintf("log:\n  anchor_every: 1s\n  witnesses:\n    - {url: %q, key: %q, interval: 10s, timeout: 1m}\n", hangs.URL, w.Key))
	h.start()
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Fatal("the witness was not asked")
	}
	if _, err := h.fetch(); err != nil { // while the witness is being asked
		t.Error(err)
	}
	h.stop() // and it is not waited for
	h.verifyLog()
}

// logKey is what the log is signed with.
func (h *host) logKey() string {
	h.t.Helper()
	out, stderr, code := h.vouch("log", "verify", "--live")
	if code != 0 {
		h.t.Fatalf("vouch log verify exits %d: %s%s", code, out, stderr)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "key" {
			return f[1]
		}
	}
	h.t.Fatalf("no key in %s", out)
	return ""
}
