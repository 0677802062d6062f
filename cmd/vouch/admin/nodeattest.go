package admin

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// evidenceToLearn reads evidence, or has the daemon make some.
func evidenceToLearn(o *cli.Options, cmd *cobra.Command, args []string) ([]byte, error) {
	if len(args) > 0 {
		return cli.ReadDocument(cmd, args[0], cli.MaxLargeDocument)
	}
	client, err := o.Admin()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	return client.Node.Evidence(cmd.Context(), nonce)
}

func newNodeAttest(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "attest",
		Short: "Appraise this machine now",
		Long: `Attest has the daemon appraise its own machine by its policy (node.policy in
vouchd.yaml), as it does at startup, every hour, on resume and when the policy changes.
A machine that fails stops issuing at once, and resumes by itself when it passes again.
Attest exits 0 only if the machine passed.`,
		Example: `  vouch node attest
  vouch node attest --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			raw, err := client.Node.Attest(cmd.Context())
			if err != nil {
				return err
			}
			var r appraisal.Result
			if err := json.Unmarshal(raw, &r); err != nil {
				return fmt.Errorf("reading the daemon's answer: %w", err)
			}
			if err := o.Print(cmd, json.RawMessage(raw), func(w io.Writer) { cli.PrintResult(w, r) }); err != nil {
				return err
			}
			if !r.Passed {
				return cli.ErrSaid
			}
			return nil
		},
	}
}

func newNodePolicy(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write appraisal policies",
	}
	cmd.AddCommand(newNodePolicyLearn(o))
	return cmd
}

func newNodePolicyLearn(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "learn [EVIDENCE]",
		Short: "Write a policy from a machine's current state",
		Long: `Learn writes a policy that a machine passes in its current state: this machine, or the
one that EVIDENCE is from. It assumes that this state is good, so review every line
before you use the policy.`,
		Example: `  vouch node policy learn > node-policy.yaml
  vouch node policy learn evidence.json > policy.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			evidence, err := evidenceToLearn(o, cmd, args)
			if err != nil {
				return err
			}
			policy, err := appraisal.LearnPolicy(evidence)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(policy)
			return err
		},
	}
}
