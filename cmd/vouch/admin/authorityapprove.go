package admin

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/enrol"
	"github.com/vouchd/vouchd/state"
)

// An approvalView is what came of a request.
type approvalView struct {
	enrol.Host
	File   string           `json:"file"`
	Result appraisal.Result `json:"result"`
}

// approveTerms are the flags of vouch authority approve.
type approveTerms struct {
	policy   string
	nonce    string
	anyNonce bool
	life     time.Duration
	write    string
	spire    bool
	name     string // of the host, with spire
}

func (a *rootCommand) approve() *cobra.Command {
	var t approveTerms
	cmd := &cobra.Command{
		Use:   "approve REQUEST --policy FILE --write FILE",
		Short: "Enrol a host whose evidence satisfies a policy",
		Long: `Approve appraises a host's request (vouch node request) by a policy. If every rule
passes, it signs the host's node key as a CA of the trust domain: constrained to that
domain, with one level of issuing CAs below it, for --life. Only that host's TPM can
open the approval: a host that shows another machine's endorsement key gets nothing.

--nonce is the one you asked the host to use; --any-nonce accepts a request of any
age. A host name under which another machine is enrolled is refused until that
machine's certificate expires or is revoked.

With --spire the request is one of vouch node request --spire, and what is signed is no
CA but a leaf for the host's key as the agent of a SPIRE server, by which its attestor
x509pop knows the host (ca_bundle_path: this root). The host is called --name, whatever it
calls itself.`,
		Example: `  vouch authority approve request.json --policy policy.yaml --nonce $(cat nonce) --write approval.json
  vouch authority approve request.json --policy policy.yaml --any-nonce --life 720h --write approval.json
  vouch authority approve request.json --spire --name web1 --policy policy.yaml --nonce $(cat nonce) --write approval.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			terms, err := t.parse(cmd)
			if err != nil {
				return err
			}
			request, err := cli.ReadDocument(cmd, args[0], cli.MaxLargeDocument)
			if err != nil {
				return err
			}
			root, err := a.open(cmd)
			if err != nil {
				return err
			}
			defer root.Close()
			approval, err := t.sign(cmd.Context(), root, request, terms)
			if err != nil {
				if approval.Result.Rules != nil && a.Output == "text" {
					cli.PrintResult(cmd.ErrOrStderr(), approval.Result)
				}
				return err
			}
			if err := state.ReplaceFileDurably(t.write, append(approval.Document, '\n'), state.Mode(0o644)); err != nil {
				return err
			}
			h := approval.Host
			return a.Print(cmd, approvalView{h, t.write, approval.Result}, func(w io.Writer) {
				cli.PrintResult(w, approval.Result)
				kind := "certificate"
				if h.Agent {
					kind = "agent's certificate"
				}
				fmt.Fprintf(w, "Signed %s %s for %s until %s; send %s to the host.\n", kind, h.Serial, h.Hostname, cli.Time(h.NotAfter), t.write)
			})
		},
	}
	cmd.Flags().StringVar(&t.policy, "policy", "", "the appraisal policy, a YAML `file`")
	cmd.Flags().StringVar(&t.nonce, "nonce", "", "the nonce that the host was asked to use, in `hexadecimal`")
	cmd.Flags().BoolVar(&t.anyNonce, "any-nonce", false, "accept a request of any age")
	cmd.Flags().DurationVar(&t.life, "life", 90*24*time.Hour, "how long the host may issue")
	cmd.Flags().StringVar(&t.write, "write", "", "write the approval to this `file`")
	cmd.Flags().BoolVar(&t.spire, "spire", false, "sign a leaf by which the host joins a SPIRE server")
	cmd.Flags().StringVar(&t.name, "name", "", "with --spire, the `name` of the host")
	return cmd
}

func (t approveTerms) sign(ctx context.Context, root *enrol.Root, request []byte, terms appraisal.Terms) (enrol.Approval, error) {
	if t.spire {
		return root.ApproveAgent(ctx, request, t.name, terms)
	}
	return root.Approve(ctx, request, terms)
}

func (t approveTerms) parse(cmd *cobra.Command) (appraisal.Terms, error) {
	terms := appraisal.Terms{AnyNonce: t.anyNonce, Life: t.life, Now: time.Now()}
	switch {
	case t.policy == "":
		return terms, cli.Usagef("--policy is required; vouch node policy learn writes one")
	case t.write == "":
		return terms, cli.Usagef("--write is required: the file for the approval")
	case t.anyNonce == (t.nonce != ""):
		return terms, cli.Usagef("give the nonce of the request with --nonce, or accept one of any age with --any-nonce")
	case t.spire != (t.name != ""):
		return terms, cli.Usagef("--spire and --name go together: the host is called what you say, such as --spire --name web1")
	case t.spire && appraisal.CheckHostName(t.name) != nil:
		return terms, cli.Usagef("--name: %w", appraisal.CheckHostName(t.name))
	case t.life < appraisal.MinCALife || t.life > appraisal.MaxCALife:
		return terms, cli.Usagef("--life %v: want %v to %v", t.life, appraisal.MinCALife, appraisal.MaxCALife)
	}
	var err error
	if !t.anyNonce {
		if terms.Nonce, err = cli.ParseNonce(t.nonce); err != nil {
			return terms, err
		}
	}
	terms.Policy, err = cli.ReadPolicy(cmd, t.policy)
	return terms, err
}

func (a *rootCommand) approveBoot() *cobra.Command {
	var pcrs []uint
	var write string
	cmd := &cobra.Command{
		Use:   "approve-boot RESULT --pcr N,… --write FILE",
		Short: "Approve a boot state for keys bound to this root",
		Long: `Approve-boot signs that hosts whose keys are bound to this root may use them while
their PCRs have the values in RESULT, the result (in JSON) of an appraisal that
passed. Install it with vouch node reseal.`,
		Example: `  vouch authority approve-boot result.json --pcr 0,2,4,7 --write boot.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(pcrs) == 0 || write == "" {
				return cli.Usagef("--pcr and --write are required, such as --pcr 0,2,4,7 --write boot.json")
			}
			result, err := cli.ReadResult(cmd, args[0])
			if err != nil {
				return err
			}
			values, err := enrol.BootValues(result, pcrs)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			root, err := a.open(cmd)
			if err != nil {
				return err
			}
			defer root.Close()
			approval, err := root.ApproveBoot(cmd.Context(), values)
			if err != nil {
				return err
			}
			if err := state.ReplaceFileDurably(write, append(approval, '\n'), state.Mode(0o644)); err != nil {
				return err
			}
			return a.Print(cmd, map[string]string{"file": write}, func(w io.Writer) {
				fmt.Fprintf(w, "Approved; install it on hosts with: vouch node reseal %s\n", write)
			})
		},
	}
	cmd.Flags().UintSliceVar(&pcrs, "pcr", nil, "the `PCRs` that make up the boot state")
	cmd.Flags().StringVar(&write, "write", "", "write the approval to this `file`")
	return cmd
}
