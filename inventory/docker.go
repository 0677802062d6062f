package inventory

import (
	"bytes"
	"encoding/base64"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// dockerFinder reads logins at registries, of docker, podman and their kin
// (containers-auth.json(5)).
var dockerFinder = finder{
	kind: Docker,
	is: func(p place) bool {
		return p.dir == ".docker" && p.name == "config.json" || p.name == ".dockercfg" || p.name == ".dockerconfigjson" ||
			p.dir == "containers" && p.name == "auth.json"
	},
	read: func(r *reader) error {
		leaves, err := text.JSON(r.data)
		for _, l := range leaves {
			path := l.Path
			if len(path) == 2 && path[0] == "credHelpers" && string(l.Value) == "vouch" || len(path) == 1 && path[0] == "credsStore" && string(l.Value) == "vouch" {
				r.lease(path[len(path)-1], l.Start)
				continue
			}
			if len(path) > 0 && path[0] == "auths" {
				path = path[1:]
			} else if r.place.name != ".dockercfg" {
				continue
			}
			if len(path) != 2 || path[1] == "auth" && isEmptyLogin(l.Value) {
				continue
			}
			switch path[1] {
			case "auth", "password", "identitytoken", "registrytoken":
				r.whole(path[0]+" "+path[1], "registry-login", l.Value, l.Start, l.End)
			}
		}
		return err
	},
	replace: func(_ *Finding, path string) string { return "vouch migrate docker " + path },
}

// isEmptyLogin reports whether a login has no password, or one from a document.
func isEmptyLogin(auth []byte) bool {
	login, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(auth)))
	if err != nil {
		return false
	}
	_, password, _ := bytes.Cut(login, []byte(":"))
	return len(password) == 0 || isReference(password) || isPlaceholder(password)
}
