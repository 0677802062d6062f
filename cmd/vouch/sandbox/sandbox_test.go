package sandbox

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouch/loopback"
)

// expect compares what probes found with what they may find, parts of it.
func expect(t *testing.T, got map[string]string, want map[string]string) {
	t.Helper()
	for what, part := range want {
		if !strings.Contains(got[what], part) || got[what] == "" {
			t.Errorf("%s: %q, want %q", what, got[what], part)
		}
	}
}

// reported checks that an attempt was reported.
func reported(t *testing.T, attempts []Attempt, kind string, targets ...string) {
	t.Helper()
	for _, target := range targets {
		if !slices.ContainsFunc(attempts, func(a Attempt) bool { return a.Kind == kind && a.Target == target && a.Count > 0 }) {
			t.Errorf("%s to %s is not among %+v", kind, target, attempts)
		}
	}
}

func TestNothingIsReachedByAddress(t *testing.T) {
	t.Parallel()
	host, err := net.Listen("tcp", "127.0.0.1:0") // of the host, which the command is not on
	must(t, err)
	defer host.Close()
	local := "tcp=" + host.Addr().String()
	got, attempts := probing(t, "tcp=192.0.2.1:22", "tcp=[2001:db8::1]:8443", "udp=192.0.2.1:5000", "udp=8.8.8.8:53", "udp=127.0.0.53:53", "udp=[2001:db8::2]:53", local)
	for what, came := range got {
		if !strings.Contains(came, "refused") {
			t.Errorf("%s: %s", what, came)
		}
	}
	reported(t, attempts, "tcp", "192.0.2.1:22", "[2001:db8::1]:8443")
	reported(t, attempts, "udp", "192.0.2.1:5000", "8.8.8.8:53", "[2001:db8::2]:53")
}

func TestOtherFamiliesOfSocketsAreRefused(t *testing.T) {
	t.Parallel()
	got, attempts := probing(t,
		"socket=1,1,0", "socket=1,2,0", "socket=40,1,0", "socket=17,3,0", "socket=38,5,0", "socket=16,3,9", "socket=2,3,1", "socket=2,2,1",
		"pair=1", "pair=2", "pair=5", "socket=16,3,0", "socket=16,3,4", "socket=2,1,0", "socket=10,2,0")
	for what, came := range got {
		want := "EAFNOSUPPORT"
		switch what {
		case "socket=2,3,1":
			want = "EPERM" // raw
		case "socket=2,2,1":
			want = "EACCES" // ping
		case "pair=1", "pair=5", "socket=16,3,0", "socket=16,3,4", "socket=2,1,0", "socket=10,2,0":
			want = "succeeded"
		}
		if came != want {
			t.Errorf("%s: %s, want %s", what, came, want)
		}
	}
	reported(t, attempts, "socket", "AF_UNIX", "AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_UNIX pair")
	for _, a := range attempts {
		if a.PID == 0 || a.PID == os.Getpid() {
			t.Errorf("%+v names no process of the sandbox", a)
		}
	}
}

func TestUnixSocketsAreOutOfReachWhereverTheyAre(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	var tries []string
	for _, address := range []string{filepath.Join(dir, "agent.sock"), fmt.Sprintf("@vouch-sandbox-%d", os.Getpid())} {
		l, err := net.Listen("unix", address)
		must(t, err)
		defer l.Close()
		tries = append(tries, "unix="+address)
	}
	_, out, _ := do(t, Options{Dir: dir}, append([]string{"./probe", "probe"}, tries...)...)
	if strings.Count(out, "address family not supported") != len(tries) {
		t.Error(out)
	}
}

func TestPlacesOfSocketsAreHidden(t *testing.T) {
	t.Parallel()
	got, _ := probing(t, "list=/run", "list=/var/tmp", "list=/dev/shm", "list=/dev/pts", "list=/dev", "read=/etc/resolv.conf")
	expect(t, got, map[string]string{
		"list=/dev":             "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero",
		"list=/dev/pts":         "ptmx",
		"read=/etc/resolv.conf": `"nameserver 127.0.0.1\n"`,
	})
	for _, empty := range []string{"list=/var/tmp", "list=/dev/shm"} {
		if got[empty] != "" {
			t.Errorf("%s: %s", empty, got[empty])
		}
	}
	if run := got["list=/run"]; run != "" && run != "vouch" {
		t.Errorf("/run has %s", run)
	}
}

