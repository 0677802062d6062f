package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/credential/dotenv"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/text"
	"github.com/vouchd/vouchd/secret"
)

func newUnit(o *cli.Options) *cobra.Command {
	m := options{Options: o}
	cmd := &cobra.Command{
		Use:   "unit {UNIT | FILE}",
		Short: "Have a unit get its secrets from vouchd",
		Long: `Unit seals the secrets in a unit of systemd and its drop-ins, or in one such file. A
variable of Environment= becomes a handle, and ExecStart= is started by vouch exec; so it
is if EnvironmentFile= names a file that vouch migrate env has migrated. SetCredential=,
and LoadCredential= of a plain file, become a LoadCredential= from vouchd's socket under
the same name, so that the program finds its credential where it was.

A file that a package owns is refused: an update would bring it back. A variable without
a preset stops the migration, as with vouch migrate env.`,
		Example: `  vouch migrate unit research.service --dry-run
  vouch migrate unit /etc/systemd/system/research.service --credential-prefix research
  systemctl daemon-reload && systemctl restart research.service`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := unitFiles(cmd, args[0])
			if err != nil {
				return err
			}
			for _, file := range files {
				each := m // a prefix is each file's own
				if err := each.run(cmd, file, target{"migrate unit", inventory.Unit, planUnit}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	m.flags(cmd)
	m.variableFlags(cmd)
	return cmd
}

// unitFiles returns the files of a unit that have secrets, or the one that is named.
func unitFiles(cmd *cobra.Command, name string) (list []string, err error) {
	if strings.Contains(name, "/") {
		return []string{name}, nil
	}
	out, err := exec.CommandContext(cmd.Context(), "systemctl", "show", "--value", "-p", "FragmentPath", "-p", "DropInPaths", "--", name).Output()
	if err != nil {
		return nil, fmt.Errorf("asking systemd for the files of %s: %w; name a file instead", name, err)
	}
	for _, path := range strings.Fields(string(out)) {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		found, _ := inventory.ReadFile(inventory.Unit, path, data)
		if slices.ContainsFunc(found, func(f inventory.Finding) bool { return !f.Leased }) || len(migratedFiles(data)) > 0 {
			list = append(list, path)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no file of %s has a secret in it: %s", name, strings.Join(strings.Fields(string(out)), ", "))
	}
	return list, nil
}

// migratedFiles returns the files of EnvironmentFile= that have handles in them.
func migratedFiles(unit []byte) (list []string) {
	for _, path := range inventory.EnvironmentFiles(unit) {
		f, err := held.Open(path)
		if err != nil {
			continue // systemd says so better
		}
		defer f.Close()
		file, err := dotenv.Parse(f.Data)
		if err == nil && slices.ContainsFunc(file.Variables, func(v dotenv.Variable) bool { return bytes.HasPrefix(v.Value.Reveal(), []byte(handlePrefix)) }) {
			list = append(list, path)
		}
	}
	return list
}

// A unitPlan is a plan for one file of a unit.
type unitPlan struct {
	*plan
	vouch, socket string
	entries       []text.Entry
	given         []string // arguments of vouch exec
}

func planUnit(p *plan) error {
	if strings.HasPrefix(p.file.Path, "/usr/lib/") || strings.HasPrefix(p.file.Path, "/lib/") {
		return errors.New("it is a package's, which an update brings back; make it your own first: systemctl edit --full UNIT")
	}
	u := unitPlan{plan: p, entries: text.Unit(p.file.Data)}
	var err error
	if u.vouch, err = program(); err != nil {
		return err
	}
	c, err := p.Load()
	if err != nil {
		return err
	}
	u.socket = c.SystemdSocket
	found, err := inventory.ReadFile(inventory.Unit, p.file.Path, p.file.Data)
	if err != nil {
		return err
	}
	for _, f := range found {
		switch {
		case f.Leased:
			p.Kept = append(p.Kept, item{f.Item, f.Line, "", "already vouchd's"})
		case p.keeps(f.Item, f.Line):
		default:
			u.planFinding(f)
		}
	}
	u.environmentFiles()
	if len(u.given) > 0 {
		if err := u.startByVouch(); err != nil {
			return err
		}
	}
	if len(p.edits) > 0 {
		p.Then = append(p.Then, "Then: systemctl daemon-reload, and restart the unit. The entry names it: systemd:id:UNIT.")
	}
	return nil
}

// planFinding plans for the setting that a secret is in.
func (u *unitPlan) planFinding(f inventory.Finding) {
	i := slices.IndexFunc(u.entries, func(e text.Entry) bool { return f.Start >= e.Start && f.End <= e.End })
	if i < 0 {
		return // an inventory says that it is left
	}
	e := u.entries[i]
	if raw := u.file.Data[f.Start:f.End]; f.File == "" && bytes.ContainsAny(raw, `%\`) {
		u.fail(f.Line, "value of %s: systemd reads %% and \\ in it as something else; seal it by hand with vouch secret seal, or leave it with --keep", f.Item)
		return
	}
	switch e.Key {
	case "Environment":
		u.variable(f)
	case "SetCredential", "LoadCredential":
		u.credential(e, f)
	}
}

func (u *unitPlan) variable(f inventory.Finding) {
	if !variableName.MatchString(f.Item) {
		u.leave(f.Item, f.Line, "its name is none that vouch exec can set")
		return
	}
	but, ok := u.deliverable(f.Item, f.Line)
	if !ok {
		return
	}
	credential := u.seal(definition{item: f.Item, variable: f.Item, better: betterThan(f.Item, f.What, f.Value)}, f.Item, f.Line, f.Value, "a variable of a unit"+but)
	u.edit(f.Start, f.End, handlePrefix+credential)
	u.given = append(u.given, "--credential "+credential+"="+f.Item)
}

// credential plans that systemd gets what it loads or sets from vouchd's socket. Its name
// is the program's, and stays.
func (u *unitPlan) credential(e text.Entry, f inventory.Finding) {
	name, _, _ := strings.Cut(string(e.Value), ":")
	value := f.Value
	if f.File != "" {
		from, err := held.Open(f.File)
		if err != nil {
			u.leave(f.Item, f.Line, "its file cannot be read: %v", err)
			return
		}
		defer from.Close()
		value = secret.Of(bytes.Clone(from.Data))
		u.Then = append(u.Then, "When the unit has been restarted, remove "+inventory.ShellQuote(f.File)+": nothing undoes that.")
	}
	if u.names[name].Len() > 0 || sealed.CheckName(name) != nil {
		u.leave(f.Item, f.Line, "its name is another's, or none that a credential can have; rename it in the unit and its program")
		return
	}
	u.keepSealing(definition{item: f.Item, given: "to its unit, by LoadCredential=", unit: true}, name, f.Line, value, "a credential of a unit")
	from := lineStart(u.file.Data, e.Start)
	u.edit(from, e.End, "LoadCredential="+name+":"+u.socket)
}

// environmentFiles plans for the file of EnvironmentFile= that has handles.
func (u *unitPlan) environmentFiles() {
	started := false
	for _, e := range u.entries {
		started = started || e.Key == "ExecStart" && bytes.Contains(e.Value, []byte("--env-file"))
	}
	files := migratedFiles(u.file.Data)
	switch {
	case started || len(files) == 0:
	case len(files) > 1:
		u.fail(1, "EnvironmentFile= names %d files with handles, and vouch exec takes one; put them together", len(files))
	case strings.ContainsAny(files[0], " \t\"'\\%$"):
		u.fail(1, "the path of an EnvironmentFile= has blanks or quotes; rename it")
	default:
		u.given = append(u.given, "--env-file "+files[0])
	}
}

// startByVouch plans that what the unit starts is started by vouch exec.
func (u *unitPlan) startByVouch() error {
	var starts []text.Entry
	notify, access := false, false
	for _, e := range u.entries {
		switch e.Key {
		case "ExecStart":
			starts = append(starts, e)
		case "Type":
			notify = strings.HasPrefix(string(e.Value), "notify")
		case "NotifyAccess":
			access = true
		}
	}
	if len(starts) == 0 {
		return u.startInDropIn()
	}
	for _, e := range starts {
		if len(e.Value) == 0 {
			continue
		}
		command, err := u.wrapped(e.Value)
		if err != nil {
			u.fail(u.line(e.Start), "%w", err)
			continue
		}
		if notify && !access {
			command += "\nNotifyAccess=all" // it is the program's, which is no longer the main process
			access = true
		}
		u.edit(e.Start, e.End, command)
	}
	return nil
}

var execPrefix = regexp.MustCompile(`^[-+!:]*`)

// wrapped is a command of a unit, started by vouch exec.
func (u *unitPlan) wrapped(command []byte) (string, error) {
	prefix := execPrefix.Find(command)
	rest := string(bytes.TrimSpace(command[len(prefix):]))
	given := strings.Join(u.given, " ")
	switch {
	case strings.HasPrefix(rest, "@"):
		return "", errors.New("ExecStart= names another argument zero (@), which vouch exec cannot set; write it without")
	case strings.HasPrefix(rest, u.vouch+" exec "):
		return string(prefix) + u.vouch + " exec " + given + strings.TrimPrefix(rest, u.vouch+" exec"), nil
	}
	return string(prefix) + u.vouch + " exec " + given + " -- " + rest, nil
}

// startInDropIn plans for a drop-in whose unit has the command.
func (u *unitPlan) startInDropIn() error {
	dir := filepath.Dir(u.file.Path)
	name, ok := strings.CutSuffix(filepath.Base(dir), ".d")
	if !ok {
		return errors.New("it has no ExecStart=, whose program needs the variables; name the file that has it")
	}
	others, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil {
		return err
	}
	for _, other := range others {
		data, err := os.ReadFile(other)
		if err != nil {
			return err
		}
		if other != u.file.Path && slices.ContainsFunc(text.Unit(data), func(e text.Entry) bool { return e.Key == "ExecStart" }) {
			return fmt.Errorf("%s sets ExecStart=, and one of them would count; put both into one file", other)
		}
	}
	for _, in := range []string{filepath.Dir(dir), "/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"} {
		data, err := os.ReadFile(filepath.Join(in, name))
		if err != nil {
			continue
		}
		added := "[Service]\nExecStart=\n"
		if n := len(u.file.Data); n > 0 && u.file.Data[n-1] != '\n' {
			added = "\n" + added
		}
		for _, e := range text.Unit(data) {
			if e.Key != "ExecStart" || len(e.Value) == 0 {
				continue
			}
			command, err := u.wrapped(e.Value)
			if err != nil {
				return err
			}
			added += "ExecStart=" + command + "\n"
		}
		u.edit(len(u.file.Data), len(u.file.Data), added)
		return nil
	}
	return fmt.Errorf("the unit %s that it is for is nowhere; name the file that has ExecStart=", name)
}
