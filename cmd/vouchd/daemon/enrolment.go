package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// howToEnrol is the way out of everything that an enrolment can lack.
const howToEnrol = "run vouch node request, have it approved with vouch authority approve, and vouch node install the approval"

// loadEnrolment returns what an organisation has signed for this host. Where
// that is missing or of no use the daemon runs all the same and issues
// nothing: it is needed to enrol.
func (d *daemon) loadEnrolment() *identity.Upstream {
	e, err := d.node.Enrolment(time.Now())
	if err == nil && e.TrustDomain != d.config.TrustDomain {
		err = fmt.Errorf("the enrolment is in trust domain %s and vouchd.yaml says %s", e.TrustDomain, d.config.TrustDomain)
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		d.setEnrolment(nil, err)
		return new(identity.Upstream)
	}
	d.setEnrolment(enrolmentView(e), nil)
	return &identity.Upstream{Chain: e.Chain, Root: e.Root}
}

func (d *daemon) setEnrolment(v *view.Enrolment, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.enrolment, d.enrolErr = v, err
	if v != nil {
		v.InForce = d.config.Authority.Mode == config.ModeEnrolled
	}
}

func enrolmentView(e appraisal.Enrolment) *view.Enrolment {
	return &view.Enrolment{
		TrustDomain: e.TrustDomain.Name(),
		RootSHA256:  fmt.Sprintf("%x", sha256.Sum256(e.Root.Raw)),
		Serial:      e.Chain[0].SerialNumber.Text(16),
		NotBefore:   e.Chain[0].NotBefore,
		NotAfter:    e.NotAfter(),
	}
}

// install keeps an approval, and puts it in force at once where this host's
// root is an organisation's.
func (d *daemon) install(ctx context.Context, by admin.Asker, approval []byte, root string) (view.Enrolment, error) {
	if err := d.asked(ctx, by, "the installation of an enrolment by root "+root); err != nil {
		return view.Enrolment{}, err
	}
	if _, err := d.node.Install(ctx, approval, root); err != nil {
		return view.Enrolment{}, err
	}
	upstream := d.loadEnrolment()
	of, err := d.installed()
	if err != nil {
		return view.Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	if !of.InForce {
		return of, nil
	}
	if err := d.authority.SetUpstream(ctx, *upstream); err != nil {
		return of, fmt.Errorf("putting the enrolment in force: %w", err)
	}
	d.slog.Info("enrolled", "trust_domain", of.TrustDomain, "root_sha256", of.RootSHA256, "until", of.NotAfter)
	return of, nil
}

// installed returns what loadEnrolment found.
func (d *daemon) installed() (view.Enrolment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.enrolErr != nil || d.enrolment == nil {
		return view.Enrolment{}, d.enrolErr
	}
	return *d.enrolment, nil
}

// enrolmentProblem says what is wrong with the enrolment, or is about to be: a
// third of its life before its end.
func (d *daemon) enrolmentProblem(now time.Time) string {
	if d.config.Authority.Mode != config.ModeEnrolled {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e := d.enrolment; {
	case d.enrolErr != nil:
		return fmt.Sprintf("this host is not enrolled in %s, so nothing is issued: %v; %s", d.config.TrustDomain, d.enrolErr, howToEnrol)
	case e == nil:
		return fmt.Sprintf("this host is not enrolled in %s, so nothing is issued; %s", d.config.TrustDomain, howToEnrol)
	case !now.Before(e.NotAfter):
		return fmt.Sprintf("the enrolment ended on %s, so nothing is issued; %s", e.NotAfter.Format(time.RFC3339), howToEnrol)
	case e.NotAfter.Sub(now) < e.NotAfter.Sub(e.NotBefore)/3:
		return fmt.Sprintf("the enrolment ends on %s, in %s, and then nothing is issued; %s",
			e.NotAfter.Format(time.RFC3339), e.NotAfter.Sub(now).Round(time.Minute), howToEnrol)
	}
	return ""
}

func (d *daemon) reportEnrolment(st *view.Status, problem func(format string, args ...any)) {
	if p := d.enrolmentProblem(time.Now()); p != "" {
		problem("%s", p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.enrolment != nil {
		view := *d.enrolment
		st.Node.Enrolment = &view
	}
}

// enrolmentEnds reports whether something ends at t because the enrolment
// does.
func (d *daemon) enrolmentEnds(t time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.enrolment != nil && d.enrolment.InForce && !t.Before(d.enrolment.NotAfter)
}

// keepEnrolment takes up an enrolment that was of no use at the start and has
// become of use, as on a machine whose clock was wrong until it was set, and
// writes what is wrong into the journal once a day.
func (d *daemon) keepEnrolment(ctx context.Context) {
	const look = time.Minute
	every := time.NewTicker(look)
	defer every.Stop()
	for minutes := 0; ; minutes++ {
		if _, err := d.installed(); err != nil && d.config.Authority.Mode == config.ModeEnrolled {
			if u := d.loadEnrolment(); u.Root != nil {
				if err := d.authority.SetUpstream(ctx, *u); err != nil {
					d.slog.Error("putting the enrolment in force", "err", err)
				}
			}
		}
		if p := d.enrolmentProblem(time.Now()); p != "" && minutes%(24*60) == 0 {
			d.slog.Warn(p)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}
