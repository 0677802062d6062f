package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/vouchd/vouchd/attest/process/cgroup"
	"github.com/vouchd/vouchd/attest/process/file"
	"github.com/vouchd/vouchd/systemd"
)

// The tests of this file start units, and so run only as root where systemd is
// PID 1: make system-test boots a system to run them in.

func needSystemd(t testing.TB) {
	t.Helper()
	if _, ok := systemdRoot(cgroup.Mounted()); !ok || os.Geteuid() != 0 {
		t.Skip("systemd is not PID 1 here, or this is not root")
	}
}

// A unitTest is a service that runs a script by an interpreter.
type unitTest struct {
	Name   string // of the unit
	Dir    string // of the script
	Script string
	Exec   string // ExecStart
	Lines  string // more lines of [Service]
}

// On hybrid control groups in a container nothing tells systemd that a group is
// empty: stopping takes as long as it may.
var unitFile = template.Must(template.New("").Parse(`[Service]
ExecStart={{.Exec}}
User=daemon
TimeoutStopSec=1s
{{.Lines}}
`))

// sleeper is a script that shows when it runs.
const sleeper = "import time\nopen('/proc/self/comm', 'w').write('ready')\ntime.sleep(600)\n"

// startUnit makes a directory with a script, below one that only root can
// write to, and a unit that runs it, as changed by prepare; then starts it.
func startUnit(t testing.TB, prepare func(u *unitTest)) *unitTest {
	t.Helper()
	must(t, os.MkdirAll("/opt/agents", 0o755))
	dir, err := os.MkdirTemp("/opt/agents", "x*")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	script := filepath.Join(dir, "agent.py")
	must(t, os.WriteFile(script, []byte(sleeper+"# "+dir+"\n"), 0o755))
	u := &unitTest{Name: "test-" + filepath.Base(dir) + ".service", Dir: dir, Script: script, Exec: "/usr/bin/python3 -u " + script + " --name x"}
	if prepare != nil {
		prepare(u)
	}
	var b bytes.Buffer
	must(t, unitFile.Execute(&b, u))
	must(t, os.MkdirAll("/etc/systemd/system", 0o755))
	must(t, os.WriteFile(u.file(), b.Bytes(), 0o644))
	t.Cleanup(func() {
		exec.Command("systemctl", "kill", "--signal=KILL", u.Name).Run()
		exec.Command("systemctl", "stop", u.Name).Run()
		os.Remove(u.file())
	})
	systemctl(t, "daemon-reload")
	waitTicks(t)
	systemctl(t, "start", u.Name)
	return u
}

func (u *unitTest) file() string { return "/etc/systemd/system/" + u.Name }

func systemctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// waitTicks waits until a file that is written now is older than what happens
// next, as far as stamps can tell.
func waitTicks(t testing.TB) {
	t.Helper()
	end := time.Now().Add(3 * file.Tick)
	eventually(t, "time has passed", func() bool { return time.Now().After(end) })
}

// main waits until the unit's main process runs the interpreter.
func (u *unitTest) main(t testing.TB) (pid int) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("systemctl", "status", "--full", u.Name).CombinedOutput()
			t.Logf("%s: main process %d: %s", u.Name, pid, out)
		}
	})
	eventually(t, u.Name+" runs", func() bool {
		pid, _ = strconv.Atoi(systemctl(t, "show", "--value", "-p", "MainPID", u.Name))
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return pid > 0 && exe != "" && !strings.HasSuffix(exe, "/systemd") && !strings.HasSuffix(exe, "-executor") && !strings.HasSuffix(exe, "/env")
	})
	return pid
}

func (u *unitTest) attest(t testing.TB, a *Attester) *Attested {
	t.Helper()
	return attestPID(t, a, u.main(t))
}

func withManager(t testing.TB) *Attester {
	t.Helper()
	units := &systemd.Units{}
	t.Cleanup(func() { units.Close() })
	return NewAttester(Options{Manager: units})
}

