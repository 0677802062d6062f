package process

import (
	"strings"
	"testing"
)

func TestUnitOfControlGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, root, cgroup, unit, slice string
	}{
		{"service", "", "/system.slice/agent.service", "agent.service", "system.slice"},
		{"nested slices", "", "/a.slice/a-b.slice/agent.service", "agent.service", "a-b.slice"},
		{"unit in the root slice", "", "/init.scope", "init.scope", "-.slice"},
		{"instance", "", "/system.slice/system-agent.slice/agent@x.service", "agent@x.service", "system-agent.slice"},
		{"delegated group named like a unit", "", "/system.slice/docker.service/agent.service", "docker.service", "system.slice"},
		{"delegated group named like a slice and a unit", "", "/system.slice/x.service/system.slice/agent.service", "x.service", "system.slice"},
		{"user's unit named like a system unit", "", "/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service", "user@1000.service", "user-1000.slice"},
		{"user's unit named like a system unit and slice", "", "/user.slice/user-1000.slice/user@1000.service/system.slice/agent.service", "user@1000.service", "user-1000.slice"},
		{"login session", "", "/user.slice/user-1000.slice/session-3.scope", "session-3.scope", "user-1000.slice"},
		{"escaped name", "", "/system.slice/_cpu.service", "cpu.service", "system.slice"},
		{"below systemd's own root", "/docker/abc", "/docker/abc/system.slice/agent.service", "agent.service", "system.slice"},
		{"beside systemd's own root", "/docker/abc", "/docker/abcd/system.slice/agent.service", "", ""},
		{"outside systemd's own root", "/docker/abc", "/system.slice/agent.service", "", ""},
		{"way up", "", "/system.slice/agent.service/../x", "", ""},
		{"outside the namespace", "", "/../system.slice/agent.service", "", ""},
		{"slice itself", "", "/system.slice", "", ""},
		{"root", "", "/", "", ""},
		{"not made by systemd", "", "/docker/agent.service", "", ""},
		{"no unit type", "", "/system.slice/agent", "", ""},
		{"unknown unit type", "", "/system.slice/agent.exe", "", ""},
		{"new line", "", "/system.slice/agent.service\n", "", ""},
		{"percent sign", "", "/system.slice/agent%i.service", "", ""},
		{"removed", "", "/system.slice/agent.service (deleted)", "", ""},
		{"empty component", "", "/system.slice//agent.service", "", ""},
		{"name too long", "", "/system.slice/" + strings.Repeat("x", 250) + ".service", "", ""},
		{"only a suffix", "", "/system.slice/.service", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			unit, slice, ok := host{systemd: true, root: tt.root}.unit(tt.cgroup)
			if unit != tt.unit || slice != tt.slice || ok != (tt.unit != "") {
				t.Errorf("got unit %q in slice %q (%t), want %q in %q", unit, slice, ok, tt.unit, tt.slice)
			}
			if unit, _, ok := (host{root: tt.root}).unit(tt.cgroup); ok {
				t.Errorf("unit %q where systemd is not PID 1", unit)
			}
		})
	}
}
