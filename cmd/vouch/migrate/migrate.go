// Package migrate moves static secrets out of files: it has the daemon seal them, writes
// definitions for review, and leaves in their places what has a program get them from
// vouchd.
//
// A target knows one kind of file, one file of source each: it plans, and touches nothing.
// The engine does what is planned, in an order in which a crash loses nothing: values are
// sealed, definitions written, what undoes it is sealed, and the file replaced, last and
// whole. Running it again goes on where it stopped.
//
// Out of reach: what has read the file before. A value that was in a file is to be rotated
// at its source.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Commands returns the commands.
func Commands(o *cli.Options) []*cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move static secrets out of files",
		Long: `Migrate moves the secrets of a file to vouchd. It seals each to this machine, writes
definitions for review, prints what an entry needs to grant them, and leaves in the file
what has a program get them from vouchd: a handle, a variable or a helper. Everything
else in the file stays as it is, byte for byte, as do its owner and mode.

With --dry-run it prints the same and changes nothing. Undo puts the values back. A value
that was in a file is to be taken for read: rotate it at its source.`,
	}
	cmd.AddCommand(newEnv(o), newMCP(o), newGit(o), newAWS(o), newKubeconfig(o), newDocker(o), newUnit(o), newFile(o), newUndo(o))
	return []*cobra.Command{cmd}
}

// handlePrefix begins a value that stands for a credential: its name follows,
// and after a colon the field, if it is not the only one.
const handlePrefix = "vouch:"

// options are those of every target.
type options struct {
	*cli.Options
	prefix      string   // of credentials and secrets
	keep        []string // items, whatever they look like
	disclosable bool
	proxyLater  bool
	definitions string // file
	dryRun      bool
}

func (m *options) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.prefix, "credential-prefix", "", "`prefix` for names of credentials and secrets")
	cmd.Flags().StringArrayVar(&m.keep, "keep", nil, "leave this `item` as it is; may be repeated")
	cmd.Flags().StringVar(&m.definitions, "definitions", "", "write definitions to this `file` (default PREFIX.yaml.disabled in the credentials directory)")
	cmd.Flags().BoolVar(&m.dryRun, "dry-run", false, "print what would be done, and change nothing")
}

// variableFlags are for targets whose programs are started with variables.
func (m *options) variableFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&m.disclosable, "disclosable", false, "write definitions that disclose the values, not proxy-only ones")
	cmd.Flags().BoolVar(&m.proxyLater, "proxy-later", false, "write definitions that need a proxy block by hand before a program can start")
	cmd.MarkFlagsMutuallyExclusive("disclosable", "proxy-later")
}

// A target plans what to do with a file of its kind.
type target struct {
	command string // as it was given: migrate docker
	kind    string // of package inventory
	plan    func(p *plan) error
}

// run migrates one file.
func (m *options) run(cmd *cobra.Command, path string, t target) error {
	if m.prefix != "" {
		if err := sealed.CheckName(m.prefix); err != nil {
			return cli.Usage(err)
		}
	}
	f, err := held.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if !m.dryRun {
		if err := f.Lock(); err != nil {
			return err
		}
	}
	if m.prefix == "" {
		m.prefix = prefixOf(f, t.kind)
	}
	p := newPlan(m, f, "vouch "+t.command)
	found, _ := inventory.ReadFile(t.kind, f.Path, f.Data)
	for _, s := range found {
		p.hide(s.Start, s.End)
	}
	if err := t.plan(p); err != nil {
		return cli.InFile(f.Path, err)
	}
	after, err := p.finish()
	if err != nil {
		return err
	}
	defer clear(after)
	if t.kind != inventory.Env { // of which a variable stays only for a reason that is said
		leftBehind(p, t.kind, after)
	}
	sealedStays(p, after)
	if m.dryRun {
		if define(p) != nil {
			p.Definitions = "" // whoever only looks may have no configuration
		}
	} else if len(p.edits) > 0 {
		if err := apply(cmd.Context(), p, after); err != nil {
			return err
		}
	}
	if len(p.edits) > 0 {
		p.Undo = "vouch migrate undo " + inventory.ShellQuote(f.Path)
	}
	if err := m.Print(cmd, &p.report, p.writeText); err != nil {
		return err
	}
	if n := len(p.Left); n > 0 && !m.dryRun {
		return fmt.Errorf("%s: %s left in it; the lines with LEFT say what to do", f.Path, cli.Count(n, "secret is", "secrets are"))
	}
	return nil
}

// prefixOf is what credentials of a file begin with if nobody says: its kind, and whose it
// is, but for root's.
func prefixOf(f *held.File, kind string) string {
	if f.Stat.Uid == 0 {
		return kind
	}
	name := strconv.Itoa(int(f.Stat.Uid))
	if u, err := user.LookupId(name); err == nil && sealed.CheckName(u.Username) == nil {
		name = u.Username
	}
	return name + "-" + kind
}

// apply does what was planned. After a crash anywhere, it can be done again.
func apply(ctx context.Context, p *plan, after []byte) error {
	client, err := p.Admin()
	if err != nil {
		return err
	}
	for _, s := range p.seals {
		if _, err := client.Secrets.Seal(ctx, s.name, s.value, view.SecretOptions{Same: true}); err != nil {
			return fmt.Errorf("%w; %s is unchanged", err, p.file.Path)
		}
	}
	if err := define(p); err != nil {
		return fmt.Errorf("writing definitions: %w; %s is unchanged", err, p.file.Path)
	}
	if err := p.file.Unchanged(); err != nil {
		return err
	}
	if err := keepUndo(ctx, p, client, after); err != nil {
		return fmt.Errorf("%w; %s is unchanged", err, p.file.Path)
	}
	return p.file.Replace(after)
}

// program is how files name vouch.
func program() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding out where vouch is: %w", err)
	}
	if strings.ContainsAny(path, " \t\n\"'\\$") {
		return "", errors.New("the path of vouch has blanks or quotes, which files cannot name; install it elsewhere")
	}
	return path, nil
}

// variableFor is the name of a variable made of words.
func variableFor(words ...string) string {
	name := strings.ToUpper(strings.Trim(notInName.ReplaceAllString(strings.ToLower(strings.Join(words, "_")), "_"), "_"))
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		name = "V_" + name
	}
	return name
}

// startWith is the command that starts a program with variables.
func startWith(credentials map[string]string, command string) string {
	var b strings.Builder
	b.WriteString("vouch exec")
	for _, v := range sorted(credentials) {
		fmt.Fprintf(&b, " --credential %s=%s", credentials[v], v)
	}
	return b.String() + " -- " + command
}

func sorted(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
