package attest

import (
	"slices"
	"strings"
	"testing"
)

func TestParseSelectorTakesEveryKind(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"unix:uid:0", "unix:uid:4294967295", "unix:user:www-data", "unix:path:/usr/bin/agent", "cgroup:path:/",
		"unix:sha256:" + strings.Repeat("ab", 32), "systemd:id:agent@1.service", "systemd:slice:system.slice",
	} {
		p, err := ParseSelector(s)
		if err != nil || p.String() != s {
			t.Errorf("ParseSelector(%q) = %q, %v", s, p, err)
		}
	}
}

func TestParseSelectorRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, selector, want string }{
		{"nothing", "", "unknown selector"},
		{"an unknown type", "k8s:ns:default", "unknown selector"},
		{"a near miss", "unix:udi:5", "unix:uid:"},
		{"a kind without a value", "unix:uid:", "decimal ID"},
		{"an ID with a sign", "unix:uid:-1", "decimal ID"},
		{"an ID with zeros before", "unix:uid:007", "decimal ID"},
		{"an ID too large", "unix:uid:4294967296", "decimal ID"},
		{"a relative path", "unix:path:agent", "absolute path"},
		{"a path that goes up", "cgroup:path:/system.slice/../x", ".."},
		{"a path with a new line", "unix:path:/a\nb", "absolute path"},
		{"a hash in capitals", "unix:sha256:" + strings.Repeat("AB", 32), "hexadecimal"},
		{"a short hash", "unix:sha256:ab", "hexadecimal"},
		{"a unit without its suffix", "systemd:id:agent", "suffix"},
		{"a slice that is none", "systemd:slice:agent.service", "slice"},
		{"a long one", "unix:path:/" + strings.Repeat("a", MaxSelectorLen), "longer than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if s, err := ParseSelector(tt.selector); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseSelector = %q, %v, want %q", s, err, tt.want)
			}
		})
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	a, b, c := Selector{"unix", "uid:1"}, Selector{"unix", "gid:1"}, Selector{"unix", "uid:2"}
	for _, tt := range []struct {
		name       string
		have, want Selectors
		covers     bool
	}{
		{"all of them", Selectors{a, b}, Selectors{b, a}, true},
		{"some of them", Selectors{a, b}, Selectors{a}, true},
		{"one too many", Selectors{a, b}, Selectors{a, c}, false},
		{"nothing wanted", Selectors{a}, nil, false},
		{"nothing wanted and nothing there", nil, nil, false},
		{"nothing there", nil, Selectors{a}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.have.Covers(tt.want); got != tt.covers {
				t.Errorf("Covers = %t, want %t", got, tt.covers)
			}
		})
	}
}

func TestKindsAreInOrderAndDistinct(t *testing.T) {
	t.Parallel()
	ks := Kinds()
	for i, k := range ks {
		if i > 0 && ks[i-1].Prefix >= k.Prefix {
			t.Errorf("%s stands before %s", ks[i-1].Prefix, k.Prefix)
		}
		for j, other := range ks {
			if i != j && strings.HasPrefix(other.Prefix, k.Prefix) {
				t.Errorf("%s begins as %s does", other.Prefix, k.Prefix)
			}
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, k := range Kinds() {
		f.Add(k.Prefix + "1")
		f.Add(k.Prefix + "/a/b")
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseSelector(s)
		if err != nil {
			return
		}
		again, err := ParseSelector(p.String())
		if err != nil || again != p || p.String() != s {
			t.Errorf("ParseSelector(%q) = %q, again %q, %v", s, p, again, err)
		}
		if !slices.ContainsFunc(Kinds(), func(k Kind) bool { return strings.HasPrefix(s, k.Prefix) }) {
			t.Errorf("%q is of no kind", s)
		}
	})
}
