package admin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newSecret(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Manage secrets sealed to this machine",
		Long: `Secrets are for credentials that cannot be leased. The running daemon seals a secret:
it encrypts it under a key that only this machine's TPM releases. The file cannot be
read on another machine, or after the TPM is cleared. Nothing prints a secret again, but
vouch migrate undo what was replaced in a file. A credential with broker static defines
its use, and an entry grants it.

A value is read unchanged from standard input or a file descriptor, never from the
command line. Every change and every use is in the attestation log.`,
	}
	cmd.AddCommand(newSecretSeal(o), newSecretList(o), newSecretRotate(o), newSecretRemove(o))
	return cmd
}

// sealing is what sealing and rotating share.
type sealing struct {
	fd          int
	rotateAfter string
	broad       bool
	bindTo      string
}

func (s *sealing) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&s.fd, "fd", 0, "read the value from this file `descriptor`")
	cmd.Flags().StringVar(&s.rotateAfter, "rotate-after", "", "remind to rotate the secret at this `age`, such as 45d or 12h (default 90d, 30d with --broad)")
	cmd.Flags().BoolVar(&s.broad, "broad", false, "the secret grants broad access: remind to rotate it after 30 days")
	cmd.Flags().StringVar(&s.bindTo, "bind-to", "", "open the secret only in boot states approved by the root CA with this certificate, a PEM `file`")
}

// options says how to keep the value. Options that are not given stay unchanged.
func (s *sealing) options(cmd *cobra.Command) (o view.SecretOptions, err error) {
	if s.rotateAfter != "" {
		if o.RotateAfter, err = parseAge(s.rotateAfter); err != nil {
			return o, cli.Usagef("--rotate-after %q: want an age such as 45d or 12h", s.rotateAfter)
		}
	}
	if cmd.Flags().Changed("broad") {
		o.Broad = &s.broad
	}
	if s.bindTo != "" {
		root, err := cli.ReadCertificate(cmd, s.bindTo)
		if err != nil {
			return o, err
		}
		key, ok := root.PublicKey.(*ecdsa.PublicKey)
		if !ok {
			return o, fmt.Errorf("%s: its key is not an ECDSA key", s.bindTo)
		}
		o.Authority = key
	}
	return o, nil
}

// parseAge reads a duration, in days too.
func parseAge(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// read reads the value: all of it, or from a terminal one line, without echo.
func (s *sealing) read(cmd *cobra.Command, name string) (secret.Bytes, error) {
	in := cmd.InOrStdin()
	if s.fd != 0 {
		f := os.NewFile(uintptr(s.fd), fmt.Sprintf("file descriptor %d", s.fd))
		if f == nil {
			return secret.Bytes{}, cli.Usagef("--fd %d is not a file descriptor", s.fd)
		}
		defer f.Close()
		in = f
	} else if cli.IsInteractive(in) {
		line, err := cli.AskHidden("Value of " + name + ": ")
		return secret.Of(line), err
	}
	b := make([]byte, sealed.MaxLen+1)
	n, err := io.ReadFull(in, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return secret.Bytes{}, fmt.Errorf("reading the value: %w", err)
	}
	if n > sealed.MaxLen {
		clear(b)
		return secret.Bytes{}, fmt.Errorf("reading the value: it is longer than %d bytes", sealed.MaxLen)
	}
	if bytes.HasSuffix(b[:n], []byte("\n")) && bytes.Count(b[:n], []byte("\n")) == 1 {
		fmt.Fprintln(cmd.ErrOrStderr(), "vouch: note: the value includes a trailing newline; remove it with: tr -d '\\n'")
	}
	return secret.Of(b[:n]), nil
}

// keep reads a value and has the daemon keep it.
func (s *sealing) keep(o *cli.Options, cmd *cobra.Command, name string, do func(cli.Secrets, context.Context, string, secret.Bytes, view.SecretOptions) (view.Secret, error)) error {
	if err := sealed.CheckName(name); err != nil {
		return cli.Usage(err)
	}
	how, err := s.options(cmd)
	if err != nil {
		return err
	}
	client, err := o.Admin()
	if err != nil {
		return err
	}
	value, err := s.read(cmd, name)
	if err != nil {
		return err
	}
	defer value.Wipe()
	view, err := do(client.Secrets, cmd.Context(), name, value, how)
	if err != nil {
		return err
	}
	return o.Print(cmd, view, func(w io.Writer) {
		fmt.Fprintf(w, "%s: sealed %s to this machine as revision %d; rotate it by %s\n", view.Name, cli.Count(view.Bytes, "byte", "bytes"), view.Revision, view.RotateBy.Local().Format(time.DateOnly))
		if view.Bound {
			fmt.Fprintln(w, "It opens only in approved boot states; add each approval with: vouch node reseal APPROVAL")
		}
	})
}

func newSecretSeal(o *cli.Options) *cobra.Command {
	var s sealing
	cmd := &cobra.Command{
		Use:   "seal NAME",
		Short: "Seal a secret under a new name",
		Long: `Seal reads a value of at most 1 MiB and seals it; on a terminal it asks for it. A name
that already has a value is refused: use vouch secret rotate.

With --bind-to the TPM releases the key only in a boot state that the root CA approved
(vouch authority approve-boot). An update then needs an approval, not a new secret.`,
		Example: `  pass show vendor/stripe | tr -d '\n' | vouch secret seal stripe-key
  systemd-creds decrypt stripe.cred - | vouch secret seal stripe-key
  vouch secret seal root-token --broad --fd 3 3<token
  vouch secret seal signing-key --bind-to root.pem <key.pem && vouch node reseal approval.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.keep(o, cmd, args[0], cli.Secrets.Seal)
		},
	}
	s.flags(cmd)
	return cmd
}

func newSecretRotate(o *cli.Options) *cobra.Command {
	var s sealing
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Replace the value of a secret",
		Long: `Rotate replaces the value of a secret, and the old value is lost. Its leases end, and
followers of the credential get the new value. Settings that are not given stay as they
are. Revoke the old value at its source once nobody uses it: see
vouch log show --credential NAME.`,
		Example: `  vouch secret rotate stripe-key <new-key
  vouch secret rotate stripe-key --rotate-after 30d --fd 3 3<new-key`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.keep(o, cmd, args[0], cli.Secrets.Rotate)
		},
	}
	s.flags(cmd)
	return cmd
}

func newSecretList(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List secrets with their age, users and rotation dates",
		Long: `List shows how old each secret's value is, when it was last used and by which
identities, and when to rotate it. It never shows a value.`,
		Example: `  vouch secret list
  vouch secret list --output json | jq -r '.[] | select(.due) | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			secrets, err := client.Secrets.List(cmd.Context())
			if err != nil {
				return err
			}
			return o.Print(cmd, secrets, func(out io.Writer) { printSecrets(out, secrets) })
		},
	}
}

