package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// How soon a machine that issues nothing is looked at again, at the latest.
const (
	retryFailed  = 5 * time.Minute // it did not pass; that takes a reboot or another policy
	retryUnknown = time.Minute     // no appraisal could be made; the TPM may be back
	lookEvery    = time.Second     // for a resume from suspend, and for what is due
)

// An appraiser holds the machine to its policy: whenever there is reason to,
// it makes evidence, appraises it as a stranger would, and tells the server
// whether anything may be issued.
//
// A pass counts for twice the interval. So a TPM that is away for a moment
// stops nobody, and one that is kept away stops everybody in the end.
type appraiser struct {
	d *daemon

	one      sync.Mutex           // held while appraising; guards the fields to the blank line
	policy   *appraisal.Policy    // in force; nil: none
	seen     string               // what was last found in the policy's place
	problem  error                // why that is not in force
	previous *appraisal.BootState // of the last evidence that verified
	slept    time.Duration

	mu     sync.Mutex // guards what follows
	status view.NodeStatus
	reason error     // why nobody is issued anything
	broken error     // problem, for status
	passed time.Time // when the last pass was; zero: none since the start
	due    time.Time
}

func newAppraiser(d *daemon) *appraiser {
	return &appraiser{d: d, slept: suspended(), status: view.NodeStatus{State: view.NodeUnknown}}
}

// run appraises when it is due, when the machine resumes and when the policy
// changes, until the context ends.
func (a *appraiser) run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- config.Watch(ctx, []string{a.d.config.Node.Policy}, func() {
			select {
			case changed <- struct{}{}:
			default: // one is to come anyway
			}
		})
	}()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watching:
			if err != nil {
				return fmt.Errorf("watching %s: %w", a.d.config.Node.Policy, err)
			}
			return nil
		case <-changed:
			if a.policyChanged() {
				a.appraise(ctx, "the policy changed")
			}
		case <-look.C:
			if cause := a.cause(); cause != "" {
				a.appraise(ctx, cause)
			}
		}
	}
}

// cause returns why to appraise now, if there is a reason.
func (a *appraiser) cause() string {
	a.one.Lock()
	slept := suspended()
	resumed := slept-a.slept > time.Second
	a.slept = slept
	a.one.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case resumed:
		return "the machine resumed from suspend"
	case !a.due.IsZero() && time.Now().After(a.due):
		return "it was due"
	}
	return ""
}

// suspended returns how long the machine has been suspended since it booted:
// what CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not, clock_gettime(2).
func suspended() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}

// appraise appraises the machine now, for a cause that is recorded, and
// returns the attestation result.
func (a *appraiser) appraise(ctx context.Context, cause string) (appraisal.Result, error) {
	a.one.Lock()
	defer a.one.Unlock()
	a.readPolicy()
	if a.policy == nil && a.problem == nil {
		a.notAppraised()
		return appraisal.Result{}, fmt.Errorf("appraising this machine: there is no policy in %s; write one with: vouch node policy learn", a.d.config.Node.Policy)
	}
	if a.policy == nil {
		return appraisal.Result{}, a.unknown(ctx, a.problem)
	}
	from, err := a.d.sources()
	if err != nil {
		return appraisal.Result{}, a.unknown(ctx, err)
	}
	r, _, err := a.d.node.Appraise(ctx, *a.policy, from, a.previous)
	if err != nil {
		return appraisal.Result{}, a.unknown(ctx, err)
	}
	if r.AKName != "" {
		a.previous = &r.BootState
	}
	return r, a.judged(ctx, r, cause)
}

// readPolicy takes up the policy on disk. A broken one, or none, never
// replaces a good one that is in force.
func (a *appraiser) readPolicy() {
	file := a.d.config.Node.Policy
	data, err := config.ReadFile(file)
	a.seen = policyDigest(data, err)
	if errors.Is(err, fs.ErrNotExist) {
		if a.problem = nil; a.policy != nil {
			a.problem = fmt.Errorf("%s is gone; put it back, or restart the daemon to go on without one", file)
		}
		return
	}
	if err != nil {
		a.problem = err
		return
	}
	p, err := appraisal.ParsePolicy(file, data)
	if a.problem = err; err == nil {
		a.policy = &p
	}
}

