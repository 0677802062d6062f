package admin

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newEntryNew(o *cli.Options) *cobra.Command {
	var pid int
	var unit, id string
	cmd := &cobra.Command{
		Use:   "new --spiffe-id ID (--from-pid PID | --unit UNIT)",
		Short: "Write a registration entry for a running process, to review",
		Long: `New attests a running process and prints an entry that it matches, made of
selectors that hold on: its unit and script where it has them, else its user and
its program's hash. Review it, and put it into entries.d.`,
		Example: `  vouch entry new --from-pid $(pidof agent) --spiffe-id spiffe://example.org/agent
  vouch entry new --unit agent.service --spiffe-id spiffe://example.org/agent > /etc/vouchd/entries.d/agent.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (pid > 0) == (unit != "") || id == "" {
				return cli.Usagef("name the identity with --spiffe-id, and the process with either --from-pid or --unit")
			}
			spiffeID, err := spiffeid.FromString(id)
			if err != nil {
				return cli.Usagef("--spiffe-id %q: %w", id, err)
			}
			if unit != "" {
				if pid, err = mainPID(cmd.Context(), unit); err != nil {
					return err
				}
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			x, err := client.Explain(cmd.Context(), pid)
			if err != nil {
				return err
			}
			view := map[string]any{"spiffe_id": spiffeID.String(), "selectors": lasting(x)}
			return o.Print(cmd, view, func(w io.Writer) {
				fmt.Fprintf(w, "entries:\n  - spiffe_id: %s\n    selectors:\n", spiffeID)
				for _, s := range lasting(x) {
					fmt.Fprintf(w, "      - %q\n", s)
				}
			})
		},
	}
	cmd.Flags().IntVar(&pid, "from-pid", 0, "the `process`")
	cmd.Flags().StringVar(&unit, "unit", "", "the `unit`, whose main process is meant")
	cmd.Flags().StringVar(&id, "spiffe-id", "", "the `identity`")
	return cmd
}

func mainPID(ctx context.Context, unit string) (int, error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=MainPID", "--value", "--", unit).Output()
	if err != nil {
		return 0, fmt.Errorf("asking systemd for the main process of %s: %w", unit, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || pid == 0 {
		return 0, fmt.Errorf("unit %s has no main process now; start it, or use --from-pid", unit)
	}
	return pid, nil
}

// lasting chooses from what a process is what tells it from others and stays
// the same when it is started again.
func lasting(x view.Explanation) []string {
	prefer := []string{"systemd:id:", "unix:user:", "unix:sha256:", "script:path:", "script:sha256:"}
	var chosen []string
	for _, prefix := range prefer {
		i := slices.IndexFunc(x.Selectors, func(s view.Selector) bool { return strings.HasPrefix(s.Selector, prefix) })
		if i >= 0 {
			chosen = append(chosen, x.Selectors[i].Selector)
		}
	}
	return chosen
}
