package admin

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
)

// An approvalView is what came of a request.
type approvalView struct {
	enrolled
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
}

func (a *authorityCommand) approve() *cobra.Command {
	var t approveTerms
	cmd := &cobra.Command{
		Use:   "approve REQUEST --policy FILE --write FILE",
		Short: "Enrol a host whose evidence satisfies a policy",
		Long: `Approve appraises a host's request (vouch node request) by a policy, and if every
rule passes signs the host's node key as a CA of the trust domain: constrained to
it, with one level of issuing CAs below, for --life. What it writes only that host's
TPM can open: a host that shows another machine's endorsement key gets nothing.

--nonce is the one you asked the host to use; --any-nonce accepts a request of any
age. A host name that another machine was enrolled with is refused, until that
one's certificate has expired or is revoked.`,
		Example: `  vouch authority approve request.json --policy policy.yaml --nonce $(cat nonce) --write approval.json
  vouch authority approve request.json --policy policy.yaml --any-nonce --life 720h --write approval.json`,
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
			s, err := a.open()
			if err != nil {
				return err
			}
			defer s.close()
			n, r, err := s.approve(cmd, request, terms, t.write)
			if err != nil {
				if r.Rules != nil && a.Output == "text" {
					cli.PrintResult(cmd.ErrOrStderr(), r)
				}
				return err
			}
			return a.Print(cmd, approvalView{n, t.write, r}, func(w io.Writer) {
				cli.PrintResult(w, r)
				fmt.Fprintf(w, "Signed certificate %s for %s until %s; send %s to the host.\n", n.Serial, n.Hostname, cli.Time(n.NotAfter), t.write)
			})
		},
	}
	cmd.Flags().StringVar(&t.policy, "policy", "", "the appraisal policy, a YAML `file`")
	cmd.Flags().StringVar(&t.nonce, "nonce", "", "the nonce that the request was asked for with, in `hexadecimal`")
	cmd.Flags().BoolVar(&t.anyNonce, "any-nonce", false, "accept a request of any age")
	cmd.Flags().DurationVar(&t.life, "life", 90*24*time.Hour, "how long the host may issue")
	cmd.Flags().StringVar(&t.write, "write", "", "write the approval to this `file`")
	return cmd
}

func (t approveTerms) parse(cmd *cobra.Command) (appraisal.Terms, error) {
	terms := appraisal.Terms{AnyNonce: t.anyNonce, Life: t.life, Now: time.Now()}
	switch {
	case t.policy == "":
		return terms, cli.Usagef("by which policy? name it with --policy; vouch node policy learn writes one")
	case t.write == "":
		return terms, cli.Usagef("where to write the approval? name a file with --write")
	case t.anyNonce == (t.nonce != ""):
		return terms, cli.Usagef("for which nonce was the request made? give it with --nonce, or accept one of any age with --any-nonce")
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

// approve signs, writes down what it signed and only then hands it out.
func (s *authorityStore) approve(cmd *cobra.Command, request []byte, terms appraisal.Terms, file string) (enrolled, appraisal.Result, error) {
	authority, done, err := s.authority(cmd)
	if err != nil {
		return enrolled{}, appraisal.Result{}, err
	}
	defer done()
	approval, certificate, r, err := authority.Approve(request, terms)
	if err != nil {
		return enrolled{}, r, err
	}
	if other := s.namesake(r.Hostname, r.EKSHA256, terms.Now); other != nil {
		return enrolled{}, r, fmt.Errorf("approving %s: another machine is enrolled by that name (endorsement key %s); if this one replaces it: vouch authority revoke %s",
			r.Hostname, other.EKSHA256, other.Serial)
	}
	n := enrolled{
		Serial: certificate.SerialNumber.Text(16), Hostname: r.Hostname, EKSHA256: r.EKSHA256, AKName: r.AKName,
		Evidence: r.EvidenceSHA256, Approved: terms.Now.UTC().Truncate(time.Second), NotAfter: certificate.NotAfter,
	}
	s.issued = append(s.issued, n)
	if err := s.saveIssued(); err != nil {
		return enrolled{}, r, err
	}
	return n, r, state.ReplaceFileDurably(file, append(approval, '\n'), state.Mode(0o644))
}

func (a *authorityCommand) approveBoot() *cobra.Command {
	var pcrs []uint
	var write string
	cmd := &cobra.Command{
		Use:   "approve-boot RESULT --pcr N,… --write FILE",
		Short: "Approve a boot state for keys that are bound to such approvals",
		Long: `Approve-boot signs that hosts whose keys are bound to this authority may use them
while the PCRs have the values in RESULT, the passed result of an appraisal in
JSON. Install it with vouch node reseal.`,
		Example: `  vouch authority approve-boot result.json --pcr 0,2,4,7 --write boot.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(pcrs) == 0 || write == "" {
				return cli.Usagef("which PCRs, and where to write the approval? give --pcr 0,2,4,7 and --write FILE")
			}
			r, err := cli.ReadResult(cmd, args[0])
			if err != nil {
				return err
			}
			values, err := bootValues(r, pcrs)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			s, err := a.open()
			if err != nil {
				return err
			}
			defer s.close()
			authority, done, err := s.authority(cmd)
			if err != nil {
				return err
			}
			defer done()
			approval, err := appraisal.ApproveBootState(authority.Signer, values)
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
	cmd.Flags().UintSliceVar(&pcrs, "pcr", nil, "`PCRs` that make up the boot state")
	cmd.Flags().StringVar(&write, "write", "", "write the approval to this `file`")
	return cmd
}

// bootValues takes the values of PCRs from a result that passed.
func bootValues(r appraisal.Result, pcrs []uint) (map[uint][]byte, error) {
	if !r.Passed || r.Bank != "sha256" {
		return nil, errors.New("the machine did not pass, or has no PCRs in SHA-256; only a state that passes can be approved")
	}
	values := make(map[uint][]byte)
	for _, pcr := range pcrs {
		value, err := hex.DecodeString(r.PCRs[pcr])
		if err != nil || len(value) == 0 {
			return nil, fmt.Errorf("it has no value of PCR %d", pcr)
		}
		values[pcr] = value
	}
	return values, nil
}
