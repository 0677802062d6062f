// Package svid is vouch svid inspect: what is in a file that has to do with identities, for
// whoever has found one.
package svid

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// New returns the command.
func New(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "svid",
		Short: "Look at SVIDs, bundles and evidence in files",
	}
	cmd.AddCommand(newInspect(o))
	return cmd
}

func newInspect(o *cli.Options) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "inspect FILE|-",
		Short: "Say what a file is, and what is wrong with it",
		Long: `Inspect says what is in a file: X509-SVIDs with their chain (PEM or DER), JWT-SVIDs,
WIT-SVIDs, SPIFFE bundles, JWKS, root certificates, and the files of vouch node and vouch
authority. It holds SVIDs to the SPIFFE standards, and verifies them by --bundle or, if
this host's daemon answers, by its bundle. Keys, tokens and signatures are not shown.

It exits 1 if something is wrong: not of the standards, expired, or not verified.`,
		Example: `  vouch svid inspect /run/agent/svid.pem
  vouch fetch jwt --audience a | vouch svid inspect -
  vouch svid inspect other.pem --bundle example.org.json --output json
  openssl s_client -connect web1:8443 -showcerts </dev/null | vouch svid inspect -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := cli.ReadDocument(cmd, args[0], cli.MaxLargeDocument)
			if err != nil {
				return err
			}
			things, err := Inspect(data, time.Now())
			if err != nil {
				return fmt.Errorf("inspecting %s: %w", args[0], err)
			}
			bundle, err := readBundle(cmd, o, file)
			if err != nil {
				return err
			}
			wrong := false
			for i := range things {
				if bundle != nil {
					things[i].Verify(bundle)
				}
				wrong = wrong || len(things[i].Problems) > 0
			}
			if err := o.Print(cmd, things, func(w io.Writer) { write(w, things) }); err != nil {
				return err
			}
			if wrong {
				return cli.ErrSaid
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "bundle", "", "verify by the bundle in this `file` (PEM, DER or SPIFFE bundle)")
	return cmd
}

// readBundle reads a file or, without one, asks the daemon; nil: there is none.
func readBundle(cmd *cobra.Command, o *cli.Options, file string) (*Bundle, error) {
	if file != "" {
		data, err := cli.ReadDocument(cmd, file, cli.MaxSmallDocument)
		if err != nil {
			return nil, err
		}
		b, err := ReadBundle(data, file)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: %w", file, err)
		}
		return b, nil
	}
	client, err := o.Admin()
	if err != nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	own, err := client.Bundle(ctx)
	if err != nil {
		return nil, nil
	}
	b, err := ReadBundle(own.X509, "the bundle of "+own.TrustDomain+", this host's")
	if err != nil {
		return nil, nil
	}
	if keys, err := ReadBundle(own.JWKS, ""); err == nil {
		b.keys = keys.keys
	}
	return b, nil
}

func write(w io.Writer, things []Thing) {
	for i, t := range things {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, t.Kind)
		for _, f := range t.Facts {
			fmt.Fprintln(w, cli.Wrap(w, fmt.Sprintf("  %-14s  %s", f.Name, f.Value), "                  "))
		}
		for _, p := range t.Problems {
			fmt.Fprintln(w, cli.Wrap(w, "  problem: "+p, "           "))
		}
	}
}
