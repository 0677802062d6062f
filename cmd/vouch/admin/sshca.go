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
		Short: "Print the public key of an SSH CA",
		Long: `Ssh-ca prints the public key of the SSH CA that certifies credentials of the broker
ssh, in the format of a server's TrustedUserCAKeys. The key is in the TPM and is made
when first used. NAME is the ca of the credential's definition, "default" if it has
none.`,
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
