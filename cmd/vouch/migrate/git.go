package migrate

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/text"
	"github.com/vouchd/vouchd/secret"
)

func newGit(o *cli.Options) *cobra.Command {
	m := options{Options: o}
	cmd := &cobra.Command{
		Use:   "git {DIR | FILE}",
		Short: "Have git ask vouch for the logins of remotes",
		Long: `Git takes the logins out of a repository's remotes (url and pushurl) and of
http.URL.extraHeader, or out of a store such as ~/.git-credentials, and seals them. In a
configuration it makes vouch the credential helper for their hosts. The definitions hand
a login to whoever is granted it, for the very repositories it was for.

A header with a bearer token is left: helpers of git give passwords.`,
		Example: `  vouch migrate git /srv/site --dry-run
  vouch migrate git /srv/site
  vouch migrate git ~/.git-credentials`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := gitFile(args[0])
			if err != nil {
				return err
			}
			if kind, _ := inventory.KindOf(path); kind == inventory.GitCredentials {
				return m.run(cmd, path, target{"migrate git", kind, planGitStore})
			}
			return m.run(cmd, path, target{"migrate git", inventory.GitRemote, planGitConfig})
		},
	}
	m.flags(cmd)
	return cmd
}

// gitFile is the file that a path means: the configuration of a repository's directory.
func gitFile(path string) (string, error) {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return path, err
	}
	in := filepath.Join(path, ".git")
	switch info, err := os.Lstat(in); {
	case err == nil && info.IsDir():
		return filepath.Join(in, "config"), nil
	case err == nil:
		return "", fmt.Errorf("%s is a work tree whose repository is elsewhere; name its configuration: git -C %[1]s rev-parse --git-common-dir", path)
	}
	if _, err := os.Lstat(filepath.Join(path, "config")); err == nil { // bare
		return filepath.Join(path, "config"), nil
	}
	return "", fmt.Errorf("%s is no repository of git", path)
}

// A gitLogin is a login in a URL.
type gitLogin struct {
	username, secret string
	from, to         int // of "user:password@"
	place            credential.Target
	host             string // scheme://host
	path             string
}

// gitLoginIn reads a URL that begins at a byte of the file and has the secret of a finding
// in it.
func gitLoginIn(raw []byte, at int, f inventory.Finding) (l gitLogin, err error) {
	u, err := url.Parse(string(raw))
	if err != nil || u.User == nil {
		return l, fmt.Errorf("it is no plain URL with a login")
	}
	l.username = u.User.Username()
	l.secret, _ = u.User.Password()
	begin := bytes.Index(raw, []byte("://")) + len("://")
	end := begin + bytes.LastIndexByte(raw[begin:begin+max(0, hostEnd(raw[begin:]))], '@') + 1
	l.from, l.to = at+begin, at+end
	if userEnd := begin + len(firstField(raw[begin:end])); f.Start < at+userEnd { // the user is the token
		l.secret = l.username
		l.username = "oauth2"
		if strings.HasSuffix(strings.ToLower(u.Hostname()), "github.com") {
			l.username = "x-access-token"
		}
	}
	u.User = nil
	l.host, l.path = u.Scheme+"://"+u.Host, u.Path
	l.place, err = credential.NewTarget(credential.Git, u.String())
	return l, err
}

// hostEnd is where the part of a URL with its host ends.
func hostEnd(b []byte) int {
	if i := bytes.IndexByte(b, '/'); i >= 0 {
		return i
	}
	return len(b)
}

func firstField(b []byte) []byte {
	user, _, _ := bytes.Cut(b, []byte(":"))
	return bytes.TrimSuffix(user, []byte("@"))
}

// planGitLogin plans to seal a login.
func planGitLogin(p *plan, l gitLogin, itemName string, line int) {
	d := definition{item: itemName, given: "to git, by its helper", places: []string{fmt.Sprintf("{git: %q, username: %q}", l.place.Location, l.username)}}
	if strings.HasSuffix(l.host, "//github.com") {
		d.better = githubApp(l.path)
	}
	p.seal(d, strings.TrimPrefix(strings.TrimPrefix(l.place.Location, "https://"), "http://"), line, secret.Of([]byte(l.secret)), "a login at a server of git")
}

func planGitStore(p *plan) error {
	found, err := inventory.ReadFile(inventory.GitCredentials, p.file.Path, p.file.Data)
	if err != nil {
		return err
	}
	hosts := make(map[string]bool)
	for _, f := range found {
		from, to := lineStart(p.file.Data, f.Start), lineEnd(p.file.Data, f.Start)
		raw := bytes.TrimSpace(p.file.Data[from:to])
		l, err := gitLoginIn(raw, from+bytes.Index(p.file.Data[from:to], raw), f)
		if p.keeps(f.Item, f.Line) {
			continue
		}
		if err != nil {
			p.leave(f.Item, f.Line, "it %v", err)
			continue
		}
		planGitLogin(p, l, f.Item, f.Line)
		p.removeLine(f.Start)
		if !hosts[l.host] {
			hosts[l.host] = true
			p.Then = append(p.Then, fmt.Sprintf("As the user whose file it is: git config --global credential.%s.helper vouch", l.host))
			if l.path != "" {
				p.Then = append(p.Then, fmt.Sprintf("and: git config --global credential.%s.useHttpPath true", l.host))
			}
		}
	}
	return nil
}

