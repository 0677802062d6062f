package spire

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// The lives of SVIDs whose entry leaves them to the server, which does not say.
const (
	defaultX509TTL = time.Hour
	defaultJWTTTL  = 5 * time.Minute
)

const (
	maxSelectors = 256
	maxHint      = 1024 // bytes; Workload API §5.2.1
)

// entries are what the server authorizes for this host. They do not change.
type entries struct {
	byID   map[string]*spirev1.Entry
	digest [32]byte

	list                []identity.Entry // those that a workload of this host can match
	unknown, unanchored []string         // what to tell an administrator
	longest             time.Duration    // the longest TTL of the list
}

// newEntries takes the server's entries. One that is for agents, other servers or secret
// stores is never served to a workload, and one that cannot be read is not served either.
func newEntries(td spiffeid.TrustDomain, byID map[string]*spirev1.Entry) *entries {
	es := &entries{byID: byID}
	h := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		e := byID[id]
		fmt.Fprintf(h, "%q %d %d\n", id, e.RevisionNumber, e.CreatedAt)
		if e.Admin || e.Downstream || e.StoreSvid || isAlias(e) {
			continue
		}
		entry, err := entryOf(td, e)
		if err != nil {
			if len(es.unknown) < maxNamed {
				es.unknown = append(es.unknown, fmt.Sprintf("entry %s (%s)", id, printable(err.Error())))
			}
			continue
		}
		if entry.Unanchored && len(es.unanchored) < maxNamed {
			es.unanchored = append(es.unanchored, entry.ID.String())
		}
		es.longest = max(es.longest, entry.X509TTL)
		es.list = append(es.list, entry)
	}
	es.digest = [32]byte(h.Sum(nil))
	return es
}

// isAlias reports whether an entry gives a name to agents, this host among them.
func isAlias(e *spirev1.Entry) bool {
	return e.ParentId.GetPath() == "/spire/server" || slices.ContainsFunc(e.Selectors, func(s *spirev1.Selector) bool { return s.GetType() == "spiffe_id" })
}

func entryOf(td spiffeid.TrustDomain, e *spirev1.Entry) (identity.Entry, error) {
	if e.SpiffeId.GetTrustDomain() != td.Name() {
		return identity.Entry{}, fmt.Errorf("trust domain %.80q", e.SpiffeId.GetTrustDomain())
	}
	id, err := spiffeid.FromPath(td, e.SpiffeId.GetPath())
	switch {
	case err != nil:
		return identity.Entry{}, fmt.Errorf("path %.80q: %w", e.SpiffeId.GetPath(), err)
	case id.Path() == "":
		return identity.Entry{}, errors.New("no path")
	case len(e.Selectors) == 0:
		return identity.Entry{}, errors.New("no selectors")
	case len(e.Selectors) > maxSelectors:
		return identity.Entry{}, fmt.Errorf("%d selectors, more than %d", len(e.Selectors), maxSelectors)
	case len(e.Hint) > maxHint || strings.ContainsFunc(e.Hint, unicode.IsControl):
		return identity.Entry{}, fmt.Errorf("a hint of more than %d bytes, or with control characters", maxHint)
	}
	entry := identity.Entry{
		ID: id, Server: e.Id, Revision: e.RevisionNumber, Hint: e.Hint,
		X509TTL: cmp.Or(time.Duration(max(e.X509SvidTtl, 0))*time.Second, defaultX509TTL),
		JWTTTL:  cmp.Or(time.Duration(max(e.JwtSvidTtl, 0))*time.Second, defaultJWTTTL),
		Names:   identity.Names{DNS: e.DnsNames},
	}
	for _, s := range e.Selectors {
		selector, err := attest.ParseSelector(s.GetType() + ":" + s.GetValue())
		if err != nil {
			return identity.Entry{}, err
		}
		entry.Selectors = append(entry.Selectors, selector)
	}
	for _, name := range e.FederatesWith {
		if other, err := spiffeid.TrustDomainFromString(name); err == nil && other != td {
			entry.FederatesWith = append(entry.FederatesWith, other)
		}
	}
	entry.Unanchored = !entry.Anchored()
	return entry, nil
}

// ended reports whether an entry has ended.
func ended(now time.Time) func(string, *spirev1.Entry) bool {
	return func(_ string, e *spirev1.Entry) bool { return e.ExpiresAt > 0 && !now.Before(seconds(e.ExpiresAt)) }
}

// hold reports whether these are the same entries in the same revisions.
func (es *entries) hold(byID map[string]*spirev1.Entry) bool {
	if len(byID) != len(es.byID) {
		return false
	}
	for id, e := range byID {
		if old := es.byID[id]; old == nil || !same(old, e) {
			return false
		}
	}
	return true
}

// federated are the trust domains that entries federate with.
func (es *entries) federated() map[spiffeid.TrustDomain]bool {
	all := make(map[spiffeid.TrustDomain]bool)
	for _, e := range es.list {
		for _, td := range e.FederatesWith {
			all[td] = true
		}
	}
	return all
}

// change is what records say of the difference to those before.
func (es *entries) change(before *entries) EntriesChange {
	c := EntriesChange{Count: len(es.byID), SHA256: hex.EncodeToString(es.digest[:])}
	named := func(ids *[]string, id string) {
		if len(*ids) < maxNamed {
			*ids = append(*ids, id)
		} else {
			c.More++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(es.byID)) {
		switch old := before.byID[id]; {
		case old == nil:
			named(&c.Added, id)
		case !same(old, es.byID[id]):
			named(&c.Changed, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(before.byID)) {
		if es.byID[id] == nil {
			named(&c.Removed, id)
		}
	}
	return c
}

// same reports whether two are one entry in one revision.
func same(a, b *spirev1.Entry) bool {
	return a.RevisionNumber == b.RevisionNumber && a.CreatedAt == b.CreatedAt
}
