package scan

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/inventory"
)

// value is a secret that no list has.
func value() string {
	b := make([]byte, 24)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func key(t testing.TB) Key {
	t.Helper()
	k, err := ReadKey(filepath.Join(t.TempDir(), "state", "key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func run1(t testing.TB, s *Scan) *Result {
	t.Helper()
	if s.Key.bytes.Len() == 0 {
		s.Key = key(t)
	}
	result, err := s.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func paths(r *Result, dir string) (list []string) {
	for _, f := range r.Findings {
		list = append(list, strings.TrimPrefix(f.Path, dir+"/"))
	}
	slices.Sort(list)
	return list
}

func TestNothingButRegularFilesIsOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/a/.env", "A_TOKEN="+value()+"\n", 0o600)
	if err := unix.Mkfifo(dir+"/a/.env.fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/a/.env.socket", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if os.Geteuid() == 0 {
		if err := unix.Mknod(dir+"/a/.env.device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
			t.Fatal(err)
		}
	}
	outside := t.TempDir()
	write(t, outside+"/.env", "B_TOKEN="+value()+"\n", 0o600)
	for name, target := range map[string]string{"/a/.env.link": outside + "/.env", "/a/loop": dir, "/a/self": "self", "/elsewhere": outside, "/a/.aws": "../a"} {
		if err := os.Symlink(target, dir+name); err != nil {
			t.Fatal(err)
		}
	}
	result := run1(t, &Scan{Dirs: []string{dir}})
	if got := paths(result, dir); !slices.Equal(got, []string{"a/.env"}) || result.Counts.Unread > 0 || result.Counts.Files != 1 {
		t.Errorf("found %q, %d files, unread %v", got, result.Counts.Files, result.Unread)
	}
}

func TestLargeAndBinaryFilesAreBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/.env", "A_TOKEN="+value()+"\n", 0o600)
	write(t, dir+"/large/.env", "", 0o600)
	if err := os.Truncate(dir+"/large/.env", 10<<30); err != nil { // without a block
		t.Fatal(err)
	}
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	write(t, dir+"/binary/.env", string(noise), 0o600)
	result := run1(t, &Scan{Dirs: []string{dir}})
	if got := paths(result, dir); !slices.Equal(got, []string{".env"}) {
		t.Errorf("found %q", got)
	}
	if len(result.Unread) != 1 || result.Unread[0].Path != dir+"/large/.env" || !strings.Contains(result.Unread[0].Why, "larger than") {
		t.Errorf("unread is %v", result.Unread)
	}
}

func TestWhatMayNotBeReadIsNamedAndStopsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/mine/.env", "A_TOKEN="+value()+"\n", 0o644)
	write(t, dir+"/file/.env", "B_TOKEN="+value()+"\n", 0)
	write(t, dir+"/closed/.env", "C_TOKEN="+value()+"\n", 0o644)
	if err := os.Chmod(dir+"/closed", 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir+"/closed", 0o700)
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Scan{Dirs: []string{dir}, Key: key(t)}
	var result *Result
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with what is changed here
		if os.Geteuid() == 0 {
			unix.Setfsuid(65534)
		}
		result, _ = s.Run(context.Background())
	}()
	<-done
	if got := paths(result, dir); !slices.Equal(got, []string{"mine/.env"}) {
		t.Errorf("found %q", got)
	}
	var unread []string
	for _, u := range result.Unread {
		unread = append(unread, strings.TrimPrefix(u.Path, dir+"/")+": "+u.Why)
	}
	slices.Sort(unread)
	if want := []string{"closed: permission denied", "file/.env: permission denied"}; !slices.Equal(unread, want) || result.Counts.Unread != 2 {
		t.Errorf("unread is %q, want %q", unread, want)
	}
}

func TestHostileNamesAreEscaped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"bad\xff\xfe", "line\nbreak", "esc\x1b[2J", "right\u202eleft", "quote'$(id)"} {
		write(t, filepath.Join(dir, name, ".env"), "A_TOKEN="+value()+"\n", 0o600)
	}
	result := run1(t, &Scan{Dirs: []string{dir}})
	if len(result.Findings) != 5 {
		t.Fatalf("%d found, want 5", len(result.Findings))
	}
	text, err := json.Marshal(result)
	if err != nil || !utf8.Valid(text) {
		t.Fatalf("no JSON: %v", err)
	}
	for _, f := range result.Findings {
		if strings.ContainsAny(f.Path+f.Replace, "\n\x1b\u202e") || !utf8.ValidString(f.Path+f.Replace) {
			t.Errorf("%q, %q have what a terminal obeys", f.Path, f.Replace)
		}
		path, ok := strings.CutPrefix(f.Replace, "vouch migrate env ")
		path, _, ok2 := strings.Cut(path, " --credential-prefix")
		if !ok || !ok2 {
			t.Fatalf("replaced by %q", f.Replace)
		}
		if out, err := exec.Command("bash", "-c", "test -f "+path).CombinedOutput(); err != nil {
			t.Errorf("a shell finds no file at %s: %v %s", path, err, out)
		}
	}
}

func TestTreeThatChangesIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 50 {
		write(t, fmt.Sprintf("%s/%d/.env", dir, i), "A_TOKEN="+value()+"\n", 0o600)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d := fmt.Sprintf("%s/%d", dir, 25+i%25)
			os.RemoveAll(d)
			switch i % 3 {
			case 0:
				os.Symlink("..", d)
			case 1:
				unix.Mkfifo(d, 0o600)
			default:
				os.Mkdir(d, 0o700)
			}
		}
	}()
	for range 20 {
		result := run1(t, &Scan{Dirs: []string{dir}})
		if n := len(result.Findings); n < 25 || n > 50 || result.Counts.Unread > 0 {
			t.Errorf("%d found, unread %v", n, result.Unread)
		}
	}
	close(stop)
	<-stopped
}

func TestTreeDeeperThanTheBoundIsCutThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	deep := dir
	for i := range maxDepth + 20 {
		if i == 100 {
			write(t, deep+"/.env", "A_TOKEN="+value()+"\n", 0o600)
		}
		deep += "/d"
	}
	write(t, deep+"/.env", "A_TOKEN="+value()+"\n", 0o600)
	result := run1(t, &Scan{Dirs: []string{dir}})
	if len(result.Findings) != 1 || len(result.Unread) != 1 || !strings.Contains(result.Unread[0].Why, "deep") {
		t.Errorf("%d found, unread %v", len(result.Findings), result.Unread)
	}
}

func TestSameSecretHasOneFingerprintAndIsFoundOncePerFile(t *testing.T) {
	t.Parallel()
	dir, secret := t.TempDir(), value()
	write(t, dir+"/a/.env", "A_TOKEN="+secret+"\nB_TOKEN="+secret+"\n", 0o600)
	write(t, dir+"/b/.bashrc", "export A_TOKEN='"+secret+"'\n", 0o600)
	write(t, dir+"/c/.env", "OTHER_TOKEN="+value()+"\n", 0o600)
	k := key(t)
	result := run1(t, &Scan{Dirs: []string{dir, dir + "/a", dir + "/b/.bashrc"}, Key: k})
	if got := paths(result, dir); !slices.Equal(got, []string{"a/.env", "b/.bashrc", "c/.env"}) {
		t.Fatalf("found %q", got)
	}
	byPath := make(map[string]inventory.Finding)
	for _, f := range result.Findings {
		byPath[strings.TrimPrefix(f.Path, dir+"/")] = f
	}
	a, b, c := byPath["a/.env"], byPath["b/.bashrc"], byPath["c/.env"]
	if a.Fingerprint != b.Fingerprint || a.Fingerprint == c.Fingerprint || a.Places != 2 || c.Places != 1 || len(a.Fingerprint) != 16 {
		t.Errorf("fingerprints %s, %s, %s in %d and %d places", a.Fingerprint, b.Fingerprint, c.Fingerprint, a.Places, c.Places)
	}
	if again := run1(t, &Scan{Dirs: []string{dir + "/c"}, Key: k}); again.Findings[0].Fingerprint != c.Fingerprint {
		t.Error("another run has another fingerprint")
	}
	if other := run1(t, &Scan{Dirs: []string{dir + "/c"}}); other.Findings[0].Fingerprint == c.Fingerprint {
		t.Error("another host has the same fingerprint")
	}
}

