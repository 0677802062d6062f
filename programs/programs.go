// Package programs starts programs that an administrator has defined on the
// terminal of a user who may start them: vouch program run NAME.
//
// A service has an identity as strong as its unit file. A program started at a
// terminal does not: the user controls its arguments and environment. Here the
// caller chooses only the program's name and what its definition leaves open.
// systemd starts it as a transient unit, with the caller's standard streams and as
// the user in the definition, and it is attested as a service is. It requires
// systemd as PID 1; there is no fallback.
//
// The program is not part of the terminal's job control: it reads and writes the
// terminal, and gets the signals that vouch run gets.
package programs

import (
	"errors"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/config"
)

// A Program is what an administrator allows some users to start.
type Program struct {
	Name             string
	Command          []string // absolute path and arguments
	Script           string   // what an interpreter runs, else ""
	SHA256           string   // of the script or, without one, of the program; "" if TreeSHA256 is given
	TreeSHA256       string   // of the directory that holds it
	Proxy            []string // credentials with which vouchd makes its calls
	Alone            bool     // it reaches nothing else on a network
	User             string
	UID              uint32
	Directory        string
	Environment      []string // NAME=value, set by the administrator
	PassEnvironment  []string // names the caller may give values to
	AllowUsers       []string
	AllowGroups      []string
	AllowedArguments bool // the caller may append arguments
	Pos              config.Pos
}

// Slice returns the slice that the program's units are in, for selectors.
func (p *Program) Slice() string { return "vouch-" + p.Name + ".slice" }

// document is one file of programs.d.
type document struct {
	Programs []written `yaml:"programs"`
}

type written struct {
	Name            config.At[string]   `yaml:"name" required:"true" like:"research"`
	Command         []config.At[string] `yaml:"command" like:"/usr/bin/python3"`
	SHA256          config.At[string]   `yaml:"sha256"`
	TreeSHA256      config.At[string]   `yaml:"tree_sha256"`
	Proxy           []config.At[string] `yaml:"proxy" like:"openai"`
	Network         config.At[string]   `yaml:"network" like:"proxy"`
	User            config.At[string]   `yaml:"user" required:"true" like:"agent"`
	Directory       config.At[string]   `yaml:"directory" default:"/"`
	Environment     []config.At[string] `yaml:"environment" like:"LANG=C.UTF-8"`
	PassEnvironment []config.At[string] `yaml:"pass_environment" like:"TERM"`
	AllowUsers      []config.At[string] `yaml:"allow_users" like:"alice"`
	AllowGroups     []config.At[string] `yaml:"allow_groups" like:"research"`
	AllowArguments  bool                `yaml:"allow_arguments" default:"false"`

	Pos config.Pos
}

const maxPrograms = 1000

// Load reads the *.yaml files of dir. A missing directory defines nothing. An error about them
// is of type [config.Errors] and lists every problem found. AnyOwner accepts files that others
// may write to, and users that this machine does not know, for checking a working copy.
func Load(dir string, anyOwner bool) (map[string]*Program, error) {
	files, err := config.ReadDir(dir, anyOwner)
	var problems config.Errors
	problems.AddErr(dir, err)
	return parse(files, problems, anyOwner)
}

// Parse is [Load] of files that were read.
func Parse(files []config.File) (map[string]*Program, error) { return parse(files, nil, false) }

