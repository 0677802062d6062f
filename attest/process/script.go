package process

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// ScriptIn returns which argument of a command is the script that its program,
// an interpreter, runs, and "" if the program is no interpreter that is known.
// An error means that the command brings in code in another way.
func ScriptIn(command []string) (string, error) {
	if len(command) == 0 {
		return "", errors.New("the command is empty")
	}
	if _, ok := optionsOf(command[0]); !ok {
		return "", nil
	}
	return scriptIn(command[0], command)
}

// scriptIn returns which of the arguments of an interpreter, the first being
// its name, is the script it runs. Only options that are known not to bring in
// code of their own may stand before it: an option that isn't known might.
func scriptIn(interpreter string, args []string) (string, error) {
	options, ok := optionsOf(interpreter)
	if !ok {
		return "", fmt.Errorf("%s is no interpreter that is known", interpreter)
	}
	for i := 1; i < len(args); i++ {
		arg := args[i]
		switch {
		case strings.Contains(arg, "$"):
			return "", fmt.Errorf("its argument %q may depend on a variable", arg)
		case arg == "--" && i+1 < len(args):
			return args[i+1], nil
		case arg == "-", arg == "--":
			return "", errors.New("it reads a program from its standard input")
		case !strings.HasPrefix(arg, "-"):
			if arg == "" {
				return "", errors.New("its script has an empty name")
			}
			return arg, nil
		case options.alone[arg]:
		case options.withNext[arg] != nil:
			if i++; i == len(args) || !takes(options.withNext[arg], args[i]) {
				return "", fmt.Errorf("its option %q may bring in other code", strings.Join(args[i-1:min(i+1, len(args))], " "))
			}
		case options.short != "" && isCluster(arg, options.short):
		default:
			if name, _, ok := strings.Cut(arg, "="); ok && options.withValue[name] {
				continue
			}
			return "", fmt.Errorf("its option %q may bring in other code", arg)
		}
	}
	return "", errors.New("it is given no script")
}

// options are those of an interpreter that change nothing about which code it
// runs.
type options struct {
	short     string              // letters that may be joined behind one dash
	alone     map[string]bool     // whole options
	withValue map[string]bool     // options whose value follows "="
	withNext  map[string][]string // options whose value is the next argument, and the values it may have; "" for any
}

var interpreters = map[string]options{
	// -E, -I, -P and -s only take sources of code away.
	"python": {short: "bBdEIOPqsSuvx", withNext: map[string][]string{
		"-W": {""},
		"-X": {"dev", "faulthandler", "importtime", "no_debug_ranges", "tracemalloc", "utf8", "utf8=1"},
	}},
	"node": {
		alone: set("--no-warnings", "--enable-source-maps", "--trace-warnings", "--unhandled-rejections=strict",
			"--no-deprecation", "--frozen-intrinsics", "--use-openssl-ca", "--use-system-ca"),
		withValue: set("--max-old-space-size", "--stack-trace-limit", "--dns-result-order", "--max-http-header-size"),
	},
	"sh":   {short: "aefhkmuvxC"},
	"bash": {short: "aefhkmuvxBCEHPT", alone: set("--noprofile", "--norc", "--posix", "-p")},
	"perl": {short: "wWXtTuU"},
	"ruby": {short: "w", alone: set("--disable-gems", "--disable=gems", "--yjit")},
}

func set(s ...string) map[string]bool {
	m := make(map[string]bool, len(s))
	for _, e := range s {
		m[e] = true
	}
	return m
}

// optionsOf knows interpreters by the base name of their program, with or
// without a version: python3.11, node.
func optionsOf(interpreter string) (options, bool) {
	name := path.Base(interpreter)
	if o, ok := interpreters[name]; ok {
		return o, true
	}
	for base, alias := range map[string]string{"python": "python", "pypy": "python", "nodejs": "node", "dash": "sh", "perl": "perl", "ruby": "ruby"} {
		if version, ok := strings.CutPrefix(name, base); ok && strings.Trim(version, "0123456789.") == "" {
			return interpreters[alias], true
		}
	}
	return options{}, false
}

func takes(allowed []string, value string) bool {
	return (allowed[0] == "" || slices.Contains(allowed, value)) && !strings.Contains(value, "$")
}

func isCluster(arg, letters string) bool {
	return len(arg) > 1 && arg[0] == '-' && strings.Trim(arg[1:], letters) == ""
}

// maxShebang bounds the first line of a script; the kernel looks at 256 bytes.
const maxShebang = 256

// shebang returns the program and the one argument, if any, that the kernel
// runs a script with. It reports false for anything but a script.
func shebang(head []byte) (program, arg string, ok bool) {
	rest, ok := strings.CutPrefix(string(head[:min(len(head), maxShebang)]), "#!")
	if !ok {
		return "", "", false
	}
	line, _, ok := strings.Cut(rest, "\n")
	if !ok {
		return "", "", false // longer than the kernel takes for certain
	}
	program, arg, _ = strings.Cut(strings.Trim(line, " \t"), " ")
	if program, tabbed, ok := strings.Cut(program, "\t"); ok {
		return program, strings.Trim(tabbed+" "+arg, " \t"), strings.HasPrefix(program, "/")
	}
	return program, strings.Trim(arg, " \t"), strings.HasPrefix(program, "/")
}
