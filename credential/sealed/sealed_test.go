package sealed_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/state"
)

var agent = spiffeid.RequireFromString("spiffe://example.org/agent")

// A machine is a TPM with the state directory of a daemon.
type machine struct {
	tpm  *tpmtest.TPM
	path string
	dir  *state.Dir
	node *node.Node
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{tpm: tpmtest.Start(t), path: t.TempDir()}
	m.start(t)
	return m
}

// start takes the state directory and the TPM as the daemon does.
func (m *machine) start(t *testing.T) {
	t.Helper()
	must(t, os.Chmod(m.path, 0o700))
	var err error
	m.dir, err = state.Open(m.path)
	must(t, err)
	t.Cleanup(func() { m.dir.Close() })
	tpm, err := node.Open(t.Context(), m.tpm.Address)
	must(t, err)
	t.Cleanup(func() { tpm.Close() })
	m.node, err = node.Load(t.Context(), tpm, m.dir)
	must(t, err)
}

// open reads the list as a daemon that starts does.
func (m *machine) open(t *testing.T) *sealed.Store {
	t.Helper()
	s := sealed.Open(t.Context(), m.dir, m.node)
	must(t, s.Err())
	return s
}

func (m *machine) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.path, name))
	must(t, err)
	return b
}

func (m *machine) write(t *testing.T, name string, b []byte) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(m.path, name), b, 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recorded(sealed.Secret) error { return nil }

func mustSeal(t *testing.T, s *sealed.Store, name, value string) sealed.Secret {
	t.Helper()
	kept, err := s.Seal(t.Context(), name, secret.Of([]byte(value)), sealed.Options{}, recorded)
	must(t, err)
	return kept
}

func mustRotate(t *testing.T, s *sealed.Store, name, value string) sealed.Secret {
	t.Helper()
	kept, err := s.Rotate(t.Context(), name, secret.Of([]byte(value)), sealed.Options{}, recorded)
	must(t, err)
	return kept
}

func reveal(t *testing.T, s *sealed.Store, name string) string {
	t.Helper()
	v, _, err := s.Reveal(t.Context(), name, agent)
	must(t, err)
	return string(v.Reveal())
}

func TestValuesOfAnyBytesComeBackAfterARestart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	million, most := make([]byte, 1_000_000), make([]byte, sealed.MaxLen)
	rand.Read(million)
	rand.Read(most)
	values := map[string]string{
		"one-byte": "x", "lines": "a\nb\r\n\nc\n", "zeros": "\x00a\x00\x00", "not-utf8": "\xff\xfe", "million": string(million), "most": string(most),
	}
	for name, value := range values {
		mustSeal(t, s, name, value)
	}
	again := m.open(t)
	for name, value := range values {
		if got := reveal(t, again, name); got != value {
			t.Errorf("%s comes back as %d bytes, want %d", name, len(got), len(value))
		}
	}
	files, err := os.ReadDir(m.path)
	must(t, err)
	for _, f := range files {
		if b := m.read(t, f.Name()); bytes.Contains(b, million[:32]) || bytes.Contains(b, []byte("a\nb\r\n")) {
			t.Errorf("%s holds a secret", f.Name())
		}
	}
}

