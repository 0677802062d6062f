package admin

import (
	"bytes"
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
	"github.com/vouchd/vouchd/enrol"
)

// rootCommand is what the authority commands share.
type rootCommand struct {
	*cli.Options
	dir            string
	passphraseFile string
}

func newAuthority(o *cli.Options) *cobra.Command {
	a := &rootCommand{Options: o}
	cmd := &cobra.Command{
		Use:   "authority",
		Short: "Run an organisation's root CA, offline",
		Long: `The authority commands run on an administrator's machine, which needs no daemon
and no network. They keep a trust domain's root key, encrypted with age or in that
machine's TPM, and enrol hosts whose evidence satisfies a policy. Back up the
directory; a root key kept in a TPM is lost if that TPM is.`,
	}
	cmd.PersistentFlags().StringVar(&a.dir, "dir", defaultRootDir(), "the root CA's `directory`")
	cmd.PersistentFlags().StringVar(&a.passphraseFile, "passphrase-file", "", "read the root key's passphrase from this `file` instead of the terminal")
	cmd.AddCommand(a.init(), a.approve(), a.approveBoot(), a.revoke(), a.list())
	return cmd
}

func defaultRootDir() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = "."
	}
	return filepath.Join(dir, "vouch", "authority")
}

// open opens the root, which the caller closes.
func (a *rootCommand) open(cmd *cobra.Command) (*enrol.Root, error) {
	r, err := enrol.Open(a.dir, func() (string, error) { return a.passphrase(cmd, false) })
	if errors.Is(err, enrol.ErrNone) {
		err = fmt.Errorf("%w; name its directory with --dir, or create one with: vouch authority init", err)
	}
	return r, err
}

// passphrase reads the first line of --passphrase-file, or asks on the terminal,
// twice for a new one.
func (a *rootCommand) passphrase(cmd *cobra.Command, fresh bool) (string, error) {
	passphrase, err := a.readPassphrase(cmd, fresh)
	if err != nil {
		return "", fmt.Errorf("reading the passphrase: %w", err)
	}
	if len(passphrase) == 0 || fresh && len(passphrase) < enrol.MinPassphrase {
		return "", cli.Usagef("the passphrase has %d characters; use at least %d, for instance a few words", len(passphrase), enrol.MinPassphrase)
	}
	return string(passphrase), nil
}

func (a *rootCommand) readPassphrase(cmd *cobra.Command, fresh bool) ([]byte, error) {
	if a.passphraseFile != "" {
		data, err := cli.ReadDocument(cmd, a.passphraseFile, 4096)
		line, _, _ := bytes.Cut(data, []byte("\n"))
		return line, err
	}
	passphrase, err := cli.AskHidden("Passphrase of the root key: ")
	if err != nil {
		return nil, fmt.Errorf("%w; give it in a file with --passphrase-file", err)
	}
	if !fresh {
		return passphrase, nil
	}
	again, err := cli.AskHidden("Repeat the passphrase: ")
	if err == nil && !bytes.Equal(passphrase, again) {
		err = errors.New("the two passphrases differ")
	}
	return passphrase, err
}

// A rootView describes a root.
type rootView struct {
	TrustDomain string    `json:"trust_domain"`
	RootSHA256  string    `json:"root_sha256"` // of the certificate (DER), hexadecimal
	NotAfter    time.Time `json:"not_after"`
	Key         string    `json:"key"`  // enrol.KeyAge or enrol.KeyTPM
	File        string    `json:"file"` // the certificate in PEM
}

func viewOf(r *enrol.Root) rootView {
	return rootView{
		TrustDomain: r.TrustDomain(), RootSHA256: r.SHA256(), NotAfter: r.Certificate().NotAfter,
		Key: r.KeyPlace(), File: r.CertificateFile(),
	}
}

