package auditor

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// appraiseTerms are what vouch node appraise is given.
type appraiseTerms struct {
	policy   string
	nonce    string
	anyNonce bool
	kept     string
	answer   string
	previous string
}

func newNodeAppraise(o *cli.Options) *cobra.Command {
	var a appraiseTerms
	cmd := &cobra.Command{
		Use:   "appraise EVIDENCE --policy FILE",
		Short: "Judge a machine by its evidence and a policy",
		Long: `Appraise judges evidence by a policy and gives a reason for each rule. It needs
no daemon, no TPM and no network. It exits 0 only if every rule passed.

--nonce is the one you asked the machine to use; --any-nonce accepts evidence of any
age. --kept and --answer supply the outcome of a challenge, which is required unless
the policy makes it optional. --previous is an earlier result of the same machine;
older evidence is refused.`,
		Example: `  vouch node appraise evidence.json --policy policy.yaml --nonce $(cat nonce) --kept kept.json --answer answer.json
  vouch node appraise evidence.json --policy policy.yaml --any-nonce --output json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.appraise(cmd, args[0])
			if err != nil {
				return err
			}
			if err := o.Print(cmd, r, func(w io.Writer) { cli.PrintResult(w, r) }); err != nil {
				return err
			}
			if !r.Passed {
				return cli.ErrSaid
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&a.policy, "policy", "", "the appraisal policy, a YAML `file`")
	cmd.Flags().StringVar(&a.nonce, "nonce", "", "the nonce you asked the machine to use, in `hexadecimal`")
	cmd.Flags().BoolVar(&a.anyNonce, "any-nonce", false, "accept evidence of any age")
	cmd.Flags().StringVar(&a.kept, "kept", "", "the `file` that vouch node challenge --keep wrote")
	cmd.Flags().StringVar(&a.answer, "answer", "", "the machine's answer to the challenge, a `file`")
	cmd.Flags().StringVar(&a.previous, "previous", "", "an earlier result of this machine in JSON, a `file`")
	return cmd
}

func (a appraiseTerms) appraise(cmd *cobra.Command, file string) (appraisal.Result, error) {
	if a.policy == "" {
		return appraisal.Result{}, cli.Usagef("--policy is required; vouch node policy learn writes one")
	}
	if (a.kept == "") != (a.answer == "") {
		return appraisal.Result{}, cli.Usagef("--kept and --answer must be given together")
	}
	evidence, err := cli.ReadDocument(cmd, file, cli.MaxLargeDocument)
	if err != nil {
		return appraisal.Result{}, err
	}
	given := appraisal.Given{Now: time.Now()}
	if given.Nonce, err = a.nonceFor(evidence); err != nil {
		return appraisal.Result{}, err
	}
	policy, err := cli.ReadPolicy(cmd, a.policy)
	if err != nil {
		return appraisal.Result{}, err
	}
	if a.answer != "" {
		activation, err := readActivation(cmd, a.kept, a.answer)
		if err != nil {
			return appraisal.Result{}, err
		}
		given.Activation = &activation
	}
	if a.previous != "" {
		previous, err := cli.ReadResult(cmd, a.previous)
		if err != nil {
			return appraisal.Result{}, err
		}
		given.Previous = &previous.BootState
	}
	return appraisal.Appraise(evidence, policy, given), nil
}

// nonceFor returns the nonce to hold the evidence to; with --any-nonce that is
// its own.
func (a appraiseTerms) nonceFor(evidence []byte) ([]byte, error) {
	switch {
	case a.anyNonce && a.nonce != "":
		return nil, cli.Usagef("--nonce and --any-nonce are mutually exclusive")
	case !a.anyNonce && a.nonce == "":
		return nil, cli.Usagef("--nonce is required, or --any-nonce to accept evidence of any age")
	case !a.anyNonce:
		return cli.ParseNonce(a.nonce)
	}
	var e struct {
		Nonce string `json:"nonce"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, nil // the appraisal says what is wrong
	}
	nonce, _ := hex.DecodeString(e.Nonce)
	return nonce, nil
}
