package admin

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newNodeRequest(o *cli.Options) *cobra.Command {
	var nonce string
	var spire bool
	cmd := &cobra.Command{
		Use:   "request",
		Short: "Request enrolment by an organisation's root CA",
		Long: `Request has the daemon make one JSON document for vouch authority approve: evidence
about this machine, and a certificate request by its node key. The nonce comes from the
administrator; without one, the age of the evidence is unknown.

With --spire the request is for a certificate by which this host joins a SPIRE server: for
a TPM key of its own, and not for the node key.`,
		Example: `  vouch node request --nonce 7f0c9d…4ab1 > request.json
  vouch node request > request.json
  vouch node request --spire > request.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var n []byte
			if nonce != "" {
				var err error
				if n, err = cli.ParseNonce(nonce); err != nil {
					return err
				}
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			request, err := client.Node.Request(cmd.Context(), n, spire)
			if err != nil {
				return err
			}
			return cli.WriteDocument(cmd, request)
		},
	}
	cmd.Flags().StringVar(&nonce, "nonce", "", "the administrator's nonce, 16 to 64 bytes in `hexadecimal`")
	cmd.Flags().BoolVar(&spire, "spire", false, "request a certificate by which this host joins a SPIRE server")
	return cmd
}

func newNodeInstall(o *cli.Options) *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   "install APPROVAL --root SHA256",
		Short: "Install the certificate the root CA approved",
		Long: `Install has the daemon open an approval, which only this machine's TPM can, and issue
under it from then on if authority.mode is enrolled. One of vouch authority approve
--spire is kept beside it, to join a SPIRE server with. --root is the SHA-256 of the root
certificate, as vouch authority list prints it. Anyone can make an approval, so get the
digest from somewhere other than the approval itself.`,
		Example: `  vouch node install approval.json --root 5f2c3e6a0d1b4c8f9e7a6b5d4c3b2a190817263544536271808f9e0d1c2b3a49`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if b, err := hex.DecodeString(root); err != nil || len(b) != 32 {
				return cli.Usagef("--root is required: the SHA-256 of the root certificate in hexadecimal; vouch authority list prints it")
			}
			approval, err := cli.ReadDocument(cmd, args[0], cli.MaxSmallDocument)
			if err != nil {
				return err
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			e, err := client.Node.Install(cmd.Context(), approval, strings.ToLower(root))
			if err != nil {
				return err
			}
			return o.Print(cmd, e, func(w io.Writer) {
				if e.Agent != "" {
					fmt.Fprintf(w, "This host is %s to a SPIRE server of %s until %s (certificate %s). Next: vouch node join\n", e.Agent, e.TrustDomain, cli.Time(e.NotAfter), e.Serial)
					return
				}
				fmt.Fprintf(w, "Enrolled in %s until %s (certificate %s).\n", e.TrustDomain, cli.Time(e.NotAfter), e.Serial)
				if !e.InForce {
					fmt.Fprintln(w, "Not in force yet: set authority.mode to enrolled in vouchd.yaml and restart the daemon.")
				}
			})
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "`SHA-256` of the root certificate (DER), in hexadecimal")
	return cmd
}
