package migrate

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/jsondoc"
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
	root, err := jsondoc.Parse(p.file.Data)
	if err != nil {
		return err
	}
	var helped []string
	auths := root.Get("auths")
	if !auths.Is('{') {
		return nil
	}
	for _, registry := range auths.Members {
		line := p.line(registry.Start)
		username, value := loginOf(registry.Value)
		if value == "" || p.keeps(registry.Name, line) {
			continue
		}
		at, err := credential.NewTarget(credential.Docker, registry.Name)
		if err != nil {
			p.leave(registry.Name, line, "it %v", err)
			continue
		}
		place := fmt.Sprintf("{docker: %q, username: %q}", at.Location, username)
		p.seal(definition{item: registry.Name, given: "to Docker, by its helper", places: []string{place}}, at.Location, line, secret.Of([]byte(value)), "a login at a registry")
		p.removeMembers(registry.Value, func(name string) bool { return slices.Contains(loginKeys, name) })
		if !root.Get("credHelpers", registry.Name).Is('"') {
			helped = append(helped, registry.Name)
		} else if root.Get("credHelpers", registry.Name).Text != "vouch" {
			p.fail(line, "%s has a credential helper already; remove that or the login", registry.Name)
		}
	}
	if len(helped) == 0 {
		return nil
	}
	p.Then = []string{"Docker then asks vouch, which is docker-credential-vouch in its PATH."}
	if helpers := root.Get("credHelpers"); helpers.Is('{') {
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
func loginOf(n *jsondoc.Node) (username, value string) {
	if token := n.Get("identitytoken"); token.Is('"') && token.Text != "" {
		return tokenUser, token.Text
	}
	if auth := n.Get("auth"); auth.Is('"') && auth.Text != "" {
		text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(auth.Text))
		if err == nil {
			username, value, _ = strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
			return username, value
		}
	}
	if user, password := n.Get("username"), n.Get("password"); user.Is('"') && password.Is('"') {
		return user.Text, password.Text
	}
	return "", ""
}
