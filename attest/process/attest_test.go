package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/systemd"
)

func TestAttestSaysWhatThePeerIs(t *testing.T) {
	t.Parallel()
	w := connect(t, nil)
	at, err := NewAttester(Options{}).Attest(t.Context(), w.peer)
	if err != nil {
		t.Fatal(err)
	}
	if at.PID != w.Process.Pid || at.StartTime == 0 || at.StartTime > ticks(sinceBoot()) {
		t.Errorf("attested process %d started at %d", at.PID, at.StartTime)
	}
	if len(at.Gaps) != 0 {
		t.Errorf("gaps: %v", at.Gaps)
	}
	wantOnly(t, at.Selectors, "unix:uid:", strconv.Itoa(os.Geteuid()))
	wantOnly(t, at.Selectors, "unix:gid:", strconv.Itoa(os.Getegid()))
	wantOnly(t, at.Selectors, "unix:path:", w.Path)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, w.Path))
	if os.Geteuid() == 0 {
		wantOnly(t, at.Selectors, "unix:user:", "root")
		wantOnly(t, at.Selectors, "unix:group:", "root")
	}
}

func TestAttestTakesNothingFromThePeer(t *testing.T) {
	t.Parallel()
	w := connect(t, nil)
	a := NewAttester(Options{})
	before, err := a.Attest(t.Context(), w.peer)
	if err != nil {
		t.Fatal(err)
	}
	w.tell("rewrite")
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", w.Process.Pid))
	if err != nil || !strings.Contains(string(cmdline), "trusted") {
		t.Fatalf("the workload did not rewrite its command line: %q, %v", cmdline, err)
	}
	after, err := a.Attest(t.Context(), w.peer)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before.Selectors, after.Selectors) {
		t.Errorf("selectors changed from %v to %v", before.Selectors, after.Selectors)
	}
}

func TestAttestSeesTheUserOfNow(t *testing.T) {
	t.Parallel()
	asRoot(t)
	w := connect(t, nil)
	a := NewAttester(Options{})
	attestPeer(t, a, w.peer)
	w.tell("setuid 65534")
	at := attestPeer(t, a, w.peer)
	wantOnly(t, at.Selectors, "unix:uid:", "65534")
	wantOnly(t, at.Selectors, "unix:user:", "nobody")
	if w.peer.UID() != 0 {
		t.Errorf("the user that connected is %d, want 0", w.peer.UID())
	}
}

func TestAttestSeesTheProgramOfNow(t *testing.T) {
	t.Parallel()
	w := connect(t, nil)
	a := NewAttester(Options{})
	attestPeer(t, a, w.peer)
	sleep := program(t, "sleep")
	w.tell("exec " + sleep)
	at := attestPeer(t, a, w.peer)
	wantOnly(t, at.Selectors, "unix:path:", sleep)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, sleep))
}

func TestSupplementaryGroups(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for _, tt := range []struct {
		name   string
		groups []uint32
		want   []string
	}{
		{"none", nil, nil},
		{"some", []uint32{7, 65534}, []string{"7", "65534"}},
		{"one that has no name", []uint32{4_000_000_000}, []string{"4000000000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			child := run(t, &syscall.Credential{Uid: 65534, Gid: 65534, Groups: tt.groups}, "sleep", "600")
			at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
			wantOnly(t, at.Selectors, "unix:supplementary_gid:", tt.want...)
		})
	}
}

func TestProcessWithTooManyGroupsIsRefused(t *testing.T) {
	t.Parallel()
	asRoot(t)
	groups := make([]uint32, maxGroups+1)
	for i := range groups {
		groups[i] = uint32(100_000 + i)
	}
	child := run(t, &syscall.Credential{Groups: groups}, "sleep", "600")
	_, err := NewAttester(Options{}).AttestPID(t.Context(), child.Process.Pid)
	if e, ok := errors.AsType[*Error](err); !ok || e.Fact != "user" {
		t.Errorf("got error %v, want one about its user", err)
	}
}

