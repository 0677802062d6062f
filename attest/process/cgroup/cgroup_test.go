package cgroup

import (
	"strings"
	"testing"
)

func TestParseCgroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, in, want string
		hierarchy      Hierarchy
		fails          bool
	}{
		{name: "unified", in: "0::/system.slice/a.service\n", want: "/system.slice/a.service"},
		{name: "hybrid", in: "9:name=systemd:/system.slice/a.service\n8:pids:/x\n0::/\n", hierarchy: Named, want: "/system.slice/a.service"},
		{name: "unified, where the machine has the named one", in: "9:name=systemd:/\n0::/system.slice/a.service\n", want: "/system.slice/a.service"},
		{name: "hybrid, but systemd never ran", in: "8:pids:/x\n0::/a\n", hierarchy: Named, want: "/a"},
		{name: "unified one missing", in: "9:name=systemd:/a\n", fails: true},
		{name: "legacy", in: "9:name=systemd:/system.slice/a.service\n8:cpu,cpuacct:/x\n", hierarchy: Named, want: "/system.slice/a.service"},
		{name: "colons in the path", in: "0::/a:b:c\n", want: "/a:b:c"},
		{name: "another named hierarchy", in: "3:name=other:/x\n0::/a\n", want: "/a"},
		{name: "4 KB long", in: "0::/" + strings.Repeat("x", 4094) + "\n", want: "/" + strings.Repeat("x", 4094)},
		{name: "outside the daemon's namespace", in: "0::/../x\n", want: "/../x"}, // no selector: see plainPath
		{name: "no hierarchy of use", in: "8:pids:/x\n", fails: true},
		{name: "listed twice", in: "0::/a\n0::/b\n", fails: true},
		{name: "cut short", in: "0::/a", fails: true},
		{name: "relative", in: "0::a\n", fails: true},
		{name: "fields missing", in: "0:/a\n", fails: true},
		{name: "empty", in: "", fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.in), tt.hierarchy)
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("9:name=systemd:/system.slice/a.service\n0::/\n")
	f.Add("0::/a/../b\n")
	f.Fuzz(func(t *testing.T, s string) {
		path, err := Parse([]byte(s), Named)
		if err != nil {
			return
		}
		if !strings.Contains(s, ":"+path+"\n") {
			t.Fatalf("path %q is not in the input", path)
		}
		unit, slice, ok := Unit(strings.TrimPrefix(path, "/"))
		if !ok {
			return
		}
		if !isUnitName(unit) || !isUnitName(slice) || strings.HasSuffix(unit, ".slice") || !strings.HasSuffix(slice, ".slice") {
			t.Errorf("control group %q gave unit %q in slice %q", path, unit, slice)
		}
	})
}
