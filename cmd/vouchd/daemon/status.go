package daemon

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// status is what the daemon knows of itself.
func (d *daemon) status() view.Status {
	a := d.authority.Status()
	l := d.log.Status()
	st := view.Status{
		Version:     version.String(),
		TrustDomain: d.config.TrustDomain.Name(),
		Started:     d.started,
		TPM: view.TPMStatus{
			Address:  d.tpm.Address(),
			EKSHA256: d.node.EKSHA256(),
			AKName:   d.node.AKName(),

			EKCertificate: d.node.HasEKCertificate(),
		},
		Authority: view.AuthorityStatus{
			RootNotAfter:      a.RootNotAfter,
			IssuingCAKeyID:    a.IssuingCAKeyID,
			IssuingCANotAfter: a.IssuingCANotAfter,
			JWTKeyID:          a.JWTKeyID,
			JWTKeyUntil:       a.JWTKeyUntil,
			BundleSequence:    a.BundleSequence,
		},
		Entries: view.EntriesStatus{Dir: d.config.EntriesDir},
		Log: view.LogStatus{
			Dir:        d.state.Path("log"),
			Records:    l.Size,
			RootSHA256: fmt.Sprintf("%x", l.Root),
			LastAnchor: l.LastAnchor,
			Anchored:   l.Anchored,
			DiskBytes:  l.DiskBytes,
			MaxBytes:   int64(d.config.Log.MaxMiB) << 20,
		},
		Reminders: []string{},
		Problems:  []string{},
	}
	problem := func(format string, args ...any) {
		st.Problems = append(st.Problems, fmt.Sprintf(format, args...))
	}
	if err := canSeeOthers(); err != nil {
		problem("%v; start it with CAP_SYS_PTRACE, as vouchd.service does, or callers of other users match no selector of their program", err)
	}
	d.appraiser.report(&st, problem)
	d.reportEnrolment(&st, problem)
	st.Node.Bound = d.node.Bound()
	d.mu.Lock()
	st.Entries.Loaded = d.loaded
	if d.refused != nil {
		st.Entries.Error = d.refused.Error()
		problem("the entries on disk are not in force, the last good ones are: %v", d.refused)
	}
	d.reportCredentials(&st, problem)
	d.reportSecrets(&st, problem)
	if d.programsRefused != nil {
		problem("the programs on disk are not in force, the last good ones are: %v", d.programsRefused)
	}
	d.mu.Unlock()
	if l.Err != nil {
		st.Log.Error = l.Err.Error()
		way := "free space in " + st.Log.Dir + ", or see the daemon's messages"
		if errors.Is(l.Err, audit.ErrFull) {
			way = fmt.Sprintf("give it more by log.max_mib, or archive it and lower log.keep_for, which keeps its records for %s", d.config.Log.KeepFor)
		}
		problem("the attestation log cannot be written, so nothing is issued: %v; %s", l.Err, way)
	} else if l.FullSoon {
		problem("the attestation log takes %d MiB of log.max_mib, and none of its records is older than log.keep_for; give it more, or archive it and lower log.keep_for, before nothing is issued any more", l.DiskBytes>>20)
	}
	if l.AnchorErr != nil {
		problem("the log is not anchored in the TPM: %v; what was recorded since %s could be dropped unseen", l.AnchorErr, l.LastAnchor.Format(time.RFC3339))
	}
	d.reportWitnesses(&st, problem)
	for _, x := range d.exports {
		if err := x.Stats().Err; err != nil {
			problem("the log is not handed on to %s: %v; records wait, from %d on", x.name, err, x.Stats().Next)
		}
	}
	if left := time.Until(a.IssuingCANotAfter); a.IssuingCAKeyID != "" && !d.enrolmentEnds(a.IssuingCANotAfter) && left < d.config.Authority.RotationOverlap/2 {
		problem("the issuing CA ends in %s and could not be renewed; see the daemon's messages, and whether the TPM answers", left.Round(time.Second))
	}
	return st
}

// canSeeOthers returns an error if the daemon lacks the capability by which it
// sees which program a process of another user runs (see docs/hardening.md).
func canSeeOthers() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return fmt.Errorf("the daemon can't tell its capabilities: %w", err)
	}
	if sets[0].Effective&(1<<unix.CAP_SYS_PTRACE) == 0 {
		return errors.New("the daemon lacks CAP_SYS_PTRACE and can't see the programs of other users")
	}
	return nil
}
