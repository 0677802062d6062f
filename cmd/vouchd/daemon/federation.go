package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A federation is the other trust domains whose bundles are kept here.
type federation struct {
	dir     string
	log     *records
	keeper  *foreign.Keeper
	domains *reload.Value[*foreign.Domains]
}

func newFederation(dir string, own spiffeid.TrustDomain, store foreign.Store, log *records, logger *slog.Logger) *federation {
	f := &federation{dir: dir, log: log}
	f.keeper = foreign.NewKeeper(foreign.Options{Store: store, Fetcher: foreign.Endpoint{}, Record: f.record, Logger: logger})
	f.domains = reload.Holding(reload.Source[*foreign.Domains]{
		Name: "trust domains", Place: dir,
		Parse:  func(files []config.File) (*foreign.Domains, error) { return foreign.Parse(files, own) },
		Digest: (*foreign.Domains).Digest,
		Record: func(ctx context.Context, next *foreign.Domains, problem error) error {
			digest := next.Digest()
			return log.reloaded(ctx, audit.Record{
				Reason: count(len(next.All()), "foreign trust domain", "foreign trust domains"),
				Config: &audit.Config{SHA256: hex.EncodeToString(digest[:])},
			}, problem)
		},
		Apply: func(ds *foreign.Domains) {
			f.keeper.Apply(context.Background(), ds)
			f.forget(f.domains.State().Problem)
		},
		Tell:   f.forget,
		Logger: logger,
	}, nil)
	return f
}

// open puts in force what is configured and kept.
func (f *federation) open(ctx context.Context) (bool, error) {
	changed, err := f.domains.Reload(ctx)
	f.forget(errors.Join(err, f.domains.State().Problem))
	return changed, err
}

// forget removes the bundles of trust domains that are not configured any more. Where a file
// is not in force, it may be one that names them.
func (f *federation) forget(problem error) {
	if problem == nil {
		f.keeper.Forget()
	}
}

// record records a bundle before it is in force, or why it is not.
func (f *federation) record(ctx context.Context, d foreign.Decision) error {
	r := audit.Record{Event: audit.EventFederation, Outcome: audit.Success, Federation: &audit.Federation{
		TrustDomain: d.Domain.TrustDomain.Name(), Source: d.Source,
	}}
	if d.Source == d.Domain.Endpoint {
		r.Federation.Profile = d.Domain.Profile
	}
	if b := d.Bundle; b != nil {
		r.Federation.Sequence, r.Federation.Roots, r.Federation.Keys = b.Sequence, len(b.Roots), b.Keys
		r.Federation.SHA256 = hex.EncodeToString(b.Digest[:])
	}
	switch {
	case d.Absent:
		r.Outcome, r.Reason = audit.Failed, d.Err.Error()
	case d.Err != nil:
		r.Outcome, r.Reason = audit.Denied, d.Err.Error()
	}
	return f.log.Append(ctx, r)
}

// report says what is known of other trust domains, and which of them entries ask for.
func (f *federation) report(st *view.Status, entries []identity.Entry, problem problemf) {
	st.Federation.Dir = f.dir
	if p := f.domains.State().Problem; p != nil {
		st.Federation.Error = p.Error()
		notInForce("trust domains", p, problem)
	}
	known := make(map[spiffeid.TrustDomain]bool)
	for _, s := range f.keeper.Status() {
		known[s.TrustDomain] = true
		v := foreignView(s)
		for _, e := range entries {
			if slices.Contains(e.FederatesWith, s.TrustDomain) {
				v.Entries++
			}
		}
		if v.Entries == 0 {
			st.Reminders = append(st.Reminders, fmt.Sprintf("no entry has %s in federates_with, so nobody is given its bundle", s.TrustDomain))
		}
		st.Federation.TrustDomains = append(st.Federation.TrustDomains, v)
		if p := foreignProblem(s); p != "" {
			problem("%s", p)
		}
	}
	told := make(map[spiffeid.TrustDomain]bool)
	for _, e := range entries { // of a SPIRE server's, it has the bundles
		for _, td := range e.FederatesWith {
			if !known[td] && !told[td] && e.Server == "" {
				told[td] = true
				problem("entry %s at %s federates with %s, which is not in force in %s; add it there, or remove it from the entry", e.ID, e.Place(), td, f.dir)
			}
		}
	}
}

func foreignView(s foreign.Status) view.ForeignStatus {
	v := view.ForeignStatus{
		TrustDomain: s.TrustDomain.Name(), Endpoint: s.Endpoint, Profile: s.Profile, File: s.File,
		RootSHA256: []string{}, Since: s.Since, Fetched: s.Fetched, Next: s.Next,
	}
	if s.Err != nil {
		v.Error = s.Err.Error()
	}
	if b := s.Bundle; b != nil {
		v.Sequence, v.Keys = b.Sequence, b.Keys
		v.RootSHA256 = fingerprints(b.Roots)
	}
	return v
}

// fingerprints are how people compare certificates.
func fingerprints(certs []*x509.Certificate) []string {
	all := []string{}
	for _, c := range certs {
		all = append(all, fmt.Sprintf("%x", sha256.Sum256(c.Raw)))
	}
	return all
}

// foreignProblem says what is wrong with a trust domain; empty: nothing that lasts.
func foreignProblem(s foreign.Status) string {
	switch b := s.Bundle; {
	case b == nil && s.Err != nil:
		return fmt.Sprintf("there is no bundle of %s, so nobody of it is trusted: %v", s.TrustDomain, s.Err)
	case b != nil && b.Empty():
		return fmt.Sprintf("%s has withdrawn all its keys, so nobody of it is trusted; ask its administrators, then get its bundle from them and name it as bundle_file, or remove the trust domain", s.TrustDomain)
	case s.Err != nil && !s.Passing && s.Endpoint != "":
		since := "was never fetched"
		if !s.Fetched.IsZero() {
			since = "was last fetched on " + s.Fetched.Format(time.RFC3339)
		}
		return fmt.Sprintf("the bundle of %s %s, and the one in force stays: %v", s.TrustDomain, since, s.Err)
	case s.Err != nil && !s.Passing:
		return fmt.Sprintf("the bundle of %s in force stays: %v", s.TrustDomain, s.Err)
	case s.Outdated:
		return fmt.Sprintf("all root certificates of %s have expired, so its X509-SVIDs are refused; get its new bundle and name it as bundle_file", s.TrustDomain)
	}
	return ""
}