func TestKeyOfFingerprintsIsItsUsersAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x", "key")
	if _, err := ReadKey(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || info.Size() != keyLen {
		t.Fatalf("%v, %v", info, err)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("beside it is something: %v, %v", names, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(path); err == nil {
		t.Error("a key that a group can read is taken")
	}
	if err := os.Symlink(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(path + ".link"); err == nil {
		t.Error("a link is followed")
	}
}

func TestReadersAreThoseWhoGetThroughTheDirectoriesToo(t *testing.T) {
	t.Parallel()
	p := &people{
		users: map[uint32]string{1000: "ann", 1001: "bob"}, groups: map[uint32]string{50: "dev", 1000: "ann"},
		members: map[uint32][]string{50: {"ann", "bob"}, 1000: {"ann"}},
	}
	open := reach{everyone: true}
	st := func(mode, uid, gid uint32) *unix.Stat_t { return &unix.Stat_t{Mode: mode, Uid: uid, Gid: gid} }
	for _, tt := range []struct {
		name   string
		mode   uint32
		gid    uint32
		above  reach
		access string
		who    string
	}{
		{"for everyone", 0o644, 1000, open, "everyone", "everyone"},
		{"for everyone in a closed directory", 0o644, 1000, open.through(st(0o700, 1000, 1000)), "owner", "user ann"},
		{"for everyone in a group's directory", 0o644, 1000, open.through(st(0o750, 1000, 50)), "group", "user ann, group dev (bob)"},
		{"for a group", 0o640, 50, open, "group", "user ann, group dev (bob)"},
		{"for a group in another's directory", 0o640, 50, open.through(st(0o750, 1000, 1000)), "owner", "user ann"},
		{"for a group of the owner alone", 0o640, 1000, open, "owner", "user ann"},
		{"for the owner", 0o600, 50, open, "owner", "user ann"},
		{"for nobody", 0, 50, open, "owner", "root"},
	} {
		access, list := p.readers(st(tt.mode, 1000, tt.gid), tt.above)
		if got := strings.Join(list, ", "); access != tt.access || got != tt.who {
			t.Errorf("%s: %s can read it (%s), want %s (%s)", tt.name, got, access, tt.who, tt.access)
		}
	}
}

func TestFilesThatUnitsNameAreRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/etc/systemd/system/a.service", "[Service]\nEnvironmentFile=-"+dir+"/conf/variables\nEnvironmentFile=/etc/hostname\nLoadCredential=db:"+dir+"/conf/password\nLoadCredential=gone:"+dir+"/conf/gone\n", 0o644)
	write(t, dir+"/conf/variables", "A_TOKEN="+value()+"\n", 0o600)
	write(t, dir+"/conf/password", value(), 0o644)
	result := run1(t, &Scan{Dirs: []string{dir}})
	var got []string
	for _, f := range result.Findings {
		got = append(got, f.Kind+" "+f.Item+" "+f.Access)
	}
	if want := []string{"env A_TOKEN owner", "unit LoadCredential db owner"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

func TestExcludedIsNotOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"/a/.env", "/b/node_modules/.env", "/c/x/.env"} {
		write(t, dir+name, "A_TOKEN="+value()+"\n", 0o600)
	}
	result := run1(t, &Scan{Dirs: []string{dir}, Exclude: []string{"node_modules", dir + "/c"}})
	if got := paths(result, dir); !slices.Equal(got, []string{"a/.env"}) {
		t.Errorf("found %q", got)
	}
}

func TestCopiesThatPackageManagersKeepAreReadOnlyIfNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/go/pkg/mod"
	write(t, dir+"/x/.env", "A_TOKEN="+value()+"\n", 0o600)
	if result := run1(t, &Scan{Dirs: []string{filepath.Dir(dir)}}); len(result.Findings) != 0 {
		t.Errorf("found %q", paths(result, dir))
	}
	if result := run1(t, &Scan{Dirs: []string{dir}}); len(result.Findings) != 1 {
		t.Errorf("found %q", paths(result, dir))
	}
}

func TestProcessesCountOncePerSecret(t *testing.T) {
	t.Parallel()
	proc, secret := t.TempDir(), value()
	process := func(pid, parent int, name, cgroup string, env ...string) {
		d := filepath.Join(proc, strconv.Itoa(pid))
		write(t, d+"/environ", strings.Join(env, "\x00")+"\x00", 0o400)
		write(t, d+"/stat", fmt.Sprintf("%d (%s) S %d 1 1", pid, name, parent), 0o444)
		write(t, d+"/cgroup", "0::"+cgroup+"\n", 0o444)
	}
	process(10, 1, "agent", "/system.slice/agent.service", "PATH=/bin", "API_TOKEN="+secret)
	process(11, 10, "a) b (c", "/system.slice/agent.service", "API_TOKEN="+secret, "MODE=x")
	process(20, 1, "vouch", "/user.slice", "HOME=/root")
	process(21, 20, "child", "/user.slice", "HOME=/root", "LEASED_TOKEN="+value(), "HANDLE_TOKEN=vouch:x")
	write(t, proc+"/99/stat", "99 (gone) Z 1", 0o444)
	write(t, proc+"/self/environ", "B_TOKEN="+value(), 0o444)
	result := run1(t, &Scan{Processes: true, Proc: proc})
	var got []string
	for _, f := range result.Findings {
		got = append(got, fmt.Sprintf("%s %d %v %s", f.Item, f.Processes, f.Leased, f.Replace))
	}
	slices.Sort(got)
	want := []string{"API_TOKEN 2 false vouch migrate unit agent.service", "HANDLE_TOKEN 1 true ", "LEASED_TOKEN 1 true "}
	if !slices.Equal(got, want) || result.Counts.Processes != 4 || result.Counts.Unread != 0 {
		t.Errorf("found %q of %d processes, want %q; unread %v", got, result.Counts.Processes, want, result.Unread)
	}
}

func TestEnvironmentOfARunningProcessIsRead(t *testing.T) {
	t.Parallel()
	child := exec.Command("cat")
	child.Env = []string{"API_TOKEN=" + value(), "MODE=fast"}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "ready") // it has its environment once it answers
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer in.Close()
	root, err := os.OpenRoot("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := &run{Scan: new(Scan), result: new(Result)}
	p := r.process(root, "/proc", strconv.Itoa(child.Process.Pid))
	if p == nil || len(p.findings) != 1 || p.findings[0].Item != "API_TOKEN" || p.findings[0].Line != 0 || p.program == "" || p.began.IsZero() {
		t.Errorf("read is %+v, unread %v", p, r.result.Unread)
	}
}

func TestHistoryRunsNothingThatARepositoryNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	repo, ran := dir+"/repo", dir+"/ran"
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = repo
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	write(t, repo+"/.env", "A_TOKEN="+value()+"\n", 0o644)
	git("init", "-q")
	git("add", ".")
	git("commit", "-qm", "a")
	write(t, repo+"/.env", "A_TOKEN=\n", 0o644)
	write(t, repo+"/.gitattributes", "* diff=evil filter=evil\n", 0o644)
	git("add", ".")
	git("commit", "-qm", "b")
	write(t, dir+"/evil", "#!/bin/sh\necho ran >> "+ran+"\n", 0o755)
	for _, name := range []string{"core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.alternateRefsCommand", "gpg.program", "diff.external", "diff.evil.textconv", "diff.evil.command", "filter.evil.smudge", "filter.evil.clean", "credential.helper", "core.askPass", "pager.log", "pager.rev-list"} {
		git("config", name, dir+"/evil")
	}
	git("config", "log.showSignature", "true")
	git("config", "core.hooksPath", dir)
	write(t, dir+"/post-index-change", "#!/bin/sh\necho ran >> "+ran+"\n", 0o755)
	write(t, repo+"/.git/objects/info/alternates", dir+"/nowhere\n", 0o644)
	os.Remove(ran) // which git config may have made
	result := run1(t, &Scan{Dirs: []string{dir}, History: true})
	if text, err := os.ReadFile(ran); err == nil {
		t.Errorf("the repository's program ran: %s", text)
	}
	if len(result.Findings) != 1 || result.Findings[0].Kind != inventory.History || !strings.HasPrefix(result.Findings[0].Path, "git:"+repo+"@") || result.Findings[0].Modified.IsZero() || result.Counts.Repositories != 1 {
		t.Errorf("found %+v, unread %v", result.Findings, result.Unread)
	}
}

func TestDamagedRepositoryIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/r/objects/x", "", 0o644)
	write(t, dir+"/r/HEAD", "ref: refs/heads/main\n", 0o644)
	write(t, dir+"/r/refs/heads/main", strings.Repeat("1", 40)+"\n", 0o644)
	result := run1(t, &Scan{Dirs: []string{dir}, History: true})
	if len(result.Unread) != 1 || result.Unread[0].Path != dir+"/r" || result.Counts.Repositories != 1 {
		t.Errorf("unread is %v of %d repositories", result.Unread, result.Counts.Repositories)
	}
}

func TestRepositoryWithAPipeForAFileIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/r/objects/x", "", 0o644)
	write(t, dir+"/r/refs/x", "", 0o644)
	write(t, dir+"/r/HEAD", "ref: refs/heads/main\n", 0o644)
	if err := unix.Mkfifo(dir+"/r/config", 0o644); err != nil {
		t.Fatal(err)
	}
	result := run1(t, &Scan{Dirs: []string{dir}, History: true})
	if len(result.Unread) != 1 || result.Unread[0].Why != "config is no file" {
		t.Errorf("unread is %v", result.Unread)
	}
}

func TestScanEndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/.env", "A_TOKEN="+value()+"\n", 0o600)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	result, err := (&Scan{Dirs: []string{dir}, Key: key(t)}).Run(ctx)
	if err == nil || result == nil || len(result.Findings) != 0 {
		t.Errorf("%v, %v", result, err)
	}
}