func TestSystemTwoScriptsOfOneInterpreterDiffer(t *testing.T) {
	needSystemd(t)
	a := withManager(t)
	units := []*unitTest{startUnit(t, nil), startUnit(t, nil)}
	for _, u := range units {
		at := u.attest(t, a)
		wantOnly(t, at.Selectors, "unix:user:", "daemon")
		wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, "/usr/bin/python3"))
		wantOnly(t, at.Selectors, "systemd:id:", u.Name)
		wantOnly(t, at.Selectors, "systemd:slice:", "system.slice")
		wantOnly(t, at.Selectors, "cgroup:path:", "/system.slice/"+u.Name)
		wantOnly(t, at.Selectors, "systemd:fragment_path:", u.file())
		wantOnly(t, at.Selectors, "systemd:fragment_sha256:", sha256Of(t, u.file()))
		wantOnly(t, at.Selectors, "systemd:invocation_id:", systemctl(t, "show", "--value", "-p", "InvocationID", u.Name))
		wantOnly(t, at.Selectors, "systemd:exec_sha256:", sha256Of(t, "/usr/bin/python3"), sha256Of(t, u.Script))
		wantOnly(t, at.Selectors, "script:path:", u.Script)
		wantOnly(t, at.Selectors, "script:sha256:", sha256Of(t, u.Script))
		_, sum, err := file.HashTree(t.Context(), u.Dir)
		must(t, err)
		wantOnly(t, at.Selectors, "script:tree_sha256:", sum)
		if len(at.Gaps) != 0 {
			t.Errorf("gaps: %v", at.Gaps)
		}
	}
	if sha256Of(t, units[0].Script) == sha256Of(t, units[1].Script) {
		t.Fatal("the two scripts are the same")
	}
}

// TestSystemToolOfAnAgentIsNotTheAgent: what an agent starts in its own unit has
// the unit's selectors, and is not its main process.
func TestSystemToolOfAnAgentIsNotTheAgent(t *testing.T) {
	needSystemd(t)
	a := withManager(t)
	for name, lines := range map[string]string{
		"plain":              "",
		"in a sandbox":       "PrivateTmp=yes\nProtectSystem=strict\nPrivateUsers=yes\nNoNewPrivileges=yes",
		"as root":            "User=root",
		"after a command":    "ExecStartPre=/bin/true",
		"which may notify":   "NotifyAccess=main",
		"which any may name": "NotifyAccess=all",
	} {
		t.Run(name, func(t *testing.T) {
			u := startUnit(t, func(u *unitTest) {
				u.Lines = lines
				must(t, os.WriteFile(u.Script, []byte("import subprocess\nsubprocess.Popen(['/bin/sleep', '600'])\n"+sleeper), 0o755))
			})
			agent := u.attest(t, a)
			want := []string{"true"}
			if name == "which any may name" {
				want = nil
			}
			wantOnly(t, agent.Selectors, "systemd:main_process:", want...)
			tool := attestPID(t, a, onlyChild(t, agent.PID))
			wantOnly(t, tool.Selectors, "systemd:id:", u.Name)
			wantOnly(t, tool.Selectors, "systemd:main_process:")
		})
	}
}

