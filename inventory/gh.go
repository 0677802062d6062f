package inventory

import (
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// ghFinder reads logins of GitHub's command line, and of GitLab's, which is like it.
var ghFinder = finder{
	kind: GH,
	is: func(p place) bool {
		return p.dir == "gh" && p.name == "hosts.yml" || p.dir == "glab-cli" && p.name == "config.yml"
	},
	read: func(r *reader) error {
		leaves, err := text.YAML(r.data)
		for _, l := range leaves {
			if n := len(l.Path); n > 0 && (l.Path[n-1] == "oauth_token" || l.Path[n-1] == "token") {
				r.whole(strings.Join(l.Path, " "), "github-token", l.Value, l.Start, l.End)
			}
		}
		return err
	},
	replace: migrateFile,
}