func (a *rootCommand) init() *cobra.Command {
	var td string
	var plan enrol.Plan
	cmd := &cobra.Command{
		Use:   "init --trust-domain NAME",
		Short: "Create a trust domain's root CA",
		Long: `Init creates a root key (ECDSA P-256) and its certificate. The key is kept in the
root CA's directory, encrypted with age under a passphrase, or, with --tpm, in this
machine's TPM, which it never leaves.`,
		Example: `  vouch authority init --trust-domain example.org
  vouch authority init --trust-domain example.org --tpm /dev/tpmrm0 --dir ./authority`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			domain, err := spiffeid.TrustDomainFromString(td)
			if err != nil || td != domain.Name() {
				return cli.Usagef("--trust-domain %.255q: want a name such as example.org", td)
			}
			if plan.Life < appraisal.MinCALife {
				return cli.Usagef("--life %v: want at least %v", plan.Life, appraisal.MinCALife)
			}
			plan.TrustDomain, plan.Now = domain, time.Now()
			plan.Passphrase = func() (string, error) { return a.passphrase(cmd, true) }
			root, err := enrol.Create(cmd.Context(), a.dir, plan)
			if err != nil {
				return err
			}
			defer root.Close()
			view := viewOf(root)
			return a.Print(cmd, view, func(w io.Writer) {
				fmt.Fprintf(w, "Root of %s, valid until %s, in %s.\nIts SHA-256, which hosts need to install an approval:\n  %s\n", view.TrustDomain, cli.Time(view.NotAfter), view.File, view.RootSHA256)
			})
		},
	}
	cmd.Flags().StringVar(&td, "trust-domain", "", "`name` of the trust domain")
	cmd.Flags().StringVar(&plan.TPM, "tpm", "", "keep the key in the TPM at this `address` (/dev/tpmrm0) instead of a file")
	cmd.Flags().DurationVar(&plan.Life, "life", 10*365*24*time.Hour, "how long the root certificate is valid")
	return cmd
}

// An enrolledView is a root and the hosts it enrolled.
type enrolledView struct {
	rootView
	Nodes []enrol.Host `json:"nodes"`
}

func (a *rootCommand) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List enrolled hosts and the root's digest",
		Long: `List prints the root's digest and every certificate signed for a host. It needs no
passphrase.`,
		Example: `  vouch authority list
  vouch authority list --output json | jq -r .root_sha256`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := a.open(cmd)
			if err != nil {
				return err
			}
			defer root.Close()
			view := enrolledView{viewOf(root), root.Hosts()}
			return a.Print(cmd, view, func(out io.Writer) {
				fmt.Fprintf(out, "%s, root sha256:%s, until %s\n", view.TrustDomain, view.RootSHA256, cli.Time(view.NotAfter))
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				for _, h := range view.Nodes {
					name := h.Hostname
					if h.Agent {
						name += " (SPIRE agent)"
					}
					fmt.Fprintf(w, "%s\t%s\tEK %.16s…\t%s\n", h.Serial, name, h.EKSHA256, standing(h, time.Now()))
				}
				w.Flush()
			})
		},
	}
}

// standing says whether a host's certificate is valid, and until when or since
// when not.
func standing(h enrol.Host, now time.Time) string {
	switch {
	case !h.Revoked.IsZero():
		return "revoked " + cli.Time(h.Revoked)
	case !h.Valid(now):
		return "expired " + cli.Time(h.NotAfter)
	}
	return "until " + cli.Time(h.NotAfter)
}

func (a *rootCommand) revoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke SERIAL",
		Short: "Revoke a host's certificate",
		Long: `Revoke marks a host's certificate as revoked and signs a new revocation list,
revoked.crl in the root CA's directory (X.509 CRL, DER). Relying parties that check
such lists then refuse the host's SVIDs. SPIFFE libraries do not: they accept the
certificate until it expires. Keep lifetimes short, and do not approve the host again.`,
		Example: `  vouch authority revoke 4c1f0e6b2a7d9385`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := a.open(cmd)
			if err != nil {
				return err
			}
			defer root.Close()
			h, file, err := root.Revoke(cmd.Context(), args[0], time.Now())
			if err != nil {
				return err
			}
			return a.Print(cmd, h, func(w io.Writer) {
				fmt.Fprintf(w, "Revoked certificate %s of %s; the revocation list is %s.\n", h.Serial, h.Hostname, file)
			})
		},
	}
}