// TestSystemScripts: in each case the process is attested, and there is a
// script selector or the reason why not.
func TestSystemScripts(t *testing.T) {
	needSystemd(t)
	a := withManager(t)
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, u *unitTest)
		gap     string // "" for a script
	}{
		{"named by itself", func(t *testing.T, u *unitTest) {
			u.Exec = u.Script
			must(t, os.WriteFile(u.Script, []byte("#!/usr/bin/python3 -u\n"+sleeper), 0o755))
		}, ""},
		{"named by itself, through env", func(t *testing.T, u *unitTest) {
			u.Exec = u.Script
			must(t, os.WriteFile(u.Script, []byte("#!/usr/bin/env python3\n"+sleeper), 0o755))
		}, ""},
		{"relative to the working directory", func(t *testing.T, u *unitTest) {
			u.Exec = "/usr/bin/python3 agent.py"
			u.Lines = "WorkingDirectory=" + u.Dir
		}, ""},
		{"in a private mount namespace", func(t *testing.T, u *unitTest) { u.Lines = "PrivateTmp=yes\nProtectSystem=strict" }, ""},
		{"with variables that root set", func(t *testing.T, u *unitTest) { u.Lines = "Environment=PYTHONPATH=/opt" }, ""},
		{"through a symbolic link of root's", func(t *testing.T, u *unitTest) {
			must(t, os.Symlink(u.Script, u.Dir+"/current.py"))
			u.Exec = "/usr/bin/python3 " + u.Dir + "/current.py"
		}, ""},
		{"that the workload owns", func(t *testing.T, u *unitTest) { must(t, os.Chown(u.Script, 1, 1)) }, "which the process runs as"},
		{"in a directory that the workload owns", func(t *testing.T, u *unitTest) { must(t, os.Chown(u.Dir, 1, 1)) }, "which the process runs as"},
		{"that a group may write", func(t *testing.T, u *unitTest) { must(t, os.Chmod(u.Script, 0o775)) }, "others than its owner may write"},
		{"in /tmp", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile("/tmp/agent.py", []byte(sleeper), 0o644))
			t.Cleanup(func() { os.Remove("/tmp/agent.py") })
			u.Exec = "/usr/bin/python3 /tmp/agent.py"
		}, "others than its owner may write"},
		{"of a workload that runs as root", func(t *testing.T, u *unitTest) { u.Lines = "User=root" }, "runs as root"},
		{"of a workload with capabilities", func(t *testing.T, u *unitTest) { u.Lines = "AmbientCapabilities=CAP_DAC_OVERRIDE" }, "has capabilities"},
		{"of a workload with a harmless capability", func(t *testing.T, u *unitTest) { u.Lines = "AmbientCapabilities=CAP_NET_BIND_SERVICE" }, ""},
		{"in the program's text", func(t *testing.T, u *unitTest) {
			u.Exec = `/usr/bin/python3 -c "import time; time.sleep(600)"`
		}, "may bring in other code"},
		{"as a module", func(t *testing.T, u *unitTest) {
			u.Exec = "/usr/bin/python3 -m agent"
			u.Lines = "WorkingDirectory=" + u.Dir
		}, "may bring in other code"},
		{"from a variable", func(t *testing.T, u *unitTest) {
			u.Exec = "/usr/bin/python3 ${SCRIPT}"
			u.Lines = "Environment=SCRIPT=" + u.Script
		}, "may depend on a variable"},
		{"with a session of the user's", func(t *testing.T, u *unitTest) { u.Lines = "PAMName=login" }, "PAMName"},
		{"where every process may choose the main one", func(t *testing.T, u *unitTest) { u.Lines = "NotifyAccess=all" }, "NotifyAccess=all"},
		{"after another command of the unit", func(t *testing.T, u *unitTest) { u.Lines = "ExecStartPre=+/bin/true" }, ""},
		{"with an environment file of the workload's", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile(u.Dir+"/env", []byte("LD_PRELOAD=/tmp/evil.so\n"), 0o644))
			must(t, os.Chown(u.Dir+"/env", 1, 1))
			u.Lines = "EnvironmentFile=" + u.Dir + "/env"
		}, "belongs to user 1, not to root"},
		{"with an environment file of root's", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile(u.Dir+"/env", []byte("X=1\n"), 0o644))
			u.Lines = "EnvironmentFile=" + u.Dir + "/env\nEnvironmentFile=-/etc/default/missing"
		}, ""},
		{"seen elsewhere in the unit's mount namespace", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile(u.Dir+"/other.py", []byte(sleeper+"# other\n"), 0o644))
			u.Lines = "BindReadOnlyPaths=" + u.Dir + "/other.py:" + u.Script
		}, "sees another file"},
		{"started by another interpreter in between", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile(u.Dir+"/start.sh", []byte("exec /usr/bin/python3 "+u.Script+"\n"), 0o644))
			u.Exec = "/bin/sh " + u.Dir + "/start.sh"
		}, "does not run /bin/sh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := startUnit(t, func(u *unitTest) { tt.prepare(t, u) })
			if strings.HasPrefix(u.Exec, "/bin/sh") {
				eventually(t, "python runs", func() bool {
					exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", u.main(t)))
					return strings.Contains(exe, "python")
				})
			}
			at := u.attest(t, a)
			wantOnly(t, at.Selectors, "systemd:id:", u.Name)
			scripts := values(at.Selectors, "script:")
			if tt.gap == "" {
				if len(scripts) != 3 || len(at.Gaps) != 0 {
					t.Errorf("script selectors are %q, gaps %v", scripts, at.Gaps)
				}
				return
			}
			if len(scripts) != 0 || !strings.Contains(fmt.Sprint(at.Gaps), tt.gap) {
				t.Errorf("script selectors are %q and gaps %v, want none for %q", scripts, at.Gaps, tt.gap)
			}
		})
	}
}