func TestWhatCannotBeSealedIsRefusedAndNotRecorded(t *testing.T) {
	t.Parallel()
	s := newMachine(t).open(t)
	mustSeal(t, s, "taken", "value")
	for _, tt := range []struct {
		name, under, value string
		o                  sealed.Options
		want               error
	}{
		{"no bytes", "a", "", sealed.Options{}, sealed.ErrValue},
		{"one byte too many", "a", strings.Repeat("x", sealed.MaxLen+1), sealed.Options{}, sealed.ErrValue},
		{"no name", "", "x", sealed.Options{}, sealed.ErrValue},
		{"a path for a name", "../x", "x", sealed.Options{}, sealed.ErrValue},
		{"a name with a line end", "x\n", "x", sealed.Options{}, sealed.ErrValue},
		{"a long name", strings.Repeat("x", 129), "x", sealed.Options{}, sealed.ErrValue},
		{"a reminder that has passed", "a", "x", sealed.Options{RotateAfter: -time.Hour}, sealed.ErrValue},
		{"a name that is taken", "taken", "value", sealed.Options{}, sealed.ErrExists},
		{"another value for a name that is taken", "taken", "other", sealed.Options{Same: true}, sealed.ErrExists},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Seal(t.Context(), tt.under, secret.Of([]byte(tt.value)), tt.o, func(sealed.Secret) error {
				t.Error("it was recorded as if it happened")
				return nil
			})
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	if kept, err := s.Seal(t.Context(), "taken", secret.Of([]byte("value")), sealed.Options{Same: true}, nil); err != nil || kept.Revision != 1 {
		t.Errorf("the same value again: %+v, %v", kept, err)
	}
	_, rotateErr := s.Rotate(t.Context(), "none", secret.Of([]byte("x")), sealed.Options{}, nil)
	_, _, revealErr := s.Reveal(t.Context(), "none", agent)
	for _, err := range []error{rotateErr, revealErr, s.Remove(t.Context(), "none", nil)} {
		if !errors.Is(err, sealed.ErrNone) {
			t.Errorf("%v, want %v", err, sealed.ErrNone)
		}
	}
}

func TestNothingChangesThatIsNotRecorded(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	mustSeal(t, s, "kept", "first")
	full := errors.New("disk full")
	refuse := func(sealed.Secret) error { return full }
	_, sealErr := s.Seal(t.Context(), "new", secret.Of([]byte("x")), sealed.Options{}, refuse)
	_, rotateErr := s.Rotate(t.Context(), "kept", secret.Of([]byte("second")), sealed.Options{}, refuse)
	for _, err := range []error{sealErr, rotateErr, s.Remove(t.Context(), "kept", refuse)} {
		if !errors.Is(err, full) {
			t.Errorf("%v, want %v", err, full)
		}
	}
	for _, s := range []*sealed.Store{s, m.open(t)} {
		if got := reveal(t, s, "kept"); got != "first" || len(s.List()) != 1 {
			t.Errorf("kept is %q among %d", got, len(s.List()))
		}
	}
}

func TestRotatingReplacesTheValueAndKeepsTheRest(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	broad := true
	first, err := s.Seal(t.Context(), "key", secret.Of([]byte("first")), sealed.Options{Broad: &broad}, recorded)
	must(t, err)
	if first.RotateAfter != 30*24*time.Hour {
		t.Errorf("a broad secret is due after %v, want 30 days", first.RotateAfter)
	}
	if other := mustSeal(t, s, "other", "x"); other.RotateAfter != 90*24*time.Hour {
		t.Errorf("a secret is due after %v, want 90 days", other.RotateAfter)
	}
	second := mustRotate(t, s, "key", "second")
	if second.Revision <= first.Revision || !second.Broad || second.Created != first.Created {
		t.Errorf("rotated from %+v to %+v", first, second)
	}
	for _, s := range []*sealed.Store{s, m.open(t)} {
		if got := reveal(t, s, "key"); got != "second" {
			t.Errorf("the value is %q", got)
		}
	}
	if files, _ := filepath.Glob(m.path + "/secret-key@*"); len(files) != 1 {
		t.Errorf("after rotating there are %v", files)
	}
	must(t, s.Remove(t.Context(), "key", recorded))
	if files, _ := filepath.Glob(m.path + "/secret-key@*"); len(files) != 0 || len(m.open(t).List()) != 1 {
		t.Errorf("after removing there are %v", files)
	}
	if again := mustSeal(t, s, "key", "third"); again.Revision <= second.Revision {
		t.Errorf("a removed name begins at revision %d again", again.Revision)
	}
}

func TestFilesThatAreSwappedOrPutBackDoNotOpen(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	mustSeal(t, s, "poor", "poor")
	mustSeal(t, s, "rich", "rich")
	poor, rich := m.read(t, "secret-poor@1"), m.read(t, "secret-rich@2")
	mustRotate(t, s, "rich", "RICH")
	good := m.read(t, "secret-rich@3")
	// Whoever writes to the directory can also mend the digest that finds
	// accidents.
	as := func(b []byte) {
		_, data, _ := bytes.Cut(b, []byte("\n"))
		must(t, m.dir.Save("secret-rich@3", 1, data))
	}
	for name, change := range map[string]func(){
		"another secret's value":     func() { as(poor) },
		"the value before":           func() { as(rich) },
		"another secret's file":      func() { m.write(t, "secret-rich@3", poor) },
		"cut off":                    func() { m.write(t, "secret-rich@3", good[:len(good)-1]) },
		"cut off with a good digest": func() { as(good[:len(good)-1]) },
		"empty":                      func() { m.write(t, "secret-rich@3", nil) },
		"gone":                       func() { os.Remove(filepath.Join(m.path, "secret-rich@3")) },
	} {
		change()
		if v, _, err := s.Reveal(t.Context(), "rich", agent); err == nil || !strings.Contains(err.Error(), "vouch secret rotate rich") {
			t.Errorf("%s: %q, %v", name, v.Reveal(), err)
		}
	}
	m.write(t, "secret-rich@3", good)
	if got := reveal(t, s, "rich"); got != "RICH" {
		t.Errorf("the good file gives %q", got)
	}
}

func TestListThatCannotBeReadIsNotAnEmptyOne(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	mustSeal(t, s, "key", "value")
	reveal(t, s, "key")
	must(t, s.Close())
	for name, damage := range map[string]func(b []byte) []byte{
		"secrets":     func(b []byte) []byte { return b[:len(b)-1] },
		"secret-uses": func([]byte) []byte { return nil },
	} {
		good := m.read(t, name)
		m.write(t, name, damage(good))
		broken := sealed.Open(t.Context(), m.dir, m.node)
		_, sealErr := broken.Seal(t.Context(), "new", secret.Of([]byte("x")), sealed.Options{}, recorded)
		_, _, revealErr := broken.Reveal(t.Context(), "key", agent)
		for _, err := range []error{broken.Err(), sealErr, revealErr, broken.Remove(t.Context(), "key", recorded)} {
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("damaged %s: %v, want an error that names it", name, err)
			}
		}
		m.write(t, name, good)
	}
	if got := reveal(t, m.open(t), "key"); got != "value" {
		t.Errorf("after mending: %q", got)
	}
}

