package attest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDocumentListsEveryKind holds docs/selectors.md against the table.
func TestDocumentListsEveryKind(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/selectors.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for _, k := range Kinds() {
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", k.Prefix, k.Trust, map[bool]string{true: "yes", false: "no"}[k.Anchor], k.Says))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/selectors.md lists\n%s\nand the table is\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestKindsAreInOrderAndApart(t *testing.T) {
	t.Parallel()
	kinds := Kinds()
	if !slices.IsSortedFunc(kinds, func(a, b Kind) int { return strings.Compare(a.Prefix, b.Prefix) }) {
		t.Error("the kinds are not sorted by prefix")
	}
	for _, a := range kinds {
		for _, b := range kinds {
			if a.Prefix != b.Prefix && strings.HasPrefix(a.Prefix, b.Prefix) {
				t.Errorf("a selector of kind %s could be one of %s", a.Prefix, b.Prefix)
			}
		}
	}
}

func TestParseSelectorOfEachKind(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0123456789abcdef", 4)
	for kind, tt := range map[string]struct{ good, bad []string }{
		"apparmor:profile:":         {[]string{"docker-default", "a b", "/usr/bin/x"}, []string{"", "a:b", "a\nb"}},
		"cgroup:path:":              {[]string{"/", "/system.slice/a.service", "/a:b"}, []string{"", "a", "/a/../b", "/a\n"}},
		"cgroup:slice:":             {[]string{"system.slice"}, []string{"", "system", "a.service", "a/b.slice"}},
		"container:id:":             {[]string{sum, "my-web"}, []string{"", "a/b", "a:b", sum + "0"}},
		"container:runtime:":        {[]string{"docker", "cri-o", "unknown"}, []string{"", "Docker", "runc"}},
		"ima:sha256:":               {[]string{sum}, []string{"", sum[1:], strings.ToUpper(sum)}},
		"nnp:":                      {[]string{"true"}, []string{"", "false"}},
		"node:hostname:":            {[]string{"vm-1", "a.Example.org"}, []string{"", "a b", "a:b", strings.Repeat("a", 254)}},
		"ns:ipc:":                   {[]string{"host", "private"}, []string{"", "other"}},
		"ns:mnt:":                   {[]string{"host", "private"}, []string{""}},
		"ns:net:":                   {[]string{"host", "private"}, []string{""}},
		"ns:pid:":                   {[]string{"host", "private"}, []string{""}},
		"ns:user:":                  {[]string{"host", "private"}, []string{""}},
		"parent:sha256:":            {[]string{sum}, []string{""}},
		"parent:systemd:id:":        {[]string{"a.service"}, []string{"", "a", "a/b.service"}},
		"script:path:":              {[]string{"/opt/a.py"}, []string{"", "a.py"}},
		"script:sha256:":            {[]string{sum}, []string{""}},
		"script:tree_sha256:":       {[]string{sum}, []string{""}},
		"seccomp:":                  {[]string{"filter"}, []string{"", "strict"}},
		"selinux:type:":             {[]string{"container_t"}, []string{"", "a:b"}},
		"systemd:exec_sha256:":      {[]string{sum}, []string{""}},
		"systemd:fragment_path:":    {[]string{"/etc/systemd/system/a.service"}, []string{""}},
		"systemd:fragment_sha256:":  {[]string{sum}, []string{""}},
		"systemd:id:":               {[]string{"a.service", "user@1000.service", "session-3.scope"}, []string{"", "a", "a/b.service", "a b.service", ".service"}},
		"systemd:invocation_id:":    {[]string{sum[:32]}, []string{"", sum}},
		"systemd:main_process:":     {[]string{"true"}, []string{"", "false"}},
		"systemd:slice:":            {[]string{"system.slice", "-.slice"}, []string{"", "a.service"}},
		"systemd:user_unit:":        {[]string{"a.service"}, []string{""}},
		"tpm:ek:sha256:":            {[]string{sum}, []string{"", sum[1:]}},
		"tpm:pcr:":                  {[]string{"7:" + sum, "23:" + sum}, []string{"", sum, "7:", "07:" + sum, "24:" + sum, "7:" + sum[:40]}},
		"tpm:secureboot:":           {[]string{"on"}, []string{"", "off", "true"}},
		"unix:fsverity:sha256:":     {[]string{sum}, []string{"", sum + sum}},
		"unix:fsverity:sha512:":     {[]string{sum + sum}, []string{"", sum}},
		"unix:gid:":                 {[]string{"0", "4294967295"}, []string{"", "-1", "01", "4294967296", "root"}},
		"unix:group:":               {[]string{"root"}, []string{"", "a:b"}},
		"unix:path:":                {[]string{"/usr/bin/cat", "/a b"}, []string{"", "cat", "/a/./b"}},
		"unix:sha256:":              {[]string{sum}, []string{"", sum + "0"}},
		"unix:supplementary_gid:":   {[]string{"7"}, []string{""}},
		"unix:supplementary_group:": {[]string{"users"}, []string{""}},
		"unix:uid:":                 {[]string{"1000"}, []string{"", "+1", "1e3"}},
		"unix:user:":                {[]string{"nobody"}, []string{""}},
	} {
		for _, arg := range tt.good {
			if s, err := ParseSelector(kind + arg); err != nil || s.String() != kind+arg {
				t.Errorf("%s%s: got %v, %v", kind, arg, s, err)
			}
		}
		for _, arg := range tt.bad {
			if s, err := ParseSelector(kind + arg); err == nil {
				t.Errorf("%s%q is taken as %v", kind, arg, s)
			}
		}
	}
	for _, s := range []string{"", ":", "unix", "unix:", "unix:uid", "Unix:uid:1", " unix:uid:1", strings.Repeat("x", MaxSelectorLen+1)} {
		if got, err := ParseSelector(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
}

func TestEveryKindIsTried(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("kind_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Kinds() {
		if !strings.Contains(string(b), "\""+k.Prefix+"\":") {
			t.Errorf("no values of kind %s are tried", k.Prefix)
		}
	}
}

func TestAnchorsAreWhatNoUserCanArrange(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0123456789abcdef", 4)
	for text, want := range map[string]bool{
		"unix:uid:1000": true, "unix:user:agent": true, "unix:gid:5": true, "unix:group:agents": true,
		"unix:supplementary_gid:5": true, "unix:supplementary_group:agents": true,
		"systemd:id:agent.service": true, "systemd:slice:agents.slice": true, "systemd:main_process:true": true,
		"systemd:invocation_id:" + sum[:32]: true, "systemd:fragment_path:/etc/systemd/system/a.service": true,
		"systemd:fragment_sha256:" + sum: true, "systemd:exec_sha256:" + sum: true,
		"cgroup:path:/system.slice/agent.service": true, "cgroup:slice:agents.slice": true,
		"container:id:" + sum: true, "container:runtime:docker": true, "selinux:type:agent_t": true,

		"unix:sha256:" + sum: false, "unix:path:/usr/bin/agent": false, "unix:fsverity:sha256:" + sum: false, "ima:sha256:" + sum: false,
		"script:path:/opt/a.py": false, "script:sha256:" + sum: false, "script:tree_sha256:" + sum: false,
		"parent:sha256:" + sum: false, "parent:systemd:id:a.service": false,
		"nnp:true": false, "seccomp:filter": false, "ns:user:host": false, "ns:pid:private": false,
		"apparmor:profile:agent":      false, // an unconfined process takes on any profile (aa-exec)
		"node:hostname:vm":            false,
		"tpm:ek:sha256:" + sum:        false, // every process of the machine has it
		"tpm:secureboot:on":           false,
		"systemd:user_unit:a.service": false,
		"systemd:slice:user.slice":    false, "systemd:slice:-.slice": false, "cgroup:slice:user.slice": false,
		"cgroup:path:/": false, "cgroup:path:/user.slice": false,
		"cgroup:path:/user.slice/user-1000.slice/user@1000.service/app.slice/a.service": false,
		"container:runtime:unknown": false,
	} {
		s, err := ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Anchors(); got != want {
			t.Errorf("%s anchors an entry: %t, want %t", text, got, want)
		}
	}
}

func TestProgramsAndScriptsAreNoAnchors(t *testing.T) {
	t.Parallel()
	for _, k := range Kinds() {
		if k.Anchor && (k.Stage == Read || k.Trust == Weak || k.Trust == TPMEnforced) {
			t.Errorf("%s is an anchor, although %v and of stage %d", k.Prefix, k.Trust, k.Stage)
		}
	}
	if len(Kinds()) > 63 {
		t.Errorf("%d kinds, more than a KindSet holds", len(Kinds()))
	}
}

func TestUnknownSelectorIsToldTheOneThatWasMeant(t *testing.T) {
	t.Parallel()
	for written, want := range map[string]string{
		"uid:1000":       "unix:uid:",
		"sha256:ab":      "unix:sha256:",
		"id:a.service":   ":id:",
		"systemd:unit:x": "systemd:",
	} {
		var s Selector
		err := s.UnmarshalText([]byte(written))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", written, err, want)
		}
	}
}
