package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// A counterTPM signs as a TPM would: a counter that only goes up, and the
// digest. That a real TPM's statements are read rightly is attest/node's to
// test; what follows from them is tested here.
type counterTPM struct {
	key ed25519.PrivateKey

	mu      sync.Mutex
	counter uint64
	resets  uint32
	fail    error // of whatever is asked
}

// A oneStepTPM hides that a counterTPM can certify and count apart.
type oneStepTPM struct{ Anchorer }

func newCounterTPM() *counterTPM {
	return &counterTPM{counter: 1, key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))}
}

func (t *counterTPM) Anchor(ctx context.Context, digest [32]byte) ([]byte, error) {
	t.mu.Lock()
	t.counter++
	t.mu.Unlock()
	return t.Certify(ctx, digest)
}

func (t *counterTPM) Certify(_ context.Context, digest [32]byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return nil, t.fail
	}
	b := binary.BigEndian.AppendUint64(nil, t.counter)
	b = binary.BigEndian.AppendUint32(b, t.resets)
	return append(b, ed25519.Sign(t.key, append(bytes.Clone(b), digest[:]...))...), nil
}

func (t *counterTPM) Count(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return t.fail
	}
	t.counter++
	return nil
}

// statement says which log key the TPM vouches for.
func (t *counterTPM) statement(logKey ed25519.PublicKey) []byte {
	pub := t.key.Public().(ed25519.PublicKey)
	return slices.Concat(pub, ed25519.Sign(t.key, append([]byte("log key "), logKey...)))
}

// A counterVerifier reads what a counterTPM made.
type counterVerifier struct{ ak ed25519.PublicKey }

func (v *counterVerifier) Statement(s []byte, logKey ed25519.PublicKey) (NodeFacts, error) {
	if len(s) != 96 || !ed25519.Verify(s[:32], append([]byte("log key "), logKey...), s[32:]) {
		return NodeFacts{}, errors.New("the statement is not signed for the log's key")
	}
	v.ak = s[:32]
	return NodeFacts{EKSHA256: fmt.Sprintf("%x", sha256.Sum256(s[:32])), AKName: fmt.Sprintf("000b%x", s[:32])}, nil
}

func (v *counterVerifier) Anchor(a []byte, digest [32]byte) (AnchorFacts, error) {
	if len(a) != 76 || !ed25519.Verify(v.ak, append(bytes.Clone(a[:12]), digest[:]...), a[12:]) {
		return AnchorFacts{}, errors.New("the anchor is not signed by the AK over these records")
	}
	return AnchorFacts{Counter: binary.BigEndian.Uint64(a), Resets: binary.BigEndian.Uint32(a[8:]), Index: "01c0"}, nil
}

// A host is a machine that keeps a log.
type host struct {
	t   testing.TB
	dir string
	tpm *counterTPM
	opt Options
}

var testKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{42}, 32))

func newHost(t testing.TB) *host {
	h := &host{t: t, dir: filepath.Join(t.TempDir(), "log"), tpm: newCounterTPM()}
	h.opt = Options{
		Origin: "vouchd.example.org/log", Key: testKey, TPM: h.tpm,
		Logger:     slog.New(slog.DiscardHandler),
		RetryEvery: 10 * time.Millisecond,
	}
	return h
}

// start opens the log and records the daemon's start.
func (h *host) start() *Log {
	h.t.Helper()
	l, err := Open(h.dir, h.opt)
	if err != nil {
		h.t.Fatal(err)
	}
	h.append(l, Record{Event: EventStart, Outcome: Success,
		Node:   &Node{Resets: h.tpm.resets, Statement: h.tpm.statement(h.opt.Key.Public().(ed25519.PublicKey))},
		Config: &Config{Version: "0.1.0", Entries: 3}})
	h.anchor(l)
	return l
}

