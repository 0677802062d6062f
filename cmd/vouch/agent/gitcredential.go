package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/tool"
)

func newGitCredential(*cli.Options) *cobra.Command {
	var h helper
	cmd := &cobra.Command{
		Use:   "git-credential {get | store | erase}",
		Short: "Serve as git's credential helper",
		Long: `Git-credential implements git's credential helper protocol on standard input and
output. On get, it leases the credential whose definition names the requested host
(and, with credential.useHttpPath, the path), from those granted to this process. If
there is none it prints nothing, and git tries its next helper. Nothing is ever stored.

Git calls erase when a server has rejected a credential. This revokes the lease, if
git says which one it was (version 2.46 and later).`,
		Example: `  git config --global credential.helper '!vouch git-credential'
  printf 'protocol=https\nhost=github.com\n' | vouch git-credential get | sed s/password=.*/password=.../`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), h.timeout)
			defer cancel()
			switch args[0] {
			case "get":
				return h.gitGet(ctx, cmd.InOrStdin(), cmd.OutOrStdout())
			case "erase":
				return h.gitErase(ctx, cmd.InOrStdin())
			}
			return nil // store, and actions of later versions of git (gitcredentials(7), CUSTOM HELPERS)
		},
	}
	h.flags(cmd)
	return cmd
}

func (h *helper) gitGet(ctx context.Context, in io.Reader, out io.Writer) error {
	if err := cli.NotATerminal(out, "git"); err != nil {
		return err
	}
	req, err := tool.ParseGit(in)
	if err != nil {
		return err
	}
	asked, err := req.Target()
	if err != nil {
		if h.verbose {
			fmt.Fprintf(os.Stderr, "vouch: no credential can serve this request: %s\n", cli.Words(err))
		}
		return nil // another protocol, such as smtp or cert
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
		if req.Username != "" && req.Username != login.Username {
			return errOtherUser
		}
		return req.Answer(out, login, got.expires(), got.lease.Id)
	})
	switch {
	case errors.Is(err, errNoOffer):
		return h.gitHint(ctx, client, req, asked)
	case errors.Is(err, errOtherUser) && !h.verbose:
		return nil // the next helper's turn
	}
	return err
}

// errOtherUser means that git asks for the login of a particular user.
var errOtherUser = errors.New("the URL names another user")

// gitHint says why nothing was found, if it is because git did not send the path.
func (h *helper) gitHint(ctx context.Context, client *cli.Credentials, req tool.GitRequest, asked credential.Target) error {
	if req.Path != "" {
		return nil
	}
	offers, err := offersFor(ctx, client, asked.Tool)
	for _, o := range offers {
		if asked.Covers(o.Target) {
			fmt.Fprintf(os.Stderr, "vouch: %s is for %s, but git does not send the path; run: git config --global credential.%s.useHttpPath true\n", o.Name, o.Location, asked.Location)
		}
	}
	return err
}

// gitErase revokes the lease that a server has rejected, if git says which.
func (h *helper) gitErase(ctx context.Context, in io.Reader) error {
	req, err := tool.ParseGit(in)
	if err != nil || req.Lease == "" {
		return err
	}
	client, err := h.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Revoke(ctx, req.Lease)
}
