package migrate

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

func newFile(o *cli.Options) *cobra.Command {
	m := options{Options: o}
	var kind string
	cmd := &cobra.Command{
		Use:   "file FILE",
		Short: "Seal the secrets of a profile, netrc, npmrc or key",
		Long: `File seals the secrets that vouch inventory finds in a file for which there is no command
of its own, and puts in their place what the file's syntax has for one from elsewhere: a
variable (npmrc, CI), a handle (profiles of shells, netrc, keys), or nothing, where the
program reads a variable before the file (pypirc, cargo, gh). It then says how to start
the program, mostly by vouch exec.

A variable without a preset stops the migration, as with vouch migrate env: give
--disclosable to hand its value to programs, or leave it with --keep. So does a key that
a program reads from a file, which vouch get --write gives it then.`,
		Example: `  vouch migrate file ~/.npmrc --dry-run --disclosable
  vouch migrate file ~/.bashrc --keep OLD_TOKEN
  vouch migrate file /etc/app/tls.key --disclosable
  vouch migrate file --kind shell ./settings --dry-run --proxy-later`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			of := kind
			if of == "" {
				var err error
				if of, err = kindOf(args[0]); err != nil {
					return err
				}
			}
			if instead := ownCommand[of]; instead != "" {
				return cli.Usagef("for a file of kind %s use %s", of, instead)
			}
			if kindEdits[of] == nil {
				return cli.Usagef("there is nothing to migrate in a file of kind %q", of)
			}
			return m.run(cmd, args[0], target{"migrate file", of, func(p *plan) error { return planFindings(p, of) }})
		},
	}
	m.flags(cmd)
	m.variableFlags(cmd)
	cmd.Flags().StringVar(&kind, "kind", "", "what `kind` of file it is, as vouch inventory says (default by its name and how it begins)")
	return cmd
}

