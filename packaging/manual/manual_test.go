package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const help = `Frob does what it
does.

Usage:
  frob [command] [flags]

Examples:
  frob --all

Available Commands:
  completion  Generate the autocompletion script
  help        Help about any command
  list        List things

Flags:
      --all           all of them
  -h, --help          help for frob
`

func TestHelpIsTakenApart(t *testing.T) {
	t.Parallel()
	c, names, err := parse(help)
	if err != nil {
		t.Fatal(err)
	}
	if c.text != "Frob does what it\ndoes." || len(names) != 1 || names[0] != "list" || len(c.flags) != 2 || c.examples[0] != "frob --all" {
		t.Errorf("got %+v with commands %q", c, names)
	}
	if _, _, err := parse(help + "\nOther Things:\n  x\n"); err == nil {
		t.Error("an unknown heading is no error, so that a page may lack what it says")
	}
}

func TestTextIsNotReadAsRequests(t *testing.T) {
	t.Parallel()
	if got, want := escape(".so /etc/passwd\n'x\n--a\\b"), "\\&.so /etc/passwd\n\\&'x\n\\-\\-a\\eb"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestThePageHasEveryCommandOfTheProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "bin", "vouch")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/vouch").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := run(dir, "1", "a summary", program); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "vouch.1"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := read(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(root.commands) == 0 {
		t.Fatal("the program has no commands")
	}
	var look func(list []command)
	look = func(list []command) {
		for _, c := range list {
			look(c.commands)
			if heading := ".SS vouch " + escape(strings.Join(c.words, " ")) + "\n"; len(c.commands) == 0 && !strings.Contains(string(page), heading) {
				t.Errorf("the page lacks %q", heading)
			}
		}
	}
	look(root.commands)
}
