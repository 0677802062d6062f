package agent

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/tool"
	"github.com/vouchd/vouchd/packaging/version"
)

func newDockerCredential(*cli.Options) *cobra.Command {
	var h helper
	cmd := &cobra.Command{
		Use:   "docker-credential {get | list | store | erase | version}",
		Short: "Serve as Docker's credential helper",
		Long: `Docker-credential implements Docker's credential helper protocol. On get, it leases
the credential whose definition names the requested registry, from those granted to
this process. Docker runs it as docker-credential-vouch, which is a link to vouch.

Nothing is ever stored: docker login is refused, and docker logout does nothing.`,
		Example: `  # ~/.docker/config.json
  {"credHelpers": {"registry.example.com": "vouch"}}
  echo registry.example.com | vouch docker-credential get | jq .Username`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), h.timeout)
			defer cancel()
			err := h.docker(ctx, args[0], cmd.InOrStdin(), cmd.OutOrStdout())
			if err == nil || cli.IsUsage(err) {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), cli.Words(err)) // where Docker looks for it
			return cli.ErrSaid
		},
	}
	h.flags(cmd)
	return cmd
}

func (h *helper) docker(ctx context.Context, action string, in io.Reader, out io.Writer) error {
	switch action {
	case "get":
		return h.dockerGet(ctx, in, out)
	case "list":
		return h.dockerList(ctx, out)
	case "store":
		return errors.New("vouch does not store logins; to log in yourself, remove this registry from credHelpers in ~/.docker/config.json")
	case "erase":
		return nil // nothing was kept
	case "version":
		_, err := fmt.Fprintf(out, "docker-credential-vouch %s\n", version.String())
		return err
	}
	return cli.Usagef("unknown action %q; want get, list, store, erase or version", action)
}

func (h *helper) dockerGet(ctx context.Context, in io.Reader, out io.Writer) error {
	if err := cli.NotATerminal(out, "Docker"); err != nil {
		return err
	}
	server, err := tool.ParseDocker(in)
	if err != nil {
		return err
	}
	asked, err := tool.DockerTarget(server)
	if err != nil {
		return tool.ErrDockerNotFound
	}
	client, err := h.client()
	if err != nil {
		return err
	}
	defer client.Close()
	err = h.lend(ctx, client, asked, func(got *found) error {
		login, err := got.login()
		if err != nil {
			return err
		}
		return tool.AnswerDocker(out, server, login)
	})
	if errors.Is(err, errNoOffer) {
		return tool.ErrDockerNotFound
	}
	return err
}

func (h *helper) dockerList(ctx context.Context, out io.Writer) error {
	client, err := h.client()
	if err != nil {
		return err
	}
	defer client.Close()
	offers, err := offersFor(ctx, client, credential.Docker)
	if err != nil {
		return err
	}
	usernames := make(map[string]string)
	for _, o := range offers {
		usernames[o.Location] = o.Username
	}
	return tool.ListDocker(out, usernames)
}
