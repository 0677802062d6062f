// Package doctor looks for what keeps vouchd from working on this host.
//
// A probe reads one thing, such as a device, a kernel feature or a directory of
// entries, and returns findings: what it saw, and the fix for each problem. Probes
// change nothing, and start nothing but a sandbox to see whether there can be one. Judging is separate from probing, so what another
// kind of host would be told can be tested here.
package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A Finding is one thing that was looked at.
type Finding struct {
	Subject string `json:"subject"`
	Level   string `json:"level"` // OK, Note or Problem
	Text    string `json:"text"`  // one sentence, with the fix for a problem
}

// Levels of findings.
const (
	OK      = "ok"
	Note    = "note" // works, but could work better
	Problem = "problem"
)

// Ask asks the daemon behind an administrators' socket for its status.
type Ask func(ctx context.Context, socket string) (view.Status, error)

// Examine looks at the host and at the daemon that a configuration file describes.
func Examine(ctx context.Context, file string, ask Ask) []Finding {
	c, err := config.Load(file)
	if err != nil {
		return []Finding{{"configuration", Problem, err.Error()}, examinePeerPIDFD(), examineCgroups(), examineSandbox(ctx), examineSystemd(), examineClock()}
	}
	findings := []Finding{{"configuration", OK, file + " is valid"}}
	for _, w := range c.Warnings {
		findings = append(findings, Finding{"configuration", Note, w})
	}
	findings = append(findings, examineEntries(c, thisHost())...)
	findings = append(findings,
		tpmFinding(c.TPM, "/sys/class/tpm", daemonAccount()),
		examinePeerPIDFD(),
		examineCgroups(),
		examineSandbox(ctx),
		examineSystemd(),
		examinePrograms(c),
		examineClock(),
		examineSocket(ctx, c.AgentSocket),
	)
	return append(findings, examineDaemon(ctx, c, ask)...)
}

func examineDaemon(ctx context.Context, c *config.Config, ask Ask) []Finding {
	st, err := ask(ctx, c.AdminSocket)
	if err != nil {
		return []Finding{{"daemon", Problem, err.Error()}}
	}
	level := OK
	if st.Node.State == view.NodeNotAppraised {
		level = Note
	}
	fs := []Finding{{"node", level, NodeLine(st.Node)}}
	for _, object := range st.TPM.Ignored {
		fs = append(fs, Finding{"TPM", Note, "ignored " + object})
	}
	if !st.TPM.EKCertificate {
		fs = append(fs, Finding{"endorsement key", Note, "the TPM has no usable manufacturer's certificate for it, so a policy cannot trace this machine to its manufacturer; list the key in the policy instead: sha256:" + st.TPM.EKSHA256})
	}
	fs = append(fs, certificateFindings(st, time.Now())...)
	if len(st.Problems) == 0 {
		return append(fs, Finding{"daemon", OK, fmt.Sprintf("serving %s of %s", cli.Count(st.Entries.Count, "entry", "entries"), st.TrustDomain)})
	}
	for _, p := range st.Problems {
		fs = append(fs, Finding{"daemon", Problem, p})
	}
	return fs
}

// NodeLine says in one line whether the machine satisfies its policy.
func NodeLine(n view.NodeStatus) string {
	line := n.State
	switch n.State {
	case view.NodeNotAppraised:
		line += ", no policy in " + n.Policy + "; see vouch node policy learn"
	case view.NodePassed, view.NodeFailed:
		line += fmt.Sprintf(" the policy %s %s ago", n.Policy, time.Since(n.Checked).Round(time.Second))
	}
	if n.Bound {
		line += ", keys bound to approved boot states"
	}
	return line
}