func TestProgramChangedOnDiskWhileItRuns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, path string)
		atPath bool // the running file is still at the path
	}{
		{"not at all", func(*testing.T, string) {}, true},
		{"deleted", func(t *testing.T, path string) { must(t, os.Remove(path)) }, false},
		{"deleted, and its name with the mark made anew", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			install(t, program(t, "sleep"), path+" (deleted)", "")
		}, false},
		{"replaced by rename", func(t *testing.T, path string) {
			must(t, os.Rename(install(t, program(t, "sleep"), path+".new", "another"), path))
		}, false},
		{"replaced by a copy of itself", func(t *testing.T, path string) {
			must(t, os.Rename(install(t, path, path+".new", ""), path))
		}, false},
		{"renamed", func(t *testing.T, path string) { must(t, os.Rename(path, path+"2")) }, true},
		{"its directory is a symbolic link by now", func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			must(t, os.Rename(dir, dir+"2"))
			t.Cleanup(func() { os.RemoveAll(dir + "2") })
			must(t, os.Symlink(dir+"2", dir))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := install(t, program(t, "sleep"), filepath.Join(openTempDir(t), "program"), "")
			sum := sha256Of(t, path)
			child := run(t, nil, path, "600")
			waitForProgram(t, child, path)
			a := NewAttester(Options{})
			attestPID(t, a, child.Process.Pid) // fills the cache
			tt.change(t, path)
			at := attestPID(t, a, child.Process.Pid)
			wantOnly(t, at.Selectors, "unix:sha256:", sum)
			if got := len(values(at.Selectors, "unix:path:")); got != 1 && tt.atPath || got != 0 && !tt.atPath {
				t.Errorf("%d path selectors for a program at %q", got, at.Path)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestProgramOverwrittenWhileItRuns: most kernels do not let that happen, and
// where one does the digest is of what is there now.
func TestProgramOverwrittenWhileItRuns(t *testing.T) {
	t.Parallel()
	path := install(t, program(t, "sleep"), filepath.Join(openTempDir(t), "program"), "")
	child := run(t, nil, path, "600")
	waitForProgram(t, child, path)
	a := NewAttester(Options{})
	attestPID(t, a, child.Process.Pid) // fills the cache
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString("evil")
		must(t, errors.Join(err, f.Close()))
	} else if !errors.Is(err, syscall.ETXTBSY) {
		t.Fatal(err)
	}
	at := attestPID(t, a, child.Process.Pid)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, path))
}

// waitForProgram waits until the child runs the program: exec.Cmd.Start
// returns once it is certain to, which the kernel may show a little later.
func waitForProgram(t testing.TB, child *exec.Cmd, path string) {
	t.Helper()
	eventually(t, "the child runs "+path, func() bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", child.Process.Pid))
		return exe == path
	})
}

// TestPathSpoof runs a program that any user can make look like another one's:
// mounted over it, in a mount namespace of their own.
func TestPathSpoof(t *testing.T) {
	t.Parallel()
	needUserNamespaces(t)
	for _, as := range users() {
		t.Run(as.name, func(t *testing.T) {
			t.Parallel()
			decoy := program(t, "cat")
			evil := install(t, program(t, "sleep"), filepath.Join(openTempDir(t), "evil"), "")
			child := run(t, as.credential, "unshare", "-Urm", "--propagation", "private",
				"sh", "-c", `mount --bind "$1" "$2" && exec "$2" 600`, "sh", evil, decoy)
			waitForProgram(t, child, decoy)
			at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
			if at.Path != decoy {
				t.Fatalf("the kernel reports path %q, so the attack did not work: want %q", at.Path, decoy)
			}
			wantOnly(t, at.Selectors, "unix:path:")
			wantOnly(t, at.Selectors, "unix:sha256:") // nothing, rather than the digest of evil
			wantGap(t, at, "user namespace")
		})
	}
}

