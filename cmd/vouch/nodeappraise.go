package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/config"
)

// An appraisal is what vouch node appraise is given.
type appraisal struct {
	policy   string
	nonce    string
	anyNonce bool
	kept     string
	answer   string
	previous string
}

func newNodeAppraise(o *options) *cobra.Command {
	var a appraisal
	cmd := &cobra.Command{
		Use:   "appraise EVIDENCE --policy FILE",
		Short: "Judge a machine by its evidence and a policy",
		Long: `Appraise judges evidence by a policy and gives a reason for each rule. It needs
no daemon, no TPM and no network. It exits 0 only if every rule passed.

--nonce is the one you asked for; --any-nonce accepts evidence of any age. --kept
and --answer bring the outcome of a challenge; unless the policy says that it is
optional, nothing passes without. --previous is an earlier result of the same
machine, before whose time this evidence cannot have been made.`,
		Example: `  vouch node appraise evidence.json --policy policy.yaml --nonce $(cat nonce) --kept kept.json --answer answer.json
  vouch node appraise evidence.json --policy policy.yaml --any-nonce --output json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.appraise(cmd, args[0])
			if err != nil {
				return err
			}
			if err := o.print(cmd, r, func(w io.Writer) { printResult(w, r) }); err != nil {
				return err
			}
			if !r.Passed {
				return errSaid
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&a.policy, "policy", "", "the appraisal policy, a YAML `file`")
	cmd.Flags().StringVar(&a.nonce, "nonce", "", "the nonce that the evidence was asked for with, in `hexadecimal`")
	cmd.Flags().BoolVar(&a.anyNonce, "any-nonce", false, "accept evidence of any age")
	cmd.Flags().StringVar(&a.kept, "kept", "", "the `file` that vouch node challenge --keep wrote")
	cmd.Flags().StringVar(&a.answer, "answer", "", "the machine's answer to the challenge, a `file`")
	cmd.Flags().StringVar(&a.previous, "previous", "", "an earlier result of this machine in JSON, a `file`")
	return cmd
}

func (a appraisal) appraise(cmd *cobra.Command, file string) (node.Result, error) {
	if a.policy == "" {
		return node.Result{}, usageError{errors.New("by which policy? name it with --policy; vouch node policy learn writes one")}
	}
	if (a.kept == "") != (a.answer == "") {
		return node.Result{}, usageError{errors.New("--kept and --answer go together: what was kept of the challenge, and the machine's answer")}
	}
	evidence, err := readDocument(cmd, file, maxLargeDocument)
	if err != nil {
		return node.Result{}, err
	}
	given := node.Given{Now: time.Now()}
	if given.Nonce, err = a.nonceFor(evidence); err != nil {
		return node.Result{}, err
	}
	policy, err := readPolicy(cmd, a.policy)
	if err != nil {
		return node.Result{}, err
	}
	if a.answer != "" {
		activation, err := readActivation(cmd, a.kept, a.answer)
		if err != nil {
			return node.Result{}, err
		}
		given.Activation = &activation
	}
	if a.previous != "" {
		previous, err := readResult(cmd, a.previous)
		if err != nil {
			return node.Result{}, err
		}
		given.Previous = &previous.BootState
	}
	return node.Appraise(evidence, policy, given), nil
}

// nonceFor returns the nonce to hold the evidence to; with --any-nonce that is
// its own.
func (a appraisal) nonceFor(evidence []byte) ([]byte, error) {
	switch {
	case a.anyNonce && a.nonce != "":
		return nil, usageError{errors.New("--nonce and --any-nonce exclude each other")}
	case !a.anyNonce && a.nonce == "":
		return nil, usageError{errors.New("for which nonce was the evidence made? give it with --nonce, or accept evidence of any age with --any-nonce")}
	case !a.anyNonce:
		return parseNonce(a.nonce)
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

func readPolicy(cmd *cobra.Command, file string) (node.Policy, error) {
	data, err := readDocument(cmd, file, config.MaxFileLen)
	if err != nil {
		return node.Policy{}, err
	}
	return node.ParsePolicy(file, data)
}

// readResult reads an attestation result that the user has from an earlier
// appraisal, and has kept from others' hands.
func readResult(cmd *cobra.Command, file string) (node.Result, error) {
	data, err := readDocument(cmd, file, maxSmallDocument)
	if err != nil {
		return node.Result{}, err
	}
	var r node.Result
	if err := json.Unmarshal(data, &r); err != nil || len(r.Rules) == 0 || r.AKName == "" {
		return node.Result{}, fmt.Errorf("%s is not the result of an appraisal; make one with: vouch node appraise --output json", file)
	}
	return r, nil
}

func printResult(w io.Writer, r node.Result) {
	fmt.Fprint(w, r)
	if r.AKName == "" {
		return
	}
	fmt.Fprintf(w, "  host %q (its own word), attestation key %s\n", r.Hostname, r.AKName)
}

func newNodePolicy(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write appraisal policies",
	}
	cmd.AddCommand(newNodePolicyLearn(o))
	return cmd
}

func newNodePolicyLearn(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "learn [EVIDENCE]",
		Short: "Write a policy from a machine as it is now",
		Long: `Learn writes a policy that a machine passes as it is: this one, which the daemon
makes evidence about, or the one that EVIDENCE is from. It takes that state for
good, so review every line before you put the policy in force.`,
		Example: `  vouch node policy learn > node-policy.yaml
  vouch node policy learn evidence.json > policy.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			evidence, err := o.evidenceToLearn(cmd, args)
			if err != nil {
				return err
			}
			policy, err := node.LearnPolicy(evidence)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(policy)
			return err
		},
	}
}
