package lease

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease/journal"
)

// records makes durable what the life of a lease says must be: in the journal,
// which the next start reads, and in the log. It keeps no state of its own.
type records struct {
	journal  *journal.Journal
	recorder Recorder
	idKey    []byte
	log      *slog.Logger
}

const (
	// recordTimeout bounds how long a step waits for the log.
	recordTimeout = 10 * time.Second

	maxReason    = 512  // bytes of a reason, as it is recorded
	maxScope     = 3072 // bytes of what was asked for, or granted, in one event
	maxRequestID = 128  // bytes
)

// keep makes durable what must be, for a lease whose encoded state is given.
func (r *records) keep(ctx context.Context, m must, id string, state []byte, e credential.Event) error {
	switch m {
	case journaled:
		return r.put(id, state)
	case recorded:
		return r.record(ctx, e)
	case both:
		put := make(chan error, 1)
		go func() { put <- r.put(id, state) }()
		err := r.record(ctx, e)
		return errors.Join(<-put, err)
	case closed:
		if err := r.record(ctx, e); err != nil {
			return err
		}
		// At worst the next start revokes it again.
		if err := r.journal.End(id); err != nil {
			r.log.Error("lease journal", "lease", r.hash(id), "err", err)
		}
	}
	return nil
}

func (r *records) put(id string, state []byte) error {
	if err := r.journal.Put(id, state); err != nil {
		return fmt.Errorf("%w: %w", credential.ErrUnrecorded, err)
	}
	return nil
}

// record makes an event durable.
func (r *records) record(ctx context.Context, e credential.Event) error {
	// The caller's leaving must not leave a step out of the log.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	e.Reason = clip(e.Reason, maxReason)
	e.ScopeAsked, e.ScopeGranted = bound(e.ScopeAsked), bound(e.ScopeGranted)
	if err := r.recorder.Record(ctx, e); err != nil {
		return fmt.Errorf("%w: %s of %s for %s: %w", credential.ErrUnrecorded, e.Kind, e.Credential, e.Identity, err)
	}
	return nil
}

// about returns an event about a lease. The book's mu is held.
func (r *records) about(kind credential.EventKind, l *lease) credential.Event {
	return credential.Event{
		Kind:       kind,
		Outcome:    credential.Success,
		Identity:   l.Identity,
		Process:    l.Process,
		Lease:      r.hash(l.ID),
		Credential: l.Credential,
		Broker:     l.Broker,
		Upstream:   l.Upstream,
		Handle:     l.Handle,
		Revocation: l.Revocation,
		NotAfter:   l.Expires,
	}
}

// hash returns what events call a lease by.
func (r *records) hash(id string) string {
	mac := hmac.New(sha256.New, r.idKey)
	mac.Write([]byte(id))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// clip bounds text that a caller or an upstream chose.
func clip(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// bound keeps a list short enough for a record. What is left out is counted, and
// the digest is over the whole list.
func bound(list []string) []string {
	left := maxScope
	for i, s := range list {
		if left -= len(s); left >= 0 {
			continue
		}
		sum := sha256.Sum256([]byte(strings.Join(list, "\n")))
		return append(slices.Clone(list[:i]), fmt.Sprintf("and %d more, sha256:%x of all", len(list)-i, sum))
	}
	return list
}
