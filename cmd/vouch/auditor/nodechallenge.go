package auditor

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
)

func newNodeChallenge(o *cli.Options) *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "challenge EVIDENCE --keep FILE",
		Short: "Challenge a machine to prove its keys are in one TPM",
		Long: `Challenge reads the endorsement key and the attestation key from evidence and
encrypts a secret that only the TPM with both of them can read. Send the
challenge, on standard output, to the machine. Keep the --keep file private until
the answer arrives: anyone who reads it can forge the answer.

Evidence alone does not show that the attestation key, which signed it, is in
the TPM whose endorsement key it names.`,
		Example: `  vouch node challenge evidence.json --keep kept.json > challenge.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keep == "" {
				return cli.Usagef("--keep is required: the file for the expected answer")
			}
			evidence, err := cli.ReadDocument(cmd, args[0], cli.MaxLargeDocument)
			if err != nil {
				return err
			}
			challenge, kept, err := appraisal.Challenge(evidence)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := state.ReplaceFileDurably(keep, append(kept, '\n'), state.Mode(0o600)); err != nil {
				return fmt.Errorf("writing %s: %w", keep, err)
			}
			return cli.WriteDocument(cmd, challenge)
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "", "write the expected answer to this `file`; keep it private")
	return cmd
}

func newNodeVerify(o *cli.Options) *cobra.Command {
	var kept string
	cmd := &cobra.Command{
		Use:   "verify ANSWER --kept FILE",
		Short: "Verify the answer to a challenge",
		Long: `Verify checks a machine's answer against what vouch node challenge kept, and
prints the keys that are in one TPM. Pass the result of --output json to
vouch log verify --node. To judge the boot state too, give the same two files to
vouch node appraise instead.`,
		Example: `  vouch node verify answer.json --kept kept.json
  vouch node verify answer.json --kept kept.json --output json > machine.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := readActivation(cmd, kept, args[0])
			if err != nil {
				return err
			}
			m := knownMachine{Version: knownMachineVersion, EKSHA256: a.EKSHA256, AKName: a.AKName}
			return o.Print(cmd, m, func(w io.Writer) {
				fmt.Fprintf(w, "One TPM has both:\n  endorsement key  sha256:%s\n  attestation key  %s\n", m.EKSHA256, m.AKName)
			})
		},
	}
	cmd.Flags().StringVar(&kept, "kept", "", "the `file` that vouch node challenge --keep wrote")
	return cmd
}

// readActivation verifies an answer against what was kept.
func readActivation(cmd *cobra.Command, kept, answer string) (appraisal.Activation, error) {
	if kept == "" {
		return appraisal.Activation{}, cli.Usagef("--kept is required: the file that vouch node challenge --keep wrote")
	}
	k, err := cli.ReadDocument(cmd, kept, cli.MaxSmallDocument)
	if err != nil {
		return appraisal.Activation{}, err
	}
	a, err := cli.ReadDocument(cmd, answer, cli.MaxSmallDocument)
	if err != nil {
		return appraisal.Activation{}, err
	}
	activation, err := appraisal.VerifyActivation(k, a)
	if err != nil {
		return appraisal.Activation{}, fmt.Errorf("%s: %w", answer, err)
	}
	return activation, nil
}

func newNodeNonce(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "nonce",
		Short: "Print a fresh nonce for evidence",
		Long: `Nonce prints 32 random bytes in hexadecimal. Evidence made for a nonce is newer than
the nonce: use each one once, and keep it until you appraise the evidence.`,
		Example: `  vouch node nonce > nonce`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			nonce := make([]byte, 32)
			rand.Read(nonce)
			text := hex.EncodeToString(nonce)
			return o.Print(cmd, map[string]string{"nonce": text}, func(w io.Writer) { fmt.Fprintln(w, text) })
		},
	}
}
