package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi"
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

func (d *daemon) setEnrolment(v *workloadapi.EnrolmentView, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.enrolment, d.enrolErr = v, err
	if v != nil {
		v.InForce = d.config.Authority.Mode == config.ModeEnrolled
	}
}

func enrolmentView(e node.Enrolment) *workloadapi.EnrolmentView {
	return &workloadapi.EnrolmentView{
		TrustDomain: e.TrustDomain.Name(),
		RootSHA256:  fmt.Sprintf("%x", sha256.Sum256(e.Root.Raw)),
		Serial:      e.Chain[0].SerialNumber.Text(16),
		NotBefore:   e.Chain[0].NotBefore,
		NotAfter:    e.NotAfter(),
	}
}

// install keeps an approval, and puts it in force at once where this host's
// root is an organisation's.
func (d *daemon) install(ctx context.Context, by workloadapi.Asker, approval []byte, root string) (workloadapi.EnrolmentView, error) {
	if err := d.asked(ctx, by, "the installation of an enrolment by root "+root); err != nil {
		return workloadapi.EnrolmentView{}, err
	}
	e, err := d.node.Install(ctx, approval, root)
	if err != nil {
		return workloadapi.EnrolmentView{}, err
	}
	view := enrolmentView(e)
	d.setEnrolment(view, nil)
	if view.InForce {
		if e.TrustDomain != d.config.TrustDomain {
			return *view, fmt.Errorf("the enrolment is in trust domain %s and vouchd.yaml says %s", e.TrustDomain, d.config.TrustDomain)
		}
		if err := d.authority.SetUpstream(ctx, identity.Upstream{Chain: e.Chain, Root: e.Root}); err != nil {
			return *view, fmt.Errorf("putting the enrolment in force: %w", err)
		}
		d.slog.Info("enrolled", "trust_domain", view.TrustDomain, "root_sha256", view.RootSHA256, "until", view.NotAfter)
	}
	return *view, nil
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

func (d *daemon) reportEnrolment(st *workloadapi.Status, problem func(format string, args ...any)) {
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

// remindOfEnrolment writes what is wrong with the enrolment into the journal,
// once a day.
func (d *daemon) remindOfEnrolment(ctx context.Context) {
	daily := time.NewTicker(24 * time.Hour)
	defer daily.Stop()
	for {
		if p := d.enrolmentProblem(time.Now()); p != "" {
			d.slog.Warn(p)
		}
		select {
		case <-ctx.Done():
			return
		case <-daily.C:
		}
	}
}
