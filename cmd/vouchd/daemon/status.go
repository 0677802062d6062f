package daemon

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A problemf notes a problem in a status, formatted as by [fmt.Sprintf].
type problemf func(format string, args ...any)

// status is what the daemon knows of itself: each part says its own.
func (d *daemon) status() view.Status {
	st := view.Status{
		Version:     version.String(),
		TrustDomain: d.config.TrustDomain.Name(),
		Started:     d.started,
		Reminders:   []string{},
		Problems:    []string{},
	}
	problem := func(format string, args ...any) {
		st.Problems = append(st.Problems, fmt.Sprintf(format, args...))
	}
	if err := canSeeOthers(); err != nil {
		problem("%v; start it with CAP_SYS_PTRACE, as vouchd.service does: without it, program selectors do not match processes of other users", err)
	}
	d.appraiser.report(&st, problem)
	d.enrolment.report(&st, problem)
	d.machine.report(&st)
	d.identities.report(&st, problem)
	d.federation.report(&st, d.identities.gate.Entries(), problem)
	d.leases.report(&st, d.identities.gate.Entries(), problem)
	d.leases.reportSecrets(&st, problem)
	d.proxy.report(problem)
	if err := d.programs.State().Problem; err != nil {
		notInForce("programs", err, problem)
	}
	d.log.report(&st, problem)
	a := st.Authority
	if left := time.Until(a.IssuingCANotAfter); a.IssuingCAKeyID != "" && !d.enrolment.ends(a.IssuingCANotAfter) && left < d.config.Authority.RotationOverlap/2 {
		problem("the issuing CA expires in %s and could not be renewed; see journalctl -u vouchd, and check that the TPM responds", left.Round(time.Second))
	}
	return st
}

// notInForce says what of the files on disk is not in force.
func notInForce(name string, why error, problem problemf) {
	if held, ok := errors.AsType[reload.HeldBack](why); ok {
		for _, f := range held {
			problem("%v", reload.HeldBack{f})
		}
		return
	}
	problem("the %s on disk are invalid; keeping the previous ones: %v", name, why)
}

// lost reports whether there is a file of which nothing is in force.
func lost(why error) bool {
	held, ok := errors.AsType[reload.HeldBack](why)
	return ok && held.Lost()
}

// firstOf returns the first problem in one line; empty: there is none.
func firstOf(problem error) string {
	if problem == nil {
		return ""
	}
	text := problem.Error()
	if e, ok := errors.AsType[*config.Error](problem); ok {
		text = e.Error()
	}
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// canSeeOthers returns an error if the daemon lacks the capability by which it
// sees which program a process of another user runs (see docs/hardening.md).
func canSeeOthers() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return fmt.Errorf("reading the daemon's capabilities: %w", err)
	}
	if sets[0].Effective&(1<<unix.CAP_SYS_PTRACE) == 0 {
		return errors.New("the daemon lacks CAP_SYS_PTRACE and cannot see the programs of other users")
	}
	return nil
}

// count is a number of things, such as 1 lease or 2 leases.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
