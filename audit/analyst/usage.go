package analyst

import (
	"context"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
)

// A Usage is what each identity got and used over a time, and what the machine was
// meanwhile.
type Usage struct {
	From       time.Time        `json:"from,omitzero"`  // as asked for
	Until      time.Time        `json:"until,omitzero"` //
	Records    uint64           `json:"records"`
	Boot       []BootState      `json:"boot"`               // the state as the time begins, and each change
	Identities []*IdentityUsage `json:"identities"`         // by SPIFFE ID
	Secrets    []*SecretUsage   `json:"secrets,omitempty"`  // by name
	Inventory  time.Time        `json:"inventory,omitzero"` // when it was taken
	Static     []StaticSecret   `json:"static_secrets,omitempty"`
	Unmatched  uint64           `json:"denied_without_identity"`
	Left       uint64           `json:"records_left_out,omitempty"`     // of identities and leases beyond the first so many
	BootLeft   uint64           `json:"boot_states_left_out,omitempty"` // beyond the first so many

	end time.Time // of the last record
}

// An IdentityUsage is what one identity got and used.
type IdentityUsage struct {
	SPIFFEID    string             `json:"spiffe_id"`
	First       time.Time          `json:"first,omitzero"` // record within the time
	Last        time.Time          `json:"last,omitzero"`
	X509SVIDs   uint64             `json:"x509_svids"`
	JWTSVIDs    uint64             `json:"jwt_svids"`
	WITSVIDs    uint64             `json:"wit_svids,omitempty"`
	Granted     uint64             `json:"credentials_granted"`
	Denied      uint64             `json:"denied"`
	Errors      uint64             `json:"errors"`
	Programs    []string           `json:"programs"`  // SHA-256 of every program that had it
	Audiences   []string           `json:"audiences"` // of JWT-SVIDs
	Credentials []*CredentialUsage `json:"credentials,omitempty"`
	Anomalies   []string           `json:"anomalies,omitempty"`

	credentials map[string]*CredentialUsage
}

// A CredentialUsage is how one identity used one credential. What became of the
// grants of the time is counted also where it was recorded after it.
type CredentialUsage struct {
	Name    string         `json:"name"`
	Grants  uint64         `json:"grants"`
	Earlier uint64         `json:"leases_from_before,omitempty"` // held as the time began
	Denied  uint64         `json:"denied,omitempty"`
	Errors  uint64         `json:"errors,omitempty"`
	Ended   map[End]uint64 `json:"ended,omitempty"` // of the grants
	Held    uint64         `json:"held,omitempty"`  // of the grants, those not ended yet

	Uses       uint64    `json:"uses"`                     // by leases that were used within the time
	UsesInPart bool      `json:"uses_in_part,omitempty"`   // some of the uses may have been before or after it
	Unseen     uint64    `json:"uses_nobody_saw"`          // leases whose use nobody could see
	NeverUsed  uint64    `json:"grants_never_used"`        // seen not to have been
	Unused     []Granted `json:"never_used,omitempty"`     // the first of them
	FirstUse   time.Time `json:"first_use,omitzero"`       //
	LastUse    time.Time `json:"last_use,omitzero"`        //
	Scopes     []string  `json:"scopes_granted,omitempty"` // with {handle} in the place of the lease's own name
	AfterTTL   uint64    `json:"uses_after_ttl,omitempty"`
	BroaderBy  uint64    `json:"grants_broader_than_asked,omitempty"`

	Calls *CallsUsage `json:"calls,omitempty"` // nil where the proxy made none

	lifetimes lifetimes
	peak      peak
}

// A Granted is one grant.
type Granted struct {
	Index  uint64    `json:"record"`
	Time   time.Time `json:"time"`
	Handle string    `json:"handle,omitempty"`
}

// Bounds of what is remembered.
const (
	maxIdentities = 100_000
	maxOpenLeases = 200_000
	maxListed     = 32 // programs, audiences, scopes, credentials of an identity
)

// Summarise reads the whole log, without checking proofs, and tells what a query
// asks for per identity: who got and used what, how it went, and what the machine
// was. A query by event or request makes no sense here.
func Summarise(ctx context.Context, fsys fs.FS, q Query) (*Usage, error) {
	s := NewSummary(q)
	for e, err := range reader.Records(ctx, fsys, 0) {
		if err != nil {
			return nil, err
		}
		s.Take(&e.Leaf)
	}
	return s.Usage(), nil
}

// A Summary makes a [Usage] of records as they come, for a log that grows. It remembers no
// more than bounded numbers of identities, leases and secrets.
type Summary struct {
	q       Query
	u       *Usage
	byID    map[string]*IdentityUsage
	secrets secretUsages
	boot    bootStates
	open    map[string]*openLease // by the lease's name in the log
}