// A thief has the whole state directory, and a TPM of their own.
func TestStateDirectoryIsOfNoUseBesideAnotherTPM(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	mustSeal(t, m.open(t), "key", "value")
	thief := &machine{tpm: tpmtest.StartManufactured(t), path: t.TempDir()}
	must(t, os.CopyFS(thief.path, os.DirFS(m.path)))
	must(t, os.Chmod(thief.path, 0o700))
	dir, err := state.Open(thief.path)
	must(t, err)
	tpm, err := node.Open(t.Context(), thief.tpm.Address)
	must(t, err)
	t.Cleanup(func() { tpm.Close() })
	if _, err := node.Load(t.Context(), tpm, dir); !errors.Is(err, node.ErrOtherTPM) {
		t.Errorf("the stolen keys: %v, want %v", err, node.ErrOtherTPM)
	}
	must(t, dir.Close())
	must(t, tpm.Close())
	// With keys of the thief's own beside the stolen secrets.
	must(t, os.Remove(filepath.Join(thief.path, "tpm-keys")))
	thief.start(t)
	if err := sealed.Open(t.Context(), thief.dir, thief.node).Err(); !errors.Is(err, node.ErrUnseal) {
		t.Errorf("the stolen list: %v, want %v", err, node.ErrUnseal)
	}
	// And with a list of their own that names the stolen value.
	must(t, os.Remove(filepath.Join(thief.path, "secrets")))
	stolen := thief.read(t, "secret-key@1")
	s := thief.open(t)
	mustSeal(t, s, "key", "their")
	thief.write(t, "secret-key@1", stolen)
	if v, _, err := s.Reveal(t.Context(), "key", agent); !errors.Is(err, node.ErrUnseal) {
		t.Errorf("the stolen value: %q, %v, want %v", v.Reveal(), err, node.ErrUnseal)
	}
}

func TestNothingOpensAfterTheTPMWasCleared(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	mustSeal(t, s, "key", "value")
	m.tpm.Clear()
	if v, _, err := s.Reveal(t.Context(), "key", agent); !errors.Is(err, node.ErrOtherTPM) {
		t.Errorf("opening: %q, %v, want %v", v.Reveal(), err, node.ErrOtherTPM)
	}
	if _, err := s.Seal(t.Context(), "new", secret.Of([]byte("x")), sealed.Options{}, recorded); !errors.Is(err, node.ErrOtherTPM) {
		t.Errorf("sealing: %v, want %v", err, node.ErrOtherTPM)
	}
}

