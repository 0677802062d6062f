package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouchd/spireagent"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// howToEnrol is the way out of everything that an enrolment can lack.
const howToEnrol = "run vouch node request, have it approved with vouch authority approve, and vouch node install the approval"

// An enrolment is what an organisation has signed for this host, if it has.
type enrolment struct {
	config    *config.Config
	machine   *machine
	log       *records
	authority *identity.Authority // set before anything is served
	slog      *slog.Logger

	mu     sync.Mutex      // guards the fields below
	known  *view.Enrolment // what is installed; nil: nothing valid
	reason error           // why it is not valid
}

// load returns what an organisation has signed for this host. If that is missing or invalid,
// the daemon runs nonetheless and issues nothing: enrolling needs it.
func (e *enrolment) load() *identity.Upstream {
	of, err := e.machine.node.Enrolment(time.Now())
	if err == nil && of.TrustDomain != e.config.TrustDomain {
		err = fmt.Errorf("the enrolment is in trust domain %s, but vouchd.yaml says %s", of.TrustDomain, e.config.TrustDomain)
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		e.set(nil, err)
		return new(identity.Upstream)
	}
	e.set(enrolmentView(of), nil)
	return &identity.Upstream{Chain: of.Chain, Root: of.Root}
}

func (e *enrolment) set(v *view.Enrolment, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known, e.reason = v, err
	if v != nil {
		v.InForce = e.config.Authority.Mode == config.ModeEnrolled
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
func (e *enrolment) install(ctx context.Context, by admin.Asker, approval []byte, root string) (view.Enrolment, error) {
	if err := e.log.asked(ctx, by, "the installation of an enrolment by root "+root); err != nil {
		return view.Enrolment{}, err
	}
	switch _, err := e.machine.node.Install(ctx, approval, root); {
	case errors.Is(err, appraisal.ErrKind):
		a, err := e.machine.node.InstallAgent(ctx, approval, root)
		if err != nil {
			return view.Enrolment{}, err
		}
		e.slog.Info("may join a SPIRE server", "trust_domain", a.TrustDomain, "host", a.Name, "until", a.NotAfter())
		return spireagent.LeafView(e.config, a), nil
	case err != nil:
		return view.Enrolment{}, err
	}
	upstream := e.load()
	of, err := e.installed()
	if err != nil {
		return view.Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	if !of.InForce {
		return of, nil
	}
	if err := e.authority.SetUpstream(ctx, *upstream); err != nil {
		return of, fmt.Errorf("putting the enrolment in force: %w", err)
	}
	e.slog.Info("enrolled", "trust_domain", of.TrustDomain, "root_sha256", of.RootSHA256, "until", of.NotAfter)
	return of, nil
}

// installed returns what load found.
func (e *enrolment) installed() (view.Enrolment, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reason != nil || e.known == nil {
		return view.Enrolment{}, e.reason
	}
	return *e.known, nil
}

// problem says what is wrong with the enrolment, or is about to be: a
// third of its life before its end.
func (e *enrolment) problem(now time.Time) string {
	if e.config.Authority.Mode != config.ModeEnrolled {
		return ""
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch known := e.known; {
	case e.reason != nil:
		return fmt.Sprintf("this host is not enrolled in %s, so nothing is issued: %v; %s", e.config.TrustDomain, e.reason, howToEnrol)
	case known == nil:
		return fmt.Sprintf("this host is not enrolled in %s, so nothing is issued; %s", e.config.TrustDomain, howToEnrol)
	case !now.Before(known.NotAfter):
		return fmt.Sprintf("the enrolment ended on %s, so nothing is issued; %s", known.NotAfter.Format(time.RFC3339), howToEnrol)
	case known.NotAfter.Sub(now) < known.NotAfter.Sub(known.NotBefore)/3:
		return fmt.Sprintf("the enrolment ends on %s, in %s, and then nothing is issued; %s",
			known.NotAfter.Format(time.RFC3339), known.NotAfter.Sub(now).Round(time.Minute), howToEnrol)
	}
	return ""
}

func (e *enrolment) report(st *view.Status, problem problemf) {
	if p := e.problem(time.Now()); p != "" {
		problem("%s", p)
	}
	spireagent.ReportLeaf(e.config, e.machine.node, st, problem)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known != nil {
		view := *e.known
		st.Node.Enrolment = &view
	}
}

// ends reports whether something ends at t because the enrolment
// does.
func (e *enrolment) ends(t time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.known != nil && e.known.InForce && !t.Before(e.known.NotAfter)
}

// keep puts an enrolment in force that was invalid at the start and has become
// valid, as on a machine whose clock was wrong until it was set, and writes what
// is wrong into the journal once a day.
func (e *enrolment) keep(ctx context.Context) {
	const look = time.Minute
	every := time.NewTicker(look)
	defer every.Stop()
	for minutes := 0; ; minutes++ {
		if _, err := e.installed(); err != nil && e.config.Authority.Mode == config.ModeEnrolled {
			if u := e.load(); u.Root != nil {
				if err := e.authority.SetUpstream(ctx, *u); err != nil {
					e.slog.Error("putting the enrolment in force", "err", err)
				}
			}
		}
		if p := e.problem(time.Now()); p != "" && minutes%(24*60) == 0 {
			e.slog.Warn(p)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}