// An openLease is one that has not ended yet.
type openLease struct {
	spiffeID, credential string
	asked                []string
	announced            bool    // in this copy
	granted              Granted // zero where it was not, or not in this copy
	within               bool    // granted within the time
	use                  *CredentialUsage
}

// NewSummary returns one that has no records yet, of what a query asks for.
func NewSummary(q Query) *Summary {
	return &Summary{
		q: q, u: &Usage{From: q.From, Until: q.Until},
		byID: map[string]*IdentityUsage{}, secrets: secretUsages{}, open: map[string]*openLease{}, boot: bootStates{q: &q},
	}
}

// Take takes the next record.
func (s *Summary) Take(l *audit.Leaf) {
	s.boot.take(l)
	s.secrets.take(l, s.q.From)
	s.u.end = l.Time
	if !s.q.about(l) {
		return
	}
	within := s.q.within(l.Time)
	if within && s.q.outcome(l) {
		s.u.Records++
		if l.SPIFFEID == "" && l.Outcome == audit.Denied {
			s.u.Unmatched++
		}
	}
	if l.SPIFFEID == "" {
		return
	}
	if within && s.q.outcome(l) {
		if id := s.identity(l.SPIFFEID); id != nil {
			id.take(l)
		}
	}
	if l.Credential != nil && l.Credential.Lease != "" {
		s.lease(l, within)
	}
}

// identity returns the usage of an identity, nil if there are too many.
func (s *Summary) identity(spiffeID string) *IdentityUsage {
	id := s.byID[spiffeID]
	if id == nil {
		if len(s.byID) == maxIdentities {
			s.u.Left++
			return nil
		}
		id = &IdentityUsage{SPIFFEID: spiffeID, credentials: map[string]*CredentialUsage{}}
		s.byID[spiffeID] = id
	}
	return id
}

// lease follows a lease from its announcement to its end. The whole log is looked
// at: a lease that was used within the time may have been granted before, and its
// use is recorded as it ends.
func (s *Summary) lease(l *audit.Leaf, within bool) {
	o := s.open[l.Credential.Lease]
	if o == nil {
		o = &openLease{spiffeID: l.SPIFFEID, credential: l.Credential.Name}
	}
	switch l.Event {
	case audit.EventLeaseIntent, audit.EventLeaseGrant:
		if l.Outcome != audit.Success {
			delete(s.open, l.Credential.Lease)
			return
		}
		if !s.keep(l.Credential.Lease, o) {
			return
		}
		o.announced = true
		if l.Credential.ScopeAsked != "" {
			o.asked = scopes(l.Credential.ScopeAsked)
		}
		if l.Event == audit.EventLeaseGrant {
			s.granted(o, l, within)
		}
	case audit.EventUse:
		s.used(o, l)
		s.keep(l.Credential.Lease, o) // its end is the next record
	case audit.EventLeaseRevoke, audit.EventLeaseEnd:
		if how := Ending(l); how != EndUnconfirmed {
			s.ended(o, l, how)
			delete(s.open, l.Credential.Lease)
		}
	}
}

// keep remembers a lease, unless there are too many.
func (s *Summary) keep(lease string, o *openLease) bool {
	if s.open[lease] == nil && len(s.open) == maxOpenLeases {
		s.u.Left++
		return false
	}
	s.open[lease] = o
	return true
}

func (s *Summary) granted(o *openLease, l *audit.Leaf, within bool) {
	o.granted = Granted{l.Index, l.Time, l.Credential.Handle}
	if o.within = within && s.q.outcome(l); !o.within {
		return
	}
	o.use = s.usage(o)
	if o.use != nil && broader(o.asked, scopes(l.Credential.ScopeGranted)) {
		o.use.BroaderBy++
	}
}

// usage is what a lease counts for.
func (s *Summary) usage(o *openLease) *CredentialUsage {
	id := s.identity(o.spiffeID)
	if id == nil {
		return nil
	}
	return id.credential(o.credential)
}

// earlier has a lease count that was held as the time began.
func (s *Summary) earlier(o *openLease) {
	before := o.granted.Time.Before(s.q.From)
	if o.granted.Time.IsZero() {
		before = !o.announced
	}
	if o.use != nil || s.q.Outcome != "" || !before {
		return
	}
	if o.use = s.usage(o); o.use != nil {
		o.use.Earlier++
	}
}

// used takes the sum of a lease's use, which is recorded as it ends.
func (s *Summary) used(o *openLease, l *audit.Leaf) {
	u := l.Use
	if u == nil {
		return
	}
	seen := u.Source != "unknown"
	if seen && u.Count > 0 && s.overlaps(u) || !l.Time.Before(s.q.From) {
		s.earlier(o)
	}
	switch c := o.use; {
	case c == nil:
	case !seen:
		c.Unseen++
	case u.Count == 0:
		if o.within {
			c.never(o.granted)
		}
	case s.overlaps(u):
		c.used(u, s.q.within(u.First) && s.q.within(u.Last))
		if o.within {
			c.lifetimes.used(l.Credential.Lease, u.Last.Sub(o.granted.Time))
		}
	}
}

