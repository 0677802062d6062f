package inventory

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// gitCredentialsFinder reads what git's helper "store" keeps (git-credential-store(1)).
var gitCredentialsFinder = finder{
	kind: GitCredentials,
	is: func(p place) bool {
		return p.name == ".git-credentials" || p.name == "credentials" && p.dir == "git"
	},
	read: func(r *reader) error {
		for at := 0; at < len(r.data); {
			line := r.data[at:]
			if i := bytes.IndexByte(line, '\n'); i >= 0 {
				line = line[:i]
			}
			r.gitURL("", bytes.TrimSpace(line), at+len(line)-len(bytes.TrimLeft(line, " \t")), exact)
			at += len(line) + 1
		}
		return nil
	},
	replace: func(_ *Finding, path string) string { return "vouch migrate git " + path },
}

// gitRemoteFinder reads configurations of git (git-config(1)).
var gitRemoteFinder = finder{
	kind: GitRemote,
	is: func(p place) bool {
		switch {
		case p.name == ".gitconfig" || p.name == "gitconfig" && p.dir == "etc" || p.name == ".gitmodules" || p.name == "config.worktree":
			return true
		case p.name != "config":
			return false
		}
		if p.dir == ".git" || p.dir == "git" || strings.HasSuffix(p.dir, ".git") {
			return true
		}
		for i, part := range p.all {
			if part == ".git" && i+1 < len(p.all) && p.all[i+1] == "modules" {
				return true
			}
		}
		return false
	},
	read: func(r *reader) error {
		for _, m := range sectionURL.FindAllSubmatchIndex(r.data, maxFindings) {
			r.gitURL("url", r.data[m[2]:m[3]], m[2], named)
		}
		for _, e := range text.INI(r.data) {
			r.gitSetting(e)
		}
		return nil
	},
	replace: func(_ *Finding, path string) string {
		return "vouch migrate git " + strings.TrimSuffix(path, "/.git/config")
	},
}

// sectionURL is the heading of settings for a URL, or of what to put in its place.
var sectionURL = regexp.MustCompile(`(?m)^[ \t]*\[[a-zA-Z]+ "([a-z+]+://[^"\n]+)"\]`)

func (r *reader) gitSetting(e text.Entry) {
	section, name, _ := strings.Cut(e.Section, " ")
	item := strings.ToLower(section) + "."
	if name = strings.Trim(name, `"`); name != "" && !strings.Contains(name, "@") {
		item += name + "."
	}
	item += e.Key
	switch key := strings.ToLower(e.Key); {
	case key == "url" || key == "pushurl" || key == "proxy" || key == "insteadof" || key == "pushinsteadof":
		r.gitURL(item, e.Value, e.Start, named)
	case key == "extraheader":
		if i := bytes.LastIndexByte(e.Value, ' '); i > 0 {
			r.whole(item, "", e.Value[i+1:], e.Start+i+1, e.End)
		}
	case key == "helper" && asksVouch(e.Value):
		r.lease(item, e.Start)
	case strings.EqualFold(section, "github") || strings.EqualFold(section, "gitlab") || strings.EqualFold(section, "hub"):
		if strings.Contains(key, "token") || strings.Contains(key, "password") {
			r.whole(item, "", e.Value, e.Start, e.End)
		}
	case key == "smtppass":
		r.whole(item, "smtp-password", e.Value, e.Start, e.End)
	}
}

var gitUserinfo = regexp.MustCompile(`^(https?|ftps?|socks5h?)://([^/\s:@]*)(:([^\s/@]*))?@([^/\s?#]+)`)

// gitURL considers a URL's password, or its user if that is a token by its form.
func (r *reader) gitURL(item string, url []byte, at int, sure certainty) {
	m := gitUserinfo.FindSubmatchIndex(url)
	if m == nil {
		return
	}
	if host := string(url[m[2]:m[3]]) + "://" + string(url[m[10]:m[11]]); item == "" {
		item = host
	}
	if m[8] >= 0 && m[9] > m[8] {
		password := url[m[8]:m[9]]
		if string(password) != "x-oauth-basic" && (sure == exact || !isDefaultPassword(password)) {
			r.whole(item, "git-password", password, at+m[8], at+m[9])
			return
		}
	}
	user := url[m[4]:m[5]]
	if shape := shapeOf(user); shape != "" || len(user) >= 32 && isRandom(user) {
		r.whole(item, "git-token", user, at+m[4], at+m[5])
	}
}