func FuzzParseResult(f *testing.F) {
	f.Add([]byte(`{"time": "2026-01-01T00:00:00Z", "findings": [{"kind": "env", "path": "a\u001b", "readers": ["x"]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseResult(data)
		if err != nil {
			return
		}
		for _, one := range r.Findings {
			if strings.ContainsAny(one.Path+one.Item+one.Replace, "\n\x1b") {
				t.Error("a terminal would obey it")
			}
		}
	})
}

// BenchmarkWalk goes over 200,000 files.
func BenchmarkWalk(b *testing.B) {
	dir := b.TempDir()
	if shared, err := os.MkdirTemp("/dev/shm", "walk"); err == nil {
		dir = shared
		b.Cleanup(func() { os.RemoveAll(shared) })
	}
	const files = 200_000
	for i := range files {
		d := fmt.Sprintf("%s/%d/%d", dir, i%20, i%400)
		if i < 400 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(fmt.Sprintf("%s/f%d.go", d, i), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	k := key(b)
	b.ReportAllocs()
	for b.Loop() {
		if result := run1(b, &Scan{Dirs: []string{dir}, Key: k}); result.Counts.Files != files {
			b.Fatalf("%d files, want %d", result.Counts.Files, files)
		}
	}
	b.ReportMetric(files*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
