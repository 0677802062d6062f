package sandbox

import (
	"strings"
	"testing"

	"github.com/vouchd/vouchd/systemd"
)

func service(kind string, args ...string) *systemd.Unit {
	return &systemd.Unit{Name: "agent.service", Service: &systemd.Service{Type: kind, ExecStart: []systemd.Command{{Path: args[0], Args: args}}}}
}

func TestADropInStartsTheServicesCommandInASandbox(t *testing.T) {
	t.Parallel()
	text, err := DropIn(service("notify", "/opt/agent", "--say", `a "b" 100%`, "$HOME", "", `c\d`), "/usr/bin/vouch", []string{"openai", "github"})
	must(t, err)
	for _, want := range []string{
		"\nExecStart=\nExecStart=/usr/bin/vouch exec --sandbox --proxy openai,github -- /opt/agent --say \"a \\\"b\\\" 100%%\" $$HOME \"\" \"c\\\\d\"\n",
		"\nType=exec\n", "\nPrivateNetwork=yes\n", "\nNoNewPrivileges=yes\n", "\nTemporaryFileSystem=/run:mode=755 /run/vouch:mode=1777\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if text, err = DropIn(service("exec", "/opt/agent"), "/usr/bin/vouch", nil); err != nil || strings.Contains(text, "Type=") || !strings.Contains(text, "exec --sandbox -- /opt/agent\n") {
		t.Errorf("%v:\n%s", err, text)
	}
}

func TestServicesThatCannotBeInASandboxAreNamed(t *testing.T) {
	t.Parallel()
	several := service("oneshot", "/bin/a")
	several.Service.ExecStart = append(several.Service.ExecStart, several.Service.ExecStart[0])
	for want, unit := range map[string]*systemd.Unit{
		"is not a service":                  {Name: "a.socket"},
		"has 2 commands":                    several,
		"Type=forking":                      service("forking", "/bin/a"),
		"already; remove its drop-in first": service("exec", "/usr/bin/vouch", "exec", "--", "/bin/a"),
		"cannot hold a newline":             service("exec", "/bin/a", "b\nc"),
	} {
		if _, err := DropIn(unit, "/usr/bin/vouch", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