func TestSystemChangeUnderARunningUnit(t *testing.T) {
	needSystemd(t)
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, u *unitTest)
		gap    string
	}{
		{"script overwritten", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile(u.Script, []byte("evil"), 0o755))
		}, "restart it"},
		{"script swapped and put back", func(t *testing.T, u *unitTest) {
			old, err := os.ReadFile(u.Script)
			must(t, err)
			must(t, os.Rename(u.Script, u.Script+".old"))
			must(t, os.WriteFile(u.Script, old, 0o755))
		}, "restart it"},
		{"script removed", func(t *testing.T, u *unitTest) { must(t, os.Remove(u.Script)) }, "no such file"},
		{"a module put beside the script", func(t *testing.T, u *unitTest) {
			must(t, os.WriteFile(u.Dir+"/time.py", []byte("evil"), 0o644))
		}, "tree"},
		{"unit file edited", func(t *testing.T, u *unitTest) {
			b, err := os.ReadFile(u.file())
			must(t, err)
			must(t, os.WriteFile(u.file(), append(b, "# edited\n"...), 0o644))
		}, "unit file"},
		{"unit file edited and read anew", func(t *testing.T, u *unitTest) {
			b, err := os.ReadFile(u.file())
			must(t, err)
			must(t, os.WriteFile(u.file(), append(b, "# edited\n"...), 0o644))
			systemctl(t, "daemon-reload")
		}, "unit file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := startUnit(t, nil)
			a := withManager(t)
			before := u.attest(t, a)
			if got := values(before.Selectors, "script:"); len(got) != 3 {
				t.Fatalf("script selectors are %q before, gaps %v", got, before.Gaps)
			}
			eventually(t, "the interpreter has read the script", func() bool {
				comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", before.PID))
				return string(comm) == "ready\n"
			})
			tt.change(t, u)
			after := u.attest(t, a)
			for _, s := range before.Selectors {
				if s.Type == "script" && after.Selectors.Has(s) && !(tt.gap == "tree" && !strings.HasPrefix(s.Value, "tree")) {
					t.Errorf("selector %s is still there", s)
				}
			}
			if !strings.Contains(fmt.Sprint(after.Gaps), tt.gap) {
				t.Errorf("gaps are %v, want one of %q", after.Gaps, tt.gap)
			}
		})
	}
}

// systemd has read other arguments since the process was started, from a file
// that was edited before.
func TestSystemEditedBeforeAndReadAfterTheStart(t *testing.T) {
	needSystemd(t)
	u := startUnit(t, nil)
	must(t, os.WriteFile(u.Dir+"/other.py", []byte(sleeper+"# other\n"), 0o644))
	b, err := os.ReadFile(u.file())
	must(t, err)
	must(t, os.WriteFile(u.file(), bytes.ReplaceAll(b, []byte("agent.py"), []byte("other.py")), 0o644))
	waitTicks(t)
	systemctl(t, "restart", u.Name) // by the old definition
	u.main(t)
	waitTicks(t)
	systemctl(t, "daemon-reload")
	at := u.attest(t, withManager(t))
	if got := values(at.Selectors, "script:"); len(got) != 0 || !strings.Contains(fmt.Sprint(at.Gaps), "restart the unit") {
		t.Errorf("script selectors are %q, gaps %v", got, at.Gaps)
	}
}

