package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/writer"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// records is the attestation log, and what reads behind it: exports and witnesses. Its fields do not change once it is open.
type records struct {
	*writer.Log
	config    config.Log
	machine   *machine
	slog      *slog.Logger
	began     uint64 // index of this run's first record
	exports   []*exported
	witnesses []*witnessed
}

// openRecords opens the attestation log and records the start, with what proves
// this machine's keys, anchored in the TPM.
func openRecords(ctx context.Context, c config.Log, m *machine, logger *slog.Logger) (*records, error) {
	k, err := m.logKey(ctx)
	if err != nil {
		return nil, err
	}
	public := k.Public().(ed25519.PublicKey)
	statement, err := m.node.Statement(ctx, public, k.born)
	if err != nil {
		return nil, err
	}
	verified, err := appraisal.VerifyStatement(statement, public)
	if err != nil {
		return nil, fmt.Errorf("verifying this machine's own statement: %w", err)
	}
	r := &records{config: c, machine: m, slog: logger}
	r.Log, err = writer.Open(r.dir(), writer.Options{
		Origin:      originOf(m.config.TrustDomain, public),
		Key:         k.PrivateKey,
		TPM:         anchorer{m.node, verified},
		Begun:       k.begun,
		Kept:        k.mark,
		Keep:        func(signed []byte) error { return m.state.Save(logMark, 1, signed) },
		Restart:     k.restart,
		Logger:      logger,
		AnchorEvery: c.AnchorEvery,
		MaxBytes:    int64(c.MaxMiB) << 20,
		KeepFor:     c.KeepFor,
	})
	if errors.Is(err, writer.ErrMissing) || errors.Is(err, writer.ErrRolledBack) {
		err = fmt.Errorf("%w; nothing is issued until it is back: restore %s from a copy, or begin another log with: vouch log restart --reason '…'", err, r.dir())
	}
	if err == nil && k.restart != nil {
		err = m.state.Remove(audit.RestartFile)
	}
	if err != nil {
		return nil, err
	}
	r.began = r.Status().Size
	err = r.Append(ctx, audit.Record{
		Event:   audit.EventStart,
		Outcome: audit.Success,
		Node: &audit.Node{
			EKSHA256:  verified.EKSHA256,
			AKName:    verified.AKName,
			PCRSHA256: verified.PCRDigest,
			Resets:    verified.Resets,
			Statement: statement,
		},
		Config: &audit.Config{Version: version.String()},
	})
	if err == nil {
		// A full disk may still have room in the log itself, and none beside it.
		if err = r.Anchor(ctx); takesNoRecord(err) && r.Status().Err == nil {
			logger.Error("the log is not anchored as the daemon starts", "err", err)
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.Close(ctx))
	}
	return r, nil
}

func (r *records) dir() string { return r.machine.state.Path("log") }

// run hands the log on until the context ends.
func (r *records) run(ctx context.Context) {
	var group sync.WaitGroup
	for _, x := range r.exports {
		group.Go(func() { x.Run(ctx) })
	}
	for _, w := range r.witnesses {
		group.Go(func() { w.Run(ctx) })
	}
	group.Wait()
}

// stop records the stop, anchors it and closes the log. cause is why the daemon
// stops, nil if it was told to.
func (r *records) stop(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	last := audit.Record{Event: audit.EventStop, Outcome: audit.Success}
	if cause != nil {
		last.Outcome, last.Reason = audit.Failed, cause.Error()
	}
	return errors.Join(r.Append(ctx, last), r.Close(ctx))
}

// asked records what an administrator asks for, before it is done.
func (r *records) asked(ctx context.Context, by admin.Asker, what string) error {
	return r.Append(ctx, audit.Record{
		Event: audit.EventAdmin, Outcome: audit.Success, Reason: what, Workload: asker(by),
	})
}

// asker is an administrator, as records name one.
func asker(by admin.Asker) *audit.Workload {
	return &audit.Workload{PID: by.PID, UID: by.UID, GID: by.GID}
}

// reloaded records what comes into force, or the problem that keeps it from that.
func (r *records) reloaded(ctx context.Context, next audit.Record, problem error) error {
	next.Event, next.Outcome = audit.EventReload, audit.Success
	if problem != nil {
		next.Outcome, next.Reason, next.Config = audit.Failed, problem.Error(), nil
	}
	return r.Append(ctx, next)
}

// Reloaded implements [spireagent.Log].
func (r *records) Reloaded(ctx context.Context, next audit.Record, problem error) error {
	return r.reloaded(ctx, next, problem)
}

// Quote implements [spireagent.Log].
func (r *records) Quote(ctx context.Context, publicKey []byte) ([]byte, error) {
	quote, err := r.machine.node.Quote(ctx, sha256.Sum256(publicKey))
	return quote.Encoding, err
}

// announce records an authority key with a quote of the boot state it is made
// in, before it signs anything.
func (r *records) announce(ctx context.Context, k identity.Key) error {
	quote, err := r.machine.node.Quote(ctx, sha256.Sum256(k.PublicKey))
	if err != nil {
		return err
	}
	event := audit.EventJWTKey
	if k.Certificate != nil {
		event = audit.EventIssuingCA
	}
	return r.Append(ctx, audit.Record{
		Event:   event,
		Outcome: audit.Success,
		Key: &audit.Key{
			KeyID:       k.ID,
			Certificate: k.Certificate,
			PublicKey:   k.PublicKey,
			NotBefore:   k.NotBefore,
			NotAfter:    k.NotAfter,
			Quote:       quote.Encoding,
		},
	})
}

// report says what is in the log and what is wrong with it.
func (r *records) report(st *view.Status, problem problemf) {
	l := r.Status()
	st.Log = view.LogStatus{
		Dir:        r.dir(),
		Records:    l.Size,
		RootSHA256: fmt.Sprintf("%x", l.Root),
		LastAnchor: l.LastAnchor,
		Anchored:   l.Anchored,
		DiskBytes:  l.DiskBytes,
		MaxBytes:   int64(r.config.MaxMiB) << 20,
	}
	if l.Err != nil {
		st.Log.Error = l.Err.Error()
		way := "free space in " + st.Log.Dir + ", or see journalctl -u vouchd"
		if errors.Is(l.Err, audit.ErrFull) {
			way = fmt.Sprintf("raise log.max_mib, or archive the log and lower log.keep_for, which is %s", r.config.KeepFor)
		}
		problem("the attestation log cannot be written, so nothing is issued: %v; %s", l.Err, way)
	} else if l.FullSoon {
		problem("the attestation log uses %d MiB of log.max_mib, and none of its records is older than log.keep_for; raise log.max_mib, or archive the log and lower log.keep_for, before it is full and nothing can be issued", l.DiskBytes>>20)
	}
	if l.AnchorErr != nil {
		problem("the log is not anchored in the TPM: %v; records since %s could be dropped unnoticed", l.AnchorErr, l.LastAnchor.Format(time.RFC3339))
	}
	r.reportWitnesses(st, problem)
	for _, x := range r.exports {
		if err := x.Stats().Err; err != nil {
			problem("the log is not exported to %s: %v; records from %d on are waiting", x.name, err, x.Stats().Next)
		}
	}
}
