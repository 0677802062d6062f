package spireagent

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity/spire"
)

// A recorder writes what passes between this host and the server into the log. It implements
// [spire.Recorder].
type recorder struct {
	log Log
	own spiffeid.TrustDomain
}

// Attested records the agent's key with a quote of the boot state that it is used in.
func (r recorder) Attested(ctx context.Context, a spire.Attestation) error {
	rec := audit.Record{Event: audit.EventSPIREAttest, Outcome: audit.Success, SPIRE: &audit.SPIRE{
		Server: a.Server, ServerSerial: a.ServerSerial, Agent: a.Agent, Attestor: a.Attestor, EvidenceSHA256: a.EvidenceSHA256,
		SHA256: a.SHA256, NotAfter: a.NotAfter,
	}}
	switch {
	case a.Banned:
		rec.Outcome, rec.Reason = audit.Denied, fmt.Sprintf("banned: %v", a.Failure)
	case a.Failure != nil:
		rec.Outcome, rec.Reason = audit.Failed, a.Failure.Error()
	default:
		quote, err := r.log.Quote(ctx, a.Key)
		if err != nil {
			return err
		}
		rec.Key = &audit.Key{KeyID: a.Serial, PublicKey: a.Key, NotAfter: a.NotAfter, Quote: quote}
	}
	return r.log.Append(ctx, rec)
}

// Authorities records each key before a bundle that has it.
func (r recorder) Authorities(ctx context.Context, all []spire.Authority) error {
	var records []audit.Record
	for _, a := range all {
		if a.TrustDomain != r.own.Name() {
			continue // who vouches for others is that bundle's record
		}
		records = append(records, audit.Record{Event: audit.EventSPIREAuthority, Outcome: audit.Success,
			Key:   &audit.Key{KeyID: a.ID, Certificate: a.Certificate, PublicKey: a.PublicKey, NotAfter: a.NotAfter},
			SPIRE: &audit.SPIRE{TrustDomain: a.TrustDomain, SHA256: a.SHA256},
		})
	}
	if len(records) == 0 {
		return nil
	}
	return r.log.Append(ctx, records...)
}

func (r recorder) Bundle(ctx context.Context, b spire.BundleChange) error {
	if b.TrustDomain != r.own.Name() {
		return r.log.Append(ctx, audit.Record{Event: audit.EventFederation, Outcome: audit.Success, Federation: &audit.Federation{
			TrustDomain: b.TrustDomain, Source: "the SPIRE server", Sequence: b.Sequence, SHA256: b.SHA256, Roots: len(b.X509), Keys: len(b.Keys),
		}})
	}
	return r.log.Append(ctx, audit.Record{Event: audit.EventSPIREBundle, Outcome: audit.Success, SPIRE: &audit.SPIRE{
		TrustDomain: b.TrustDomain, Sequence: b.Sequence, SHA256: b.SHA256, Authorities: append(b.X509, b.Keys...), Tainted: b.Tainted,
	}})
}

func (r recorder) Entries(ctx context.Context, e spire.EntriesChange) error {
	rec := audit.Record{Event: audit.EventSPIREEntries, Outcome: audit.Success, SPIRE: &audit.SPIRE{
		Entries: e.Count, SHA256: e.SHA256, Added: e.Added, Removed: e.Removed, Changed: e.Changed,
	}}
	if e.More > 0 {
		rec.Reason = fmt.Sprintf("and %d more that are added, removed or changed", e.More)
	}
	return r.log.Append(ctx, rec)
}

func (r recorder) Signed(ctx context.Context, all []spire.Signing) error {
	records := make([]audit.Record, len(all))
	for i, s := range all {
		records[i] = audit.Record{Event: audit.EventSPIRESign, Outcome: audit.Success, SPIFFEID: s.SPIFFEID,
			SPIRE: &audit.SPIRE{Signing: s.ID, Entry: s.Entry, Revision: uint64(max(0, s.Revision)), SPKISHA256: s.SPKISHA256},
			SVID:  &audit.SVID{Kind: s.Kind, ID: s.Serial, SHA256: s.SHA256, KeyID: s.KeyID, Audience: s.Audience, NotAfter: s.NotAfter},
		}
	}
	return r.log.Append(ctx, records...)
}

func (r recorder) Reached(ctx context.Context, reach spire.Reach) error {
	rec := audit.Record{Event: audit.EventSPIREOnline, Outcome: audit.Success, SPIRE: &audit.SPIRE{Server: reach.Server, LastSync: reach.LastSync, Until: reach.Until}}
	if !reach.Online {
		rec.Event, rec.Outcome = audit.EventSPIREOffline, audit.Failed
		if reach.Cause != nil {
			rec.Reason = reach.Cause.Error()
		}
	}
	return r.log.Append(ctx, rec)
}
