package reader

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A Usage is what each identity got and used over a time.
type Usage struct {
	Since      time.Time        `json:"since,omitzero"`
	Records    uint64           `json:"records"`
	Identities []*IdentityUsage `json:"identities"`        // by SPIFFE ID
	Secrets    []*SecretUsage   `json:"secrets,omitempty"` // by name
	Unmatched  uint64           `json:"denied_without_identity"`
	Left       uint64           `json:"records_left_out,omitempty"` // of identities beyond the first so many

	end time.Time // of the last record
}

// An IdentityUsage is what one identity got and used.
type IdentityUsage struct {
	SPIFFEID    string             `json:"spiffe_id"`
	First       time.Time          `json:"first"`
	Last        time.Time          `json:"last"`
	X509SVIDs   uint64             `json:"x509_svids"`
	JWTSVIDs    uint64             `json:"jwt_svids"`
	Denied      uint64             `json:"denied"`
	Errors      uint64             `json:"errors"`
	Programs    []string           `json:"programs"`  // SHA-256 of every program that had it
	Audiences   []string           `json:"audiences"` // of JWT-SVIDs
	Credentials []*CredentialUsage `json:"credentials,omitempty"`
	Anomalies   []string           `json:"anomalies,omitempty"`

	credentials map[string]*CredentialUsage
}

// A CredentialUsage is how one identity used one credential.
type CredentialUsage struct {
	Name      string    `json:"name"`
	Grants    uint64    `json:"grants"`
	Uses      uint64    `json:"uses"`
	Unseen    uint64    `json:"uses_nobody_saw"` // leases whose use nobody could see
	LastUse   time.Time `json:"last_use,omitzero"`
	Scopes    []string  `json:"scopes_granted,omitempty"`
	AfterTTL  uint64    `json:"uses_after_ttl,omitempty"`
	BroaderBy uint64    `json:"grants_broader_than_asked,omitempty"`
}

// Bounds of what is remembered.
const (
	maxIdentities = 100_000
	maxListed     = 32 // programs, audiences, scopes, credentials of an identity
)

// Summarise reads the log from a time on, without checking proofs, and tells per
// identity what it got and used: the feed of a secrets audit.
func Summarise(ctx context.Context, fsys fs.FS, since time.Time) (*Usage, error) {
	u := &Usage{Since: since}
	byID := map[string]*IdentityUsage{}
	secrets := secretUsages{}
	for e, err := range Records(ctx, fsys, 0) {
		if err != nil {
			return nil, err
		}
		l := &e.Leaf
		secrets.take(l, since)
		u.end = l.Time
		if l.Time.Before(since) {
			continue
		}
		u.Records++
		if l.SPIFFEID == "" {
			if l.Outcome == audit.Denied {
				u.Unmatched++
			}
			continue
		}
		id := byID[l.SPIFFEID]
		if id == nil {
			if len(byID) == maxIdentities {
				u.Left++
				continue
			}
			id = &IdentityUsage{SPIFFEID: l.SPIFFEID, First: l.Time, credentials: map[string]*CredentialUsage{}}
			byID[l.SPIFFEID] = id
		}
		id.take(l)
	}
	for _, name := range slices.Sorted(maps.Keys(byID)) {
		id := byID[name]
		id.conclude()
		u.Identities = append(u.Identities, id)
	}
	u.Secrets = secrets.conclude(u.end)
	return u, nil
}

func (id *IdentityUsage) take(l *audit.Leaf) {
	id.Last = l.Time
	switch l.Outcome {
	case audit.Denied:
		id.Denied++
		return
	case audit.Failed:
		id.Errors++
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
	case audit.EventLeaseGrant, audit.EventUse:
		id.credential(l)
	}
}

func (id *IdentityUsage) credential(l *audit.Leaf) {
	if l.Credential == nil {
		return
	}
	c := id.credentials[l.Credential.Name]
	if c == nil {
		if len(id.credentials) == maxListed {
			return
		}
		c = &CredentialUsage{Name: l.Credential.Name}
		id.credentials[c.Name] = c
	}
	if l.Event == audit.EventLeaseGrant {
		c.Grants++
		if s := l.Credential.ScopeGranted; s != "" {
			c.Scopes = listed(c.Scopes, s)
			if asked := l.Credential.ScopeAsked; asked != "" && asked != s {
				c.BroaderBy++
			}
		}
		return
	}
	if l.Use == nil || l.Use.Source == "unknown" {
		c.Unseen++
		return
	}
	c.Uses += l.Use.Count
	if l.Use.Last.After(c.LastUse) {
		c.LastUse = l.Use.Last
	}
	if l.Use.Count > 0 && !l.Use.WithinTTL {
		c.AfterTTL += l.Use.Count
	}
}

// conclude says what somebody should look at.
func (id *IdentityUsage) conclude() {
	note := func(format string, args ...any) { id.Anomalies = append(id.Anomalies, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(id.credentials)) {
		c := id.credentials[name]
		id.Credentials = append(id.Credentials, c)
		if c.Grants > 0 && c.Uses == 0 && c.Unseen == 0 {
			note("credential %s was granted %d times and never used: does it need it?", c.Name, c.Grants)
		}
		if c.AfterTTL > 0 {
			note("credential %s was used %d times after its lifetime", c.Name, c.AfterTTL)
		}
		if c.BroaderBy > 0 {
			note("credential %s was granted %d times with another scope than asked for", c.Name, c.BroaderBy)
		}
	}
	if len(id.Programs) > 1 {
		note("%d different programs had this identity", len(id.Programs))
	}
	if got := id.served(); id.Denied > got {
		note("denied %d times, served %d times", id.Denied, got)
	}
}

// served counts what the identity was given.
func (id *IdentityUsage) served() uint64 {
	n := id.X509SVIDs + id.JWTSVIDs
	for _, c := range id.Credentials {
		n += c.Grants
	}
	return n
}

// listed adds a text to a short list without doubles.
func listed(list []string, s string) []string {
	if len(list) == maxListed || slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// WriteText writes the usage for people.
func (u *Usage) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d records, %d identities; %d requests of processes that matched no entry\n", u.Records, len(u.Identities), u.Unmatched)
	for _, id := range u.Identities {
		fmt.Fprintf(&b, "\n%s\n  %s to %s: %d X509-SVIDs, %d JWT-SVIDs, %d denied, %d errors; %d programs\n",
			id.SPIFFEID, id.First.Format(time.RFC3339), id.Last.Format(time.RFC3339), id.X509SVIDs, id.JWTSVIDs, id.Denied, id.Errors, len(id.Programs))
		if len(id.Audiences) > 0 {
			fmt.Fprintf(&b, "  audiences: %s\n", strings.Join(id.Audiences, ", "))
		}
		for _, c := range id.Credentials {
			fmt.Fprintf(&b, "  credential %s: granted %d times, used %d times", c.Name, c.Grants, c.Uses)
			if c.Unseen > 0 {
				fmt.Fprintf(&b, ", %d times nobody could see whether", c.Unseen)
			}
			if len(c.Scopes) > 0 {
				fmt.Fprintf(&b, "; scopes: %s", strings.Join(c.Scopes, ", "))
			}
			b.WriteString("\n")
		}
		for _, a := range id.Anomalies {
			fmt.Fprintf(&b, "  ! %s\n", a)
		}
	}
	for _, s := range u.Secrets {
		fmt.Fprintf(&b, "\n%s\n", s.text(u.end))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
