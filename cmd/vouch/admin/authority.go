package admin

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
)

// authorityCommand is what the authority commands share.
type authorityCommand struct {
	*cli.Options
	dir        string
	passphrase string // file
}

func newAuthority(o *cli.Options) *cobra.Command {
	a := &authorityCommand{Options: o}
	cmd := &cobra.Command{
		Use:   "authority",
		Short: "Be the root of an organisation's trust domain, offline",
		Long: `The authority commands are for an administrator's machine, which needs no daemon
and no network. They keep the root key of a trust domain, encrypted with age or in
that machine's TPM, and enrol hosts whose evidence satisfies a policy. Back the
directory up: a key in a TPM is lost with it.`,
	}
	cmd.PersistentFlags().StringVar(&a.dir, "dir", defaultAuthorityDir(), "the authority's `directory`")
	cmd.PersistentFlags().StringVar(&a.passphrase, "passphrase-file", "", "read the root key's passphrase from this `file`; without it, from the terminal")
	cmd.AddCommand(a.init(), a.approve(), a.approveBoot(), a.revoke(), a.list())
	return cmd
}

func defaultAuthorityDir() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = "."
	}
	return filepath.Join(dir, "vouch", "authority")
}

// A rootView says which root an authority has.
type rootView struct {
	TrustDomain string    `json:"trust_domain"`
	RootSHA256  string    `json:"root_sha256"` // of the certificate (DER), hexadecimal
	NotAfter    time.Time `json:"not_after"`
	Key         string    `json:"key"`  // keyAge or keyTPM
	File        string    `json:"file"` // the certificate in PEM
}

func (a *authorityCommand) init() *cobra.Command {
	var td, tpm string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "init --trust-domain NAME",
		Short: "Make the root of a trust domain",
		Long: `Init makes a root key (ECDSA P-256) and its certificate. The key is kept in the
authority's directory, encrypted with age under a passphrase, or, with --tpm, in
this machine's TPM, which it never leaves.`,
		Example: `  vouch authority init --trust-domain example.org
  vouch authority init --trust-domain example.org --tpm /dev/tpmrm0 --dir ./authority`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			domain, err := spiffeid.TrustDomainFromString(td)
			if err != nil || td != domain.Name() {
				return cli.Usagef("--trust-domain %.255q: want a name such as example.org", td)
			}
			if life < appraisal.MinCALife {
				return cli.Usagef("--life %v: want at least %v", life, appraisal.MinCALife)
			}
			s, err := a.create(cmd, domain, tpm, life)
			if err != nil {
				return err
			}
			defer s.close()
			view := s.view()
			return a.Print(cmd, view, func(w io.Writer) {
				fmt.Fprintf(w, "Root of %s until %s, in %s.\nIts SHA-256, which hosts install by:\n  %s\n", view.TrustDomain, cli.Time(view.NotAfter), view.File, view.RootSHA256)
			})
		},
	}
	cmd.Flags().StringVar(&td, "trust-domain", "", "`name` of the trust domain")
	cmd.Flags().StringVar(&tpm, "tpm", "", "keep the key in the TPM at this `address` (/dev/tpmrm0) instead of a file")
	cmd.Flags().DurationVar(&life, "life", 10*365*24*time.Hour, "how long the root certificate is valid")
	return cmd
}

// An authorityView is what an authority has done.
type authorityView struct {
	rootView
	Nodes []enrolled `json:"nodes"`
}

func (a *authorityCommand) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the hosts that were enrolled, and the root",
		Long: `List prints the root's digest and each certificate that was signed for a host. It
needs no passphrase.`,
		Example: `  vouch authority list
  vouch authority list --output json | jq -r .root_sha256`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			defer s.close()
			view := authorityView{s.view(), s.issued}
			return a.Print(cmd, view, func(out io.Writer) {
				fmt.Fprintf(out, "%s, root sha256:%s, until %s\n", view.TrustDomain, view.RootSHA256, cli.Time(view.NotAfter))
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				for _, n := range s.issued {
					fmt.Fprintf(w, "%s\t%s\tEK %.16s…\t%s\n", n.Serial, n.Hostname, n.EKSHA256, n.standing(time.Now()))
				}
				w.Flush()
			})
		},
	}
}

func (a *authorityCommand) revoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke SERIAL",
		Short: "Take a host's certificate back",
		Long: `Revoke marks a host's certificate as taken back and signs a new revocation list,
revoked.crl in the authority's directory (X.509 CRL, DER). Relying parties that look
at such lists refuse the host's SVIDs from then on; SPIFFE libraries do not, and for
them the certificate ends with its life. So keep lives short, and give the host
no other one.`,
		Example: `  vouch authority revoke 4c1f0e6b2a7d9385`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			defer s.close()
			n, err := s.find(args[0])
			if err != nil {
				return err
			}
			if n.Revoked.IsZero() {
				n.Revoked = time.Now().UTC().Truncate(time.Second)
			}
			file, err := s.revoke(cmd)
			if err != nil {
				return err
			}
			return a.Print(cmd, n, func(w io.Writer) {
				fmt.Fprintf(w, "Took back certificate %s of %s; the revocation list is %s.\n", n.Serial, n.Hostname, file)
			})
		},
	}
}

// view says which root this is.
func (s *authorityStore) view() rootView {
	return rootView{
		TrustDomain: s.meta.TrustDomain,
		RootSHA256:  fmt.Sprintf("%x", sha256.Sum256(s.root.Raw)),
		NotAfter:    s.root.NotAfter,
		Key:         s.meta.Key,
		File:        s.dir.Path("root.pem"),
	}
}

// revoke saves what was marked and signs a list of all that was ever taken
// back.
func (s *authorityStore) revoke(cmd *cobra.Command) (file string, err error) {
	authority, done, err := s.authority(cmd)
	if err != nil {
		return "", err
	}
	defer done()
	s.meta.Lists++
	if err := errors.Join(s.saveIssued(), s.saveMeta()); err != nil {
		return "", err
	}
	var revoked []appraisal.Revoked
	for _, n := range s.issued {
		if serial, ok := n.serial(); ok && !n.Revoked.IsZero() {
			revoked = append(revoked, appraisal.Revoked{Serial: serial, At: n.Revoked})
		}
	}
	now := time.Now()
	list, err := authority.RevocationList(revoked, s.meta.Lists, now, now.Add(appraisal.MaxCALife))
	if err != nil {
		return "", err
	}
	file = s.dir.Path("revoked.crl")
	return file, state.ReplaceFileDurably(file, list, state.Mode(0o644))
}