func (h *host) append(l *Log, rs ...Record) {
	h.t.Helper()
	if err := l.Append(context.Background(), rs...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) anchor(l *Log) {
	h.t.Helper()
	if err := l.Anchor(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

// stop records the daemon's stop and closes the log.
func (h *host) stop(l *Log) {
	h.t.Helper()
	h.append(l, Record{Event: EventStop, Outcome: Success})
	if err := l.Close(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

// crash lets go of the log as a killed daemon does: without another word.
func (h *host) crash(l *Log) {
	l.closing.Store(true)
	close(l.quit)
	<-l.stopped
	l.seg.file.Close()
	l.close()
}

func (h *host) verify(o VerifyOptions) *Report {
	h.t.Helper()
	return verifyDir(h.t, h.dir, o)
}

func verifyDir(t testing.TB, dir string, o VerifyOptions) *Report {
	t.Helper()
	r, err := Verify(context.Background(), os.DirFS(dir), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func withTPM() VerifyOptions { return VerifyOptions{TPM: &counterVerifier{}} }

// found returns the names of the report's findings of a severity.
func (r *Report) found(s Severity) []string {
	var names []string
	for _, f := range r.Findings {
		if f.Severity == s {
			names = append(names, f.Name)
		}
	}
	return names
}

func attested(pid int) Record {
	return Record{
		Event: EventWorkload, Outcome: Success, RequestID: fmt.Sprintf("r-%d", pid),
		SPIFFEID: "spiffe://example.org/agent/research", Duration: 420 * time.Microsecond,
		Workload: &Workload{
			PID: pid, StartTime: 12345, UID: 1000, GID: 1000, Path: "/usr/bin/research-agent",
			SHA256: "5f2c9fd1d95bd9a3b1f4a3b0fbe42a1d3b7e9d5b0b3b5d2a6a4f1c0e9d8c7b6a", Device: 65024, Inode: 271828,
			Cgroup: "/system.slice/research-agent.service", Unit: "research-agent.service",
			Selectors: []string{"unix:uid:1000", "unix:gid:1000", "systemd:id:research-agent.service", "unix:path:/usr/bin/research-agent"},
			Entry:     "entries.d/research.yaml:2",
		},
	}
}

func TestLogVerifiesAfterCleanRun(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	for i := range 20 {
		h.append(l, attested(i+1), attested(i+100))
	}
	h.stop(l)
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 {
		t.Errorf("report: %s %+v", r.Verdict, r.Findings)
	}
	if r.Events[EventWorkload] != 40 || r.Anchors != 2 || r.Anchored != r.Size-1 {
		t.Errorf("report %+v", r)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestLogWithoutVerifierSaysAnchorsAreNotChecked(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	r := h.verify(VerifyOptions{})
	if got := r.found(Note); !r.OK || !slices.Equal(got, []string{"anchors-not-checked"}) {
		t.Errorf("%s: notes %v", r.Verdict, got)
	}
}

func TestStatusNamesTheKeyOfANewLog(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l, err := Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	if st := l.Status(); st.Key != h.vkey() || st.Origin != h.opt.Origin {
		t.Errorf("%q of %q, want %q of %q", st.Key, st.Origin, h.vkey(), h.opt.Origin)
	}
	h.stop(l)
}

func TestLogGoesOnAfterRestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for i := range 3 {
		l := h.start()
		h.append(l, attested(i))
		h.stop(l)
	}
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 || r.Events[EventStart] != 3 {
		t.Errorf("report: %s %+v", r.Verdict, r.Findings)
	}
}

func TestConcurrentAppendsShareBatches(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 20 {
				h.append(l, attested(w*100+i))
			}
		})
	}
	wg.Wait()
	h.stop(l)
	r := h.verify(withTPM())
	if !r.OK || r.Events[EventWorkload] != 640 {
		t.Errorf("report: %s %+v", r.Verdict, r.Findings)
	}
	if r.Checkpoints >= 640 {
		t.Errorf("%d checkpoints for 640 concurrent records: nothing was shared", r.Checkpoints)
	}
}

func TestSegmentsFollowEachOther(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 8 << 10
	l := h.start()
	for i := range 50 {
		h.append(l, attested(i))
	}
	h.stop(l)
	r := h.verify(withTPM())
	if !r.OK || len(r.Findings) != 0 || r.Segments < 4 {
		t.Errorf("%d segments; %s %+v", r.Segments, r.Verdict, r.Findings)
	}
	var next uint64
	for e, err := range Records(context.Background(), os.DirFS(h.dir), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Index != next || e.Leaf.Index != next {
			t.Fatalf("record %d (%d) where %d should be", e.Index, e.Leaf.Index, next)
		}
		next++
	}
	if next != r.Size {
		t.Errorf("read %d records of %d", next, r.Size)
	}
}

func TestUnfinishedBatchIsCutOffAndRecorded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, attested(1))
	size := l.Status().Size
	h.crash(l)
	name := filepath.Join(h.dir, segmentName(0))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	leaf := appendFrame(nil, kindLeaf, []byte("{}"))
	if err := os.WriteFile(name, append(whole, leaf[:len(leaf)-1]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.verify(withTPM()); r.OK || !slices.Contains(r.found(Failure), "torn-end") {
		t.Errorf("before: %s", r.Verdict)
	}
	l, err = Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Status().Size; got != size+1 {
		t.Errorf("%d records after recovery, want %d and one that says so", got, size)
	}
	h.append(l, Record{Event: EventStart, Outcome: Success})
	h.stop(l)
	r := h.verify(withTPM())
	if got := r.found(Warning); !r.OK || !slices.Equal(got, []string{"recovered", "unclean-stop"}) {
		t.Errorf("%s: warnings %v", r.Verdict, got)
	}
}

func TestDamageInTheMiddleRefusesToStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, attested(1))
	h.append(l, attested(2))
	h.stop(l)
	name := filepath.Join(h.dir, segmentName(0))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err = Open(h.dir, h.opt)
	if err == nil {
		l.Close(context.Background())
		t.Fatal("opened a damaged log")
	}
	if !bytes.Contains([]byte(err.Error()), []byte("is damaged at offset")) {
		t.Error(err)
	}
	again, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(again, b) {
		t.Error("the damaged log was changed")
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	if _, err := Open(h.dir, h.opt); !errors.Is(err, ErrInUse) {
		t.Errorf("second Open: %v, want ErrInUse", err)
	}
	h.stop(l)
}
