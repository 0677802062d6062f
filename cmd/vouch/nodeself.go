package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// evidenceToLearn reads evidence, or has the daemon make some.
func (o *options) evidenceToLearn(cmd *cobra.Command, args []string) ([]byte, error) {
	if len(args) > 0 {
		return readDocument(cmd, args[0], maxLargeDocument)
	}
	client, err := o.admin()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	return client.Node.Evidence(cmd.Context(), nonce)
}

func newNodeAttest(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "attest",
		Short: "Have the daemon appraise its machine now",
		Long: `Attest has the daemon appraise its own machine by its policy (node.policy in
vouchd.yaml), as it does at its start, every hour, on resume and when the policy
changes. A machine that does not pass stops issuing at once, and goes on by
itself when it passes again. Attest exits 0 only if it passed.`,
		Example: `  vouch node attest
  vouch node attest --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.admin()
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
			if err := o.print(cmd, json.RawMessage(raw), func(w io.Writer) { printResult(w, r) }); err != nil {
				return err
			}
			if !r.Passed {
				return errSaid
			}
			return nil
		},
	}
}
