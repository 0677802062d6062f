package agent

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func newAWSCredentialProcess(*cli.Options) *cobra.Command {
	var l leaser
	var keyID string
	cmd := &cobra.Command{
		Use:   "aws-credential-process NAME",
		Short: "Lease AWS credentials for AWS SDKs and the AWS CLI",
		Long: `Aws-credential-process leases AWS credentials and prints them in the format that the
credential_process setting of AWS SDKs and the AWS CLI expects. The SDK keeps them in
memory and asks again when they expire. The credential must have the fields of a
federation with AWS or of Vault's AWS secrets engine, or be a secret access key alone, whose ID is then
given with --access-key-id.`,
		Example: `  # ~/.aws/config
  [profile agent]
  credential_process = /usr/bin/vouch aws-credential-process sandbox --param task=a1b2c3d4
  [profile ci]
  credential_process = /usr/bin/vouch aws-credential-process aws-ci --access-key-id AKIA2EXAMPLE2EXAMPLE`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cli.IsTerminal(cmd.OutOrStdout()) {
				return errors.New("this prints secrets for an AWS SDK to read, and standard output is a terminal; set credential_process in ~/.aws/config")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), l.timeout)
			defer cancel()
			req, err := l.request(args[0], credentialv1.Exposure_EXPOSURE_MEMORY)
			if err != nil {
				return err
			}
			req.Reuse = true
			client, err := l.client()
			if err != nil {
				return err
			}
			defer client.Close()
			lease, fields, err := l.lasting(ctx, client, req)
			if err != nil {
				return err
			}
			defer wipe(fields)
			out, err := awsProcess(lease, fields, keyID)
			if err != nil {
				return err
			}
			defer clear(out)
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	l.flags(cmd)
	cmd.Flags().StringArrayVar(&l.params, "param", nil, "choose a parameter, as `key=value`; may be repeated")
	cmd.Flags().StringVar(&keyID, "access-key-id", "", "the `ID` of a credential that is a secret access key alone")
	return cmd
}

// awsProcess is a lease as the AWS SDKs read it ("Process credential provider",
// AWS SDKs and Tools Reference Guide), version 1. The ID of a key is for a credential that
// is nothing else.
func awsProcess(lease *credentialv1.Lease, fields []secret.Field, keyID string) ([]byte, error) {
	out := struct {
		Version         int
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		SessionToken    string `json:",omitempty"`
		Expiration      time.Time
	}{Version: 1, Expiration: time.Unix(lease.ExpiresAt, 0).UTC()}
	var names []string
	for _, f := range fields {
		switch value := string(f.Value.Reveal()); f.Name {
		case "access_key_id", "access_key":
			out.AccessKeyID = value
		case "secret_access_key", "secret_key":
			out.SecretAccessKey = value
		case "session_token", "security_token":
			out.SessionToken = value
		}
		names = append(names, f.Name)
	}
	if keyID != "" && len(fields) == 1 {
		out.AccessKeyID, out.SecretAccessKey = keyID, string(fields[0].Value.Reveal())
	}
	if out.AccessKeyID == "" || out.SecretAccessKey == "" {
		return nil, cli.Usagef("%s is not an AWS credential: it has the fields %s, but not access_key_id and secret_access_key", lease.Credential, strings.Join(names, ", "))
	}
	b, err := json.Marshal(out)
	return append(b, '\n'), err
}
