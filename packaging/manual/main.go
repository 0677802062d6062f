// Command manual writes a program's manual page and its shell completions from
// what the program says of itself: its --help and that of its commands. So they
// say what the packaged program does, and the program carries neither.
//
//	manual DIR SECTION SUMMARY PROGRAM
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: manual DIR SECTION SUMMARY PROGRAM")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

func run(dir, section, summary, program string) error {
	name := filepath.Base(program)
	root, err := read(program)
	if err != nil {
		return err
	}
	page := filepath.Join(dir, name+"."+section)
	if err := os.WriteFile(page, write(name, section, summary, root), 0o644); err != nil {
		return err
	}
	if !root.completes {
		return nil
	}
	for shell, file := range map[string]string{"bash": name, "zsh": "_" + name, "fish": name + ".fish"} {
		script, err := output(program, "completion", shell)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), script, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A command is what --help says of one.
type command struct {
	words    []string // after the program's name
	text     string   // paragraphs
	usage    []string
	examples []string
	flags    []string // as aligned by cobra
	commands []command

	completes bool // it writes shell completions
}

// read asks the program for its help, and that of each of its commands.
func read(program string, words ...string) (command, error) {
	help, err := output(program, append(slices.Clone(words), "--help")...)
	if err != nil {
		return command{}, err
	}
	c, names, err := parse(string(help))
	if err != nil {
		return command{}, fmt.Errorf("help of %s %s: %w", program, strings.Join(words, " "), err)
	}
	c.words = words
	for _, name := range names {
		sub, err := read(program, append(slices.Clone(words), name)...)
		if err != nil {
			return command{}, err
		}
		c.commands = append(c.commands, sub)
	}
	return c, nil
}

func output(program string, args ...string) ([]byte, error) {
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return out, nil
}

// parse takes cobra's help apart. Its headings are the lines that begin at the
// margin and end in a colon, after the description.
func parse(help string) (c command, names []string, err error) {
	text, rest, ok := strings.Cut(help, "\nUsage:\n")
	if !ok {
		return c, nil, errors.New("it has no usage")
	}
	c.text = strings.TrimSpace(text)
	heading := "Usage:"
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "", strings.HasPrefix(line, "Use \""):
			continue
		case !strings.HasPrefix(line, " "):
			heading = line
			continue
		}
		switch heading {
		case "Usage:":
			c.usage = append(c.usage, strings.TrimSpace(line))
		case "Examples:":
			c.examples = append(c.examples, strings.TrimSpace(line))
		case "Available Commands:":
			switch name := strings.Fields(line)[0]; name {
			case "help":
			case "completion":
				c.completes = true
			default:
				names = append(names, name)
			}
		case "Flags:":
			c.flags = append(c.flags, line)
		case "Global Flags:": // the page says them once
		default:
			return c, nil, fmt.Errorf("unknown heading %q", heading)
		}
	}
	return c, names, nil
}

// write returns the page in the language of man(7).
func write(name, section, summary string, root command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s %s\n.SH NAME\n%s \\- %s\n", strings.ToUpper(name), section, name, escape(summary))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n")
	synopsis(&b, root)
	fmt.Fprintf(&b, ".SH DESCRIPTION\n")
	paragraphs(&b, root.text)
	if len(root.commands) > 0 {
		fmt.Fprintf(&b, ".SH COMMANDS\n")
		commands(&b, name, root.commands)
	}
	fmt.Fprintf(&b, ".SH OPTIONS\n")
	options(&b, root.flags)
	if len(root.examples) > 0 {
		fmt.Fprintf(&b, ".SH EXAMPLES\n")
		verbatim(&b, root.examples)
	}
	fmt.Fprintf(&b, ".SH FILES\n")
	for _, f := range [][2]string{
		{"/etc/vouchd/vouchd.yaml", "the daemon's settings"},
		{"/etc/vouchd/entries.d/*.yaml", "registration entries: which processes are entitled to which identity"},
		{"/etc/vouchd/federation.d/*.yaml", "other trust domains, and where their bundles come from"},
		{"/etc/vouchd/grants.d/*.yaml", "with a SPIRE server: who may lease which credentials"},
		{"/etc/vouchd/programs.d/*.yaml", "programs that vouch run starts, and for whom"},
		{"/run/vouchd/agent.sock", "where workloads ask"},
		{"/run/vouchd/admin.sock", "where administrators ask"},
		{"/run/vouchd/run.sock", "where vouch run asks, once a program is defined"},
		{"/var/lib/vouchd", "keys wrapped by the TPM, and the attestation log"},
		{"/usr/share/doc/vouchd", "every key of the configuration, operation, the threat model"},
	} {
		fmt.Fprintf(&b, ".TP\n.I %s\n%s\n", escape(f[0]), escape(f[1]))
	}
	other := "vouch (1)"
	if name == "vouch" {
		other = "vouchd (8)"
	}
	fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s\n", other)
	return b.Bytes()
}

// commands writes those that do something; a group that only holds others is
// in their names.
func commands(b *bytes.Buffer, name string, list []command) {
	for _, c := range list {
		if len(c.commands) == 0 || len(c.flags) > 1 {
			fmt.Fprintf(b, ".SS %s %s\n", escape(name), escape(strings.Join(c.words, " ")))
			synopsis(b, c)
			b.WriteString(".PP\n")
			paragraphs(b, c.text)
			options(b, c.flags)
			verbatim(b, c.examples)
		}
		commands(b, name, c.commands)
	}
}

func synopsis(b *bytes.Buffer, c command) {
	for i, usage := range c.usage {
		if i > 0 {
			b.WriteString(".br\n")
		}
		fmt.Fprintf(b, ".B %s\n", escape(usage))
	}
}

func paragraphs(b *bytes.Buffer, text string) {
	for i, p := range strings.Split(text, "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		b.WriteString(escape(p) + "\n")
	}
}

// options writes flags, each a line of a name and what it means, but for the
// one of --help.
func options(b *bytes.Buffer, flags []string) {
	for _, f := range flags {
		name, meaning, _ := strings.Cut(strings.TrimSpace(f), "   ")
		if strings.HasPrefix(name, "-h, --help") {
			continue
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", escape(name), escape(strings.TrimSpace(meaning)))
	}
}

func verbatim(b *bytes.Buffer, lines []string) {
	if len(lines) == 0 {
		return
	}
	b.WriteString(".PP\n.nf\n.RS\n")
	for _, l := range lines {
		b.WriteString(escape(l) + "\n")
	}
	b.WriteString(".RE\n.fi\n")
}

// escape keeps text from being read as requests, and hyphens as hyphens.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