func parse(files []config.File, problems config.Errors, anyUser bool) (map[string]*Program, error) {
	programs := make(map[string]*Program)
	for _, f := range files {
		var doc document
		problems.AddErr(f.Path, config.Decode(f.Path, f.Data, &doc))
		for i := range doc.Programs {
			p := doc.Programs[i].program(&problems, anyUser)
			if first := programs[p.Name]; first != nil {
				problems.AddBetween(p.Pos, first.Pos, "program %q is already defined at %s; choose another name", p.Name, first.Pos)
			}
			programs[p.Name] = p
		}
		if len(programs) > maxPrograms {
			problems.Add(config.Pos{File: f.Path}, "there are more than %d programs with this file; remove some", maxPrograms)
			break
		}
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return programs, nil
}

var (
	programName  = regexp.MustCompile(`^[a-z0-9]+([-_][a-z0-9]+)*$`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	sha256Digits = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

const maxNameLen = 64

// networkProxy is the value of network that leaves a program the proxy alone.
const networkProxy = "proxy"

// program checks what is written and returns it as a value.
func (w *written) program(problems *config.Errors, anyUser bool) *Program {
	p := &Program{
		Name:             w.Name.Value,
		Command:          values(w.Command),
		SHA256:           w.SHA256.Value,
		TreeSHA256:       w.TreeSHA256.Value,
		Proxy:            values(w.Proxy),
		Alone:            w.Network.Value == networkProxy,
		User:             w.User.Value,
		Directory:        w.Directory.Value,
		Environment:      values(w.Environment),
		PassEnvironment:  values(w.PassEnvironment),
		AllowUsers:       values(w.AllowUsers),
		AllowGroups:      values(w.AllowGroups),
		AllowedArguments: w.AllowArguments,
		Pos:              w.Pos,
	}
	if !programName.MatchString(p.Name) || len(p.Name) > maxNameLen {
		problems.Add(w.Name.Pos, "program name %q must be lower-case letters and digits, with single - or _ between them, at most %d", p.Name, maxNameLen)
	}
	w.checkCommand(p, problems)
	w.checkDigests(problems)
	w.checkUser(p, problems, anyUser)
	if !filepath.IsAbs(p.Directory) || filepath.Clean(p.Directory) != p.Directory {
		problems.Add(w.Directory.Pos, "directory %q must be an absolute path without . and ..", p.Directory)
	}
	for _, e := range w.Environment {
		name, value, ok := strings.Cut(e.Value, "=")
		if !ok || !variableName.MatchString(name) || strings.ContainsAny(value, "\x00\n") {
			problems.Add(e.Pos, "environment: %q must be NAME=value on one line", e.Value)
		}
	}
	for _, c := range w.Proxy {
		if !programName.MatchString(c.Value) {
			problems.Add(c.Pos, "proxy: %q is not the name of a credential", c.Value)
		}
	}
	switch {
	case w.Network.Value != "" && !p.Alone:
		problems.Add(w.Network.Pos, "network: %q must be %s, or absent for that of the host", w.Network.Value, networkProxy)
	case p.Alone && len(p.Proxy) == 0:
		problems.Add(w.Network.Pos, "network: %s reaches nothing without proxy; add proxy: [CREDENTIAL]", networkProxy)
	}
	for _, e := range w.PassEnvironment {
		if err := passable(e.Value); err != nil {
			problems.Add(e.Pos, "pass_environment %q: %s", e.Value, err)
		}
	}
	if len(p.AllowUsers) == 0 && len(p.AllowGroups) == 0 {
		problems.Add(w.Pos, "nobody may start program %q; add allow_users or allow_groups", p.Name)
	}
	return p
}

func values(list []config.At[string]) []string {
	var out []string
	for _, e := range list {
		out = append(out, e.Value)
	}
	return out
}

func (w *written) checkCommand(p *Program, problems *config.Errors) {
	if len(p.Command) == 0 {
		problems.Add(w.Pos, "command is missing; add it as a list, the program's path first")
		return
	}
	if path := p.Command[0]; !filepath.IsAbs(path) || filepath.Clean(path) != path {
		problems.Add(w.Command[0].Pos, "program %q must be an absolute path without . and ..", path)
	}
	for _, arg := range w.Command {
		if strings.ContainsAny(arg.Value, "$\x00\n") {
			problems.Add(arg.Pos, "argument %q must not contain a newline or a $, which nothing expands", arg.Value)
		}
	}
	script, err := process.ScriptIn(p.Command)
	if err != nil {
		problems.Add(w.Pos, "command: %s; name the script by its absolute path", err)
		return
	}
	if script != "" && (!filepath.IsAbs(script) || filepath.Clean(script) != script) {
		problems.Add(w.Pos, "script %q must be an absolute path without . and ..", script)
	}
	p.Script = script
}

func (w *written) checkDigests(problems *config.Errors) {
	for _, d := range []config.At[string]{w.SHA256, w.TreeSHA256} {
		if d.Value != "" && !sha256Digits.MatchString(d.Value) {
			problems.Add(d.Pos, "digest %q must be 64 lower-case hexadecimal digits, as sha256sum and vouch hash print them", d.Value)
		}
	}
	if w.SHA256.Value == "" && w.TreeSHA256.Value == "" {
		problems.Add(w.Pos, "a digest is missing; add sha256 of the script or program, or tree_sha256 of its directory as vouch hash prints it")
	}
}

func (w *written) checkUser(p *Program, problems *config.Errors, any bool) {
	if p.User == "" {
		return // reported already
	}
	u, err := user.Lookup(p.User)
	if err != nil && any {
		return
	}
	if err != nil {
		problems.Add(w.User.Pos, "user %q does not exist on this machine; create it or choose another", p.User)
		return
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil || uid == 0 {
		problems.Add(w.User.Pos, "user %q is root, which can change any program; choose another", p.User)
		return
	}
	p.UID = uint32(uid)
}

// passable returns an error if a variable of that name changes which code a
// program runs, or where it looks for it. An administrator may set it, a
// caller may not.
func passable(name string) error {
	if !variableName.MatchString(name) {
		return errors.New("is not a variable name")
	}
	exact := []string{
		"AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_CONFIG_DIR", "BASH_ENV",
		"BROWSER", "CDPATH", "CLASSPATH", "DOCKER_CONFIG", "DOTNET_STARTUP_HOOKS", "EDITOR", "ENV", "GCONV_PATH", "GLIBC_TUNABLES",
		"GOENV", "GOFLAGS", "GOPATH", "GOPROXY", "GOROOT", "GOTOOLCHAIN", "GREP_OPTIONS", "HGRCPATH", "HOME", "IFS", "INPUTRC",
		"KUBECONFIG", "KUBE_EDITOR", "LIBPATH", "LOCALDOMAIN", "LOCPATH", "LOGNAME", "MAKEFLAGS", "MALLOC_CHECK_", "MANPAGER", "NETRC",
		"NLSPATH", "PAGER", "PATH", "PS4", "PSQLRC", "PWD", "RES_OPTIONS", "RSYNC_RSH", "RUSTFLAGS", "SHELL", "SHELLOPTS",
		"SSH_AUTH_SOCK", "SUDO_EDITOR", "TERMCAP", "TMPDIR", "USER", "VIMINIT", "VISUAL", "WGETRC", "_JAVA_OPTIONS",
	}
	prefixes := []string{
		"ANSIBLE_", "BASH_FUNC", "BUN_", "CARGO_", "CLOUDSDK_", "CORECLR_", "CURL_", "DENO_", "DYLD_", "GEM_", "GI_", "GIT_", "GRADLE_",
		"GTK_", "HELM_", "JAVA_", "JDK_", "LD_", "LESS", "LUA_", "MAVEN_", "NODE_", "NPM_", "OPENSSL_", "PERL", "PHP", "PIP_", "PYTHON",
		"QT_", "RUBY", "RUSTC", "SSH_ASKPASS", "SSL_", "SUDO_ASKPASS", "TERMINFO", "TF_CLI_", "UV_", "VIRTUAL_ENV", "XDG_",
	}
	upper := strings.ToUpper(name)
	if slices.Contains(exact, upper) || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(upper, p) }) {
		return errors.New("can change which code the program runs; set it under environment instead")
	}
	return nil
}
