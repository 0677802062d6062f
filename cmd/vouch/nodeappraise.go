package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/config"
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

func newNodeAppraise(o *options) *cobra.Command {
	var a appraiseTerms
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

func (a appraiseTerms) appraise(cmd *cobra.Command, file string) (appraisal.Result, error) {
	if a.policy == "" {
		return appraisal.Result{}, usageError{errors.New("by which policy? name it with --policy; vouch node policy learn writes one")}
	}
	if (a.kept == "") != (a.answer == "") {
		return appraisal.Result{}, usageError{errors.New("--kept and --answer go together: what was kept of the challenge, and the machine's answer")}
	}
	evidence, err := readDocument(cmd, file, maxLargeDocument)
	if err != nil {
		return appraisal.Result{}, err
	}
	given := appraisal.Given{Now: time.Now()}
	if given.Nonce, err = a.nonceFor(evidence); err != nil {
		return appraisal.Result{}, err
	}
	policy, err := readPolicy(cmd, a.policy)
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
		previous, err := readResult(cmd, a.previous)
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

func readPolicy(cmd *cobra.Command, file string) (appraisal.Policy, error) {
	data, err := readDocument(cmd, file, config.MaxFileLen)
	if err != nil {
		return appraisal.Policy{}, err
	}
	return appraisal.ParsePolicy(file, data)
}

// checkNodePolicy checks the policy that belongs to a configuration, if there
// is one.
func (o *options) checkNodePolicy(args []string) error {
	if len(args) > 0 {
		file := filepath.Join(args[0], "node-policy.yaml")
		data, err := os.ReadFile(file)
		return parsedPolicy(file, data, err)
	}
	c, err := config.Load(o.config)
	if err != nil {
		return nil // which is told already
	}
	data, err := config.ReadFile(c.Node.Policy)
	return parsedPolicy(c.Node.Policy, data, err)
}

func parsedPolicy(file string, data []byte, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err == nil {
		_, err = appraisal.ParsePolicy(file, data)
	}
	return err
}

// readResult reads an attestation result that the user has from an earlier
// appraisal, and has kept from others' hands.
func readResult(cmd *cobra.Command, file string) (appraisal.Result, error) {
	data, err := readDocument(cmd, file, maxSmallDocument)
	if err != nil {
		return appraisal.Result{}, err
	}
	var r appraisal.Result
	if err := json.Unmarshal(data, &r); err != nil || len(r.Rules) == 0 || r.AKName == "" {
		return appraisal.Result{}, fmt.Errorf("%s is not the result of an appraisal; make one with: vouch node appraise --output json", file)
	}
	return r, nil
}

func printResult(w io.Writer, r appraisal.Result) {
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
			policy, err := appraisal.LearnPolicy(evidence)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(policy)
			return err
		},
	}
}
