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
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func newEntryNew(o *cli.Options) *cobra.Command {
	var pid int
	var unit, id string
	cmd := &cobra.Command{
		Use:   "new --spiffe-id ID (--from-pid PID | --unit UNIT)",
		Short: "Write a registration entry for a running process, to review",
		Long: `New attests a running process and prints an entry that matches it: first its unit and
user, which only the kernel or systemd can set, then its script or the hash of its
program. With --unit, only the unit's main process matches, not the tools it starts.
Review the entry before you add it to entries.d.`,
		Example: `  vouch entry new --from-pid $(pidof agent) --spiffe-id spiffe://example.org/agent
  vouch entry new --unit agent.service --spiffe-id spiffe://example.org/agent > /etc/vouchd/entries.d/agent.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (pid > 0) == (unit != "") || id == "" {
				return cli.Usagef("--spiffe-id is required, and either --from-pid or --unit")
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
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if domain := spiffeID.TrustDomain().Name(); domain != st.TrustDomain {
				return cli.Usagef("--spiffe-id %s is in trust domain %s, but this host's is %s; use spiffe://%[3]s%s", spiffeID, domain, st.TrustDomain, spiffeID.Path())
			}
			x, err := client.Explain(cmd.Context(), pid)
			if err != nil {
				return err
			}
			selectors, err := lasting(x, unit != "")
			if err != nil {
				return err
			}
			view := map[string]any{"spiffe_id": spiffeID.String(), "selectors": selectors}
			return o.Print(cmd, view, func(w io.Writer) {
				fmt.Fprintf(w, "entries:\n  - spiffe_id: %s\n    selectors:\n", spiffeID)
				for _, s := range selectors {
					fmt.Fprintf(w, "      - %q\n", s)
				}
			})
		},
	}
	cmd.Flags().IntVar(&pid, "from-pid", 0, "`PID` of the process")
	cmd.Flags().StringVar(&unit, "unit", "", "the main process of this `unit`")
	cmd.Flags().StringVar(&id, "spiffe-id", "", "the entry's `SPIFFE ID`")
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

// lasting chooses selectors that distinguish the process and survive a restart:
// anchors first. An error says why nothing distinguishes it from what any user can
// start.
func lasting(x view.Explanation, main bool) ([]string, error) {
	var chosen []string
	add := func(prefix string) bool {
		i := slices.IndexFunc(x.Selectors, func(s view.Selector) bool { return strings.HasPrefix(s.Selector, prefix) })
		if i >= 0 {
			chosen = append(chosen, x.Selectors[i].Selector)
		}
		return i >= 0
	}
	unit := add("systemd:id:")
	if unit && main {
		chosen = append(chosen, "systemd:main_process:true")
	}
	container := add("container:id:")
	root := slices.ContainsFunc(x.Selectors, func(s view.Selector) bool { return s.Selector == "unix:uid:0" })
	user := !root && (add("unix:user:") || add("unix:uid:"))
	if add("script:path:") {
		add("script:sha256:")
	} else if !identity.Interpreter(x.Path) {
		add("unix:sha256:")
	}
	switch {
	case unit || container || user:
		return chosen, nil
	case root && identity.Interpreter(x.Path):
		return nil, fmt.Errorf("process %d belongs to root, runs the interpreter %s and is in no system unit: nothing distinguishes it from root's other processes; start it as a unit, and use --unit", x.PID, x.Path)
	case root:
		return append([]string{"unix:user:root"}, chosen...), nil
	}
	return nil, fmt.Errorf("process %d has no anchor, a selector that only the kernel or systemd can set; start it as a unit, and use --unit", x.PID)
}
