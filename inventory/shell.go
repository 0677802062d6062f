package inventory

import (
	"slices"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

var shellNames = []string{
	".bashrc", ".bash_profile", ".bash_login", ".bash_aliases", ".profile", ".zshrc", ".zshenv", ".zprofile", ".zlogin",
	".kshrc", ".cshrc", ".tcshrc", ".login", ".xprofile", ".xsessionrc", ".pam_environment",
}

// shellFinder reads what a login sets: profiles, and the files of PAM and systemd that
// do the same.
var shellFinder = finder{
	kind: Shell,
	is: func(p place) bool {
		switch {
		case slices.Contains(shellNames, p.name):
			return true
		case p.name == "config.fish" || strings.HasSuffix(p.name, ".fish") && (p.dir == "conf.d" || p.dir == "fish"):
			return true
		case p.dir == "environment.d" && strings.HasSuffix(p.name, ".conf"):
			return true
		default:
			return p.dir == "etc" && slices.Contains([]string{"environment", "profile", "bash.bashrc", "bashrc", "zshrc", "csh.login", "csh.cshrc"}, p.name) ||
				p.up == "etc" && (p.dir == "profile.d" || p.dir == "zsh")
		}
	},
	read: func(r *reader) error {
		for _, e := range text.Assignments(r.data) {
			r.variable(named, e)
		}
		return nil
	},
	replace: migrateFile,
}
