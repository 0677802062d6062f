package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A hostFacts decides which selectors processes of this host can have.
type hostFacts struct {
	systemd bool
	lsm     string // the kernel's security modules, comma-separated; empty: unknown
	ima     bool   // the kernel measures programs
}

func thisHost() hostFacts {
	lsm, err := os.ReadFile("/sys/kernel/security/lsm")
	if err != nil {
		lsm = nil
	}
	_, err = os.Stat("/sys/kernel/security/ima")
	return hostFacts{systemd: systemd.IsManager(), lsm: strings.TrimSpace(string(lsm)), ima: err == nil}
}

func examineEntries(c *config.Config, host hostFacts) []Finding {
	if c.Authority.Mode == config.ModeSPIRE {
		return []Finding{{"entries", OK, "those of SPIRE server " + c.Authority.SPIRE.Server + "; none of " + c.EntriesDir + " are in force"}}
	}
	es, err := identity.LoadEntries(c.EntriesDir, c.TrustDomain, identity.Limits{MaxX509TTL: c.Authority.MaxX509TTL(), JWTAlgorithms: c.Authority.JWTAlgorithms})
	switch {
	case err != nil:
		return []Finding{{"entries", Problem, err.Error()}}
	case es.Len() == 0:
		return []Finding{{"entries", Note, c.EntriesDir + " has no entries, so nothing is issued; add one as in docs/configuration.md"}}
	}
	findings := []Finding{{"entries", OK, fmt.Sprintf("%d in %s", es.Len(), c.EntriesDir)}}
	for _, e := range es.All() {
		if e.Unanchored {
			findings = append(findings, Finding{"entries", Note, fmt.Sprintf("%s: %s is unanchored: any user of this machine can have it; add an anchor, such as systemd:id:… or unix:user:…", e.Pos, e.ID)})
		}
		for _, s := range e.Selectors {
			if why := host.never(s); why != "" {
				findings = append(findings, Finding{"entries", Problem, fmt.Sprintf("%s: %s: %s cannot match on this host: %s", e.Pos, e.ID, s, why)})
			}
		}
	}
	return findings
}

// never says why no process of this host can have the selector now, or nothing.
func (h hostFacts) never(s attest.Selector) string {
	kind, arg, _ := strings.Cut(s.Value, ":")
	switch s.Type + ":" + kind {
	case "systemd:id", "systemd:slice", "systemd:exec_sha256", "systemd:fragment_path", "systemd:fragment_sha256", "systemd:invocation_id":
		if !h.systemd {
			return "systemd is not PID 1; use cgroup:path or unix selectors"
		}
	case "unix:path":
		if _, err := os.Stat(arg); errors.Is(err, fs.ErrNotExist) {
			return "there is no such file; install the program, or correct the path"
		}
	case "unix:user":
		if _, err := user.Lookup(arg); errors.As(err, new(user.UnknownUserError)) {
			return "/etc/passwd has no such user; create it, or use unix:uid for a user from another source"
		}
	case "unix:group", "unix:supplementary_group":
		if _, err := user.LookupGroup(arg); errors.As(err, new(user.UnknownGroupError)) {
			return "/etc/group has no such group; create it, or use the number for a group from another source"
		}
	case "apparmor:profile", "selinux:type":
		if h.lsm != "" && !strings.Contains(","+h.lsm+",", ","+s.Type+",") {
			return fmt.Sprintf("the kernel runs without %s (it has %s)", s.Type, h.lsm)
		}
	case "ima:sha256":
		if !h.ima {
			return "the kernel has no IMA list; boot with ima_policy=tcb"
		}
	}
	return ""
}

// How long before the end of a certificate that someone must renew doctor mentions
// it, and when that becomes a problem.
const (
	endsSoon = 30 * 24 * time.Hour
	endsNow  = 7 * 24 * time.Hour
)

// certificateFindings reports certificates that expire soon. The issuing CA is
// renewed automatically: if that is late, the daemon reports the problem.
func certificateFindings(st view.Status, now time.Time) (fs []Finding) {
	tell := func(what string, end time.Time, way string) {
		left := end.Sub(now)
		level := Note
		switch {
		case end.IsZero() || left > endsSoon:
			return
		case left <= endsNow:
			level = Problem
		}
		when := "expires in " + (left.Truncate(time.Hour)).String()
		if left <= 0 {
			when = "has expired"
		}
		fs = append(fs, Finding{"certificates", level, fmt.Sprintf("%s %s, at %s; %s", what, when, end.Local().Format(time.RFC3339), way)})
	}
	if e := st.Node.Enrolment; e != nil {
		tell("this host's enrolment", e.NotAfter, "enrol it again: docs/enrol.md")
	}
	tell("the root certificate", st.Authority.RootNotAfter, "plan its replacement: relying parties need the new bundle first")
	return fs
}
