package process

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestSandboxIsSeen(t *testing.T) {
	t.Parallel()
	sleep := program(t, "sleep")
	self := readableSelf(t)
	for _, tt := range []struct {
		name    string
		command []string
		want    []string
	}{
		{"none", nil, []string{"ns:ipc:host", "ns:mnt:host", "ns:net:host", "ns:pid:host", "ns:user:host"}},
		{"network", []string{"unshare", "-n"}, []string{"ns:ipc:host", "ns:mnt:host", "ns:net:private", "ns:pid:host", "ns:user:host"}},
		{"system calls", []string{self, "helper:filter"}, []string{"nnp:true", "ns:ipc:host", "ns:mnt:host", "ns:net:host", "ns:pid:host", "ns:user:host", "seccomp:filter"}},
		{"user and mounts", []string{"unshare", "-Urm"}, []string{"ns:ipc:host", "ns:mnt:private", "ns:net:host", "ns:pid:host", "ns:user:private"}},
		{"no new privileges", []string{"setpriv", "--no-new-privs"}, []string{"nnp:true", "ns:ipc:host", "ns:mnt:host", "ns:net:host", "ns:pid:host", "ns:user:host"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.name == "network" {
				asRoot(t)
			}
			command := append(tt.command, sleep, "600")
			child := run(t, nil, command[0], command[1:]...)
			waitForProgram(t, child, sleep)
			a := NewAttester(Options{})
			for i, kind := range namespaceKinds { // PID 1 may not be readable here
				var err error
				a.host.namespaces[i], err = namespace(unix.AT_FDCWD, "/proc/self/ns/"+kind)
				must(t, err)
			}
			at := attestPID(t, a, child.Process.Pid)
			var got []string
			for _, s := range at.Selectors {
				if s.Type == "ns" || s.Type == "nnp" || s.Type == "seccomp" {
					got = append(got, s.String())
				}
			}
			if self, err := os.ReadFile("/proc/self/status"); err == nil && strings.Contains(string(self), "Seccomp:\t2") && !slices.Contains(tt.want, "seccomp:filter") {
				tt.want = append(tt.want, "seccomp:filter") // of the container that this test is in
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("selectors are %q, want %q", got, tt.want)
			}
		})
	}
}

// helperFilter executes a program under a filter that lets every call through.
func helperFilter(args []string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	filter := unix.SockFprog{Len: 1, Filter: &allow}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}

func TestSecurityLabels(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, apparmor, selinux string }{
		{"enforced profile", "docker-default (enforce)\n", "docker-default", ""},
		{"profile that complains", "docker-default (complain)\n", "", ""},
		{"unconfined", "unconfined\n", "", ""},
		{"profile named like a mode", "x (enforce) (complain)\n", "", ""},
		{"profile with a space", "a b (enforce)\n", "a b", ""},
		{"context", "system_u:system_r:httpd_t:s0\x00", "", "httpd_t"},
		{"context without a level", "system_u:system_r:httpd_t\x00", "", "httpd_t"},
		{"context with categories", "u:r:container_t:s0:c1,c2\x00", "", "container_t"},
		{"kernel", "kernel\x00", "", ""},
		{"nothing", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseAppArmor([]byte(tt.in)); got != tt.apparmor {
				t.Errorf("profile is %q, want %q", got, tt.apparmor)
			}
			if got := parseSELinux([]byte(tt.in)); got != tt.selinux {
				t.Errorf("type is %q, want %q", got, tt.selinux)
			}
		})
	}
}

func TestParentIsAttested(t *testing.T) {
	t.Parallel()
	shell := install(t, program(t, "sh"), filepath.Join(openTempDir(t), "shell"), "mark")
	parent := run(t, nil, shell, "-c", "sleep 600; true")
	pid := onlyChild(t, parent.Process.Pid)
	at := attestPID(t, NewAttester(Options{}), pid)
	wantOnly(t, at.Selectors, "parent:sha256:", sha256Of(t, shell))
}

func TestOrphanHasNoParentOfItsOwn(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := pidIn(t, out)
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	sleep := program(t, "sleep")
	eventually(t, "the orphan runs", func() bool {
		exe, _ := os.Readlink("/proc/" + string(bytes.TrimSpace(out)) + "/exe")
		return exe == sleep
	})
	at := attestPID(t, NewAttester(Options{}), pid)
	if slices.Contains(values(at.Selectors, "parent:sha256:"), sha256Of(t, program(t, "sh"))) {
		t.Error("a shell that is gone is still the parent")
	}
}

func TestMeasurements(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("ab", 32)
	for _, tt := range []struct{ name, line, sum, path string }{
		{"with path", "10 742e ima-ng sha256:" + sum + " /usr/bin/sh\n", sum, "/usr/bin/sh"},
		{"with signature", "10 742e ima-sig sha256:" + sum + " /usr/bin/sh 0302\n", sum, "/usr/bin/sh"},
		{"without the signature it may have", "10 742e ima-sig sha256:" + sum + " /usr/bin/a cafe \n", sum, "/usr/bin/a cafe"},
		{"with two signatures", "10 742e ima-modsig sha256:" + sum + " /lib/a.ko 03 sha256:" + sum + " 30\n", sum, "/lib/a.ko"},
		{"path with a space", "10 742e ima-ng sha256:" + sum + " /usr/bin/a b\n", sum, "/usr/bin/a b"},
		{"SHA-1", "10 742e ima-ng sha1:" + sum[:40] + " /usr/bin/sh\n", "", ""},
		{"old template", "10 742e ima " + sum[:40] + " /usr/bin/sh\n", "", ""},
		{"buffer, not a file", "10 742e ima-buf sha256:" + sum + " kexec-cmdline 00\n", "", ""},
		{"violation", "10 0000 ima-ng sha256:" + strings.Repeat("0", 64) + " /usr/bin/sh\n", "", ""},
		{"digest in the path", "10 742e ima-ng sha1:" + sum[:40] + " sha256:" + sum + "\n", "", ""},
		{"cut short", "10 742e ima-ng sha256:" + sum[:60], "", ""},
		{"cut short before the signature", "10 742e ima-sig sha256:" + sum + " /usr/bin/sh", "", ""},
	} {
		if got, want := parseMeasurement(tt.line), (measured{tt.sum, tt.path}); got != want {
			t.Errorf("%s: got %q, want %q", tt.name, got, want)
		}
	}

	var list bytes.Buffer // grows as the kernel's does
	m := newMeasurements(&list)
	other := strings.Repeat("cd", 32)
	list.WriteString("10 742e ima-ng sha256:" + other + " /usr/bin/other\n")
	for _, want := range []bool{false, true} {
		if got, err := m.has(sum, "/usr/bin/sh"); got != want || err != nil {
			t.Errorf("measured is %t, %v; want %t", got, err, want)
		}
		list.WriteString("10 742e ima-ng sha256:" + sum + " /usr/bin/sh\n")
	}
	if got, err := m.has(other, "/usr/bin/other"); !got || err != nil {
		t.Errorf("measured before is %t, %v", got, err)
	}
	if got, err := m.has("", "/usr/bin/sh"); got || err != nil {
		t.Errorf("no digest is measured: %t, %v", got, err)
	}
	if got, err := m.has(sum, "/home/user/sh"); got || err != nil {
		t.Errorf("a copy that was never measured: %t, %v", got, err)
	}
}
