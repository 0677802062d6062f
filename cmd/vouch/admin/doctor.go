package admin

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/doctor"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newDoctor(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Diagnose problems and say how to fix them",
		Long: `Doctor checks the configuration, the TPM, the kernel and the running daemon. It prints
one sentence per finding, with the fix for each problem, and exits 1 if there is a
problem.`,
		Example: `  vouch doctor
  vouch doctor --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := doctor.Examine(cmd.Context(), o.Config, func(ctx context.Context, socket string) (view.Status, error) {
				return cli.NewAdmin(socket).Status(ctx)
			})
			if err := o.Print(cmd, findings, func(w io.Writer) {
				for _, f := range findings {
					fmt.Fprintf(w, "%-8s %s: %s\n", f.Level, f.Subject, strings.ReplaceAll(f.Text, "\n", "\n         "))
				}
			}); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Level == doctor.Problem {
					return cli.ErrSaid
				}
			}
			return nil
		},
	}
}
