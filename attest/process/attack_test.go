package process

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/systemd"
)

func TestTracedProcessIsRefused(t *testing.T) {
	t.Parallel()
	child := run(t, nil, "sleep", "600")
	waitForProgram(t, child, program(t, "sleep"))
	a := NewAttester(Options{})
	attestPID(t, a, child.Process.Pid)
	attached, detach, detached := make(chan error), make(chan bool), make(chan error)
	go func() { // the thread that attaches is the tracer
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		attached <- syscall.PtraceAttach(child.Process.Pid)
		<-detach
		syscall.Wait4(child.Process.Pid, nil, 0, nil)
		detached <- syscall.PtraceDetach(child.Process.Pid)
	}()
	if err := <-attached; err != nil {
		t.Skip(err)
	}
	_, err := a.AttestPID(t.Context(), child.Process.Pid)
	if e, ok := errors.AsType[*Error](err); !ok || e.Fact != "tracer" {
		t.Errorf("got error %v, want one about its tracer", err)
	}
	close(detach)
	must(t, <-detached)
	attestPID(t, a, child.Process.Pid)
}

// contained has a workload connect from namespaces of its own, in which the
// daemon's socket is mounted elsewhere.
func contained(as *syscall.Credential, flags string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		self, socket := cmd.Path, cmd.Args[2]
		cmd.Path = "/usr/bin/unshare"
		cmd.Args = []string{"unshare", flags, "--propagation", "private", "--kill-child", "sh", "-c", `
			mount -t tmpfs none /mnt && mkdir /mnt/run && mount --bind "$2" /mnt/run && exec "$1" helper:connect /mnt/run/s`,
			"sh", self, filepath.Dir(socket)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
}

func TestPeerInAContainer(t *testing.T) {
	t.Parallel()
	asRoot(t)
	w := connect(t, contained(nil, "-pfmn"))
	if w.peer.PID() == w.Process.Pid {
		t.Fatal("the peer is not in the container")
	}
	a := NewAttester(Options{})
	for i, kind := range namespaceKinds { // PID 1 may not be readable here
		var err error
		a.host.namespaces[i], err = namespace(unix.AT_FDCWD, "/proc/self/ns/"+kind)
		must(t, err)
	}
	at := attestPeer(t, a, w.peer)
	exe, err := os.Executable()
	must(t, err)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, exe))
	wantOnly(t, at.Selectors, "ns:", "mnt:private", "net:private", "pid:private", "user:host", "ipc:host")
	wantOnly(t, at.Selectors, "container:", "runtime:unknown")
}

func TestPeerInARootlessContainerIsRefused(t *testing.T) {
	t.Parallel()
	needUserNamespaces(t)
	for _, as := range users() {
		t.Run(as.name, func(t *testing.T) {
			t.Parallel()
			w := connect(t, contained(as.credential, "-Urpfm"))
			_, err := NewAttester(Options{}).Attest(t.Context(), w.peer)
			if e, ok := errors.AsType[*Error](err); !ok || e.Fact != "PID namespace" {
				t.Errorf("got error %v, want one about its PID namespace", err)
			}
		})
	}
}