func TestOtherWaysToMakeSocketsAndNamespacesAreRefused(t *testing.T) {
	t.Parallel()
	tries := []string{"ring", "clone3", "setns=/proc/self/ns/net", "setns=/proc/1/ns/net",
		fmt.Sprint("unshare=", unix.CLONE_NEWUSER), fmt.Sprint("clone=", unix.CLONE_NEWUSER), fmt.Sprint("unshare=", unix.CLONE_NEWNET),
		"umount=/run", "umount=/tmp", "umount=/proc", "umount=/etc/resolv.conf", "mount=/mnt", "listener", "keys", "capabilities", "kill=1", "ptrace=1", "read=/proc/1/environ"}
	want := map[string]string{
		"ring": "ENOSYS", "clone3": "ENOSYS", "listener": "EBUSY", "keys": "EPERM", "kill=1": "", "ptrace=1": "EPERM", "read=/proc/1/environ": "EACCES",
		"setns=/proc/self/ns/net": "EPERM", "setns=/proc/1/ns/net": "EACCES",
		"capabilities": "CapAmb:0000000000000000 CapBnd:0000000000000000 CapEff:0000000000000000 CapInh:0000000000000000 CapPrm:0000000000000000 NoNewPrivs:1",
	}
	got, _ := probing(t, tries...)
	for _, what := range tries {
		if part, ok := want[what]; ok && !strings.Contains(got[what], part) || !ok && got[what] != "EPERM" {
			t.Errorf("%s: %q", what, got[what])
		}
	}
}

func TestTheOtherCallsOfAmd64AreRefused(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		return // there are none
	}
	got, _ := probing(t, "int80", "x32")
	expect(t, got, map[string]string{"int80": "ENOSYS", "x32": "ENOSYS"})
}

func TestOtherProcessesAreNotSeen(t *testing.T) {
	t.Parallel()
	sibling := exec.Command("sleep", "600")
	sibling.Env = []string{"KEY=canary"}
	must(t, sibling.Start())
	defer sibling.Wait()
	defer sibling.Process.Kill()
	pid := sibling.Process.Pid
	got, _ := probing(t, "list=/proc", fmt.Sprintf("read=/proc/%d/environ", pid), fmt.Sprintf("list=/proc/%d/fd", pid), fmt.Sprint("kill=", pid), fmt.Sprint("ptrace=", pid))
	if !strings.HasPrefix(got["list=/proc"], "1 ") {
		t.Errorf("/proc has %s", got["list=/proc"])
	}
	for what, came := range got {
		if what != "list=/proc" && !strings.Contains(came, "no such file") && came != "ENOENT" && came != "ESRCH" {
			t.Errorf("%s: %s", what, came)
		}
	}
}

// TestTheKernelsSettingsCannotBeWritten: root of the host is root's user in the sandbox.
func TestTheKernelsSettingsCannotBeWritten(t *testing.T) {
	t.Parallel()
	got, _ := probing(t, "write=/proc/sys/kernel/core_pattern", "write=/proc/sysrq-trigger", "write=/sys/kernel/uevent_helper", "write=/dev/null", "write=/tmp/mine")
	for what, came := range got {
		if private := what == "write=/dev/null" || what == "write=/tmp/mine"; private != (came == "succeeded") {
			t.Errorf("%s: %s", what, came)
		}
	}
}

func TestNoDescriptorIsKept(t *testing.T) {
	t.Parallel()
	f, err := os.Open("/")
	must(t, err)
	defer f.Close()
	kept, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 50) // not closed on exec
	must(t, err)
	defer unix.Close(kept)
	got, _ := probing(t, "descriptors")
	if got["descriptors"] != "0 1 2" {
		t.Errorf("open: %s", got["descriptors"])
	}
}

func TestAStreamThatLeadsOutIsRefused(t *testing.T) {
	t.Parallel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer udp.Close()
	udpFile, err := udp.(*net.UDPConn).File()
	must(t, err)
	dir, err := os.Open("/run")
	must(t, err)
	for _, in := range []*os.File{os.NewFile(uintptr(pair[0]), ""), os.NewFile(uintptr(pair[1]), ""), udpFile, dir} {
		if s, err := Start(t.Context(), Options{Command: []string{"true"}, Stdin: in}); err == nil {
			s.Close()
			t.Errorf("%s was taken", in.Name())
		}
		in.Close()
	}
}