func TestBoundSecretOpensInApprovedBootStatesAlone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	approve := func() {
		t.Helper()
		now, err := m.node.BootState(t.Context(), []uint{4, 7})
		must(t, err)
		approval, err := appraisal.ApproveBootState(authority, now)
		must(t, err)
		must(t, m.node.Reseal(approval))
	}
	mustSeal(t, s, "free", "free")
	kept, err := s.Seal(t.Context(), "bound", secret.Of([]byte("value")), sealed.Options{Authority: &authority.PublicKey}, recorded)
	if err != nil || !kept.Bound {
		t.Fatalf("%+v, %v", kept, err)
	}
	approve()
	if got := reveal(t, s, "bound"); got != "value" {
		t.Errorf("in the approved state: %q", got)
	}
	m.tpm.Extend(7, "another key")
	if v, _, err := s.Reveal(t.Context(), "bound", agent); !errors.Is(err, node.ErrBootState) {
		t.Errorf("in another state: %q, %v, want %v", v.Reveal(), err, node.ErrBootState)
	}
	if got := reveal(t, s, "free"); got != "free" {
		t.Errorf("what is not bound: %q", got)
	}
	if rotated := mustRotate(t, s, "bound", "next"); !rotated.Bound {
		t.Errorf("rotated: %+v; want it bound as it was", rotated)
	}
	approve()
	if got := reveal(t, m.open(t), "bound"); got != "next" {
		t.Errorf("after the update was approved: %q", got)
	}
}

func TestUsesAreToldByIdentity(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	mustSeal(t, s, "key", "value")
	for i := range 40 {
		_, _, err := s.Reveal(t.Context(), "key", spiffeid.RequireFromStringf("spiffe://example.org/%d", i%36))
		must(t, err)
	}
	must(t, s.Close())
	for _, s := range []*sealed.Store{s, m.open(t)} {
		k, err := s.Get("key")
		must(t, err)
		if k.Uses != 40 || len(k.UsedBy) != 32 || k.LastUse.IsZero() || !slices.IsSorted(k.UsedBy) {
			t.Errorf("%d uses by %d, last %v", k.Uses, len(k.UsedBy), k.LastUse)
		}
	}
	must(t, s.Remove(t.Context(), "key", recorded))
	mustSeal(t, s, "key", "value")
	if k, err := s.Get("key"); err != nil || k.Uses != 0 {
		t.Errorf("a secret of a name that was removed has %d uses", k.Uses)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := newMachine(t).open(t)
	mustSeal(t, s, "shared", "own-")
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			name := fmt.Sprintf("own-%d", i)
			if _, err := s.Seal(context.Background(), name, secret.Of([]byte(name)), sealed.Options{}, recorded); err != nil {
				t.Error(err)
			}
			if _, err := s.Rotate(context.Background(), "shared", secret.Of([]byte(name)), sealed.Options{}, recorded); err != nil {
				t.Error(err)
			}
			if v, _, err := s.Reveal(context.Background(), "shared", agent); err != nil || !strings.HasPrefix(string(v.Reveal()), "own-") {
				t.Errorf("%q, %v", v.Reveal(), err)
			}
			s.List()
		})
	}
	work.Wait()
	for _, k := range s.List() {
		if k.Name != "shared" && reveal(t, s, k.Name) != k.Name {
			t.Errorf("%s has another value", k.Name)
		}
	}
}

// Status asks for the list, and has to say that the TPM hangs.
func TestListDoesNotWaitForATPMThatHangs(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	s := m.open(t)
	mustSeal(t, s, "key", "value")
	m.tpm.Pause()
	done := make(chan error, 2)
	go func() {
		_, err := s.Rotate(context.Background(), "key", secret.Of([]byte("next")), sealed.Options{}, recorded)
		done <- err
	}()
	go func() {
		_, _, err := s.Reveal(context.Background(), "key", agent)
		done <- err
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 20 { // by when both wait for the TPM
		<-tick.C
		if len(s.List()) != 1 {
			t.Error("the list is not the list")
		}
	}
	select {
	case err := <-done:
		t.Errorf("the TPM does not hang: %v", err)
	default:
	}
	m.tpm.Resume()
	for range 2 {
		must(t, <-done)
	}
	if got := reveal(t, s, "key"); got != "next" {
		t.Errorf("the value is %q", got)
	}
}
