package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A finding is one thing that was looked at.
type finding struct {
	Subject string `json:"subject"`
	Level   string `json:"level"` // ok, note, problem
	Text    string `json:"text"`  // one sentence, with the way out of a problem
}

const (
	levelOK      = "ok"
	levelNote    = "note" // works, with less than could be had
	levelProblem = "problem"
)

func newDoctor(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps the daemon from working, and say how to mend it",
		Long: `Doctor looks at the configuration, the TPM, the kernel and the running daemon,
and says in one sentence each what it found and how to mend what is wrong. It
exits 1 if there is a problem.`,
		Example: `  vouch doctor
  vouch doctor --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := examine(cmd.Context(), o.Config)
			if err := o.Print(cmd, findings, func(w io.Writer) {
				for _, f := range findings {
					fmt.Fprintf(w, "%-8s %s: %s\n", f.Level, f.Subject, strings.ReplaceAll(f.Text, "\n", "\n         "))
				}
			}); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Level == levelProblem {
					return cli.ErrSaid
				}
			}
			return nil
		},
	}
}

func examine(ctx context.Context, file string) []finding {
	c, err := config.Load(file)
	if err != nil {
		return []finding{{"configuration", levelProblem, err.Error()}, examinePeerPIDFD(), examineCgroups(), examineSystemd(), examineClock()}
	}
	findings := []finding{{"configuration", levelOK, file + " is in order"}}
	findings = append(findings, examineEntries(c, thisHost())...)
	findings = append(findings,
		tpmFinding(c.TPM, "/sys/class/tpm", daemonAccount()),
		examinePeerPIDFD(),
		examineCgroups(),
		examineSystemd(),
		examinePrograms(c),
		examineClock(),
		examineSocket(ctx, c.AgentSocket),
	)
	return append(findings, examineDaemon(ctx, c)...)
}

// answerLimit is how long doctor waits for the daemon: systemd holds the
// sockets, so that connections to a daemon which cannot start succeed.
const answerLimit = 5 * time.Second

func examineDaemon(ctx context.Context, c *config.Config) []finding {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	st, err := cli.NewAdmin(c.AdminSocket).Status(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return []finding{{"daemon", levelProblem, fmt.Sprintf("nothing answers on %s within %s; see why with: journalctl -u vouchd", c.AdminSocket, answerLimit)}}
	}
	if err != nil {
		return []finding{{"daemon", levelProblem, fmt.Sprintf("%v; it answers root and its own user, see its log with: journalctl -u vouchd", err)}}
	}
	level := levelOK
	if st.Node.State == view.NodeNotAppraised {
		level = levelNote
	}
	fs := []finding{{"node", level, nodeLine(st.Node)}}
	if !st.TPM.EKCertificate {
		fs = append(fs, finding{"endorsement key", levelNote, "the TPM has no certificate of its maker for it, so a policy can't trace this machine to the maker; list its key there instead, sha256:" + st.TPM.EKSHA256})
	}
	fs = append(fs, certificateFindings(st, time.Now())...)
	if len(st.Problems) == 0 {
		return append(fs, finding{"daemon", levelOK, fmt.Sprintf("serves %d entries of %s", st.Entries.Count, st.TrustDomain)})
	}
	for _, p := range st.Problems {
		fs = append(fs, finding{"daemon", levelProblem, p})
	}
	return fs
}