func TestSystemReadingUnitsAnewChangesNothing(t *testing.T) {
	needSystemd(t)
	u := startUnit(t, nil)
	u.main(t)
	waitTicks(t)
	systemctl(t, "daemon-reload")
	at := u.attest(t, withManager(t))
	if got := values(at.Selectors, "script:"); len(got) != 3 {
		t.Errorf("script selectors are %q, gaps %v", got, at.Gaps)
	}
}

func TestSystemOnlyTheMainProcessRunsTheScript(t *testing.T) {
	needSystemd(t)
	u := startUnit(t, func(u *unitTest) {
		must(t, os.WriteFile(u.Script, []byte("import subprocess\nsubprocess.run(['sleep', '600'])\n"), 0o755))
	})
	child := onlyChild(t, u.main(t))
	a := withManager(t)
	at := attestPID(t, a, child)
	wantOnly(t, at.Selectors, "systemd:id:", u.Name)
	wantOnly(t, at.Selectors, "parent:systemd:id:", u.Name)
	wantOnly(t, at.Selectors, "script:")
	if got := values(u.attest(t, a).Selectors, "script:"); len(got) != 3 {
		t.Errorf("the main process has script selectors %q", got)
	}
}

// TestSystemTracingIsAllTheDaemonNeeds attests as a user that has no privilege
// but CAP_SYS_PTRACE, as the package's daemon is.
func TestSystemTracingIsAllTheDaemonNeeds(t *testing.T) {
	needSystemd(t)
	u := startUnit(t, nil)
	want := u.attest(t, withManager(t))
	cmd := exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
		"--inh-caps", "-all,+sys_ptrace", "--ambient-caps", "-all,+sys_ptrace", "--bounding-set", "-all,+sys_ptrace", "--no-new-privs",
		readableSelf(t), "helper:attest", strconv.Itoa(want.PID))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != strings.Join(want.Selectors.Strings(), "\n") {
		t.Errorf("root attests\n%s\nand the daemon's user\n%s", strings.Join(want.Selectors.Strings(), "\n"), got)
	}
}

func TestSystemScriptIsForgottenAfterAnExec(t *testing.T) {
	needSystemd(t)
	u := startUnit(t, func(u *unitTest) {
		must(t, os.WriteFile(u.Dir+"/evil.py", []byte(sleeper), 0o644))
		must(t, os.WriteFile(u.Script, []byte(`import os, signal, sys
def swap(*_):
	os.execv(sys.executable, [sys.executable, '-u', os.path.dirname(__file__) + '/evil.py'])
signal.signal(signal.SIGUSR1, swap)
open('/proc/self/comm', 'w').write('ready')
while True: signal.pause()
`), 0o755))
	})
	pid := u.main(t)
	ready := func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return string(comm) == "ready\n"
	}
	eventually(t, "the script runs", ready)
	a := withManager(t)
	before := u.attest(t, a)
	if got := values(before.Selectors, "script:"); len(got) != 3 {
		t.Fatalf("script selectors are %q, gaps %v", got, before.Gaps)
	}
	must(t, syscall.Kill(pid, syscall.SIGUSR1))
	eventually(t, "the other script runs", func() bool {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return bytes.Contains(cmdline, []byte("evil.py")) && ready()
	})
	for range 2 {
		at := u.attest(t, a)
		wantOnly(t, at.Selectors, "script:")
		wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, "/usr/bin/python3"))
		if !strings.Contains(fmt.Sprint(at.Gaps), "has called exec") {
			t.Errorf("gaps are %v", at.Gaps)
		}
	}
}

