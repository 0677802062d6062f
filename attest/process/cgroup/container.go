package cgroup

import "strings"

// Container returns the container that a control group, given without the
// leading slash, belongs to, and the runtime where the name of the group tells
// it. Only what root has made counts: the group of the first unit below the
// slices, or one of the top-level groups that runtimes make where they do
// without systemd. A rootless container lies below user@UID.service, where the
// user may give any name to a group, and is none here.
func Container(cgroup string) (id, runtime string) {
	if unit, _, ok := Unit(cgroup); ok {
		return containerUnit(unit)
	}
	top, rest, _ := strings.Cut(cgroup, "/")
	switch top {
	case "docker", "kubepods", "libpod_parent", "nerdctl", "default", "k8s.io", "moby":
	default:
		return "", ""
	}
	for part := range strings.SplitSeq(rest, "/") {
		name, runtime := trimRuntime(part)
		if runtime == "" && top != "kubepods" {
			runtime = topLevel[top]
		}
		if isContainerID(name) {
			return name, runtime
		}
	}
	return "", ""
}

// topLevel are the control groups of runtimes that make their own: containerd
// names them for its namespaces.
var topLevel = map[string]string{
	"docker": "docker", "moby": "docker", "libpod_parent": "podman",
	"nerdctl": "containerd", "default": "containerd", "k8s.io": "containerd",
}

func containerUnit(unit string) (id, runtime string) {
	if name, ok := strings.CutSuffix(unit, ".service"); ok {
		if machine, ok := strings.CutPrefix(name, "systemd-nspawn@"); ok && isMachineName(machine) {
			return machine, "nspawn"
		}
		return "", ""
	}
	name, ok := strings.CutSuffix(unit, ".scope")
	if !ok {
		return "", ""
	}
	if machine, ok := strings.CutPrefix(name, "machine-"); ok {
		machine = strings.ReplaceAll(machine, `\x2d`, "-")
		if !isMachineName(machine) {
			return "", ""
		}
		return machine, "nspawn"
	}
	id, runtime = trimRuntime(name)
	if runtime == "" || !isContainerID(id) {
		return "", ""
	}
	return id, runtime
}

func trimRuntime(name string) (id, runtime string) {
	for _, p := range []struct{ prefix, runtime string }{
		{"docker-", "docker"},
		{"cri-containerd-", "containerd"},
		{"nerdctl-", "containerd"},
		{"libpod-", "podman"},
		{"crio-", "cri-o"},
	} {
		if id, ok := strings.CutPrefix(name, p.prefix); ok {
			return id, p.runtime
		}
	}
	return name, ""
}

// isMachineName reports whether s is a host name of one label or more, as
// machinectl(1) takes.
func isMachineName(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_')
	})
}

// isContainerID reports whether s has the form that all of these runtimes
// give: 64 lower-case hexadecimal digits.
func isContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
