package process

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process/cgroup"
	"github.com/vouchd/vouchd/systemd"
)

// The attacks of this file are on what a program is. They run as an ordinary user
// who may be anybody, also the user whom an entry names.

// actor is a program that does what a user can with their own processes, as its
// first argument says, and then waits.
const actor = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/prctl.h>
#include <unistd.h>

static void say(const char *s) { write(1, s, strlen(s)); }
static char **own;

// stay does as it is told by a letter, and says when it has.
static void stay(void) {
	char b;
	say("ready\n");
	while (read(0, &b, 1) == 1) {
		if (b == 'm' && unshare(CLONE_NEWNS)) exit(4);
		if (b == 'u' && unshare(CLONE_NEWUSER)) exit(4);
		if (b == 'e') execl(own[0], own[0], "stay", (char *)0);
		say("ready\n");
	}
	for (;;) pause();
}
static int die(const char *s) { say("cannot: "); say(s); say("\n"); _exit(3); }

static void put(const char *file, const char *s) {
	int d = open(file, O_WRONLY);
	if (d < 0 || write(d, s, strlen(s)) < 0) die(file);
	close(d);
}

static char self[4096];
static struct { unsigned long a, e; int prot; } maps[64];

// detach copies what runs to memory that no file backs.
static void detach(void) {
	int n = 0, k = readlink("/proc/self/exe", self, sizeof self - 1);
	self[k] = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	char l[8192];
	while (fgets(l, sizeof l, f)) {
		char p[5];
		if (strstr(l, self) && sscanf(l, "%lx-%lx %4s", &maps[n].a, &maps[n].e, p) == 3) {
			maps[n].prot = (p[0] == 'r' ? 1 : 0) | (p[1] == 'w' ? 2 : 0) | (p[2] == 'x' ? 4 : 0);
			n++;
		}
	}
	fclose(f);
	for (int i = 0; i < n; i++) {
		size_t z = maps[i].e - maps[i].a;
		void *t = mmap(0, z, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memcpy(t, (void *)maps[i].a, z);
		mprotect(t, z, maps[i].prot);
		if (mremap(t, z, z, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)maps[i].a) == MAP_FAILED) die("mremap");
	}
}

// show has the process show another program.
static int show(const char *program) {
	char st[4096];
	int d = open("/proc/self/stat", O_RDONLY), k = read(d, st, sizeof st - 1), i = 2;
	close(d);
	st[k] = 0;
	unsigned long F[60] = {0};
	char *q = strrchr(st, ')') + 1;
	for (q = strtok(q, " "); q; q = strtok(0, " ")) if (++i < 60) F[i] = strtoul(q, 0, 10);
	struct prctl_mm_map mm = {.start_code = F[26], .end_code = F[27], .start_data = F[45], .end_data = F[46], .start_brk = F[47],
		.brk = (unsigned long)sbrk(0), .start_stack = F[28], .arg_start = F[48], .arg_end = F[49], .env_start = F[50], .env_end = F[51],
		.exe_fd = open(program, O_RDONLY)};
	return prctl(PR_SET_MM, PR_SET_MM_MAP, &mm, sizeof mm, 0);
}

static char stack[1 << 16];
static const char *program;
static int sibling(void *unused) { return show(program) ? 1 : 0; }

