package process

import (
	"fmt"
	"strings"
	"testing"
)

func TestScriptInArguments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		interpreter string
		args        string
		want        string
		err         string
	}{
		{"first argument", "/usr/bin/python3", "agent.py --name x", "agent.py", ""},
		{"after joined options", "/usr/bin/python3.11", "-IBu agent.py", "agent.py", ""},
		{"after options with values", "/usr/bin/python3", "-W error -X dev agent.py", "agent.py", ""},
		{"after two dashes", "/usr/bin/python3", "-- -agent.py", "-agent.py", ""},
		{"of node", "/usr/bin/node", "--enable-source-maps --max-old-space-size=4096 agent.js -r x", "agent.js", ""},
		{"of a shell", "/bin/sh", "-eu agent.sh", "agent.sh", ""},
		{"of bash", "/bin/bash", "--norc agent.sh", "agent.sh", ""},
		{"of perl", "/usr/bin/perl5.36", "-wT agent.pl", "agent.pl", ""},
		{"text as an option", "/usr/bin/python3", "-c pass agent.py", "", `"-c" may bring in`},
		{"text joined to options", "/usr/bin/python3", "-Ic pass", "", `"-Ic" may bring in`},
		{"module", "/usr/bin/python3", "-m agent", "", `"-m" may bring in`},
		{"interactive afterwards", "/usr/bin/python3", "-i agent.py", "", `"-i" may bring in`},
		{"compiled code from elsewhere", "/usr/bin/python3", "-X pycache_prefix=/tmp agent.py", "", "pycache_prefix"},
		{"option whose value is missing", "/usr/bin/python3", "-X", "", "may bring in"},
		{"node's preloaded module", "/usr/bin/node", "-r ./evil.js agent.js", "", `"-r" may bring in`},
		{"node's preloaded module with =", "/usr/bin/node", "--import=./evil.js agent.js", "", "may bring in"},
		{"node's text", "/usr/bin/node", "-e 1", "", "may bring in"},
		{"node's value that is no value", "/usr/bin/node", "--max-old-space-size agent.js", "", "may bring in"},
		{"shell's text", "/bin/sh", "-c true", "", "may bring in"},
		{"shell's text joined", "/bin/sh", "-ec true", "", "may bring in"},
		{"shell reading its input", "/bin/sh", "-s agent.sh", "", "may bring in"},
		{"standard input", "/usr/bin/python3", "-", "", "standard input"},
		{"no script", "/usr/bin/python3", "-u", "", "no script"},
		{"no script after two dashes", "/usr/bin/python3", "--", "", "standard input"},
		{"variable", "/usr/bin/python3", "$SCRIPT", "", "variable"},
		{"variable in an option", "/usr/bin/python3", "-W $W agent.py", "", "may bring in"},
		{"perl's module", "/usr/bin/perl", "-Mevil agent.pl", "", "may bring in"},
		{"program that is no interpreter", "/usr/bin/cat", "agent.py", "", "no interpreter"},
		{"program named almost like one", "/usr/bin/python3-evil", "agent.py", "", "no interpreter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := scriptIn(tt.interpreter, append([]string{"x"}, strings.Fields(tt.args)...))
			if got != tt.want || (err == nil) != (tt.err == "") || !strings.Contains(fmt.Sprint(err), tt.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestShebang(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, head, program, arg string
		ok                       bool
	}{
		{"program alone", "#!/usr/bin/python3\nx", "/usr/bin/python3", "", true},
		{"with an argument", "#!/usr/bin/python3 -u\n", "/usr/bin/python3", "-u", true},
		{"with one argument of two words", "#!/usr/bin/env -S python3 -u\n", "/usr/bin/env", "-S python3 -u", true},
		{"with spaces", "#! /bin/sh \n", "/bin/sh", "", true},
		{"with tabs", "#!\t/bin/sh\t-e\t\n", "/bin/sh", "-e", true},
		{"relative", "#!sh\n", "sh", "", false},
		{"no new line", "#!/bin/sh", "", "", false},
		{"too long", "#!/" + strings.Repeat("x", 300) + "\n", "", "", false},
		{"program", "\x7fELF\n", "", "", false},
		{"empty", "", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			program, arg, ok := shebang([]byte(tt.head))
			if ok != tt.ok || ok && (program != tt.program || arg != tt.arg) {
				t.Errorf("got %q, %q, %t", program, arg, ok)
			}
		})
	}
}

func TestInterpreterOfShebang(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, program, arg, want, err string }{
		{"itself", "/bin/sh", "", "/bin/sh", ""},
		{"itself with an option", "/bin/sh", "-e", "/bin/sh", ""},
		{"through env", "/usr/bin/env", "sh", "/usr/bin/sh", ""},
		{"with an option that brings in code", "/usr/bin/perl", "-Mevil", "", "may bring in"},
		{"env with an option", "/usr/bin/env", "-S sh", "", "no interpreter"},
		{"env with a variable", "/usr/bin/env", "X=y", "", "no interpreter"},
		{"env with a path", "/usr/bin/env", "../bin/sh", "", "no interpreter"},
		{"no interpreter", "/bin/cat", "", "", "no interpreter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := interpreterOf(tt.program, tt.arg)
			if got != tt.want || (err == nil) != (tt.err == "") || !strings.Contains(fmt.Sprint(err), tt.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func FuzzScriptIn(f *testing.F) {
	f.Add("python3", "-u\x00agent.py")
	f.Add("node", "--import=./x\x00agent.js")
	f.Fuzz(func(t *testing.T, interpreter, args string) {
		list := strings.Split(args, "\x00")
		script, err := scriptIn(interpreter, append([]string{"x"}, list...))
		if err != nil {
			return
		}
		for i, arg := range list {
			if arg == script {
				// Nothing before the script is text or a module.
				for _, before := range list[:i] {
					if before == "-c" || before == "-m" || before == "-e" || before == "-r" {
						t.Errorf("script %q after %q", script, before)
					}
				}
				return
			}
		}
		t.Errorf("script %q is not among the arguments %q", script, list)
	})
}

func FuzzShebang(f *testing.F) {
	f.Add([]byte("#!/usr/bin/env python3\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		program, arg, ok := shebang(head)
		if ok && (!strings.HasPrefix(program, "/") || strings.ContainsAny(program+arg, "\n") || strings.ContainsAny(program, " \t")) {
			t.Errorf("got %q, %q", program, arg)
		}
	})
}
