package writer

import (
	"context"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// anchorTimeout is how long the TPM may take; firmware TPMs are slow.
const anchorTimeout = 30 * time.Second

// Anchor binds the log as it stands to the TPM, and records that. It returns nil
// where the log has no TPM, where no statement on the TPM's keys was recorded
// yet, and where nothing new is there to anchor.
//
// It takes two records. The first announces the anchor and marks what it covers:
// exactly the records up to it. The second is the anchor, or why there is none.
func (l *Log) Anchor(ctx context.Context) error {
	if l.opt.TPM == nil {
		return nil
	}
	l.anchoring.Lock()
	defer l.anchoring.Unlock()
	l.mu.Lock()
	due := l.carry.start != nil && l.carry.unanchored() > 0
	l.mu.Unlock()
	if !due {
		return nil
	}
	err := l.anchor(ctx)
	l.mu.Lock()
	l.status.AnchorErr = err
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("anchoring attestation log: %w", err)
	}
	return nil
}

func (l *Log) anchor(ctx context.Context) error {
	b, err := l.append(ctx, []audit.Record{{Event: audit.EventAnchorIntent, Outcome: audit.Success}}, nil)
	if err != nil {
		return err
	}
	c := b.anchored
	tpmCtx, cancel := context.WithTimeout(ctx, anchorTimeout)
	defer cancel()
	certify, count := l.opt.TPM.Anchor, func(context.Context) error { return nil }
	if tpm, ok := l.opt.TPM.(audit.CountingAnchorer); ok {
		certify, count = tpm.Certify, tpm.Count
	}
	made, err := certify(tpmCtx, format.AnchorDigest(l.signer.vkey, c))
	r := audit.Record{Event: audit.EventAnchor, Outcome: audit.Success}
	e := &audit.LogEvent{Size: c.Size, Root: base64.StdEncoding.EncodeToString(c.Root[:]), Anchor: made}
	if err != nil {
		r.Outcome, r.Reason, e.Anchor = audit.Failed, err.Error(), nil
	}
	b, appendErr := l.append(context.WithoutCancel(ctx), []audit.Record{r}, e)
	if err != nil {
		return err
	}
	if appendErr != nil {
		return appendErr
	}
	l.mu.Lock()
	l.carry.anchored, l.carry.anchor = c.Size, b.first+uint64(b.anchor)
	l.status.Anchored, l.status.AnchorIndex, l.status.LastAnchor = c.Size, l.carry.anchor, l.opt.Now()
	l.mu.Unlock()
	if err := l.keep(); err != nil {
		return err
	}
	// Only now that the anchor is durable. Until then another one of the same value
	// could take its place.
	return count(tpmCtx)
}

// keep has the log's state kept elsewhere.
func (l *Log) keep() error {
	if l.opt.Keep == nil {
		return nil
	}
	l.commit.Lock()
	signed, err := l.signer.checkpoint(&l.tree)
	l.commit.Unlock()
	if err != nil {
		return err
	}
	if err := l.opt.Keep(signed); err != nil {
		return fmt.Errorf("keeping how far the log is anchored: %w", err)
	}
	return nil
}

// anchorIfDue anchors if so many records wait for it.
func (l *Log) anchorIfDue(ctx context.Context, records int) {
	l.mu.Lock()
	due := l.carry.start != nil && l.carry.unanchored() >= uint64(records)
	if records > 1 && l.status.AnchorErr != nil {
		due = false // in its time, not with every batch
	}
	l.mu.Unlock()
	if !due {
		return
	}
	if err := l.Anchor(ctx); err != nil && ctx.Err() == nil {
		l.opt.Logger.Error("attestation log: no anchor", "err", err)
	}
}
