package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/systemd"
)

// TestSystemServiceWithTheDropInIsInASandbox asks a real systemd: make system-test boots one.
// This program stands in for vouch exec, which would ask the daemon.
func TestSystemServiceWithTheDropInIsInASandbox(t *testing.T) {
	if os.Geteuid() != 0 {
		return // root has done it
	}
	if !systemd.IsManager() {
		t.Skip("systemd is not PID 1 here; make system-test")
	}
	dir, err := os.MkdirTemp("/opt", "vouch-sandbox")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	probe, log := filepath.Join(dir, "probe"), filepath.Join(dir, "log")
	content, err := os.ReadFile(program)
	must(t, err)
	must(t, os.WriteFile(probe, content, 0o755))
	must(t, os.MkdirAll("/run/vouchd", 0o755))
	if _, err := os.Stat(systemd.SandboxResolver); err != nil {
		must(t, os.MkdirAll(filepath.Dir(systemd.SandboxResolver), 0o755))
		must(t, os.WriteFile(systemd.SandboxResolver, []byte(resolver), 0o644))
	}
	sibling := exec.Command("sleep", "infinity")
	sibling.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1, Gid: 1}} // daemon
	must(t, sibling.Start())
	t.Cleanup(func() { sibling.Process.Kill(); sibling.Wait() })
	environ := fmt.Sprintf("read=/proc/%d/environ", sibling.Process.Pid)
	const name = "vouch-sandbox-test.service"
	file := "/run/systemd/system/" + name
	t.Cleanup(func() {
		os.RemoveAll(file + ".d")
		os.Remove(file)
		exec.Command("systemctl", "daemon-reload").Run()
	})
	must(t, os.WriteFile(file, []byte("[Service]\nType=oneshot\nUser=daemon\nStandardOutput=file:"+log+"\nStandardError=inherit\nExecStart="+probe+
		" probe tcp=192.0.2.1:22 socket=1,1,0 capabilities list=/tmp list=/sys/class/net unix=/run/dbus/system_bus_socket read=/etc/resolv.conf read=/proc/1/status "+environ+"\n"), 0o644))
	systemctl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
			said, _ := os.ReadFile(log)
			t.Fatalf("systemctl %s: %s%s", args, out, said)
		}
	}
	systemctl("daemon-reload")
	var units systemd.Units
	defer units.Close()
	unit, err := units.Unit(t.Context(), name)
	must(t, err)
	text, err := DropIn(unit, probe, nil)
	must(t, err)
	must(t, os.Mkdir(file+".d", 0o755))
	must(t, os.WriteFile(file+".d/50-vouch-sandbox.conf", []byte(strings.Replace(text, "exec --sandbox --", "drive", 1)), 0o644))
	systemctl("daemon-reload")
	systemctl("start", name)
	out, err := os.ReadFile(log)
	must(t, err)
	for _, want := range []string{
		"192.0.2.1:22: connect: connection refused", "socket=1,1,0: EAFNOSUPPORT", "CapEff:0000000000000000", "CapPrm:0000000000000000 NoNewPrivs:1", "list=/tmp: \n",
		"list=/sys/class/net: lo\n", "system_bus_socket: socket: address family not supported", `read=/etc/resolv.conf: "nameserver 127.0.0.1\n"`, "read=/proc/1/status: ENOENT", environ + ": ENOENT",
		"attempt tcp 192.0.2.1:22\n", "attempt socket AF_UNIX\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
