package daemon_test

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

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/vouchd/vouchd/audit/witness/witnesstest"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// The log is set back with everything that lies on the machine; the witness
// is beyond reach.
func TestWitnessTellsThatTheLogWasSetBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	w := witnesstest.Start(t, "witness.example.org/w1")
	h.Configure(fmt.Sprintf("log:\n  anchor_every: 1s\n  witnesses:\n    - {url: %q, key: %q, interval: 10s}\n", w.URL, w.Key))
	h.Start()
	key := daemontest.LogKey(h.Host)
	eventually(t, "an unknown log is a problem", func() bool {
		return strings.Contains(strings.Join(h.Problems(), "\n"), "it does not know this log (status 404); give its operator the log's key, "+key)
	})
	if _, _, code := h.Vouch("doctor"); code != 1 {
		t.Errorf("vouch doctor exits %d without a witness, want 1", code)
	}
	w.Know(t, key)
	h.Stop() // has the end witnessed
	if w.Size() == 0 {
		t.Fatalf("the end of the log was not witnessed; the daemon said:\n%s", h.Stderr)
	}
	out, stderr, code := h.Vouch("log", "verify", "--witness", w.Key)
	if code != 0 || !strings.Contains(out, fmt.Sprintf("witness.example.org/w1 saw %d records", w.Size())) {
		t.Fatalf("vouch log verify exits %d: %s%s", code, out, stderr)
	}

	// Disk and TPM, as of a virtual machine: nothing on the machine tells.
	old := t.TempDir()
	must(t, os.CopyFS(old, os.DirFS(h.Path("state"))))
	setTPMBack := h.TPM.Snapshot()
	h.Start()
	_, err := h.Fetch() // what shall be forgotten
	must(t, err)
	h.Stop()
	kept, err := filepath.Glob(h.Path("state/log/witness/*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept of witnesses: %q, %v", kept, err)
	}
	elsewhere, err := os.ReadFile(kept[0])
	must(t, err)
	h.Write("checkpoint", string(elsewhere))
	if out, stderr, code := h.Vouch("log", "verify", "--checkpoint", h.Path("checkpoint")); code != 0 {
		t.Fatalf("vouch log verify exits %d: %s%s", code, out, stderr)
	}

	must(t, os.RemoveAll(h.Path("state")))
	must(t, os.CopyFS(h.Path("state"), os.DirFS(old)))
	must(t, os.Chmod(h.Path("state"), 0o700))
	setTPMBack()
	if out, _, code := h.Vouch("log", "verify", "--checkpoint", h.Path("checkpoint")); code != 1 || !strings.Contains(out, "failure: rolled-back") {
		t.Errorf("vouch log verify of the old state exits %d: %s", code, out)
	}
	h.Start()
	eventually(t, "status says that the log was set back", func() bool {
		return strings.Contains(strings.Join(h.Problems(), "\n"), "unless the witness is wrong, the log was rolled back")
	})
	var st view.Status
	st, err = h.Admin().Status(t.Context())
	must(t, err)
	if len(st.Log.Witnesses) != 1 || st.Log.Witnesses[0].Error == "" || st.Log.Witnesses[0].Records >= w.Size() {
		t.Errorf("%+v", st.Log.Witnesses)
	}
	if _, err := h.Fetch(); err != nil { // a witness has no power over the machine
		t.Error(err)
	}
	// As long as it is the shorter one, it could be an older copy.
	eventually(t, "the log is longer than the one that was seen", func() bool {
		h.Fetch()
		st, err := h.Admin().Status(t.Context())
		return err == nil && st.Log.Records > w.Size()
	})
	h.Stop()
	out, _, code = h.Vouch("log", "verify", "--checkpoint", h.Path("checkpoint"))
	for _, want := range []string{"failure: fork", "warning: witness-refused"} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("vouch log verify exits %d without %q: %s", code, want, out)
		}
	}
}

func TestWitnessThatHangsDelaysNobody(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	w := witnesstest.Start(t, "witness.example.org/w1")
	asked := make(chan struct{}, 100)
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // so that the server sees the client go
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer hangs.Close()
	h.Configure(fmt.Sprintf("log:\n  anchor_every: 1s\n  witnesses:\n    - {url: %q, key: %q, interval: 10s, timeout: 1m}\n", hangs.URL, w.Key))
	h.Start()
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Fatal("the witness was not asked")
	}
	if _, err := h.Fetch(); err != nil { // while the witness is being asked
		t.Error(err)
	}
	h.Stop() // and it is not waited for
	h.VerifyLog()
}
