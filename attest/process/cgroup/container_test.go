package cgroup

import (
	"strings"
	"testing"
)

func TestContainerOfControlGroup(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abcdef", 4)
	for _, tt := range []struct {
		name, cgroup, id, runtime string
	}{
		{"docker with systemd", "system.slice/docker-" + id + ".scope", id, "docker"},
		{"docker with systemd, a group inside", "system.slice/docker-" + id + ".scope/init", id, "docker"},
		{"docker without systemd", "docker/" + id, id, "docker"},
		{"docker without systemd, a group inside", "docker/" + id + "/x", id, "docker"},
		{"containerd by nerdctl", "system.slice/nerdctl-" + id + ".scope", id, "containerd"},
		{"containerd by itself", "default/" + id, id, "containerd"},
		{"containerd under Kubernetes with systemd", "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1234_5.slice/cri-containerd-" + id + ".scope", id, "containerd"},
		{"CRI-O under Kubernetes with systemd", "kubepods.slice/kubepods-pod1234.slice/crio-" + id + ".scope", id, "cri-o"},
		{"CRI-O under Kubernetes without systemd", "kubepods/besteffort/pod1234-5/crio-" + id, id, "cri-o"},
		{"some runtime under Kubernetes without systemd", "kubepods/besteffort/pod1234-5/" + id, id, ""},
		{"podman of root", "machine.slice/libpod-" + id + ".scope/container", id, "podman"},
		{"podman of root without systemd", "libpod_parent/libpod-" + id, id, "podman"},
		{"nspawn as a service", "machine.slice/systemd-nspawn@web.service/payload", "web", "nspawn"},
		{"nspawn on a terminal", `machine.slice/machine-my\x2dweb.scope`, "my-web", "nspawn"},
		{"rootless podman", "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope", "", ""},
		{"user's scope named like docker's", "user.slice/user-1000.slice/user@1000.service/app.slice/docker-" + id + ".scope", "", ""},
		{"group inside a service named like docker's", "system.slice/x.service/docker/" + id, "", ""},
		{"group inside a session named like docker's", "user.slice/user-1000.slice/session-1.scope/docker-" + id + ".scope", "", ""},
		{"short ID", "docker/" + id[:12], "", ""},
		{"capital digits", "docker/" + strings.ToUpper(id), "", ""},
		{"unknown top-level group", "other/" + id, "", ""},
		{"no container", "system.slice/agent.service", "", ""},
		{"docker itself", "system.slice/docker.service", "", ""},
		{"machine without a name", "machine.slice/machine-.scope", "", ""},
		{"machine with a bad name", `machine.slice/machine-a\x2fb.scope`, "", ""},
		{"root", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if id, runtime := Container(tt.cgroup); id != tt.id || runtime != tt.runtime {
				t.Errorf("got container %q of %q, want %q of %q", id, runtime, tt.id, tt.runtime)
			}
		})
	}
}

func TestSliceAndUserUnitOfControlGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, cgroup, slice, userUnit string
	}{
		{"system unit", "system.slice/agent.service", "system.slice", ""},
		{"user unit", "user.slice/user-1000.slice/user@1000.service/app.slice/agent.service", "user-1000.slice", "agent.service"},
		{"user unit with a group inside", "user.slice/user-1000.slice/user@1000.service/app.slice/agent.service/x.scope", "user-1000.slice", "agent.service"},
		{"user manager itself", "user.slice/user-1000.slice/user@1000.service/init.scope", "user-1000.slice", "init.scope"},
		{"session", "user.slice/user-1000.slice/session-3.scope", "user-1000.slice", ""},
		{"session with a group named like a unit", "user.slice/user-1000.slice/session-3.scope/agent.service", "user-1000.slice", ""},
		{"delegated group named like a user manager", "system.slice/x.service/user@1000.service/agent.service", "system.slice", ""},
		{"not systemd's", "docker/x", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Slice(tt.cgroup); got != tt.slice {
				t.Errorf("slice is %q, want %q", got, tt.slice)
			}
			if got := UserUnit(tt.cgroup); got != tt.userUnit {
				t.Errorf("user unit is %q, want %q", got, tt.userUnit)
			}
		})
	}
}

func FuzzContainer(f *testing.F) {
	f.Add("kubepods/besteffort/pod1234-5/crio-" + strings.Repeat("0", 64))
	f.Add("system.slice/docker-" + strings.Repeat("0", 64) + ".scope")
	f.Add("user.slice/user-1000.slice/user@1000.service/app.slice/docker-" + strings.Repeat("0", 64) + ".scope")
	f.Fuzz(func(t *testing.T, cgroup string) {
		id, runtime := Container(cgroup)
		if id == "" && runtime != "" {
			t.Errorf("a container of %q without an ID", runtime)
		}
		if id != "" && !isContainerID(id) && !isMachineName(id) {
			t.Errorf("container ID %q", id)
		}
		if id != "" && strings.HasPrefix(cgroup, "user.slice/user-1000.slice/user@1000.service/") {
			t.Errorf("a user's own group passes for container %q", id)
		}
	})
}
