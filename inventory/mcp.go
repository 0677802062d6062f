package inventory

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// mcpFinder reads what coding agents have: the servers they start, with the variables
// and headers of these, and their own logins.
var mcpFinder = finder{
	kind: MCP,
	is: func(p place) bool {
		switch p.name {
		case "mcp.json", ".mcp.json", ".claude.json", "claude_desktop_config.json", "mcp_config.json", "cline_mcp_settings.json", "mcp_settings.json", "oauth_creds.json":
			return true
		case "settings.json", "settings.local.json", ".credentials.json", "config.toml", "auth.json", "config.json":
			return slices.Contains([]string{".claude", ".codex", ".gemini", ".cursor", ".continue", ".vscode", ".windsurf"}, p.dir)
		}
		return false
	},
	read: func(r *reader) error {
		if strings.HasSuffix(r.place.name, ".toml") {
			for _, e := range text.TOML(r.data) {
				r.agentSetting(strings.Split(e.Section+"."+e.Key, "."), nil, text.Leaf{Value: e.Value, Start: e.Start, End: e.End})
			}
			return nil
		}
		leaves, err := text.JSON(r.data)
		for i, l := range leaves {
			var before []byte
			if i > 0 && len(l.Path) > 1 && slices.Equal(leaves[i-1].Path[:max(0, len(leaves[i-1].Path)-1)], l.Path[:len(l.Path)-1]) {
				before = leaves[i-1].Value
			}
			r.agentSetting(l.Path, before, l)
		}
		return err
	},
	replace: func(_ *Finding, path string) string { return "vouch migrate mcp " + path },
}

// tokensOfLogins are the keys under which agents keep their own.
var tokensOfLogins = []string{"access_token", "refresh_token", "accesstoken", "refreshtoken", "primaryapikey", "apikey"}

// agentSetting considers one text. In a list, before is what stands before it.
func (r *reader) agentSetting(path []string, before []byte, l text.Leaf) {
	if len(path) == 0 {
		return
	}
	item, key := strings.Join(path, "."), path[len(path)-1]
	in := func(names ...string) bool {
		return slices.ContainsFunc(path[:len(path)-1], func(s string) bool { return slices.Contains(names, s) })
	}
	switch {
	case key == "command" && asksVouch(l.Value):
		r.lease(strings.TrimSuffix(item, ".command"), l.Start)
	case in("env", "http_headers", "headers", "requestInit"), in("set") && in("shell_environment_policy"):
		r.header(key, item, l.Value, l.Start, l.End)
	case in("args"):
		r.argument(item, before, l)
	case slices.Contains(tokensOfLogins, strings.ToLower(key)):
		r.whole(item, "", l.Value, l.Start, l.End)
	case isSecretURL(l.Value) && (key == "url" || key == "serverUrl" || key == "httpUrl"):
		r.consider(named, key, item, l.Value, l.Start, l.End)
	case len(path) <= 2 || in("mcpServers", "servers", "mcp_servers", "model_providers", "models"):
		r.consider(named, key, item, l.Value, l.Start, l.End)
	}
}

var scheme = regexp.MustCompile(`^(?i)(bearer|basic|token|apikey|api-key)[ \t]+`)

// header considers a header's value, or a variable's, without the scheme before it.
func (r *reader) header(name, item string, value []byte, start, end int) {
	if m := scheme.Find(value); m != nil {
		if rest := value[len(m):]; !isReference(rest) {
			if end-start == len(value) {
				start += len(m)
			}
			r.whole(item, "", rest, start, end)
		}
		return
	}
	r.consider(named, name, item, value, start, end)
}

var (
	argument = regexp.MustCompile(`^(?:--?)?([A-Za-z][A-Za-z0-9_-]*)(=|: ?)`)
	executed = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(:[a-z_]+)?=[A-Za-z_][A-Za-z0-9_]*$`) // as vouch exec has it
	option   = regexp.MustCompile(`^--?([A-Za-z][A-Za-z0-9_-]*)$`)
)

// argument considers an argument: --NAME=VALUE, NAME=VALUE, a header, or what follows
// --NAME.
func (r *reader) argument(item string, before []byte, l text.Leaf) {
	if string(before) == "--credential" && executed.Match(l.Value) {
		return
	}
	if m := argument.FindSubmatch(l.Value); m != nil && !bytes.HasPrefix(l.Value[len(m[0]):], []byte("//")) {
		start := l.Start
		if l.End-l.Start == len(l.Value) {
			start += len(m[0])
		}
		r.header(string(m[1]), item, l.Value[len(m[0]):], start, l.End)
		return
	}
	name := ""
	if m := option.FindSubmatch(before); m != nil {
		name = string(m[1])
	}
	r.consider(named, name, item, l.Value, l.Start, l.End)
}