func TestWhatTheCommandDialsReachesTheListeners(t *testing.T) {
	t.Parallel()
	r := begin(t, Options{Command: []string{"./probe", "probe", "tcp=192.0.2.7:443", "tcp=[2001:db8::7]:443", "tcp=192.0.2.8:80"}})
	var heard []net.Listener
	heard = append(append(heard, r.TLS...), r.HTTP...)
	dialed := make(chan string, 10)
	for _, l := range heard {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				dialed <- c.LocalAddr().String()
				io.Copy(io.Discard, c)
				c.Close()
			}
		}()
	}
	must(t, r.Release(environment))
	_, out, attempts := r.end(t)
	if strings.Count(out, ": connected") != 3 {
		t.Error(out)
	}
	got := []string{<-dialed, <-dialed, <-dialed}
	slices.Sort(got)
	if want := []string{"192.0.2.7:443", "192.0.2.8:80", "[2001:db8::7]:443"}; !slices.Equal(got, want) {
		t.Errorf("dialed %q, want %q", got, want)
	}
	if len(attempts) > 0 {
		t.Errorf("reported as attempts: %+v", attempts)
	}
}

func TestTheProcessBehindAConnectionIsFound(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"127.0.0.1:80", "192.0.2.1:80", "[2001:db8::1]:80", "[::1]:80"} {
		r := begin(t, Options{Command: []string{"./probe", "probe", "hold=" + to}})
		finder := loopback.Finder{Diag: r.Diag}
		must(t, r.Release(environment))
		l := r.HTTP[0]
		if strings.Contains(to, "[") {
			l = r.HTTP[1]
		}
		c, err := l.Accept()
		must(t, err)
		uid, pids, err := finder.Find(c)
		if err != nil || uid != uint32(os.Geteuid()) || len(pids) != 1 {
			t.Fatalf("%s: user %d, processes %d (%v)", to, uid, pids, err)
		}
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[0])); !strings.HasPrefix(string(name), "./probe\x00") {
			t.Errorf("%s: process %d is %q (%v)", to, pids[0], name, err)
		}
		c.Close()
		r.end(t)
	}
}

func TestOnlyTheGivenDirectoriesAreWritten(t *testing.T) {
	t.Parallel()
	if landlockVersion() == 0 {
		if s, err := Start(t.Context(), Options{Command: []string{"true"}, Write: []string{}}); err == nil {
			s.Close()
			t.Error("without Landlock it starts")
		} else if !strings.Contains(err.Error(), "Landlock") {
			t.Error(err)
		}
		return
	}
	dir := directory(t)
	must(t, os.Mkdir(filepath.Join(dir, "mine"), 0o755))
	_, out, _ := do(t, Options{Dir: dir, Write: []string{filepath.Join(dir, "mine")}}, "./probe", "probe",
		"write="+dir+"/mine/a", "write=/tmp/b", "write=/dev/null", "write="+dir+"/c", "write=/etc/passwd")
	if strings.Count(out, "succeeded") != 3 || strings.Count(out, "EACCES") != 1 || strings.Count(out, "EROFS") != 1 {
		t.Error(out)
	}
}

func TestRootsOfTheSandboxStandInPlaceOfTheSystems(t *testing.T) {
	t.Parallel()
	_, out, _ := do(t, Options{Bundle: []byte("roots")}, "sh", "-c", "cat "+BundlePath+" && for f in "+strings.Join(bundles, " ")+`; do test ! -e $f || cat $f; done`)
	if strings.ReplaceAll(out, "roots", "") != "" || out == "" {
		t.Errorf("%.100q", out)
	}
}