// used adds the use of one lease, all of it within the time or not.
func (c *CredentialUsage) used(u *audit.Use, within bool) {
	c.Uses += u.Count
	c.UsesInPart = c.UsesInPart || !within
	if c.FirstUse.IsZero() || u.First.Before(c.FirstUse) {
		c.FirstUse = u.First
	}
	if u.Last.After(c.LastUse) {
		c.LastUse = u.Last
	}
	if !u.WithinTTL {
		c.AfterTTL += u.Count
	}
}

// overlaps tells whether some of a use may have been within the time.
func (s *Summary) overlaps(u *audit.Use) bool {
	return !u.Last.Before(s.q.From) && (s.q.Until.IsZero() || u.First.Before(s.q.Until))
}

func (s *Summary) ended(o *openLease, l *audit.Leaf, how End) {
	if !l.Time.Before(s.q.From) {
		s.earlier(o)
	}
	if o.within && o.use != nil {
		o.use.Ended[how]++
		o.use.lifetimes.ended(l.Credential, how, l.Time.Sub(o.granted.Time))
	}
}

// Usage returns what the records come to so far. What it returns is good until the next
// record is taken.
func (s *Summary) Usage() *Usage {
	for _, id := range s.byID {
		for _, c := range id.credentials {
			c.Held = 0
		}
	}
	for _, o := range s.open {
		s.earlier(o)
		if o.within && o.use != nil {
			o.use.Held++
		}
	}
	s.u.Identities = []*IdentityUsage{}
	for _, name := range slices.Sorted(maps.Keys(s.byID)) {
		id := s.byID[name]
		id.conclude()
		s.u.Identities = append(s.u.Identities, id)
	}
	if s.q.SPIFFEID == "" && s.q.Credential == "" {
		s.u.Secrets = s.secrets.conclude(s.u.end)
	}
	s.u.Boot, s.u.BootLeft = append([]BootState{}, s.boot.list...), s.boot.left
	return s.u
}

// take counts a record of the time.
func (id *IdentityUsage) take(l *audit.Leaf) {
	if id.First.IsZero() {
		id.First = l.Time
	}
	id.Last = l.Time
	if l.Call != nil && l.Credential != nil {
		if c := id.credential(l.Credential.Name); c != nil && c.call(l) && l.Event == audit.EventCallEnd {
			return // the call itself was counted as it began
		}
	}
	if l.Outcome == audit.Denied || l.Outcome == audit.Failed {
		id.refused(l)
		return
	}
	if w := l.Workload; w != nil && w.SHA256 != "" {
		id.Programs = listed(id.Programs, w.SHA256)
	}
	switch l.Event {
	case audit.EventX509SVID:
		id.X509SVIDs++
	case audit.EventJWTSVID:
		id.JWTSVIDs++
		if l.SVID != nil {
			for _, a := range l.SVID.Audience {
				id.Audiences = listed(id.Audiences, a)
			}
		}
	case audit.EventWITSVID:
		id.WITSVIDs++
	case audit.EventLeaseGrant:
		id.Granted++
		if l.Credential == nil {
			return
		}
		if c := id.credential(l.Credential.Name); c != nil {
			c.Grants++
			c.peak.add(l.Time)
			for _, s := range scopesOf(l.Credential) {
				c.Scopes = listed(c.Scopes, s)
			}
		}
	}
}

func (id *IdentityUsage) refused(l *audit.Leaf) {
	var c *CredentialUsage
	if l.Credential != nil && l.Credential.Name != "" {
		c = id.credential(l.Credential.Name)
	}
	if c == nil {
		c = new(CredentialUsage)
	}
	if l.Outcome == audit.Denied {
		id.Denied++
		c.Denied++
	} else {
		id.Errors++
		c.Errors++
	}
}

// credential returns the usage of a credential, nil if there are too many: a
// caller may ask for any name.
func (id *IdentityUsage) credential(name string) *CredentialUsage {
	c := id.credentials[name]
	if c == nil && len(id.credentials) < maxListed {
		c = &CredentialUsage{Name: name, Ended: map[End]uint64{}}
		id.credentials[name] = c
	}
	return c
}

func (c *CredentialUsage) never(g Granted) {
	if c.NeverUsed++; len(c.Unused) < maxListed {
		c.Unused = append(c.Unused, g)
	}
}

// listed adds a text to a short list without doubles.
func listed(list []string, s string) []string {
	if len(list) == maxListed || slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