func planGitConfig(p *plan) error {
	found, err := inventory.ReadFile(inventory.GitRemote, p.file.Path, p.file.Data)
	if err != nil {
		return err
	}
	entries := text.INI(p.file.Data)
	var hosts []string
	paths := make(map[string]bool) // hosts whose logins are for a path
	for _, f := range found {
		if f.Leased || p.keeps(f.Item, f.Line) {
			continue
		}
		for _, e := range entries {
			if f.Start < e.Start || f.End > e.End {
				continue
			}
			if l, ok := planGitSetting(p, e, f); ok {
				if _, again := paths[l.host]; !again {
					hosts = append(hosts, l.host)
				}
				paths[l.host] = paths[l.host] || l.path != ""
			}
			break
		}
	}
	var b strings.Builder
	for _, host := range hosts {
		if asksVouchFor(entries, host) {
			continue
		}
		fmt.Fprintf(&b, "[credential %q]\n\thelper = vouch\n", host)
		if paths[host] {
			b.WriteString("\tuseHttpPath = true\n")
		}
	}
	if b.Len() > 0 {
		added := b.String()
		if n := len(p.file.Data); n > 0 && p.file.Data[n-1] != '\n' {
			added = "\n" + added
		}
		p.edit(len(p.file.Data), len(p.file.Data), added)
		p.Then = []string{"Git then asks vouch, which is git-credential-vouch in its PATH."}
	}
	return nil
}

// asksVouchFor reports whether a configuration has vouch as the helper of a host.
func asksVouchFor(entries []text.Entry, host string) bool {
	for _, e := range entries {
		if e.Section == fmt.Sprintf("credential %q", host) && strings.EqualFold(e.Key, "helper") && string(e.Value) == "vouch" {
			return true
		}
	}
	return false
}

// planGitSetting plans for one setting that has a secret.
func planGitSetting(p *plan, e text.Entry, f inventory.Finding) (l gitLogin, ok bool) {
	raw := p.file.Data[e.Start:e.End]
	key := strings.ToLower(e.Key)
	if bytes.ContainsAny(raw, `\"`) {
		p.leave(f.Item, f.Line, "it is written with quotes in it; write it plainly first")
		return l, false
	}
	switch section, name, _ := strings.Cut(e.Section, " "); {
	case strings.EqualFold(section, "remote") && (key == "url" || key == "pushurl"):
		l, err := gitLoginIn(raw, e.Start, f)
		if err != nil {
			p.leave(f.Item, f.Line, "it %v", err)
			return l, false
		}
		planGitLogin(p, l, f.Item, f.Line)
		p.hide(l.from, l.to)
		p.edit(l.from, l.to, "")
		return l, true
	case strings.EqualFold(section, "http") && key == "extraheader":
		return planGitHeader(p, e, f, strings.Trim(name, `"`))
	}
	return l, false // what an inventory still finds is left
}

// planGitHeader plans for a header that git sends to the servers below a URL.
func planGitHeader(p *plan, e text.Entry, f inventory.Finding, below string) (l gitLogin, ok bool) {
	fields := strings.Fields(string(e.Value)) // AUTHORIZATION: basic TEXT
	if below == "" {
		p.leave(f.Item, f.Line, "it goes to every server; remove it, and rotate it")
		return l, false
	}
	if len(fields) != 3 || !strings.EqualFold(fields[0], "Authorization:") || !strings.EqualFold(fields[1], "basic") {
		p.leave(f.Item, f.Line, "helpers of git give passwords; seal it with vouch secret seal, and run git with vouch exec --proxy NAME --intercept -- git")
		return l, false
	}
	login, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		p.leave(f.Item, f.Line, "its login is not in base64")
		return l, false
	}
	l.username, l.secret, _ = strings.Cut(string(login), ":")
	u, err := url.Parse(below)
	if err != nil || u.Host == "" {
		p.leave(f.Item, f.Line, "it is for no plain URL")
		return l, false
	}
	l.host, l.path = u.Scheme+"://"+u.Host, strings.Trim(u.Path, "/")
	if l.place, err = credential.NewTarget(credential.Git, below); err != nil {
		p.leave(f.Item, f.Line, "it %v", err)
		return l, false
	}
	planGitLogin(p, l, f.Item, f.Line)
	p.removeLine(e.Start)
	return l, true
}
