package process

import (
	"bytes"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaceKinds are the namespaces that there are selectors of.
var namespaceKinds = [...]string{"mnt", "net", "pid", "user", "ipc"}

// A sandbox is what confines a process beside its user and control group.
type sandbox struct {
	known      bool // it was looked at
	namespaces [len(namespaceKinds)]nsID
	apparmor   string // profile in force, "" for none
	selinux    string // type, "" for none
}

// A security module is asked only where the kernel has it.
type modules struct{ apparmor, selinux bool }

func theseModules() modules {
	apparmor, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return modules{apparmor: string(apparmor) == "Y\n", selinux: err == nil}
}

func (d procDir) sandbox(m modules, f *facts, buf *buffer) (s sandbox, err error) {
	observed := map[string]nsID{"mnt": f.mntNS, "pid": f.pidNS, "user": f.userNS}
	for i, kind := range namespaceKinds {
		if ns, ok := observed[kind]; ok {
			s.namespaces[i] = ns
			continue
		}
		if s.namespaces[i], err = namespace(int(d), "ns/"+kind); err != nil {
			return s, err
		}
	}
	if m.apparmor {
		b, err := d.read("attr/apparmor/current", buf)
		if err == unix.ENOENT { // before Linux 5.8
			b, err = d.read("attr/current", buf)
		}
		if err != nil {
			return s, err
		}
		s.apparmor = parseAppArmor(b)
	}
	if m.selinux {
		b, err := d.read("attr/current", buf)
		if err != nil {
			return s, err
		}
		s.selinux = parseSELinux(b)
	}
	return s, nil
}

// parseAppArmor returns the profile of a label such as "docker-default
// (enforce)", if it is enforced: one that only complains confines nothing.
func parseAppArmor(b []byte) string {
	label := string(bytes.TrimRight(b, "\n\x00"))
	profile, ok := strings.CutSuffix(label, " (enforce)")
	if !ok || strings.ContainsAny(profile, ":\n\x00") { // with a colon it is of a policy namespace
		return ""
	}
	return profile
}

// parseSELinux returns the type of a context, user:role:type[:level].
func parseSELinux(b []byte) string {
	context := string(bytes.TrimRight(b, "\n\x00"))
	parts := strings.SplitN(context, ":", 4)
	if len(parts) < 3 || strings.ContainsAny(parts[2], " \n\x00") {
		return ""
	}
	return parts[2]
}