// TestProgramOnOverlay: a container's file system shows a file of its own at
// the path of the host's.
func TestProgramOnOverlay(t *testing.T) {
	t.Parallel()
	needUserNamespaces(t)
	for _, as := range users() {
		t.Run(as.name, func(t *testing.T) {
			t.Parallel()
			dir := openTempDir(t)
			cat := program(t, "cat")
			must(t, os.Mkdir(dir+"/evil", 0o755))
			must(t, os.Mkdir(dir+"/mnt", 0o755))
			install(t, program(t, "sleep"), dir+"/evil/"+filepath.Base(cat), "evil")
			// A layer that can be written to, as a container's, takes root.
			namespaces, layers := "-Urm", `lowerdir=$1/evil:${2%/*}`
			if as.credential == nil && os.Geteuid() == 0 {
				namespaces, layers = "-m", `lowerdir=${2%/*},upperdir=$1/mnt/u,workdir=$1/mnt/w`
			}
			child := run(t, as.credential, "unshare", namespaces, "--propagation", "private", "sh", "-c", `
				mount -t tmpfs none "$1/mnt" && mkdir "$1/mnt/u" "$1/mnt/w" "$1/mnt/m" &&
				mount -t overlay -o "`+layers+`" none "$1/mnt/m" &&
				{ cmp -s "$1/evil/${2##*/}" "$1/mnt/m/${2##*/}" || cp "$1/evil/${2##*/}" "$1/mnt/m/${2##*/}"; } &&
				mount --bind "$1/mnt/m" "${2%/*}" &&
				exec "$2" 600`, "sh", dir, cat)
			waitForProgram(t, child, cat)
			at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
			wantOnly(t, at.Selectors, "unix:path:")
			wantOnly(t, at.Selectors, "unix:sha256:") // its contents are the user's to change
		})
	}
}

func Test32BitProgram(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("for amd64")
	}
	path := filepath.Join(openTempDir(t), "program")
	install(t, os.DevNull, path, string(program32()))
	cmd := exec.Command(path)
	if err := cmd.Start(); err != nil {
		t.Skip(err) // no CONFIG_IA32_EMULATION
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	waitForProgram(t, cmd, path)
	at := attestPID(t, NewAttester(Options{}), cmd.Process.Pid)
	wantOnly(t, at.Selectors, "unix:path:", path)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, path))
}

// program32 returns an i386 program that waits for a signal.
func program32() []byte {
	const base, headers = 0x08048000, 52 + 32
	code := []byte{
		0xb8, 29, 0, 0, 0, // mov eax, pause
		0xcd, 0x80, // int 0x80
		0xeb, 0xf7, // jmp to the start
	}
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, elf.Header32{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_386), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1,
	})
	binary.Write(&b, binary.LittleEndian, elf.Prog32{
		Type: uint32(elf.PT_LOAD), Vaddr: base, Paddr: base, Align: 0x1000,
		Filesz: uint32(headers + len(code)), Memsz: uint32(headers + len(code)),
		Flags: uint32(elf.PF_R | elf.PF_X),
	})
	b.Write(code)
	return b.Bytes()
}

// TestHiddenProcesses attests where /proc shows a user only their own.
func TestHiddenProcesses(t *testing.T) {
	t.Parallel()
	asRoot(t)
	child := run(t, nil, "sleep", "600")
	attestPID(t, NewAttester(Options{}), child.Process.Pid)
	cmd := exec.Command("unshare", "-m", "sh", "-c",
		`mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`,
		"sh", readableSelf(t), "helper:attest", strconv.Itoa(child.Process.Pid))
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("of process %d: no such file or directory (is /proc mounted with hidepid", child.Process.Pid); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("got %v: %s, want an error of %q", err, out, want)
	}
}

func helperAttest(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	units := &systemd.Units{}
	defer units.Close()
	at, err := NewAttester(Options{Manager: units}).AttestPID(context.Background(), pid)
	if err != nil {
		return err
	}
	for _, gap := range at.Gaps {
		fmt.Println("gap:", gap)
	}
	for _, s := range at.Selectors {
		fmt.Println(s)
	}
	return nil
}

// TestManyShortLivedPeers: thousands of processes of different users connect
// and exit, or connect and exec, or stay, while PIDs are reused all the time.
// Whatever is attested must be of the user that connected.
func TestManyShortLivedPeers(t *testing.T) {
	t.Parallel()
	asRoot(t)
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip(err)
	}
	command := []string{readableSelf(t), "helper:stress"}
	if pidMaxIsOfTheNamespace() {
		command = append([]string{"unshare", "-pf", "--mount-proc", "--kill-child", "sh", "-c", `echo 400 >/proc/sys/kernel/pid_max; exec "$@"`, "sh"}, command...)
	}
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