int main(int c, char **v) {
	own = v;
	program = v[2];
	if (!strcmp(v[1], "show-in-namespace")) {
		char b[100];
		int u = getuid();
		if (unshare(CLONE_NEWUSER)) die("unshare");
		put("/proc/self/setgroups", "deny");
		sprintf(b, "%d %d 1", u, u);
		put("/proc/self/uid_map", b);
		detach();
		if (show(program)) die("PR_SET_MM_MAP");
		stay();
	}
	if (!strcmp(v[1], "show-by-sibling")) { // which shares the memory, and has exited since
		detach();
		int status, pid = clone(sibling, stack + sizeof stack, CLONE_VM | CLONE_NEWUSER | SIGCHLD, 0);
		if (pid < 0) die("clone");
		if (waitpid(pid, &status, 0) != pid || status) die("PR_SET_MM_MAP");
		stay();
	}
	if (!strcmp(v[1], "memory")) {
		int fd = syscall(SYS_memfd_create, "program", 0);
		char b[1 << 16];
		int in = open(program, O_RDONLY), k;
		while ((k = read(in, b, sizeof b)) > 0) if (write(fd, b, k) != k) die("write");
		char *argv[] = {(char *)program, "stay", 0, 0};
		fexecve(fd, argv, environ);
		die("fexecve");
	}
	stay();
}
`

// compiledActor is for machines without a compiler: where the program was compiled
// to elsewhere.
var compiledActor = flag.String("actor", "", "use the compiled actor in this `file`; \"helper:actor\" as the first argument prints its source")

func helperActor([]string) error {
	_, err := os.Stdout.WriteString(actor)
	return err
}

// newActor returns the program, for every user to run. Root's is where set-user-ID
// bits count.
func newActor(t testing.TB) string {
	t.Helper()
	dir := openTempDir(t)
	if os.Geteuid() == 0 {
		dir = rootsTempDir(t)
	}
	path := dir + "/actor"
	if *compiledActor != "" {
		return install(t, *compiledActor, path, "")
	}
	cmd := exec.Command("gcc", "-O1", "-static", "-w", "-x", "c", "-o", path, "-")
	cmd.Stdin = strings.NewReader(actor)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s (or give a compiled one with -actor)", err, out)
	}
	return path
}

// act starts a command, and waits until its actor says that it is ready.
func act(t testing.TB, as *syscall.Credential, name string, args ...string) (pid int) {
	t.Helper()
	pid, _ = actAndTell(t, as, name, args...)
	return pid
}

// actAndTell is act with a way to tell the actor what to do.
func actAndTell(t testing.TB, as *syscall.Credential, name string, args ...string) (pid int, tell func(what string)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	must(t, err)
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	b := make([]byte, 200)
	n, err := out.Read(b)
	switch said := string(b[:n]); {
	case strings.HasPrefix(said, "cannot: "):
		t.Skipf("not on this machine: %s", said)
	case said != "ready\n":
		t.Fatalf("the actor said %q, %v", said, err)
	}
	return cmd.Process.Pid, func(what string) {
		t.Helper()
		if _, err := in.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(b); string(b[:n]) != "ready\n" {
			t.Fatalf("told %q, the actor said %q, %v", what, b[:n], err)
		}
	}
}

// wantNoProgram wants an attestation that says nothing of the program, and why.
func wantNoProgram(t testing.TB, at *Attested, why string) {
	t.Helper()
	if at.SHA256 != "" {
		t.Errorf("the record would have digest %s", at.SHA256)
	}
	for _, kind := range []string{"unix:sha256:", "unix:path:", "unix:fsverity:", "ima:"} {
		wantOnly(t, at.Selectors, kind)
	}
	wantGap(t, at, why)
}

func TestProgramThatAProcessShowsAndDoesNotRun(t *testing.T) {
	t.Parallel()
	needUserNamespaces(t)
	me := newActor(t)
	trusted := install(t, program(t, "cat"), filepath.Join(openTempDir(t), "trusted"), "")
	for _, as := range users() {
		for how, why := range map[string]string{
			"show-in-namespace": "user namespace that a user has made",
			"show-by-sibling":   "does not run the file that it shows",
		} {
			t.Run(how+" "+as.name, func(t *testing.T) {
				if as.credential == nil && os.Geteuid() == 0 {
					why = strings.Replace(why, "user namespace that a user has made", "user namespace of its own with capabilities", 1)
				}
				pid := act(t, as.credential, me, how, trusted)
				if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); exe != trusted {
					t.Fatalf("the process shows %q, %v: the attack did not work", exe, err)
				}
				wantNoProgram(t, attestPID(t, NewAttester(Options{}), pid), why)
			})
		}
	}
}

// TestUsersOfAUserNamespace: whoever makes one takes on what they like in it.
func TestUsersOfAUserNamespace(t *testing.T) {
	t.Parallel()
	asRoot(t)
	needUserNamespaces(t)
	child := run(t, nobody, "unshare", "-Ur", "sleep", "600")
	waitForProgram(t, child, program(t, "sleep"))
	at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
	for _, kind := range []string{"unix:uid:", "unix:user:", "unix:gid:", "unix:group:", "unix:supplementary_gid:"} {
		wantOnly(t, at.Selectors, kind)
	}
	wantNoProgram(t, at, "user namespace that a user has made")
}

// TestUserNamespaceThatRootHasMade, as a unit with PrivateUsers= has it, and
// given up all capabilities in, is as good as the host's.
func TestUserNamespaceThatRootHasMade(t *testing.T) {
	t.Parallel()
	asRoot(t)
	needUserNamespaces(t)
	child := exec.CommandContext(t.Context(), "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "sleep", "600")
	all := []syscall.SysProcIDMap{{Size: 65536}}
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
	must(t, child.Start())
	t.Cleanup(func() {
		child.Process.Kill()
		child.Wait()
	})
	sleep := program(t, "sleep")
	waitForProgram(t, child, sleep)
	at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
	wantOnly(t, at.Selectors, "unix:uid:", "65534")
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, sleep))
}

// TestProgramOnAFileSystemOfAUsers runs trusted bytes from where the user can
// change them below.
func TestProgramOnAFileSystemOfAUsers(t *testing.T) {
	t.Parallel()
	needUserNamespaces(t)
	me := newActor(t)
	for how, script := range map[string]string{
		"tmpfs":   `mount -t tmpfs none m && cp "$1" m/p && exec m/p stay`,
		"overlay": `mkdir l u w; cp "$1" u/p; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w,userxattr m || { echo cannot: overlay; exit; }; exec m/p stay`,
		"two overlays": `mkdir l u w l2 u2 w2 m2; cp "$1" u/p; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w,userxattr m || { echo cannot: overlay; exit; }
			mount -t overlay o -o lowerdir=m,userxattr m2 2>/dev/null || mount -t overlay o -o lowerdir=m:l2,userxattr m2 || { echo cannot: overlay; exit; }; exec m2/p stay`,
	} {
		t.Run(how, func(t *testing.T) {
			dir := openTempDir(t)
			as := users()[len(users())-1].credential
			if as != nil {
				must(t, os.Chown(dir, int(as.Uid), int(as.Gid)))
			}
			pid := act(t, as, "unshare", "-Urm", "sh", "-c", `cd "$2" && mkdir m && { `+script+`; }`, "sh", me, dir)
			at := attestPID(t, NewAttester(Options{}), pid)
			if !strings.HasSuffix(at.Path, "/p") {
				t.Fatalf("it runs %s", at.Path)
			}
			wantNoProgram(t, at, "user namespace that a user has made")
		})
	}
	// From the host's namespaces the user reaches it through another's /proc.
	t.Run("through /proc", func(t *testing.T) {
		dir := openTempDir(t)
		as := users()[len(users())-1].credential
		if as != nil {
			must(t, os.Chown(dir, int(as.Uid), int(as.Gid)))
		}
		helper := act(t, as, "unshare", "-Urm", "sh", "-c", `cd "$2" && mkdir m l u w && cp "$1" u/p &&
			mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w,userxattr m || { echo cannot: overlay; exit; }; exec "$1" stay`, "sh", me, dir)
		pid := act(t, as, fmt.Sprintf("/proc/%d/root%s/m/p", helper, dir), "stay")
		wantNoProgram(t, attestPID(t, NewAttester(Options{}), pid), "on no file system that the host")
	})
}

// TestRootMountsInANamespaceOfItsOwn: what PID 1 does not have is not the host's,
// and the same file system seen from another mount namespace is.
func TestRootMountsInANamespaceOfItsOwn(t *testing.T) {
	t.Parallel()
	asRoot(t)
	me := newActor(t)
	dir := openTempDir(t)
	must(t, os.Mkdir(dir+"/m", 0o755))
	pid := act(t, nil, "unshare", "-m", "sh", "-c", `mount -t tmpfs none "$2/m" && cp "$1" "$2/m/p" && exec "$2/m/p" stay`, "sh", me, dir)
	wantNoProgram(t, attestPID(t, NewAttester(Options{}), pid), "that the host has not mounted")

	pid = act(t, nil, "unshare", "-m", "sh", "-c", `mount --bind "${1%/*}" "$2/m" && exec "$2/m/actor" stay`, "sh", me, dir)
	at := attestPID(t, NewAttester(Options{}), pid)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, me))
}

// TestHostsOverlay: a container's root file system is an overlay that the host
// has mounted, of layers that root alone can write to.
func TestHostsOverlay(t *testing.T) {
	asRoot(t)
	me := newActor(t)
	for _, tt := range []struct {
		name  string
		mode  os.FileMode // of the layer
		wants string      // gap, "" for none
	}{
		{"of root's layers", 0o755, ""},
		{"of a layer that users can write to", 0o777, "to which users can write"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := rootsTempDir(t)
			for _, sub := range []string{"l", "u", "w", "m"} {
				must(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
			}
			install(t, me, dir+"/u/p", "")
			must(t, os.Chmod(dir+"/u", tt.mode))
			if err := unix.Mount("overlay", dir+"/m", "overlay", 0, fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", dir, dir, dir)); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() {
				eventually(t, "nothing runs from there", func() bool { return unix.Unmount(dir+"/m", 0) == nil })
			})
			if b, err := os.ReadFile("/proc/1/mountinfo"); err != nil || !strings.Contains(string(b), dir+"/m ") {
				t.Skip("this is not the mount namespace of PID 1")
			}
			at := attestPID(t, NewAttester(Options{}), act(t, nil, dir+"/m/p", "stay"))
			if tt.wants != "" {
				wantNoProgram(t, at, tt.wants)
				return
			}
			wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, me))
		})
	}
}

func TestProgramInMemory(t *testing.T) {
	t.Parallel()
	me := newActor(t)
	for _, as := range users() {
		pid := act(t, as.credential, me, "memory", me)
		wantNoProgram(t, attestPID(t, NewAttester(Options{}), pid), "on no file system that the host")
	}
}

// TestDynamicLoaderAsTheProgram: it is what runs, not what it was told to load.
func TestDynamicLoaderAsTheProgram(t *testing.T) {
	t.Parallel()
	loaders, _ := filepath.Glob("/lib64/ld-linux-*.so.*")
	if len(loaders) == 0 {
		t.Skip("no loader where it is looked for")
	}
	loader, err := filepath.EvalSymlinks(loaders[0])
	must(t, err)
	child := run(t, nil, loader, program(t, "sleep"), "600")
	waitForProgram(t, child, loader)
	at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, loader))
	wantOnly(t, at.Selectors, "unix:path:", loader)
}

// TestSetUserIDProgram is who its file says, and runs what its file holds.
func TestSetUserIDProgram(t *testing.T) {
	t.Parallel()
	asRoot(t)
	me := newActor(t)
	must(t, os.Chown(me, 65534, 65534))
	must(t, unix.Chmod(me, 0o4755))
	pid := act(t, &syscall.Credential{Uid: 12345, Gid: 12345}, me, "stay")
	at := attestPID(t, NewAttester(Options{}), pid)
	wantOnly(t, at.Selectors, "unix:uid:", "65534")
	wantOnly(t, at.Selectors, "unix:gid:", "12345")
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, me))
}

// TestInterpreterOfForeignBinaries: of what binfmt_misc starts, the program is
// the interpreter.
func TestInterpreterOfForeignBinaries(t *testing.T) {
	asRoot(t)
	const dir = "/proc/sys/fs/binfmt_misc"
	if _, err := os.Stat(dir + "/register"); err != nil {
		if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, 0) })
	}
	me := newActor(t)
	name := "vouchd-test-" + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(dir+"/register", []byte(":"+name+":M::vouchd-test-magic::"+me+":"), 0); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.WriteFile(dir+"/"+name, []byte("-1"), 0) })
	script := install(t, os.DevNull, filepath.Join(openTempDir(t), "foreign"), "vouchd-test-magic\n")
	at := attestPID(t, NewAttester(Options{}), act(t, nil, script, "stay"))
	wantOnly(t, at.Selectors, "unix:path:", me)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, me))
}

func TestUnchangedSeesAnExec(t *testing.T) {
	t.Parallel()
	for _, as := range users() {
		t.Run(as.name, func(t *testing.T) {
			w := connect(t, func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as.credential} })
			a := NewAttester(Options{})
			at := attestPeer(t, a, w.peer)
			for range 3 {
				must(t, a.Unchanged(w.peer, at))
			}
			w.tell("exec " + program(t, "sleep"))
			if err := a.Unchanged(w.peer, at); !errors.Is(err, ErrChanged) {
				t.Errorf("after an exec of another program: got error %v, want %v", err, ErrChanged)
			}
			w.Process.Kill()
			w.Wait()
			if err := a.Unchanged(w.peer, at); !errors.Is(err, ErrPeerGone) {
				t.Errorf("after its end: got error %v, want %v", err, ErrPeerGone)
			}
		})
	}
}

func TestUnchangedSeesWhatElseChanges(t *testing.T) {
	t.Parallel()
	me := newActor(t)
	for name, tt := range map[string]struct {
		what      string
		needsRoot bool
	}{
		"the same program, started again": {"e", false}, // another may have run in between
		"another mount namespace":         {"m", true},
		"another user namespace":          {"u", false},
		"another control group":           {"", true},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.needsRoot {
				asRoot(t)
			} else if tt.what == "u" {
				needUserNamespaces(t)
			}
			pid, tell := actAndTell(t, nil, me, "stay")
			p, a := pin(t, pid), NewAttester(Options{})
			at := attestPeer(t, a, p)
			must(t, a.Unchanged(p, at))
			if tt.what == "" {
				move(t, pid, a.host.hierarchy)
			} else {
				tell(tt.what)
			}
			if err := a.Unchanged(p, at); !errors.Is(err, ErrChanged) {
				t.Errorf("got error %v, want %v", err, ErrChanged)
			}
		})
	}
	t.Run("another user", func(t *testing.T) {
		asRoot(t)
		w := connect(t, nil)
		a := NewAttester(Options{})
		at := attestPeer(t, a, w.peer)
		w.tell("setuid 65534")
		if err := a.Unchanged(w.peer, at); !errors.Is(err, ErrChanged) {
			t.Errorf("got error %v, want %v", err, ErrChanged)
		}
	})
}

// move takes the process to a control group of its own.
func move(t testing.TB, pid int, h cgroup.Hierarchy) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if h == cgroup.Named {
		root = "/sys/fs/cgroup/systemd"
	}
	dir := filepath.Join(root, "vouchd-test-"+strconv.Itoa(pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		syscall.Kill(pid, syscall.SIGKILL)
		eventually(t, "the control group is empty", func() bool { return os.Remove(dir) == nil })
	})
	must(t, os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0))
}

// TestUnchangedInEveryWindow has a process exec at each point between an
// attestation and the look after it, told to by a handshake.
func TestUnchangedInEveryWindow(t *testing.T) {
	t.Parallel()
	sleep := program(t, "sleep")
	steps := []string{"attested", "challenged", "answered"}
	for i, window := range steps {
		t.Run("after it was "+window, func(t *testing.T) {
			w := connect(t, nil)
			a := NewAttester(Options{})
			at := attestPeer(t, a, w.peer)
			for j := range steps {
				if j == i {
					w.tell("exec " + sleep)
				} else if j < i {
					w.tell("answer")
				}
			}
			if err := a.Unchanged(w.peer, at); !errors.Is(err, ErrChanged) {
				t.Errorf("got error %v, want %v", err, ErrChanged)
			}
		})
	}
}

func TestAttestedOfAnotherProcessIsRefused(t *testing.T) {
	t.Parallel()
	a := NewAttester(Options{})
	one, two := run(t, nil, "sleep", "600"), run(t, nil, "sleep", "600")
	at := attestPID(t, a, one.Process.Pid)
	if err := a.Unchanged(pin(t, two.Process.Pid), at); err == nil {
		t.Error("another process passes for the one that was attested")
	}
}

func TestMainProcessIsTheOneThatSystemdStarted(t *testing.T) {
	t.Parallel()
	started := time.Now()
	for name, tt := range map[string]struct {
		change func(s *systemd.Service, st *status)
		gap    string // "" for none
		main   bool
	}{
		"as systemd says":                   {func(*systemd.Service, *status) {}, "", true},
		"noted a little late":               {func(s *systemd.Service, _ *status) { s.MainStarted = started.Add(startLate / 2) }, "", true},
		"another process is":                {func(s *systemd.Service, _ *status) { s.MainPID++ }, "", false},
		"there is none":                     {func(s *systemd.Service, _ *status) { s.MainPID = 0 }, "", false},
		"a child that was named as such":    {func(_ *systemd.Service, st *status) { st.parent = 41 }, "child of another process", false},
		"an orphan that was named later":    {func(s *systemd.Service, _ *status) { s.MainStarted = started.Add(time.Hour) }, "has named another", false},
		"started after the main one was":    {func(s *systemd.Service, _ *status) { s.MainStarted = started.Add(-time.Second) }, "has named another", false},
		"every process may name it":         {func(s *systemd.Service, _ *status) { s.NotifyAccess = "all" }, "NotifyAccess=all", false},
		"commands before it may name it":    {func(s *systemd.Service, _ *status) { s.NotifyAccess = "exec" }, "NotifyAccess=exec", false},
		"the service chooses when it forks": {func(s *systemd.Service, _ *status) { s.Type = "forking" }, "type forking", false},
	} {
		service := &systemd.Service{Type: "simple", NotifyAccess: "none", MainPID: 42, MainStarted: started}
		f := &facts{}
		f.status.parent = 1
		tt.change(service, &f.status)
		e := unitEvidence{unit: &systemd.Unit{Service: service}, peer: &Peer{pid: 42}, facts: f, started: started, out: &unitFacts{}}
		e.mainProcess()
		if e.out.main != tt.main {
			t.Errorf("%s: main process is %t, want %t", name, e.out.main, tt.main)
		}
		if gaps := fmt.Sprint(e.out.gaps); tt.gap == "" && len(e.out.gaps) > 0 || !strings.Contains(gaps, tt.gap) {
			t.Errorf("%s: gaps %v, want one that says %q", name, gaps, tt.gap)
		}
	}
}
