package inventory

import (
	"slices"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// npmrcFinder reads logins at npm's registries (npmrc(5)), and yarn's.
var npmrcFinder = finder{
	kind: Npmrc,
	is:   func(p place) bool { return p.name == ".npmrc" || p.name == "npmrc" || p.name == ".yarnrc.yml" },
	read: func(r *reader) error {
		for _, e := range text.INI(r.data) {
			key := e.Key[strings.LastIndexByte(e.Key, ':')+1:]
			if slices.Contains([]string{"_authToken", "_auth", "_password", "npmAuthToken", "npmAuthIdent"}, key) {
				r.whole(e.Key, "npm-login", e.Value, e.Start, e.End)
			}
		}
		return nil
	},
	replace: migrateFile,
}

// pypircFinder reads logins at Python's indexes (the specification of .pypirc).
var pypircFinder = finder{
	kind: Pypirc,
	is:   func(p place) bool { return p.name == ".pypirc" },
	read: func(r *reader) error {
		for _, e := range text.INI(r.data) {
			if strings.EqualFold(e.Key, "password") {
				r.whole(e.Section+" password", "pypi-login", e.Value, e.Start, e.End)
			}
		}
		return nil
	},
	replace: migrateFile,
}

// cargoFinder reads logins at Rust's registries (The Cargo Book, Registry Authentication).
var cargoFinder = finder{
	kind: Cargo,
	is: func(p place) bool {
		return p.dir == ".cargo" && (p.name == "credentials.toml" || p.name == "credentials" || p.name == "config.toml" || p.name == "config")
	},
	read: func(r *reader) error {
		for _, e := range text.INI(r.data) {
			if key := e.Key[strings.LastIndexByte(e.Key, '.')+1:]; key == "token" || key == "secret-key" {
				r.whole(strings.TrimPrefix(e.Section+" "+e.Key, " "), "cargo-token", e.Value, e.Start, e.End)
			}
		}
		return nil
	},
	replace: migrateFile,
}
