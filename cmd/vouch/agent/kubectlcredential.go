package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential/tool"
	"github.com/vouchd/vouchd/secret"
)

func newKubectlCredential(o *cli.Options) *cobra.Command {
	var h helper
	var audience, cluster, certificate string
	cmd := &cobra.Command{
		Use:   "kubectl-credential",
		Short: "Serve as kubectl's credential plug-in",
		Long: `Kubectl-credential gives kubectl, and other clients built on client-go, an
ExecCredential of client.authentication.k8s.io/v1, which they keep until it expires.
It leases the credential whose definition names the requested cluster, from those
granted to this process. kubectl passes the cluster only with provideClusterInfo: true,
and some clients do not at all; --cluster names it for these.

A credential that is the key of a client certificate alone needs that with
--certificate, in base64 as a kubeconfig has it.

With --audience it returns this process's JWT-SVID for that audience instead, for
clusters that trust vouchd as an issuer. No secret is then stored anywhere.`,
		Example: `  # ~/.kube/config
  users:
  - name: agent
    user:
      exec:
        apiVersion: client.authentication.k8s.io/v1
        command: vouch
        args: [kubectl-credential]
        interactiveMode: Never
        provideClusterInfo: true
  # what kubectl runs
  KUBERNETES_EXEC_INFO='{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
    "spec": {"cluster": {"server": "https://k8s.internal:6443"}}}' vouch kubectl-credential | jq .status.expirationTimestamp`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if err := cli.NotATerminal(out, "kubectl"); err != nil {
				return err
			}
			info, err := tool.ParseExecInfo(os.Getenv("KUBERNETES_EXEC_INFO"))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), h.timeout)
			defer cancel()
			if audience != "" {
				return (&fetcher{Options: o, socket: h.socket, timeout: h.timeout, algorithm: config.RS256}).answerExec(ctx, out, audience)
			}
			return h.kubectl(ctx, out, info, cluster, certificate)
		},
	}
	h.flags(cmd)
	cmd.Flags().StringVar(&cluster, "cluster", "", "lease for the cluster at this `URL`, for clients that do not say")
	cmd.Flags().StringVar(&certificate, "certificate", "", "the client certificate, as `base64`, of a credential that is its key alone")
	cmd.Flags().StringVar(&audience, "audience", "", "return the JWT-SVID for this `audience`")
	return cmd
}

func (h *helper) kubectl(ctx context.Context, out io.Writer, info tool.ExecInfo, cluster, certificate string) error {
	pem, err := base64.StdEncoding.DecodeString(certificate)
	if err != nil {
		return cli.Usagef("--certificate is not base64")
	}
	asked, err := info.Target(cluster)
	if err != nil {
		return err
	}
	client, err := h.client()
	if err != nil {
		return err
	}
	defer client.Close()
	err = h.lend(ctx, client, asked, func(got *found) error {
		fields := got.fields
		if len(pem) > 0 && len(fields) == 1 {
			fields = []secret.Field{{Name: "certificate", Value: secret.Of(pem)}, {Name: "private_key", Value: fields[0].Value}}
		}
		return tool.AnswerExec(out, fields, got.expires())
	})
	if errors.Is(err, errNoOffer) {
		return fmt.Errorf("no credential for cluster %s is granted to this process; its definition needs for: [{kubernetes: %[1]s}]", asked.Location)
	}
	return err
}

// answerExec gives kubectl the JWT-SVID of this process's default identity.
func (f *fetcher) answerExec(ctx context.Context, out io.Writer, audience string) error {
	svids, err := f.jwtSVIDs(ctx, []string{audience}, "")
	if err != nil {
		return err
	}
	if len(svids) == 0 {
		return errors.New("this process has no JWT-SVID")
	}
	token := []secret.Field{{Name: "token", Value: secret.Of([]byte(svids[0].Marshal()))}}
	return tool.AnswerExec(out, token, svids[0].Expiry)
}