func TestExitCodesAndSignalsAreTheCommands(t *testing.T) {
	t.Parallel()
	if status, _, _ := do(t, Options{}, "sh", "-c", "exit 42"); status.ExitStatus() != 42 {
		t.Errorf("status %#x", status)
	}
	if status, _, _ := do(t, Options{}, "sh", "-c", "kill -SEGV $$"); status.Signal() != syscall.SIGSEGV {
		t.Errorf("status %#x", status)
	}
	if status, out, _ := do(t, Options{}, "no-such-command"); status.ExitStatus() != 127 || !strings.Contains(out, "no-such-command") {
		t.Errorf("status %#x: %s", status, out)
	}
	outR, outW, err := os.Pipe()
	must(t, err)
	defer outR.Close()
	r := begin(t, Options{Command: []string{"sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do read x || exit 9; done"}, Stdout: outW})
	outW.Close()
	must(t, r.Release(environment))
	_, err = io.ReadFull(outR, make([]byte, len("ready\n")))
	must(t, err)
	must(t, r.Signal(syscall.SIGTERM))
	if status, _, _ := r.end(t); status.ExitStatus() != 3 {
		t.Errorf("status %#x", status)
	}
}

func TestAThousandProcessesLeaveNoZombie(t *testing.T) {
	t.Parallel()
	out := sh(t, `i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done
		n=0; while grep -l "^State:.Z" /proc/[0-9]*/status 2>/dev/null; do n=$((n+1)); [ $n -lt 1000 ] || exit 1; done; echo none`)
	if !strings.HasSuffix(out, "none\n") {
		t.Error(out)
	}
}

func TestAllEndsWithTheCommandAndWithClose(t *testing.T) {
	t.Parallel()
	_, out, _ := do(t, Options{}, "sh", "-c", "sleep 600 & echo started") // the pipe ends, so nobody has it any more
	if out != "started\n" {
		t.Error(out)
	}
	r := begin(t, Options{Command: []string{"sh", "-c", "sleep 600 & sleep 600"}})
	must(t, r.Release(environment))
	must(t, r.Close())
	<-r.out
	if _, err := r.Wait(); err == nil {
		t.Error("Wait has a status for what was killed")
	}
}

func TestProgramsWorkAsTheyDoOutside(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, script, want string }{
		{"cat", "cat", ""},
		{"git", "git init -q . && git config user.email a@b.c && git config user.name a && echo x >f && git add f && git commit -qm x && git log --format=%s", "x\n"},
		{"node", "node -e 'console.log(1+1)'", "2\n"},
		{"bash", "bash -c 'echo a | (cat; echo b) | sort -r'", "b\na\n"},
		{"rename", "mkdir a b && echo x >a/f && mv a/f b/g && cat b/g", "x\n"}, // Landlock has a right of its own for that
		{"id", "id -u", fmt.Sprintln(os.Getuid())},
		{"signals", "kill -0 $$ && sleep 0.01 & wait $! && echo done", "done\n"},
		{"python", `python3 -c 'import multiprocessing as m, socket; socket.socketpair(); p=m.Pool(2); print(p.map(abs, [-1,2]))'`, "[1, 2]\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out := sh(t, tt.script); out != tt.want {
				t.Errorf("%s: %q", tt.script, out)
			}
		})
	}
}

// inUnit is how a process of a unit with PrivateNetwork=yes is started.
func inUnit() *syscall.SysProcAttr {
	capabilities := []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE}
	if os.Geteuid() == 0 {
		return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: capabilities}
	}
	same := []syscall.SysProcIDMap{{ContainerID: nobody, HostID: nobody, Size: 1}}
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: same, GidMappings: same, AmbientCaps: capabilities}
}

