package admin

import (
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newNodeEvidence(o *cli.Options) *cobra.Command {
	var nonce string
	cmd := &cobra.Command{
		Use:   "evidence --nonce HEX",
		Short: "Make evidence about this machine for a verifier",
		Long: `Evidence has the daemon make one JSON document that shows a verifier which TPM this
machine has and how it booted; docs/evidence.md describes it. The nonce comes from the
verifier.`,
		Example: `  vouch node evidence --nonce 7f0c9d…4ab1 > evidence.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := cli.ParseNonce(nonce)
			if err != nil {
				return err
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			evidence, err := client.Node.Evidence(cmd.Context(), n)
			if err != nil {
				return err
			}
			return cli.WriteDocument(cmd, evidence)
		},
	}
	cmd.Flags().StringVar(&nonce, "nonce", "", "the verifier's nonce, 16 to 64 bytes in `hexadecimal`")
	return cmd
}

func newNodeActivate(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "activate CHALLENGE",
		Short: "Answer a verifier's challenge with this machine's TPM",
		Long: `Activate has the daemon answer a challenge (TPM2_ActivateCredential). Send the
answer, on standard output, back to the verifier.`,
		Example: `  vouch node activate challenge.json > answer.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			challenge, err := cli.ReadDocument(cmd, args[0], cli.MaxSmallDocument)
			if err != nil {
				return err
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			answer, err := client.Node.Activate(cmd.Context(), challenge)
			if err != nil {
				return err
			}
			return cli.WriteDocument(cmd, answer)
		},
	}
}
