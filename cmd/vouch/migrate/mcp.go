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
	root, err := parseJSON(p.file.data)
	if err != nil {
		return err
	}
	m := mcpPlan{plan: p, reference: referenceOf(p.file.path), variables: make(map[string]string)}
	if m.vouch, err = program(); err != nil {
		return err
	}
	if m.found, err = inventory.ReadFile(inventory.MCP, p.file.path, p.file.data); err != nil {
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
func (m *mcpPlan) walk(name string, n *node) {
	command, env := n.get("command"), n.get("env")
	switch {
	case command.is('"') && env.is('{'):
		m.server(name, n)
	case n.is('{') && m.reference != "":
		for _, key := range []string{"headers", "http_headers"} {
			if headers := n.get(key); headers.is('{') {
				m.headers(name, headers)
			}
		}
	}
	for i, member := range n.members {
		if n.kind == '[' {
			member.name = fmt.Sprint(i)
		}
		m.walk(member.name, member.value)
	}
}

// within returns the secret that is written in a node.
func (m *mcpPlan) within(n *node) (inventory.Finding, bool) {
	for _, f := range m.found {
		if !f.Leased && f.Start > n.start && f.End < n.end {
			return f, true
		}
	}
	return inventory.Finding{}, false
}

// server plans for one that is started with variables.
func (m *mcpPlan) server(name string, n *node) {
	var given []string // arguments of vouch exec
	for _, v := range n.get("env").members {
		line := m.line(v.start)
		if !v.value.is('"') {
			continue
		}
		if strings.HasPrefix(v.value.text, handlePrefix) {
			m.handle(v.name, line, handleOf([]byte(v.value.text)))
			continue
		}
		f, secretly := m.within(v.value)
		if !secretly || m.keeps(v.name, line) {
			continue
		}
		if !variableName.MatchString(v.name) {
			m.leave(f.Item, line, "its name is none that vouch exec can set")
			continue
		}
		but, ok := m.deliverable(v.name, line)
		if !ok {
			continue
		}
		value := secret.Of([]byte(v.value.text))
		d := definition{item: f.Item, variable: v.name, better: betterThan(v.name, f.What, value)}
		credential := m.seal(d, name+" "+v.name, line, value, "a variable of an MCP server"+but)
		m.hide(v.value.start, v.value.end)
		m.edit(v.value.start, v.value.end, quoted(handlePrefix+credential))
		given = append(given, quoted("--credential"), quoted(credential+"="+v.name))
	}
	if len(given) > 0 {
		m.startByVouch(n, given)
	}
}

// startByVouch plans that a server's command is started by vouch exec.
func (m *mcpPlan) startByVouch(n *node, given []string) {
	command, args := n.get("command"), n.get("args")
	if filepath.Base(command.text) == "vouch" && args.is('[') && len(args.members) > 0 && args.members[0].value.text == "exec" {
		at := args.members[0].value.end
		m.edit(at, at, ", "+strings.Join(given, ", "))
		return
	}
	all := slices.Concat([]string{quoted("exec")}, given, []string{quoted("--"), quoted(command.text)})
	list := strings.Join(all, ", ")
	if args.is('[') {
		m.edit(command.start, command.end, quoted(m.vouch))
		if len(args.members) > 0 {
			list += ", "
		}
		m.edit(args.start+1, args.start+1, list)
		return
	}
	m.edit(command.start, command.end, quoted(m.vouch)+`, "args": [`+list+"]")
}

// headers plans for those of a server that the agent calls.
func (m *mcpPlan) headers(name string, n *node) {
	for _, h := range n.members {
		line := m.line(h.start)
		f, secretly := m.within(h.value)
		if !secretly || m.keeps(h.name, line) {
			continue
		}
		variable := variableFor(name, h.name)
		but, ok := m.deliverable(variable, line)
		if !ok {
			continue
		}
		d := definition{item: f.Item, variable: variable, better: betterThan(variable, f.What, f.Value)}
		m.variables[variable] = m.seal(d, name+" "+h.name, line, f.Value, "a header for an MCP server"+but)
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
	end     int // of its section
}

// planCodex plans for settings of Codex, in TOML.
func planCodex(p *plan) error {
	vouch, err := program()
	if err != nil {
		return err
	}
	found, err := inventory.ReadFile(inventory.MCP, p.file.path, p.file.data)
	if err != nil {
		return err
	}
	servers := make(map[string]*codexServer)
	var names []string
	for _, e := range text.TOML(p.file.data) {
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
		p.planCodexServer(name, servers[name], found, vouch)
	}
	return nil
}

func (p *plan) planCodexServer(name string, s *codexServer, found []inventory.Finding, vouch string) {
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
	section, end := p.file.data[s.command.Start:], len(p.file.data)
	if i := tomlHeading.FindIndex(section); i != nil {
		end = s.command.Start + i[0]
	}
	from := s.command.Start
	for from > 0 && !tomlHeading.Match(p.file.data[lineStart(p.file.data, from):from]) {
		from = lineStart(p.file.data, from) - 1
	}
	from = max(0, from)
	switch m := tomlArgs.FindIndex(p.file.data[from:end]); {
	case filepath.Base(string(s.command.Value)) == "vouch":
		p.fail(p.line(s.command.Start), "server %s is started by vouch already; add its variables to that by hand, or --keep them", inventory.Printable(name))
	case m != nil:
		p.edit(s.command.Start, s.command.End, vouch)
		at := from + m[1]
		if rest := bytes.TrimLeft(p.file.data[at:], " \t\r\n"); len(rest) > 0 && rest[0] != ']' {
			list += ", "
		}
		p.edit(at, at, list)
	default:
		p.edit(s.command.Start, s.command.End, vouch)
		at := lineEnd(p.file.data, s.command.End)
		p.edit(at, at, "\nargs = ["+list+"]")
	}
}