func TestAUnitsOwnNetworkIsMadeSuchANetwork(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	cmd := exec.Command(filepath.Join(dir, "probe"), "drive", "./probe", "probe",
		"tcp=192.0.2.1:22", "socket=1,1,0", "capabilities", "descriptors", fmt.Sprint("unshare=", unix.CLONE_NEWUSER), "tcp=127.0.0.1:53")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = dir, environment, inUnit()
	out, err := cmd.CombinedOutput()
	must(t, err)
	for _, want := range []string{
		"tcp=192.0.2.1:22: dial tcp 192.0.2.1:22: connect: connection refused", "socket=1,1,0: EAFNOSUPPORT", "descriptors: 0 1 2", "=268435456: EPERM", "53: connected",
		"CapAmb:0000000000000000 CapBnd:", "CapEff:0000000000000000 CapInh:0000000000000000 CapPrm:0000000000000000 NoNewPrivs:1",
		"attempt socket AF_UNIX", "attempt tcp 192.0.2.1:22",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestTheHostsNetworkIsLeftAlone(t *testing.T) {
	t.Parallel()
	if alone() == nil {
		return // a container, which has a network of its own
	}
	if s, err := here(Options{Command: []string{"true"}}); err == nil {
		s.Close()
		t.Error("it was taken")
	} else if !strings.Contains(err.Error(), "PrivateNetwork=yes") {
		t.Error(err)
	}
}

// TestWhereAContainerMasksProcOthersStayOutOfReach has a file of /proc covered, as containers have.
func TestWhereAContainerMasksProcOthersStayOutOfReach(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // to cover it takes root; who looks then is one as well
	}
	sibling := exec.Command("sleep", "600")
	sibling.Env = []string{"KEY=canary"}
	must(t, sibling.Start())
	defer sibling.Wait()
	defer sibling.Process.Kill()
	pid := sibling.Process.Pid
	dir := directory(t)
	script := fmt.Sprintf("mount --bind /dev/null /proc/cpuinfo && exec ./probe drive ./probe probe read=/proc/%d/environ read=/proc/%d/fd/0 kill=%d read=/proc/self/status write=/proc/sys/kernel/core_pattern", pid, pid, pid)
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script)
	cmd.Dir, cmd.Env = dir, environment
	out, err := cmd.CombinedOutput()
	if landlockVersion() == 0 {
		if err == nil && !strings.Contains(string(out), "/environ: ENOENT") || err != nil && !strings.Contains(string(out), "Landlock") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	must(t, err)
	refused := "EACCES"
	if strings.Contains(string(out), "/environ: ENOENT") {
		refused = "ENOENT" // there is another one that nobody has covered, so it is fresh
	}
	for _, want := range []string{"/environ: " + refused, "/fd/0: " + refused, fmt.Sprintf("kill=%d: ESRCH", pid), "self/status: \"Name", "core_pattern: EROFS"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

// TestWhereSystemCallsAreSupervisedAlreadySocketsAreRefusedAllTheSame: of a chain of filters one
// alone can have a listener.
func TestWhereSystemCallsAreSupervisedAlreadySocketsAreRefusedAllTheSame(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	cmd := exec.Command(filepath.Join(dir, "probe"), "supervised", "./probe", "probe", "socket=1,1,0", "socket=2,1,0", "pair=2")
	cmd.Dir, cmd.Env = dir, environment
	out, err := cmd.CombinedOutput()
	must(t, err)
	for _, want := range []string{"socket=1,1,0: EAFNOSUPPORT", "socket=2,1,0: succeeded", "pair=2: EAFNOSUPPORT"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestCheckFindsThatItWorks(t *testing.T) {
	t.Parallel()
	must(t, Check(t.Context()))
}

// TestWhatForbidsNamespacesIsSaid: in a user namespace that allows no further ones.
func TestWhatForbidsNamespacesIsSaid(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	cmd := exec.Command("unshare", "--user", "--map-root-user", "sh", "-c", "echo 0 >/proc/sys/user/max_user_namespaces && exec ./probe drive true")
	cmd.Dir, cmd.Env = dir, environment
	out, _ := cmd.CombinedOutput()
	if strings.Contains(string(out), "cannot create") {
		return // in a container, which has its settings read-only
	}
	if !strings.Contains(string(out), "making namespaces") || !strings.Contains(string(out), "no space left on device; see vouch doctor") {
		t.Errorf("%s", out)
	}
}

func TestWithoutAnyEnvironmentNothingElseIsReached(t *testing.T) {
	t.Parallel()
	r := begin(t, Options{Command: []string{"./probe", "probe", "tcp=192.0.2.1:22", "socket=1,1,0", "capabilities"}})
	must(t, r.Release(nil))
	if _, out, _ := r.end(t); !strings.Contains(out, "connection refused") || !strings.Contains(out, "socket=1,1,0: EAFNOSUPPORT") || !strings.Contains(out, "CapEff:0000000000000000") {
		t.Error(out)
	}
}

func TestIgnoredSignalsStayIgnoredAndOthersDoNot(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec ./probe drive sh -c 'kill -HUP $$; echo survived; kill -PIPE $$; echo not'`)
	cmd.Dir, cmd.Env = dir, environment
	out, _ := cmd.CombinedOutput()
	if string(out) != "survived\n" || cmd.ProcessState.ExitCode() != 128+int(syscall.SIGPIPE) {
		t.Errorf("exit code %d: %s", cmd.ProcessState.ExitCode(), out)
	}
}