// kindOf tells a file's kind by its name, or else by how it begins, as vouch inventory does.
func kindOf(path string) (kind string, err error) {
	if kind, ok := inventory.KindOf(absolute(path)); ok {
		return kind, nil
	}
	f, err := held.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if kind, ok := inventory.Sniff(f.Data[:min(len(f.Data), inventory.SniffLen)]); ok {
		return kind, nil
	}
	return "", cli.Usagef("%s is of no kind that is known by its name, or by how it begins; give --kind", path)
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// ownCommand is what migrates files of the kinds that have a command of their own.
var ownCommand = map[string]string{
	inventory.Env: "vouch migrate env FILE", inventory.MCP: "vouch migrate mcp FILE", inventory.AWS: "vouch migrate aws FILE",
	inventory.Docker: "vouch migrate docker FILE", inventory.Kubeconfig: "vouch migrate kubeconfig FILE", inventory.Unit: "vouch migrate unit FILE",
	inventory.GitRemote: "vouch migrate git FILE", inventory.GitCredentials: "vouch migrate git FILE",
	inventory.SSHKey: "ssh-keygen -p -f FILE, which asks for a passphrase, or ssh certificates (docs/brokers.md#ssh)",
}

// A findingsPlan is a plan for what an inventory finds.
type findingsPlan struct {
	*plan
	variables map[string]string // credentials, by the variables that programs need
	taken     map[string]bool   // variables
}

// kindEdits plan for one finding of a kind.
var kindEdits = map[string]func(p *findingsPlan, f inventory.Finding){
	inventory.Shell: (*findingsPlan).shell, inventory.Netrc: (*findingsPlan).netrc, inventory.Npmrc: (*findingsPlan).npmrc,
	inventory.Pypirc: (*findingsPlan).pypirc, inventory.Cargo: (*findingsPlan).cargo, inventory.GH: (*findingsPlan).gh,
	inventory.CI: (*findingsPlan).ci, inventory.Gcloud: (*findingsPlan).wholeFile, inventory.KeyFile: (*findingsPlan).wholeFile,
	inventory.Azure: (*findingsPlan).azure,
}

func planFindings(p *plan, kind string) error {
	found, err := inventory.ReadFile(kind, p.file.Path, p.file.Data)
	if err != nil {
		return err
	}
	fp := findingsPlan{plan: p, variables: make(map[string]string), taken: make(map[string]bool)}
	for _, f := range found {
		switch {
		case f.Leased:
			p.Kept = append(p.Kept, item{f.Item, f.Line, "", "already a handle"})
		case p.keeps(f.Item, f.Line):
		case f.End <= f.Start || f.End > len(p.file.Data):
			p.leave(f.Item, f.Line, "it is not written in one piece; use: %s", f.Replace)
		default:
			kindEdits[kind](&fp, f)
		}
	}
	if len(fp.variables) > 0 {
		p.Then = append(p.Then, "Then start the program with: "+startWith(fp.variables, "COMMAND"))
	}
	return nil
}

// sealVariable plans to seal a value that a program then has in a variable.
func (p *findingsPlan) sealVariable(f inventory.Finding, variable, words, why string) (credential string, ok bool) {
	but, ok := p.deliverable(variable, f.Line)
	if !ok {
		return "", false
	}
	credential = p.seal(definition{item: f.Item, variable: variable, better: betterThan(variable, f.What, f.Value)}, words, f.Line, f.Value, why+but)
	p.variables[variable] = credential
	return credential, true
}

// free returns a variable that stands for no other secret of the file.
func (p *findingsPlan) free(variable string) string {
	for n, base := 2, variable; p.taken[variable]; n++ {
		variable = fmt.Sprintf("%s_%d", base, n)
	}
	p.taken[variable] = true
	return variable
}

func (p *findingsPlan) shell(f inventory.Finding) {
	raw := p.file.Data[f.Start:f.End]
	single := f.Start > 0 && p.file.Data[f.Start-1] == '\''
	if !single && bytes.ContainsAny(raw, "$`\\") {
		p.fail(f.Line, "value of %s: a shell reads $, ` and \\ in it as something else; put single quotes around it, or leave it with --keep", f.Item)
		return
	}
	if credential, ok := p.sealVariable(f, f.Item, f.Item, "a variable of a shell"); ok {
		p.edit(f.Start, f.End, handlePrefix+credential)
	}
}

// netrc leaves a handle, so that a program is refused by the server rather than asks.
func (p *findingsPlan) netrc(f inventory.Finding) {
	machine := strings.TrimSuffix(strings.TrimPrefix(f.Item, "machine "), " password")
	d := definition{item: f.Item}
	if login := loginBefore(p.file.Data[:f.Start]); netrcHost.MatchString(machine) && netrcLogin.MatchString(login) {
		d.block = fmt.Sprintf("    proxy: # vouchd makes the calls: the program never has the value (docs/proxy.md)\n      preset: basic-2026-11\n      upstream: https://%s\n      slot: {basic: %q}\n", machine, login)
	} else if !p.disclosable && !p.proxyLater && !p.dryRun {
		p.fail(f.Line, "nobody knows how to call %s; give --disclosable to hand the value to programs, --keep, or --proxy-later to write its proxy block by hand", inventory.Printable(machine))
		return
	}
	credential := p.seal(d, machine, f.Line, f.Value, "a login at a machine")
	p.edit(f.Start, f.End, handlePrefix+credential)
	p.Then = append(p.Then, "For git, see vouch git-credential --help. Others call by: vouch exec --proxy "+credential+" -- COMMAND")
}

var (
	netrcHost   = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	netrcLogin  = regexp.MustCompile(`^[A-Za-z0-9._@+-]{1,128}$`)
	loginOfName = regexp.MustCompile(`\slogin\s+(\S+)\s`)
)

// loginBefore is the login that stands before a password.
func loginBefore(data []byte) string {
	if i := bytes.LastIndex(data, []byte("machine")); i >= 0 {
		if m := loginOfName.FindSubmatch(data[i:]); m != nil {
			return string(m[1])
		}
	}
	return ""
}

func (p *findingsPlan) npmrc(f inventory.Finding) {
	words := "npm_token"
	if host, _, ok := strings.Cut(strings.TrimPrefix(f.Item, "//"), "/"); ok && host != "registry.npmjs.org" {
		words = host + "_token"
	}
	variable := p.free(variableFor(words))
	if _, ok := p.sealVariable(f, variable, words, "a login at a registry"); ok {
		p.edit(f.Start, f.End, "${"+variable+"}")
	}
}

// without takes the line of a secret out, since programs read a variable as well.
func (p *findingsPlan) without(f inventory.Finding, variable, words, why string) {
	if p.taken[variable] {
		p.leave(f.Item, f.Line, "its program reads one variable, %s, and that is another's; start it with vouch exec for each", variable)
		return
	}
	p.taken[variable] = true
	line := p.file.Data[lineStart(p.file.Data, f.Start):f.Start]
	if rest := p.file.Data[f.End:lineEnd(p.file.Data, f.End)]; bytes.ContainsAny(line, "{,") || len(bytes.Trim(rest, "\"' \t\r")) > 0 {
		p.leave(f.Item, f.Line, "it is not on a line of its own; write it so first")
		return
	}
	if _, ok := p.sealVariable(f, variable, words, why); ok {
		p.removeLine(f.Start)
	}
}

func (p *findingsPlan) pypirc(f inventory.Finding) {
	p.without(f, "TWINE_PASSWORD", strings.TrimSuffix(f.Item, " password"), "a login at an index")
}

func (p *findingsPlan) cargo(f inventory.Finding) {
	variable, words := "CARGO_REGISTRY_TOKEN", "crates"
	if section, _, _ := strings.Cut(f.Item, " "); strings.HasPrefix(section, "registries.") {
		words = strings.Trim(strings.TrimPrefix(section, "registries."), `"`)
		variable = "CARGO_REGISTRIES_" + variableFor(words) + "_TOKEN"
	}
	p.without(f, variable, words, "a login at a registry")
}

func (p *findingsPlan) gh(f inventory.Finding) {
	host, _, _ := strings.Cut(f.Item, " ")
	variable := "GH_TOKEN"
	switch {
	case filepath.Base(p.file.Path) == "config.yml": // of glab
		variable = "GITLAB_TOKEN"
	case host != "github.com":
		variable = "GH_ENTERPRISE_TOKEN"
	}
	for v, credential := range p.variables { // gh writes a token for the host and its user
		if there := p.names[credential]; v == variable && there.Equal(f.Value) {
			p.Sealed = append(p.Sealed, item{f.Item, f.Line, credential, "the same token"})
			p.removeLine(f.Start)
			return
		}
	}
	p.without(f, variable, host, "a login")
}

// A vendor of CI has secrets, and a reference to one.
var ciVendors = []struct {
	is, reference, where string
}{
	{"/.github/", "${{ secrets.%s }}", "in the repository's settings: gh secret set %s"},
	{"/.gitea/", "${{ secrets.%s }}", "in the repository's settings: %s"},
	{"/.forgejo/", "${{ secrets.%s }}", "in the repository's settings: %s"},
	{"gitlab", "$%s", "as a masked, protected variable of the project: glab variable set %s --masked"},
	{"/.circleci/", "$%s", "in the project's environment variables: %s"},
	{"azure-pipelines", "$(%s)", "as a secret variable of the pipeline: %s"},
	{"jenkinsfile", "${env.%s}", "in Jenkins' credentials, bound with withCredentials to %s"},
	{"", "$%s", "where the vendor keeps secrets, as %s"},
}

func (p *findingsPlan) ci(f inventory.Finding) {
	variable := p.free(variableFor(f.Item))
	but, ok := p.deliverable(variable, f.Line)
	if !ok {
		return
	}
	for _, v := range ciVendors {
		if strings.Contains(strings.ToLower(p.file.Path), v.is) {
			p.seal(definition{item: f.Item, variable: variable, better: betterThan(variable, f.What, f.Value)}, f.Item, f.Line, f.Value, "a literal in a pipeline"+but)
			p.edit(f.Start, f.End, fmt.Sprintf(v.reference, variable))
			p.Then = append(p.Then, "Keep a new value "+fmt.Sprintf(v.where, variable)+". The old one is in the history of the repository.")
			return
		}
	}
}

// azure knows a service principal's secret. Caches of logins are made anew at each.
func (p *findingsPlan) azure(f inventory.Finding) {
	if f.What != "azure-client-secret" {
		p.leave(f.Item, f.Line, "it is a user's login; az logout removes it")
		return
	}
	variable := p.free("AZURE_CLIENT_SECRET")
	if credential, ok := p.sealVariable(f, variable, f.Item, "a service principal's secret"); ok {
		p.edit(f.Start, f.End, handlePrefix+credential)
	}
}

// wholeFile seals the file as it is, for programs that read it whole, and leaves a handle
// in the place of the secret.
func (p *findingsPlan) wholeFile(f inventory.Finding) {
	if f.What == "gcloud-user" {
		p.leave(f.Item, f.Line, "it is a user's login; gcloud auth application-default revoke removes it")
		return
	}
	if !p.disclosable && !p.proxyLater && !p.dryRun {
		p.fail(f.Line, "%s: a program reads it from a file; give --disclosable to hand it to the programs that an entry grants it, --keep, or --proxy-later", f.Item)
		return
	}
	if f.Kind == inventory.Gcloud {
		f.What = "gcloud-service-account"
	}
	name := filepath.Base(p.file.Path)
	credential := p.seal(definition{item: f.Item, better: betterThan("", f.What, f.Value)}, name, f.Line, secret.Of(bytes.Clone(p.file.Data)), "the whole file")
	p.edit(f.Start, f.End, handlePrefix+credential)
	then := fmt.Sprintf("Then have the program read /run/app/%s, which is kept by: vouch get %s --write /run/app/%[1]s --follow", inventory.ShellQuote(name), credential)
	if !slices.Contains(p.Then, then) {
		p.Then = append(p.Then, then)
	}
}
