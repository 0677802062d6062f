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
	"github.com/vouchd/vouchd/cmd/vouch/migrate/jsondoc"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/text"
	"github.com/vouchd/vouchd/secret"
)

func newMCP(o *cli.Options) *cobra.Command {
	m := options{Options: o}
	cmd := &cobra.Command{
		Use:   "mcp FILE",
		Short: "Start MCP servers without keys in their settings",
		Long: `Mcp seals the keys in settings of coding agents (mcp.json and its like, settings of
Claude, Gemini and Cursor, config.toml of Codex). A server that the agent starts gets its
keys from vouch: its variables become handles, and its command is started by vouch exec.
A key in a header becomes a variable where the agent reads such, and the agent itself is
to be started by vouch exec.

A variable without a preset stops the migration, as with vouch migrate env: give
--disclosable to hand its value to the server, or leave it with --keep.`,
		Example: `  vouch migrate mcp .mcp.json --dry-run
  vouch migrate mcp .mcp.json --credential-prefix site
  vouch migrate mcp ~/.codex/config.toml --disclosable`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := target{"migrate mcp", inventory.MCP, planMCP}
			if filepath.Ext(args[0]) == ".toml" {
				t.plan = planCodex
			}
			return m.run(cmd, args[0], t)
		},
	}
	m.flags(cmd)
	m.variableFlags(cmd)
	return cmd
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// An mcpPlan is a plan for settings in JSON.
type mcpPlan struct {
	*plan
	vouch     string
	found     []inventory.Finding
	reference string            // how the agent reads a variable in its settings; empty: it does not
	variables map[string]string // credentials by the variables that the agent needs itself
}

func planMCP(p *plan) error {
	root, err := jsondoc.Parse(p.file.Data)
	if err != nil {
		return err
	}
	m := mcpPlan{plan: p, reference: referenceOf(p.file.Path), variables: make(map[string]string)}
	if m.vouch, err = program(); err != nil {
		return err
	}
	if m.found, err = inventory.ReadFile(inventory.MCP, p.file.Path, p.file.Data); err != nil {
		return err
	}
	m.walk("", root)
	if len(m.variables) > 0 {
		p.Then = []string{"Then start the coding agent with: " + startWith(m.variables, "AGENT")}
	}
	return nil
}

// referenceOf is how an agent reads a variable in its settings.
func referenceOf(path string) string {
	switch name, dir := filepath.Base(path), filepath.Base(filepath.Dir(path)); {
	case name == ".mcp.json" || name == ".claude.json" || dir == ".claude" || dir == ".gemini":
		return "${%s}"
	case dir == ".cursor" || dir == ".vscode" || dir == ".windsurf":
		return "${env:%s}"
	}
	return ""
}

// walk looks for servers, and plans for each.
func (m *mcpPlan) walk(name string, n *jsondoc.Node) {
	command, env := n.Get("command"), n.Get("env")
	switch {
	case command.Is('"') && env.Is('{'):
		m.server(name, n)
	case n.Is('{') && m.reference != "":
		for _, key := range []string{"headers", "http_headers"} {
			if headers := n.Get(key); headers.Is('{') {
				m.headers(name, headers)
			}
		}
	}
	for i, member := range n.Members {
		if n.Kind == '[' {
			member.Name = fmt.Sprint(i)
		}
		m.walk(member.Name, member.Value)
	}
}

// within returns the secret that is written in a node.
func (m *mcpPlan) within(n *jsondoc.Node) (inventory.Finding, bool) {
	for _, f := range m.found {
		if !f.Leased && f.Start > n.Start && f.End < n.End {
			return f, true
		}
	}
	return inventory.Finding{}, false
}

// server plans for one that is started with variables.
func (m *mcpPlan) server(name string, n *jsondoc.Node) {
	var given []string // arguments of vouch exec
	for _, v := range n.Get("env").Members {
		line := m.line(v.Start)
		if !v.Value.Is('"') {
			continue
		}
		if strings.HasPrefix(v.Value.Text, handlePrefix) {
			m.handle(v.Name, line, handleOf([]byte(v.Value.Text)))
			continue
		}
		f, secretly := m.within(v.Value)
		if !secretly || m.keeps(v.Name, line) {
			continue
		}
		if !variableName.MatchString(v.Name) {
			m.leave(f.Item, line, "its name is none that vouch exec can set")
			continue
		}
		but, ok := m.deliverable(v.Name, line)
		if !ok {
			continue
		}
		value := secret.Of([]byte(v.Value.Text))
		d := definition{item: f.Item, variable: v.Name, better: betterThan(v.Name, f.What, value)}
		credential := m.seal(d, name+" "+v.Name, line, value, "a variable of an MCP server"+but)
		m.hide(v.Value.Start, v.Value.End)
		m.edit(v.Value.Start, v.Value.End, quoted(handlePrefix+credential))
		given = append(given, quoted("--credential"), quoted(credential+"="+v.Name))
	}
	if len(given) > 0 {
		m.startByVouch(n, given)
	}
}

