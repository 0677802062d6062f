package writer_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/writer"
	"github.com/vouchd/vouchd/state"
)

// These tests attack a log that a real TPM anchors.

// A machine is a host with a TPM and a log.
type machine struct {
	t   *testing.T
	tpm *tpmtest.TPM
	dir string // holds the TPM's key blobs, and the log
	key ed25519.PrivateKey

	born *appraisal.Signed // the counter as the key was made
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, tpm: tpmtest.Start(t), dir: t.TempDir(), key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))}
}

func (m *machine) log() string { return filepath.Join(m.dir, "log") }

// run is one life of the daemon.
func (m *machine) run(records ...audit.Record) {
	m.t.Helper()
	ctx := context.Background()
	must := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	dir, err := state.Open(filepath.Join(m.dir, "state"))
	must(err)
	defer dir.Close()
	tpm, err := node.Open(ctx, m.tpm.Address)
	must(err)
	defer tpm.Close()
	n, err := node.Load(ctx, tpm, dir)
	must(err)
	public := m.key.Public().(ed25519.PublicKey)
	if m.born == nil {
		born, err := n.Born(ctx, public)
		must(err)
		m.born = &born
	}
	statement, err := n.Statement(ctx, public, m.born)
	must(err)
	l, err := writer.Open(m.log(), writer.Options{Origin: "vouchd.example.org/log", Key: m.key, TPM: n, Logger: slog.New(slog.DiscardHandler)})
	must(err)
	must(l.Append(ctx, audit.Record{Event: audit.EventStart, Outcome: audit.Success, Node: &audit.Node{Statement: statement}}))
	must(l.Anchor(ctx))
	must(l.Append(ctx, append(records, audit.Record{Event: audit.EventStop, Outcome: audit.Success})...))
	must(l.Close(ctx))
}

func (m *machine) failures() []string {
	m.t.Helper()
	r, err := reader.Verify(context.Background(), os.DirFS(m.log()), reader.VerifyOptions{TPM: new(verifier)})
	if err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for _, f := range r.Findings {
		if f.Severity == reader.Failure {
			names = append(names, f.Name)
		}
	}
	if r.OK != (len(names) == 0) {
		m.t.Errorf("OK is %v with failures %v", r.OK, names)
	}
	return names
}

// A verifier checks what a real TPM signed.
type verifier struct{ machine *appraisal.Verified }

func (v *verifier) Statement(statement []byte, logKey ed25519.PublicKey) (audit.NodeFacts, error) {
	machine, err := appraisal.VerifyStatement(statement, logKey)
	if err != nil {
		return audit.NodeFacts{}, err
	}
	v.machine = machine
	return audit.NodeFacts{EKSHA256: machine.EKSHA256, AKName: machine.AKName, NodeKey: machine.NodeKey, Born: machine.Born}, nil
}

func (v *verifier) Anchor(anchor []byte, digest [32]byte) (audit.AnchorFacts, error) {
	if v.machine == nil {
		return audit.AnchorFacts{}, errors.New("no statement yet")
	}
	facts, err := v.machine.Anchor(anchor, digest)
	return audit.AnchorFacts{Counter: facts.Counter, Resets: facts.Resets}, err
}

// TestRealTPMTellsALogBegunAnewUnderItsKey: a daemon that does not ask whether there
// was a log, as an attacker's would not, begins another under the same key.
func TestRealTPMTellsALogBegunAnewUnderItsKey(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run()
	m.run()
	if failures := m.failures(); len(failures) > 0 {
		t.Fatalf("before: failures %v", failures)
	}
	if err := os.RemoveAll(m.log()); err != nil {
		t.Fatal(err)
	}
	m.run()
	if failures := m.failures(); !slices.Equal(failures, []string{"begun-anew"}) {
		t.Errorf("failures %v", failures)
	}
}

func TestRealTPMAnchorsALogAcrossReboots(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run()
	m.tpm.Restart()
	m.run(audit.Record{Event: audit.EventBundle, Outcome: audit.Success})
	if got := m.failures(); got != nil {
		t.Errorf("failures %v", got)
	}
}

func TestOldCopyOfTheStateDirectoryIsToldByTheRealCounter(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	m.run(audit.Record{Event: audit.EventBundle, Outcome: audit.Denied})
	if err := os.RemoveAll(m.log()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(m.log(), os.DirFS(filepath.Join(old, "log"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(m.log(), 0o700); err != nil {
		t.Fatal(err)
	}
	m.run()
	if got := m.failures(); !slices.Equal(got, []string{"counter-gap"}) {
		t.Errorf("failures %v, want counter-gap", got)
	}
}

// Whoever removes the counter and defines it anew gets one that goes on from the
// largest value that any counter of the TPM had.
func TestCounterDefinedAnewLeavesAGap(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(m.log())); err != nil {
		t.Fatal(err)
	}
	m.run(audit.Record{Event: audit.EventBundle, Outcome: audit.Denied})
	if err := errors.Join(os.RemoveAll(m.log()), os.CopyFS(m.log(), os.DirFS(old)), os.Chmod(m.log(), 0o700)); err != nil {
		t.Fatal(err)
	}
	m.tpm.Do(undefineCounters)
	// The daemon doesn't take the missing counter for a fresh start; whoever wants
	// it to go on has to let it make new keys too.
	if err := os.RemoveAll(filepath.Join(m.dir, "state")); err != nil {
		t.Fatal(err)
	}
	m.born = nil
	m.run()
	if got := m.failures(); !slices.Contains(got, "other-ak") || !slices.Contains(got, "counter-gap") {
		t.Errorf("failures %v, want other-ak and counter-gap", got)
	}
}

func undefineCounters(tr transport.TPM) error {
	for index := tpm2.TPMHandle(0x01807664); index < 0x01807664+16; index++ {
		public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
		if err != nil {
			continue
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
		}.Execute(tr)
		if err != nil {
			return err
		}
	}
	return nil
}

func TestClearedTPMIsAnotherAK(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run()
	m.tpm.Clear()
	if err := os.RemoveAll(filepath.Join(m.dir, "state")); err != nil {
		t.Fatal(err)
	}
	m.born = nil
	m.run()
	if got := m.failures(); !slices.Contains(got, "other-ak") {
		t.Errorf("failures %v, want other-ak", got)
	}
}

func TestLogOfAnotherMachineIsTold(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run()
	other := newMachine(t)
	other.tpm = tpmtest.StartManufactured(t)
	other.dir = t.TempDir()
	if err := os.CopyFS(other.log(), os.DirFS(m.log())); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(other.log(), 0o700); err != nil {
		t.Fatal(err)
	}
	other.run()
	if got := other.failures(); !slices.Contains(got, "other-machine") {
		t.Errorf("failures %v, want other-machine", got)
	}
}
