package programs

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/process/file"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/systemd"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const good = `programs:
  - name: research-agent
    command: [/usr/bin/python3, -I, /opt/agent.py, --mode, x]
    sha256: abababababababababababababababababababababababababababababababab
    user: nobody
    directory: /opt
    environment: [LANG=C.UTF-8]
    pass_environment: [TERM]
    allow_users: [root]
    allow_groups: [users]
`

func TestDefinition(t *testing.T) {
	t.Parallel()
	programs, err := parse([]config.File{{Path: "p.yaml", Data: []byte(good)}}, nil, false)
	must(t, err)
	p := programs["research-agent"]
	if p == nil || len(programs) != 1 {
		t.Fatalf("got %v", programs)
	}
	if p.Script != "/opt/agent.py" || p.UID == 0 || p.Slice() != "vouch-research-agent.slice" || p.AllowedArguments || p.Pos.Line != 2 {
		t.Errorf("got %+v", p)
	}
}

func TestDefinitionsThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, old, new, want string }{
		{"unknown key", "directory:", "dir:", `unknown key "dir"`},
		{"name with a slash", "research-agent", "../x", "must be lower-case letters"},
		{"name with a dash at its end", "research-agent", "x-", "must be lower-case letters"},
		{"no command", "[/usr/bin/python3, -I, /opt/agent.py, --mode, x]", "[]", "command is missing"},
		{"relative program", "/usr/bin/python3,", "python3,", "absolute path"},
		{"relative script", "/opt/agent.py", "agent.py", `script "agent.py" must be an absolute path`},
		{"program in the text", "-I,", "-c,", "may bring in other code"},
		{"module", "-I,", "-m,", "may bring in other code"},
		{"variable", "x]", "$X]", "must not contain a newline or a $"},
		{"proxy with what is no credential", "directory: /opt", `proxy: ["--"]`, "is not the name of a credential"},
		{"network of another kind", "directory: /opt", "proxy: [a]\n    network: host", "must be proxy"},
		{"network without a proxy", "directory: /opt", "network: proxy", "reaches nothing without proxy"},
		{"no digest", "sha256: abababababababababababababababababababababababababababababababab", "directory: /", "add sha256"},
		{"digest that is none", "sha256: ab", "sha256: zz", "64 lower-case hexadecimal digits"},
		{"root", "user: nobody", "user: root", "is root"},
		{"user that is not there", "user: nobody", "user: nosuchuser", "does not exist"},
		{"directory with dots", "directory: /opt", "directory: /opt/../x", "without . and .."},
		{"environment without a value", "LANG=C.UTF-8", "LANG", "NAME=value"},
		{"environment with a bad name", "LANG=C.UTF-8", "A-B=c", "NAME=value"},
		{"loader's variable", "[TERM]", "[LD_PRELOAD]", "can change which code"},
		{"interpreter's variable", "[TERM]", "[PYTHONPATH]", "can change which code"},
		{"path", "[TERM]", "[PATH]", "can change which code"},
		{"home", "[TERM]", "[HOME]", "can change which code"},
		{"nobody may start it", "    allow_users: [root]\n    allow_groups: [users]\n", "", "nobody may start"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.new, 1)
			if text == good {
				t.Fatal("nothing replaced")
			}
			programs, err := parse([]config.File{{Path: "p.yaml", Data: []byte(text)}}, nil, false)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "p.yaml:") {
				t.Errorf("got %v, %v; want error %q", programs, err, tt.want)
			}
		})
	}
	t.Run("two of one name", func(t *testing.T) {
		_, err := parse([]config.File{{Path: "a.yaml", Data: []byte(good)}, {Path: "b.yaml", Data: []byte(good)}}, nil, false)
		if err == nil || !strings.Contains(err.Error(), "b.yaml:2: program \"research-agent\" is already defined at a.yaml:2") {
			t.Errorf("got error %v", err)
		}
	})
}

func TestLoadReadsADirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if programs, err := Load(filepath.Join(dir, "missing"), true); len(programs) != 0 || err != nil {
		t.Errorf("a missing directory defines %v, %v", programs, err)
	}
	must(t, os.WriteFile(dir+"/a.yaml", []byte(good), 0o644))
	if programs, err := Load(dir, true); len(programs) != 1 || err != nil {
		t.Errorf("got %v, %v", programs, err)
	}
}

func TestOnlyWhatIsAllowedPassesFromTheEnvironment(t *testing.T) {
	t.Parallel()
	p := &Program{Environment: []string{"A=1"}, PassEnvironment: []string{"TERM", "LD_PRELOAD"}}
	got := p.environment([]string{"TERM=xterm", "LD_PRELOAD=/tmp/x.so", "HOME=/tmp", "TERMX=1", "TERM", "TERM=a\nB=c", "=", ""})
	if want := []string{"A=1", "TERM=xterm"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhoMayStart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		program Program
		uid     uint32
		want    bool
	}{
		{"user", Program{AllowUsers: []string{"root"}}, 0, true},
		{"group", Program{AllowGroups: []string{"root"}}, 0, true},
		{"another user", Program{AllowUsers: []string{"root"}, AllowGroups: []string{"root"}}, 65534, false},
		{"nobody", Program{}, 0, false},
		{"user that is not known", Program{AllowUsers: []string{""}, AllowGroups: []string{""}}, 4_000_000_000, false},
	} {
		if got := tt.program.mayStart(tt.uid); got != tt.want {
			t.Errorf("%s: got %t", tt.name, got)
		}
	}
}

func TestPassableNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"TERM", "LANG", "LC_ALL", "COLORTERM", "TZ", "NO_COLOR", "AWS_REGION", "GOOGLE_CLOUD_PROJECT", "GOMAXPROCS"} {
		if err := passable(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "A=B", "1A", "a b", "ld_preload", "LD_LIBRARY_PATH", "NODE_OPTIONS", "PERL5OPT", "RUBYOPT", "BASH_ENV", "PYTHONSTARTUP",
		"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "KUBECONFIG", "EDITOR", "VISUAL", "PAGER", "LESSOPEN", "SSH_ASKPASS", "MAVEN_OPTS",
		"TERMINFO", "TERMINFO_DIRS", "GRADLE_OPTS", "JAVA_HOME", "CARGO_HOME", "TF_CLI_CONFIG_FILE", "CURL_HOME", "GOFLAGS", "PIP_INDEX_URL", "BROWSER"} {
		if passable(name) == nil {
			t.Errorf("%q passes", name)
		}
	}
}

func ExampleExit_Code() {
	fmt.Println(Exit{Status: 3}.Code(), Exit{Signal: 15}.Code())
	// Output: 3 143
}

func TestAProgramOfTheProxyAloneIsStartedInASandbox(t *testing.T) {
	t.Parallel()
	const command, vouch = "/usr/bin/true", "/usr/bin/env" // any that root owns
	_, sum, err := file.Hash(t.Context(), command, 1)
	must(t, err)
	me, err := user.Current()
	must(t, err)
	p := &Program{Name: "agent", Command: []string{command}, SHA256: sum, User: "daemon", UID: 1, Directory: "/", Proxy: []string{"a", "b"}, AllowUsers: []string{me.Username}}
	s := Server{Units: &systemd.Units{}, Vouch: vouch, Programs: func() map[string]*Program { return map[string]*Program{"agent": p} }}
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	for _, tt := range []struct {
		alone bool
		want  []string
	}{
		{false, []string{vouch, "exec", "--proxy", "a,b", "--", command}},
		{true, []string{vouch, "exec", "--sandbox", "--proxy", "a,b", "--", command}},
	} {
		p.Alone = tt.alone
		unit, err := s.prepare(t.Context(), request{Program: "agent"}, []*os.File{r, w, w}, &Start{UID: uint32(os.Getuid())})
		must(t, err)
		if unit.Alone != tt.alone || !slices.Equal(unit.Command, tt.want) {
			t.Errorf("alone %v: %q", unit.Alone, unit.Command)
		}
	}
}