// startByVouch plans that a server's command is started by vouch exec.
func (m *mcpPlan) startByVouch(n *jsondoc.Node, given []string) {
	command, args := n.Get("command"), n.Get("args")
	if filepath.Base(command.Text) == "vouch" && args.Is('[') && len(args.Members) > 0 && args.Members[0].Value.Text == "exec" {
		at := args.Members[0].Value.End
		m.edit(at, at, ", "+strings.Join(given, ", "))
		return
	}
	all := slices.Concat([]string{quoted("exec")}, given, []string{quoted("--"), quoted(command.Text)})
	list := strings.Join(all, ", ")
	if args.Is('[') {
		m.edit(command.Start, command.End, quoted(m.vouch))
		if len(args.Members) > 0 {
			list += ", "
		}
		m.edit(args.Start+1, args.Start+1, list)
		return
	}
	m.edit(command.Start, command.End, quoted(m.vouch)+`, "args": [`+list+"]")
}

// headers plans for those of a server that the agent calls.
func (m *mcpPlan) headers(name string, n *jsondoc.Node) {
	for _, h := range n.Members {
		line := m.line(h.Start)
		f, secretly := m.within(h.Value)
		if !secretly || m.keeps(h.Name, line) {
			continue
		}
		variable := variableFor(name, h.Name)
		but, ok := m.deliverable(variable, line)
		if !ok {
			continue
		}
		d := definition{item: f.Item, variable: variable, better: betterThan(variable, f.What, f.Value)}
		m.variables[variable] = m.seal(d, name+" "+h.Name, line, f.Value, "a header for an MCP server"+but)
		m.edit(f.Start, f.End, fmt.Sprintf(m.reference, variable))
	}
}

var (
	tomlHeading = regexp.MustCompile(`(?m)^[ \t]*\[`)
	tomlArgs    = regexp.MustCompile(`(?m)^[ \t]*args[ \t]*=[ \t]*\[`)
)

// A codexServer is one of Codex's.
type codexServer struct {
	command text.Entry
	env     []text.Entry
}

// planCodex plans for settings of Codex, in TOML.
func planCodex(p *plan) error {
	vouch, err := program()
	if err != nil {
		return err
	}
	found, err := inventory.ReadFile(inventory.MCP, p.file.Path, p.file.Data)
	if err != nil {
		return err
	}
	servers := make(map[string]*codexServer)
	var names []string
	for _, e := range text.TOML(p.file.Data) {
		name, ok := strings.CutPrefix(e.Section, "mcp_servers.")
		if !ok {
			continue
		}
		name, isEnv := strings.CutSuffix(name, ".env")
		s := servers[name]
		if s == nil {
			s = new(codexServer)
			servers[name], names = s, append(names, name)
		}
		switch {
		case isEnv:
			s.env = append(s.env, e)
		case e.Key == "command":
			s.command = e
		}
	}
	for _, name := range names {
		planCodexServer(p, name, servers[name], found, vouch)
	}
	return nil
}

func planCodexServer(p *plan, name string, s *codexServer, found []inventory.Finding, vouch string) {
	var given []string
	for _, e := range s.env {
		line := p.line(e.Start)
		if bytes.HasPrefix(e.Value, []byte(handlePrefix)) {
			p.handle(e.Key, line, handleOf(e.Value))
			continue
		}
		i := slices.IndexFunc(found, func(f inventory.Finding) bool { return !f.Leased && f.Start >= e.Start && f.End <= e.End })
		if i < 0 || p.keeps(e.Key, line) {
			continue
		}
		if s.command.End == 0 {
			p.leave(found[i].Item, line, "its server has no command")
			continue
		}
		but, ok := p.deliverable(e.Key, line)
		if !ok {
			continue
		}
		value := secret.Of(bytes.Clone(e.Value))
		d := definition{item: found[i].Item, variable: e.Key, better: betterThan(e.Key, found[i].What, value)}
		credential := p.seal(d, name+" "+e.Key, line, value, "a variable of an MCP server"+but)
		p.edit(e.Start, e.End, handlePrefix+credential)
		given = append(given, quoted("--credential"), quoted(credential+"="+e.Key))
	}
	if len(given) == 0 {
		return
	}
	list := strings.Join(slices.Concat([]string{`"exec"`}, given, []string{`"--"`, quoted(string(s.command.Value))}), ", ")
	section, end := p.file.Data[s.command.Start:], len(p.file.Data)
	if i := tomlHeading.FindIndex(section); i != nil {
		end = s.command.Start + i[0]
	}
	from := s.command.Start
	for from > 0 && !tomlHeading.Match(p.file.Data[lineStart(p.file.Data, from):from]) {
		from = lineStart(p.file.Data, from) - 1
	}
	from = max(0, from)
	switch m := tomlArgs.FindIndex(p.file.Data[from:end]); {
	case filepath.Base(string(s.command.Value)) == "vouch":
		p.fail(p.line(s.command.Start), "server %s is started by vouch already; add its variables to that by hand, or --keep them", inventory.Printable(name))
	case m != nil:
		p.edit(s.command.Start, s.command.End, vouch)
		at := from + m[1]
		if rest := bytes.TrimLeft(p.file.Data[at:], " \t\r\n"); len(rest) > 0 && rest[0] != ']' {
			list += ", "
		}
		p.edit(at, at, list)
	default:
		p.edit(s.command.Start, s.command.End, vouch)
		at := lineEnd(p.file.Data, s.command.End)
		p.edit(at, at, "\nargs = ["+list+"]")
	}
}
