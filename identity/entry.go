package identity

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/config"
)

// An Entry is a registration entry: a process that has all its selectors is
// entitled to its SPIFFE ID and its credentials. It holds at least one
// selector. Its slices are shared with all who have it and must not be changed.
type Entry struct {
	ID           spiffeid.ID
	Selectors    attest.Selectors // all must hold
	X509TTL      time.Duration    // of an X509-SVID
	JWTTTL       time.Duration    // of a JWT-SVID
	JWTAlgorithm string           // that signs its JWT-SVIDs; empty: the authority's first
	Names        Names            // of its X509-SVIDs
	Hint         string           // tells a workload with several identities which is which; may be empty
	Credentials  []string         // names of the credentials it may lease

	// FederatesWith are the other trust domains whose bundles it is given. Without one it
	// can verify nobody of them.
	FederatesWith []spiffeid.TrustDomain

	Unanchored bool       // any user can arrange what it asks for: for a lab
	Pos        config.Pos // where it is written; zero for one of a SPIRE server

	Server   string // its ID at the SPIRE server that it is from; empty: it is from a file
	Revision int64  // of the one there
}

// Place says where the entry is to be changed.
func (e Entry) Place() string {
	if e.Server != "" {
		return "entry " + e.Server + " of the SPIRE server"
	}
	return e.Pos.String()
}

// Container reports whether the entry means processes of containers. No other
// entry is matched by one.
func (e Entry) Container() bool { return inContainer(e.Selectors) }

// Anchored reports whether one of the facts is one that the kernel or PID 1
// alone can arrange.
func (e Entry) Anchored() bool { return slices.ContainsFunc(e.Selectors, attest.Selector.Anchors) }

// A document is one file of entries.d.
type document struct {
	Entries []written `yaml:"entries"`
}

// written is an entry as a file has it.
type written struct {
	ID               config.At[spiffeid.ID]            `yaml:"spiffe_id" required:"true" like:"spiffe://example.org/agent/research"`
	Selectors        []config.At[attest.Selector]      `yaml:"selectors" like:"unix:uid:1000"`
	X509TTL          config.At[time.Duration]          `yaml:"x509_svid_ttl" default:"1h" min:"1m" max:"24h"`
	JWTTTL           config.At[time.Duration]          `yaml:"jwt_svid_ttl" default:"5m" min:"10s" max:"1h"`
	JWTAlgorithm     config.At[string]                 `yaml:"jwt_algorithm" oneof:"ES256 RS256"`
	DNSNames         []config.At[string]               `yaml:"dns_names" like:"db.example.org"`
	WildcardDNSNames bool                              `yaml:"wildcard_dns_names" default:"false"`
	CN               config.At[string]                 `yaml:"cn"`
	Hint             config.At[string]                 `yaml:"hint"`
	Credentials      []config.At[string]               `yaml:"credentials"`
	FederatesWith    []config.At[spiffeid.TrustDomain] `yaml:"federates_with" like:"partner.example"`
	AllowInterpreter bool                              `yaml:"allow_interpreter" default:"false"`
	AllowUnanchored  bool                              `yaml:"allow_unanchored" default:"false"`

	Pos config.Pos
}

// entry returns the values without their places.
func (w *written) entry(maxX509TTL time.Duration) Entry {
	e := Entry{
		ID:           w.ID.Value,
		X509TTL:      w.X509TTL.Value,
		JWTTTL:       w.JWTTTL.Value,
		JWTAlgorithm: w.JWTAlgorithm.Value,
		Hint:         w.Hint.Value,
		Pos:          w.Pos,
	}
	if w.X509TTL.Pos == (config.Pos{}) {
		e.X509TTL = min(e.X509TTL, maxX509TTL) // the default, and not a choice to refuse
	}
	e.Names = w.names()
	for _, s := range w.Selectors {
		e.Selectors = append(e.Selectors, s.Value)
	}
	for _, c := range w.Credentials {
		e.Credentials = append(e.Credentials, c.Value)
	}
	for _, td := range w.FederatesWith {
		e.FederatesWith = append(e.FederatesWith, td.Value)
	}
	e.Unanchored = !e.Anchored()
	return e
}

// names returns what X509-SVIDs are called. Without a cn, the first DNS name is the
// common name too, as in SPIRE, unless it is too long for one.
func (w *written) names() (n Names) {
	for _, name := range w.DNSNames {
		n.DNS = append(n.DNS, name.Value)
	}
	switch {
	case w.CN.Value != "":
		n.Common = w.CN.Value
	case len(n.DNS) > 0 && len(n.DNS[0]) <= maxCommonName:
		n.Common = n.DNS[0]
	}
	return n
}
