package admin

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newSSHCA(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-ca [NAME]",
		Short: "Print the public key of the authority that certifies SSH keys",
		Long: `Print the public key of the authority by which credentials of the broker ssh are
certified, as a server's TrustedUserCAKeys takes it. The key is in the TPM, where it
is made when it is first asked for. NAME is the definition's ca, which is "default"
where it says none.`,
		Example: `  vouch ssh-ca > vouchd-ca.pub
  vouch ssh-ca deploy --output json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			ca, err := client.SSHCA(cmd.Context(), append(args, "default")[0])
			if err != nil {
				return err
			}
			return o.Print(cmd, ca, func(w io.Writer) { fmt.Fprintln(w, ca.PublicKey) })
		},
	}
}