// TestPIDNamespaceOfTheUsersOwnIsRefused: in it, the user may claim any PID as
// the sender of a message.
func TestPIDNamespaceOfTheUsersOwnIsRefused(t *testing.T) {
	t.Parallel()
	needUserNamespaces(t)
	for _, as := range users() {
		t.Run(as.name, func(t *testing.T) {
			t.Parallel()
			child := run(t, as.credential, "unshare", "-Urpf", "--kill-child", "sleep", "600")
			pid := onlyChild(t, child.Process.Pid)
			var err error
			eventually(t, "the child has finished its exec", func() bool {
				_, err = NewAttester(Options{}).AttestPID(t.Context(), pid)
				return !errors.Is(err, ErrChanged)
			})
			if e, ok := errors.AsType[*Error](err); !ok || e.Fact != "PID namespace" {
				t.Errorf("got error %v, want one about its PID namespace", err)
			}
		})
	}
	t.Run("but one that root has made is not", func(t *testing.T) {
		asRoot(t)
		child := run(t, nil, "unshare", "-pf", "--kill-child", "sleep", "600")
		pid := onlyChild(t, child.Process.Pid)
		attestPID(t, NewAttester(Options{}), pid)
	})
}

// onlyChild waits for the one child of a process and for the program it runs.
func onlyChild(t testing.TB, parent int) (pid int) {
	t.Helper()
	sleep := program(t, "sleep")
	eventually(t, "there is a child", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return exe == sleep
	})
	return pid
}

type asUser struct {
	name       string
	credential *syscall.Credential
}

// users returns the users to run attacks as.
func users() []asUser {
	all := []asUser{{"as the daemon's user", nil}}
	if os.Geteuid() == 0 {
		all = append(all, asUser{"as an ordinary user", nobody})
	}
	return all
}

func needUserNamespaces(t testing.TB) {
	t.Helper()
	if out, err := exec.Command("unshare", "-Urpfm", "true").CombinedOutput(); err != nil {
		t.Skipf("no user namespaces here: %s", out)
	}
}

func TestKernelThreadIsRefused(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("/proc/2/comm")
	if err != nil || string(b) != "kthreadd\n" {
		t.Skip("process 2 is no kernel thread here")
	}
	_, err = NewAttester(Options{}).AttestPID(t.Context(), 2)
	if e, ok := errors.AsType[*Error](err); !ok || e.Fact != "program" || e.PID != 2 {
		t.Errorf("got error %v, want one about the program of process 2", err)
	}
}

func TestAttestPIDOfNoProcess(t *testing.T) {
	t.Parallel()
	a := NewAttester(Options{})
	cmd := exec.Command("true")
	must(t, cmd.Run())
	if _, err := a.AttestPID(t.Context(), cmd.Process.Pid); !errors.Is(err, ErrPeerGone) {
		t.Errorf("a reaped process: got error %v, want %v", err, ErrPeerGone)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if at, err := a.AttestPID(t.Context(), pid); err == nil {
			t.Errorf("PID %d was attested: %v", pid, at)
		}
	}
}

// TestExecDuringAttestation attests a process that does nothing but exec one
// of two programs after the other, for as long as it takes to catch some of
// its execs.
func TestExecDuringAttestation(t *testing.T) {
	t.Parallel()
	dir := openTempDir(t)
	sh := program(t, "sh")
	sums := map[string]string{}
	for _, name := range []string{"a", "b"} {
		path := install(t, sh, filepath.Join(dir, name), name)
		sums[path] = sha256Of(t, path)
	}
	script := filepath.Join(dir, "swap")
	must(t, os.WriteFile(script, []byte(`case $1 in a) exec "$2/b" "$0" b "$2";; *) exec "$2/a" "$0" a "$2";; esac`), 0o644))
	child := run(t, nil, filepath.Join(dir, "a"), script, "a", dir)
	eventually(t, "the child runs one of the two", func() bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", child.Process.Pid))
		return sums[exe] != ""
	})
	p := pin(t, child.Process.Pid)
	a := NewAttester(Options{})
	var attested, changed int
	for end := time.Now().Add(3 * time.Minute); attested < 500 || changed < 100; {
		at, err := a.Attest(t.Context(), p)
		switch {
		case err == nil:
			attested++
			if want := sums[at.Path]; at.SHA256 != want || want == "" {
				t.Fatalf("attested %s with digest %s, want %s; gaps %v", at.Path, at.SHA256, want, at.Gaps)
			}
			wantOnly(t, at.Selectors, "unix:path:", at.Path)
			wantOnly(t, at.Selectors, "unix:sha256:", at.SHA256)
		case errors.Is(err, ErrChanged):
			changed++
		default:
			if _, ok := errors.AsType[*Error](err); !ok { // caught in the middle of an exec
				t.Fatal(err)
			}
		}
		if time.Now().After(end) {
			t.Fatalf("after 3 min: %d attested, %d caught", attested, changed)
		}
	}
}