// policyChanged reports whether there is something else in the policy's place
// than at the last appraisal.
func (a *appraiser) policyChanged() bool {
	a.one.Lock()
	defer a.one.Unlock()
	return policyDigest(config.ReadFile(a.d.config.Node.Policy)) != a.seen
}

func policyDigest(data []byte, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func (a *appraiser) notAppraised() {
	a.d.gate.SetNode(nil, nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = view.NodeStatus{State: view.NodeNotAppraised}
	a.reason, a.broken, a.due = nil, nil, time.Time{}
}

// judged puts a result in force. A failure takes effect before it is recorded,
// a pass only after.
func (a *appraiser) judged(ctx context.Context, r appraisal.Result, cause string) error {
	refusal := r.Err()
	rec := audit.Record{Event: audit.EventNode, Outcome: audit.Success, Reason: cause, Node: &audit.Node{
		EKSHA256: r.EKSHA256, AKName: r.AKName, PCRSHA256: r.BootState.PCRDigest, Resets: r.BootState.Resets,
		EvidenceSHA256: r.EvidenceSHA256,
	}}
	if refusal != nil {
		a.d.gate.SetNode(nil, refusal)
		a.d.slog.Error("this machine does not satisfy its policy; nothing is issued", "err", refusal)
		rec.Outcome, rec.Reason = audit.Denied, refusal.Error()
	}
	err := a.d.log.Append(ctx, rec)
	if err != nil && refusal == nil {
		return a.fail(view.NodeUnknown, fmt.Errorf("recording an appraisal: %w", err))
	}
	result, encodeErr := json.Marshal(r)
	if encodeErr != nil {
		return encodeErr
	}
	if refusal == nil {
		a.d.gate.SetNode(r.Selectors(), nil)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reason, a.broken = refusal, a.problem
	a.status = view.NodeStatus{
		State: view.NodePassed, Checked: time.Now(), Evidence: r.EvidenceSHA256, Result: result,
		Selectors: r.Selectors().Strings(),
	}
	every := a.d.config.Node.AppraiseEvery
	a.passed, a.due = time.Now(), time.Now().Add(every)
	if refusal != nil {
		a.status.State, a.passed, a.due = view.NodeFailed, time.Time{}, time.Now().Add(min(every, retryFailed))
	}
	return err
}

// unknown is for an appraisal that could not be made. The last pass counts for
// a while.
func (a *appraiser) unknown(ctx context.Context, cause error) error {
	if ctx.Err() != nil {
		return cause // it is stopping, or whoever asked went away
	}
	cause = fmt.Errorf("appraising this machine: %w", cause)
	a.mu.Lock()
	counts := !a.passed.IsZero() && time.Since(a.passed) < 2*a.d.config.Node.AppraiseEvery
	failed := a.status.State == view.NodeFailed
	a.broken = cause
	a.due = time.Now().Add(min(a.d.config.Node.AppraiseEvery, retryUnknown))
	a.mu.Unlock()
	a.d.slog.Error("no appraisal could be made", "err", cause)
	if !counts && !failed {
		a.fail(view.NodeUnknown, cause)
	}
	rec := audit.Record{Event: audit.EventNode, Outcome: audit.Failed, Reason: cause.Error()}
	return errors.Join(cause, a.d.log.Append(ctx, rec))
}

// fail stops issuing.
func (a *appraiser) fail(state string, reason error) error {
	a.d.gate.SetNode(nil, reason)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = view.NodeStatus{State: state, Checked: time.Now()}
	a.reason, a.broken, a.passed = reason, nil, time.Time{}
	a.due = time.Now().Add(min(a.d.config.Node.AppraiseEvery, retryUnknown))
	return reason
}

// report adds what is known of the node to a status.
func (a *appraiser) report(st *view.Status, problem func(format string, args ...any)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st.Node = a.status
	st.Node.Policy = a.d.config.Node.Policy
	if st.Node.Selectors == nil {
		st.Node.Selectors = []string{}
	}
	if a.reason != nil {
		problem("nothing is issued: %v; mend that or the policy %s, and run: vouch node attest", a.reason, st.Node.Policy)
	}
	if a.broken != nil {
		problem("the last appraisal's outcome stands: %v", a.broken)
	}
}

// sources returns where evidence is made from.
func (d *daemon) sources() (node.Sources, error) {
	from := node.LinuxSources()
	var err error
	from.Chain, err = readCertificates(d.config.Node.EKChainDir)
	return from, err
}