func printSecrets(out io.Writer, secrets []view.Secret) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range secrets {
		days := int(time.Since(s.Sealed).Hours() / 24)
		fmt.Fprintf(w, "%s\t%s\tsealed %s ago", s.Name, cli.Count(s.Bytes, "byte", "bytes"), cli.Count(days, "day", "days"))
		if s.Due {
			fmt.Fprintf(w, "\tROTATE: due since %s", s.RotateBy.Local().Format(time.DateOnly))
		} else {
			fmt.Fprintf(w, "\trotate by %s", s.RotateBy.Local().Format(time.DateOnly))
		}
		switch {
		case s.Uses == 0:
			fmt.Fprint(w, "\tnever used")
		default:
			fmt.Fprintf(w, "\tused %s, last %s by %s", cli.Count(s.Uses, "time", "times"), cli.Time(s.LastUse), strings.Join(s.UsedBy, ", "))
		}
		for _, note := range []struct {
			holds bool
			text  string
		}{{s.Broad, "broad"}, {s.Bound, "bound to boot states"}} {
			if note.holds {
				fmt.Fprintf(w, "\t%s", note.text)
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

func newSecretRemove(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a secret",
		Long: `Remove deletes a secret and ends its leases. Anyone who has read the value still has
it: revoke it at its source.`,
		Example: `  vouch secret remove stripe-key`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			if err := client.Secrets.Remove(cmd.Context(), args[0]); err != nil {
				return err
			}
			return o.Print(cmd, map[string]string{"removed": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "removed %s\n", args[0]) })
		},
	}
}

func newSSHCA(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-ca [NAME]",
		Short: "Print the public key of an SSH CA",
		Long: `Ssh-ca prints the public key of the SSH CA that certifies credentials of the broker
ssh, in the format of a server's TrustedUserCAKeys. The key is in the TPM and is made
when first used. NAME is the ca of the credential's definition, "default" if it has
none.`,
		Example: `  vouch ssh-ca > vouchd-ca.pub
  vouch ssh-ca deploy --output json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.Admin()
			if err != nil {
				return err
			}
			ca, err := client.SSHCA(cmd.Context(), append(args, "default")[0])
			if err != nil {
				return err
			}
			return o.Print(cmd, ca, func(w io.Writer) { fmt.Fprintln(w, ca.PublicKey) })
		},
	}
}