func TestSelectorsAreWellFormed(t *testing.T) {
	t.Parallel()
	users := users()
	as := users[len(users)-1].credential
	for _, name := range []string{"plain", "with space", "with:colon", "with\nnew line", "with % and é", strings.Repeat("x", 255)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := install(t, program(t, "sleep"), filepath.Join(openTempDir(t), name), "")
			child := run(t, as, path, "600")
			at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
			for _, s := range at.Selectors {
				if parsed, err := attest.ParseSelector(s.String()); err != nil || parsed != s {
					t.Errorf("selector %q reads as %v, %v", s, parsed, err)
				}
			}
		})
	}
}

func TestAttestStopsWithItsContext(t *testing.T) {
	t.Parallel()
	path := install(t, program(t, "sleep"), filepath.Join(openTempDir(t), "large"), strings.Repeat("x", 64<<20))
	child := run(t, nil, path, "600")
	waitForProgram(t, child, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewAttester(Options{}).AttestPID(ctx, child.Process.Pid); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}

func TestWhatNobodyWantsIsLeftOut(t *testing.T) {
	t.Parallel()
	child := run(t, nil, "sleep", "600")
	p := pin(t, child.Process.Pid)
	a := NewAttester(Options{Wants: func(attest.Selectors, attest.Stage) attest.KindSet { return attest.KindsOf("unix:uid:") }})
	at := attestPeer(t, a, p)
	for _, s := range at.Selectors {
		if s.Type == "ns" || s.Type == "parent" || s.Type == "ima" {
			t.Errorf("%s was found out though nobody wants it", s)
		}
	}
	all, err := a.AttestPID(t.Context(), child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if missing := all.Selectors.Missing(at.Selectors); len(missing) > 0 || len(all.Selectors) <= len(at.Selectors) {
		t.Errorf("by PID there are %v, of what is wanted %v", all.Selectors, at.Selectors)
	}
}

// askedManager counts how often it is asked.
type askedManager struct{ asked atomic.Int32 }

func (m *askedManager) Unit(context.Context, string) (*systemd.Unit, error) {
	m.asked.Add(1)
	return nil, systemd.ErrNoUnit
}

// TestProcessThatNoAnchorFitsCostsNothing: it has no file hashed, and has nobody
// asked about it.
func TestProcessThatNoAnchorFitsCostsNothing(t *testing.T) {
	t.Parallel()
	path := install(t, program(t, "sleep"), filepath.Join(openTempDir(t), "program"), "")
	child := run(t, nil, path, "600")
	waitForProgram(t, child, path)
	everyKind := attest.KindsOf("")
	for _, tt := range []struct {
		name   string
		until  attest.Stage // up to here an entry may match
		asked  int32
		hashed uint64
	}{
		{"no entry for the user", attest.Seen, 0, 0},
		{"an entry for the user, but of another unit", attest.Asked, 1, 0},
		{"an entry all of whose anchors hold", attest.Read + 1, 1, 1},
	} {
		m := &askedManager{}
		a := NewAttester(Options{Manager: m, Wants: func(_ attest.Selectors, upTo attest.Stage) attest.KindSet {
			if upTo < tt.until {
				return everyKind &^ attest.KindsOf("parent:")
			}
			return 0
		}})
		a.host.systemd, a.host.root = true, "" // wherever this runs
		at := attestPeer(t, a, pin(t, child.Process.Pid))
		if _, _, ok := a.host.unit(at.Cgroup); !ok {
			tt.asked = 0
		}
		if got := m.asked.Load(); got != tt.asked {
			t.Errorf("%s: systemd was asked %d times, want %d", tt.name, got, tt.asked)
		}
		if got := a.Stats().Hashed; got != tt.hashed {
			t.Errorf("%s: %d files were hashed, want %d", tt.name, got, tt.hashed)
		}
		if (at.SHA256 != "") != (tt.hashed > 0) || len(values(at.Selectors, "unix:uid:")) != 1 {
			t.Errorf("%s: attested %q with %v", tt.name, at.SHA256, at.Selectors)
		}
	}
}
