package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// How soon a machine that issues nothing is looked at again, at the latest.
const (
	retryFailed  = 5 * time.Minute // it did not pass; that takes a reboot or another policy
	retryUnknown = time.Minute     // no appraisal could be made; the TPM may be back
	lookEvery    = time.Second     // for a resume from suspend, and for what is due
)

// An appraiser enforces the machine's policy: whenever there is reason to, it makes evidence,
// appraises it as an outside verifier would, and tells the gate whether anything may be issued.
//
// A pass counts for twice the interval. A TPM that is briefly unavailable therefore stops
// nothing, and one that is kept unavailable eventually stops everything.
type appraiser struct {
	config  config.Node
	machine *machine
	log     *records
	gate    *gate.Gate
	slog    *slog.Logger
	policy  *reload.Value[policy]

	one      sync.Mutex           // held while appraising; guards the two fields below
	previous *appraisal.BootState // of the last evidence that verified
	slept    time.Duration        // of the machine, when it was last looked at

	mu     sync.Mutex // guards the fields below
	status view.NodeStatus
	reason error     // why nothing is issued
	broken error     // why there is no newer result, or the policy on disk is not in force
	passed time.Time // when the last pass was; zero: none since the start
	due    time.Time
}

func newAppraiser(c config.Node, m *machine, log *records, g *gate.Gate, logger *slog.Logger) *appraiser {
	a := &appraiser{
		config: c, machine: m, log: log, gate: g, slog: logger,
		slept: suspended(), status: view.NodeStatus{State: view.NodeUnknown},
	}
	a.policy = reload.New(policySource(c.Policy, logger))
	return a
}

// A policy is what was in the file, and its digest. The zero value is where there
// was no file, and none before it.
type policy struct {
	*appraisal.Policy
	digest [32]byte
}

// policySource is where the policy comes from. It is recorded with the resulting appraisal. A
// missing file counts as no policy only until there has been one.
func policySource(file string, logger *slog.Logger) reload.Source[policy] {
	found := false // only Load uses it, which runs once at a time
	return reload.Source[policy]{
		Name: "policy", Place: file,
		Load: func() (policy, error) {
			data, err := config.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) && !found {
				return policy{}, nil
			}
			if errors.Is(err, fs.ErrNotExist) {
				return policy{}, fmt.Errorf("%s is gone; restore it, or restart the daemon to run without a policy", file)
			}
			if err != nil {
				return policy{}, err
			}
			p, err := appraisal.ParsePolicy(file, data)
			if err != nil {
				return policy{}, err
			}
			found = true
			return policy{&p, sha256.Sum256(data)}, nil
		},
		Digest: func(p policy) [32]byte { return p.digest },
		Logger: logger,
	}
}

// run appraises when it is due, when the machine resumes and when the policy
// changes, until the context ends.
func (a *appraiser) run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- config.Watch(ctx, []string{a.config.Policy}, func() {
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
				return fmt.Errorf("watching %s: %w", a.config.Policy, err)
			}
			return nil
		case <-changed:
			if changed, _ := a.policy.Reload(ctx); changed { // it records nothing, which could fail
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
	a.policy.Reload(ctx) // it records nothing, which could fail
	p := a.policy.State()
	if p.Value.Policy == nil && p.Problem == nil {
		a.notAppraised()
		return appraisal.Result{}, fmt.Errorf("appraising this machine: there is no policy in %s; write one with: vouch node policy learn", a.config.Policy)
	}
	if p.Value.Policy == nil {
		return appraisal.Result{}, a.unknown(ctx, p.Problem)
	}
	from, err := a.machine.sources()
	if err != nil {
		return appraisal.Result{}, a.unknown(ctx, err)
	}
	r, _, err := a.machine.node.Appraise(ctx, *p.Value.Policy, from, a.previous)
	if err != nil {
		return appraisal.Result{}, a.unknown(ctx, err)
	}
	if r.AKName != "" {
		a.previous = &r.BootState
	}
	return r, a.judged(ctx, r, cause, p.Problem)
}

func (a *appraiser) notAppraised() {
	a.gate.SetNode(nil, nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = view.NodeStatus{State: view.NodeNotAppraised}
	a.reason, a.broken, a.due = nil, nil, time.Time{}
}

// judged puts a result in force. A failure takes effect before it is recorded,
// a pass only after. broken is why the policy on disk is not the one that was
// applied.
func (a *appraiser) judged(ctx context.Context, r appraisal.Result, cause string, broken error) error {
	refusal := r.Err()
	rec := audit.Record{Event: audit.EventNode, Outcome: audit.Success, Reason: cause, Node: &audit.Node{
		EKSHA256: r.EKSHA256, AKName: r.AKName, PCRSHA256: r.BootState.PCRDigest, Resets: r.BootState.Resets,
		EvidenceSHA256: r.EvidenceSHA256,
	}}
	if refusal != nil {
		a.gate.SetNode(nil, refusal)
		a.slog.Error("this machine does not satisfy its policy; nothing is issued", "err", refusal)
		rec.Outcome, rec.Reason = audit.Denied, refusal.Error()
	}
	err := a.log.Append(ctx, rec)
	if err != nil && refusal == nil {
		return a.fail(view.NodeUnknown, fmt.Errorf("recording an appraisal: %w", err))
	}
	result, encodeErr := json.Marshal(r)
	if encodeErr != nil {
		return encodeErr
	}
	if refusal == nil {
		a.gate.SetNode(r.Selectors(), nil)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reason, a.broken = refusal, broken
	a.status = view.NodeStatus{
		State: view.NodePassed, Checked: time.Now(), Evidence: r.EvidenceSHA256, Result: result,
		Selectors: r.Selectors().Strings(),
	}
	every := a.config.AppraiseEvery
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
		return cause // it is stopping, or the caller went away
	}
	cause = fmt.Errorf("appraising this machine: %w", cause)
	a.mu.Lock()
	counts := !a.passed.IsZero() && time.Since(a.passed) < 2*a.config.AppraiseEvery
	failed := a.status.State == view.NodeFailed
	a.broken = cause
	a.due = time.Now().Add(min(a.config.AppraiseEvery, retryUnknown))
	a.mu.Unlock()
	a.slog.Error("could not appraise this machine", "err", cause)
	if !counts && !failed {
		a.fail(view.NodeUnknown, cause)
	}
	rec := audit.Record{Event: audit.EventNode, Outcome: audit.Failed, Reason: cause.Error()}
	return errors.Join(cause, a.log.Append(ctx, rec))
}

// fail stops issuing.
func (a *appraiser) fail(state string, reason error) error {
	a.gate.SetNode(nil, reason)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = view.NodeStatus{State: state, Checked: time.Now()}
	a.reason, a.broken, a.passed = reason, nil, time.Time{}
	a.due = time.Now().Add(min(a.config.AppraiseEvery, retryUnknown))
	return reason
}

// report adds what is known of the node to a status.
func (a *appraiser) report(st *view.Status, problem problemf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st.Node = a.status
	st.Node.Policy = a.config.Policy
	if st.Node.Selectors == nil {
		st.Node.Selectors = []string{}
	}
	if a.reason != nil {
		problem("nothing is issued: %v; fix that, or the policy %s, then run: vouch node attest", a.reason, st.Node.Policy)
	}
	if a.broken != nil {
		problem("could not appraise; still using the last result: %v", a.broken)
	}
}
