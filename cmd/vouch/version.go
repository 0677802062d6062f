package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/packaging/version"
)

type versionView struct {
	version.Build
	Daemon string `json:"daemon,omitempty"` // that answers; missing: none, or not this user
}

func newVersion(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of vouch and of the daemon",
		Long: `Version prints which build this is, and which the daemon is, if one answers this
user. vouch --version lists the modules that vouch is built of.`,
		Example: `  vouch version
  vouch version --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionView{Build: version.Of()}
			if client, err := o.Admin(); err == nil {
				ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
				defer cancel()
				if st, err := client.Status(ctx); err == nil {
					v.Daemon = st.Version
				}
			}
			return o.Print(cmd, v, func(w io.Writer) {
				fmt.Fprintf(w, "vouch   %s, %s\n", version.String(), v.Platform)
				if v.Daemon != "" {
					fmt.Fprintf(w, "vouchd  %s\n", v.Daemon)
				}
			})
		},
	}
}
