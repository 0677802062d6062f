package migrate

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

func newDocker(o *cli.Options) *cobra.Command {
	m := options{Options: o}
	cmd := &cobra.Command{
		Use:   "docker FILE",
		Short: "Have Docker ask vouch for its logins",
		Long: `Docker seals the logins in a configuration of Docker or Podman, takes them out, and
names vouch as the credential helper of their registries (credHelpers). The definitions
hand a login to whoever is granted it and asks for that registry.`,
		Example: `  vouch migrate docker ~/.docker/config.json --dry-run
  vouch migrate docker ~/.docker/config.json
  docker pull registry.example.com/team/image`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return m.run(cmd, args[0], target{"migrate docker", inventory.Docker, planDocker})
		},
	}
	m.flags(cmd)
	return cmd
}

// loginKeys are what a login has that is secret, or tells of it.
var loginKeys = []string{"auth", "username", "password", "identitytoken"}

func planDocker(p *plan) error {
	root, err := parseJSON(p.file.data)
	if err != nil {
		return err
	}
	var helped []string
	auths := root.get("auths")
	if !auths.is('{') {
		return nil
	}
	for _, registry := range auths.members {
		line := p.line(registry.start)
		username, value := loginOf(registry.value)
		if value == "" || p.keeps(registry.name, line) {
			continue
		}
		at, err := credential.NewTarget(credential.Docker, registry.name)
		if err != nil {
			p.leave(registry.name, line, "it %v", err)
			continue
		}
		place := fmt.Sprintf("{docker: %q, username: %q}", at.Location, username)
		p.seal(definition{item: registry.name, given: "to Docker, by its helper", places: []string{place}}, at.Location, line, secret.Of([]byte(value)), "a login at a registry")
		p.removeMembers(registry.value, func(name string) bool { return slices.Contains(loginKeys, name) })
		if !root.get("credHelpers", registry.name).is('"') {
			helped = append(helped, registry.name)
		} else if root.get("credHelpers", registry.name).text != "vouch" {
			p.fail(line, "%s has a credential helper already; remove that or the login", registry.name)
		}
	}
	if len(helped) == 0 {
		return nil
	}
	p.Then = []string{"Docker then asks vouch, which is docker-credential-vouch in its PATH."}
	if helpers := root.get("credHelpers"); helpers.is('{') {
		var more []string
		for _, name := range helped[1:] {
			more = append(more, quoted(name)+`: "vouch"`)
		}
		p.insert(helpers, helped[0], strings.Join(append([]string{`"vouch"`}, more...), ", "))
		return nil
	}
	var all []string
	for _, name := range helped {
		all = append(all, quoted(name)+`: "vouch"`)
	}
	p.insert(root, "credHelpers", "{"+strings.Join(all, ", ")+"}")
	return nil
}

// tokenUser is whose login Docker calls a token's (docker-credential-helpers).
const tokenUser = "<token>"

// loginOf returns the login of a registry; the secret is empty if there is none.
func loginOf(n *node) (username, value string) {
	if token := n.get("identitytoken"); token.is('"') && token.text != "" {
		return tokenUser, token.text
	}
	if auth := n.get("auth"); auth.is('"') && auth.text != "" {
		text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(auth.text))
		if err == nil {
			username, value, _ = strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
			return username, value
		}
	}
	if user, password := n.get("username"), n.get("password"); user.is('"') && password.is('"') {
		return user.text, password.text
	}
	return "", ""
}