// pidMaxIsOfTheNamespace reports whether each PID namespace has a limit of its
// own (Linux 6.14): on older kernels the machine's would be changed.
func pidMaxIsOfTheNamespace() bool {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return false
	}
	var release []byte
	for _, c := range u.Release {
		release = append(release, byte(c))
	}
	var major, minor int
	fmt.Sscanf(string(release), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 14
}

const stressScript = `
use Socket;
my ($path, $n) = @ARGV;
my $running = 0;
for my $i (1..$n) {
	if ($running >= 40) { wait; $running-- }
	my $pid = fork;
	if (!defined $pid) { if ($running) { wait; $running-- } next }
	if ($pid) { $running++; next }
	my $uid = 10000 + $i % 997;
	$( = $) = "$uid $uid"; $< = $> = $uid;
	socket(my $s, PF_UNIX, SOCK_STREAM, 0);
	connect($s, pack_sockaddr_un($path)) or exit;
	if ($i % 3 == 0) { exit }
	if ($i % 3 == 1) { exec "/bin/true" }
	select(undef, undef, undef, 0.01);
	exit;
}
while (wait >= 0) {}
`

// helperStress is the daemon's side, and starts the other.
func helperStress([]string) error {
	const connections = 4000
	dir, err := os.MkdirTemp("", "stress-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Chmod(dir+"/s", 0o666); err != nil {
		return err
	}
	s := stress{attester: NewAttester(Options{}), programs: map[string]bool{}}
	for _, name := range []string{"perl", "true"} {
		path, err := exec.LookPath(name)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return err
		}
		s.programs[path] = true
	}
	cmd := exec.Command("perl", "-e", stressScript, dir+"/s", strconv.Itoa(connections))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		cmd.Wait()
		l.Close()
	}()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			break
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serve(conn)
		})
	}
	wg.Wait()
	if s.wrong.Load() != nil {
		return *s.wrong.Load()
	}
	if s.attested.Load() == 0 || s.gone.Load() == 0 {
		return fmt.Errorf("%d attested and %d gone: nothing was tried", s.attested.Load(), s.gone.Load())
	}
	fmt.Printf("%d attested, %d gone, %d changed or half gone; PIDs up to %d\n", s.attested.Load(), s.gone.Load(), s.other.Load(), s.highest.Load())
	return nil
}

type stress struct {
	attester                       *Attester
	programs                       map[string]bool
	attested, gone, other, highest atomic.Int64
	wrong                          atomic.Pointer[error]
}

func (s *stress) serve(conn *net.UnixConn) {
	defer conn.Close()
	began := sinceBoot()
	// Both ways of pinning, for the same connection.
	byPIDFD, err := PeerOf(conn)
	s.check(byPIDFD, err)
	if cred, err := readCred(conn); err == nil {
		byPID, err := pinByPID(cred, began)
		s.check(byPID, err)
	}
}

// check attests a peer: it has to be the user that connected, who does nothing
// but run one program or the other.
func (s *stress) check(p *Peer, err error) {
	if err != nil {
		s.count(err)
		return
	}
	defer p.Close()
	at, err := s.attester.Attest(context.Background(), p)
	if err != nil {
		s.count(err)
		return
	}
	s.attested.Add(1)
	if pid := int64(at.PID); pid > s.highest.Load() {
		s.highest.Store(pid)
	}
	if at.UID != p.UID() || at.UID < 10000 || !s.programs[at.Path] {
		err := fmt.Errorf("user %d connected, attested was user %d with %s", p.UID(), at.UID, at.Path)
		s.wrong.Store(&err)
	}
}

func (s *stress) count(err error) {
	if errors.Is(err, ErrPeerGone) {
		s.gone.Add(1)
	} else {
		s.other.Add(1)
	}
}