// TestSystemLookalikeControlGroups moves a unit's process to control groups below
// the unit's own that are named like other units', as whoever has a delegated group
// may: a user's own service manager, or a container's.
func TestSystemLookalikeControlGroups(t *testing.T) {
	needSystemd(t)
	mount := "/sys/fs/cgroup"
	if cgroup.Mounted() == cgroup.Named {
		mount += "/systemd"
	}
	for _, tt := range []struct {
		name, below string
		none        bool // nothing is said of it
	}{
		{"a system unit", "system.slice/sshd.service", false},
		{"a user's manager", "user.slice/user-1000.slice/user@1000.service/app.slice/agent.service", false},
		{"a container", "docker-" + strings.Repeat("0", 64) + ".scope", false},
		{"percent signs and escapes", `system.slice/%n%i\x2d%%.service`, false},
		{"spaces and colons", "system.slice/0::/system.slice/sshd.service x", false},
		{"one that was removed", "system.slice/sshd.service (deleted)", true},
		{"4 KB", strings.Repeat(strings.Repeat("x", 243)+".service/", 15) + "x", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := startUnit(t, func(u *unitTest) { u.Lines = "Delegate=yes" })
			pid := u.main(t)
			own := mount + "/system.slice/" + u.Name
			must(t, os.MkdirAll(own+"/"+tt.below, 0o755))
			t.Cleanup(func() {
				syscall.Kill(pid, syscall.SIGKILL)
				for dir := own + "/" + tt.below; dir != own; dir = filepath.Dir(dir) {
					eventually(t, "the control group is empty", func() bool { return os.Remove(dir) == nil || !exists(dir) })
				}
			})
			must(t, os.WriteFile(own+"/"+tt.below+"/cgroup.procs", fmt.Append(nil, pid), 0))
			at := attestPID(t, withManager(t), pid)
			if tt.none {
				wantOnly(t, at.Selectors, "systemd:")
				wantOnly(t, at.Selectors, "cgroup:")
				return
			}
			wantOnly(t, at.Selectors, "systemd:id:", u.Name)
			wantOnly(t, at.Selectors, "systemd:slice:", "system.slice")
			wantOnly(t, at.Selectors, "systemd:user_unit:")
			wantOnly(t, at.Selectors, "container:")
			wantOnly(t, at.Selectors, "cgroup:slice:", "system.slice")
			wantOnly(t, at.Selectors, "cgroup:path:", "/system.slice/"+u.Name+"/"+tt.below)
		})
	}
	for _, name := range []string{"a\nb", "a/../b"} {
		if err := os.Mkdir(mount+"/system.slice/"+name, 0o755); err == nil {
			os.Remove(mount + "/system.slice/" + name)
			t.Errorf("the kernel makes a control group %q", name)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestSystemManagerThatDoesNotAnswerIsNotWaitedFor(t *testing.T) {
	needSystemd(t)
	u := startUnit(t, nil)
	pid := u.main(t)
	a := NewAttester(Options{Manager: hung{}})
	began := time.Now()
	at := attestPID(t, a, pid)
	if took := time.Since(began); took > unitTimeout+5*time.Second {
		t.Errorf("attestation took %v", took)
	}
	wantOnly(t, at.Selectors, "systemd:id:", u.Name)
	wantOnly(t, at.Selectors, "script:")
	if !strings.Contains(fmt.Sprint(at.Gaps), context.DeadlineExceeded.Error()) {
		t.Errorf("gaps are %v", at.Gaps)
	}
}

type hung struct{}

func (hung) Unit(ctx context.Context, _ string) (*systemd.Unit, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func BenchmarkSystemAttest(b *testing.B) {
	needSystemd(b)
	u := startUnit(b, nil)
	p := pin(b, u.main(b))
	units := &systemd.Units{}
	defer units.Close()
	for _, bb := range []struct {
		name  string
		fresh bool
	}{{"known", false}, {"asking systemd", true}} {
		b.Run(bb.name, func(b *testing.B) {
			a := NewAttester(Options{Manager: units})
			for b.Loop() {
				if bb.fresh {
					a.units = unitCache{}
				}
				if _, err := a.Attest(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
