package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
)

func newNode(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Prove this machine by its TPM, appraise another one, enrol into a trust domain",
		Long: `The node commands are for two machines. On the one that runs the daemon, evidence,
activate, attest, request, install and reseal ask the daemon, which has the TPM.
On the verifier's, which needs neither daemon nor TPM nor network, nonce,
challenge, verify and appraise work on the files that the other one made.`,
	}
	cmd.AddCommand(
		newNodeNonce(o), newNodeEvidence(o),
		newNodeChallenge(o), newNodeActivate(o), newNodeVerify(o),
		newNodeAppraise(o), newNodePolicy(o), newNodeAttest(o),
		newNodeRequest(o), newNodeInstall(o), newNodeReseal(o), newNodeReset(o),
	)
	return cmd
}

func newNodeNonce(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "nonce",
		Short: "Draw a nonce for a machine to make evidence with",
		Long: `Nonce prints 32 random bytes in hexadecimal. Evidence that was made for a nonce
was made after it was drawn: use each once, and keep it until you appraise.`,
		Example: `  vouch node nonce > nonce`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			nonce := make([]byte, 32)
			rand.Read(nonce)
			text := hex.EncodeToString(nonce)
			return o.print(cmd, map[string]string{"nonce": text}, func(w io.Writer) { fmt.Fprintln(w, text) })
		},
	}
}

func newNodeEvidence(o *options) *cobra.Command {
	var nonce string
	cmd := &cobra.Command{
		Use:   "evidence --nonce HEX",
		Short: "Make evidence about this machine for a verifier",
		Long: `Evidence has the daemon make one JSON document from which a verifier can tell
which TPM this machine has and how it booted; docs/evidence.md describes it. The
nonce is the verifier's.`,
		Example: `  vouch node evidence --nonce 7f0c9d…4ab1 > evidence.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := parseNonce(nonce)
			if err != nil {
				return err
			}
			client, err := o.admin()
			if err != nil {
				return err
			}
			evidence, err := client.Node.Evidence(cmd.Context(), n)
			if err != nil {
				return err
			}
			return writeDocument(cmd, evidence)
		},
	}
	cmd.Flags().StringVar(&nonce, "nonce", "", "the verifier's nonce, 16 to 64 bytes in `hexadecimal`")
	return cmd
}

// parseNonce parses a nonce from the command line.
func parseNonce(text string) ([]byte, error) {
	if text == "" {
		return nil, usageError{errors.New("which nonce? the verifier draws one with: vouch node nonce; give it with --nonce")}
	}
	nonce, err := hex.DecodeString(text)
	if err != nil || len(nonce) < appraisal.MinNonceLen || len(nonce) > appraisal.MaxNonceLen {
		return nil, usageError{fmt.Errorf("--nonce %.140q: want %d to %d bytes in hexadecimal", text, appraisal.MinNonceLen, appraisal.MaxNonceLen)}
	}
	return nonce, nil
}

// maxSmallDocument bounds every document but evidence and what contains it, in
// bytes.
const maxSmallDocument = 1 << 20

// maxLargeDocument bounds evidence and a request, which contains it.
const maxLargeDocument = appraisal.MaxEvidenceLen + 64<<10

// readDocument reads a file, or with the name - standard input.
func readDocument(cmd *cobra.Command, name string, limit int64) ([]byte, error) {
	r := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading %s: it is larger than %d bytes, so it is not the document that is meant", name, limit)
	}
	return bytes.TrimSpace(b), nil
}

// writeDocument writes a document for another command to read.
func writeDocument(cmd *cobra.Command, document []byte) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", document)
	return err
}
