package view

import (
	"time"
)

// A Status is the daemon's state as an administrator sees it.
type Status struct {
	Version     string            `json:"version"`
	TrustDomain string            `json:"trust_domain"`
	Started     time.Time         `json:"started"`
	TPM         TPMStatus         `json:"tpm"`
	Node        NodeStatus        `json:"node"`
	Authority   AuthorityStatus   `json:"authority"`
	Entries     EntriesStatus     `json:"entries"`
	Federation  FederationStatus  `json:"federation"`
	Log         LogStatus         `json:"log"`
	Credentials CredentialsStatus `json:"credentials"`
	Secrets     SecretsStatus     `json:"secrets"`
	Streams     int64             `json:"streams"` // open on the agent socket
	Limited     LimitedStatus     `json:"limited"`
	Reminders   []string          `json:"reminders"` // what is not wrong yet, each one sentence with what to do
	Problems    []string          `json:"problems"`  // each one sentence with the way out; empty: all is well
}

// LimitedStatus counts what the limits have held back since the daemon started.
type LimitedStatus struct {
	Connections uint64 `json:"connections"` // refused: as many are open as are allowed
	Strangers   uint64 `json:"strangers"`   // closed: their process was entitled to nothing
	Refusals    uint64 `json:"refusals"`    // counted, and not recorded one by one
	TooOften    uint64 `json:"too_often"`   // answers refused: their identity had too many
	LogShare    uint64 `json:"log_share"`   // answers refused: their identity's share of the log is used up
	Busy        uint64 `json:"busy"`        // refused: too many of their user were being attested
	Repeats     uint64 `json:"repeats"`     // answers given again to a process that asks too often
	Hashes      uint64 `json:"hashes"`      // programs without a digest: for their size, the time it took, or their user's share

	HashersLost int `json:"hashers_lost"` // now: they wait for a file system that does not answer
}

// TPMStatus says which TPM holds the keys.
type TPMStatus struct {
	Address  string `json:"address"`
	EKSHA256 string `json:"ek_sha256"` // of the EK's public key, hexadecimal
	AKName   string `json:"ak_name"`   // hexadecimal

	EKCertificate bool     `json:"ek_certificate"` // whether its maker certified the EK
	Ignored       []string `json:"ignored"`        // objects in the TPM that were of no use, and why
}

// AuthorityStatus says how long the authority's keys remain in use.
type AuthorityStatus struct {
	RootNotAfter      time.Time `json:"root_not_after"`
	RootSHA256        []string  `json:"root_sha256"` // of each root certificate, hexadecimal
	IssuingCAKeyID    string    `json:"issuing_ca_key_id"`
	IssuingCANotAfter time.Time `json:"issuing_ca_not_after"`
	JWTKeyID          string    `json:"jwt_key_id"`
	JWTKeyUntil       time.Time `json:"jwt_key_until,omitzero"` // missing: without end
	BundleSequence    uint64    `json:"bundle_sequence"`

	Vault *VaultStatus `json:"vault,omitempty"` // missing: this host is not certified by one
	SPIRE *SPIREStatus `json:"spire,omitempty"` // missing: this host is no agent of a SPIRE server; with it, there is no issuing CA and no JWT key here
}

// SPIREStatus says how it stands with the SPIRE server whose agent this host is.
type SPIREStatus struct {
	Server        string    `json:"server"` // host and port
	Agent         string    `json:"agent"`  // this host's SPIFFE ID; empty: the server has not attested it
	Attestor      string    `json:"attestor"`
	AgentNotAfter time.Time `json:"agent_not_after,omitzero"`
	Online        bool      `json:"online"`
	Since         time.Time `json:"since,omitzero"`     // of being online or away
	LastSync      time.Time `json:"last_sync,omitzero"` // when the server last said which entries there are
	Banned        bool      `json:"banned,omitempty"`
	Error         string    `json:"error,omitempty"` // why it is away

	// If the server stayed away: the end of the last X509-SVID, of the last JWT-SVID that
	// is kept, and of serving anything new.
	X509Until    time.Time `json:"x509_until,omitzero"`
	JWTUntil     time.Time `json:"jwt_until,omitzero"`
	EntriesUntil time.Time `json:"entries_until,omitzero"`

	DownstreamUntil time.Time `json:"downstream_until,omitzero"` // end of this host's own CA; missing: it has none
}

// VaultStatus says how long a Vault or OpenBao has certified this host for.
type VaultStatus struct {
	Address     string    `json:"address"`
	Serial      string    `json:"serial,omitempty"`   // hexadecimal; missing: it has not
	NotAfter    time.Time `json:"not_after,omitzero"` // nothing is issued afterwards
	Next        time.Time `json:"next,omitzero"`      // when it is asked next
	Constrained bool      `json:"constrained"`        // to the trust domain
	Error       string    `json:"error,omitempty"`    // why the last attempt failed
	Since       time.Time `json:"since,omitzero"`     // of the first that did
}

// EntriesStatus says which registrations are in force.
type EntriesStatus struct {
	Dir      string    `json:"dir"`
	Count    int       `json:"count"`
	Disabled int       `json:"disabled"` // identities that an administrator has cut off
	Loaded   time.Time `json:"loaded"`
	Error    string    `json:"error,omitempty"` // why what is on disk now is not in force
}

// A FederationStatus says which other trust domains are known.
type FederationStatus struct {
	Dir          string          `json:"dir"`
	Error        string          `json:"error,omitempty"` // why what is on disk now is not in force
	TrustDomains []ForeignStatus `json:"trust_domains,omitempty"`
}

// A ForeignStatus says what is in force of another trust domain's bundle.
type ForeignStatus struct {
	TrustDomain string    `json:"trust_domain"`
	Endpoint    string    `json:"bundle_endpoint_url,omitempty"` // missing: the bundle comes from a file
	Profile     string    `json:"profile,omitempty"`
	File        string    `json:"bundle_file,omitempty"`
	Entries     int       `json:"entries"`            // that federate with it
	Sequence    uint64    `json:"sequence,omitempty"` // of the bundle; missing: none, or no bundle
	RootSHA256  []string  `json:"root_sha256"`        // of each root certificate, hexadecimal
	Keys        int       `json:"jwt_keys"`
	Since       time.Time `json:"since,omitzero"`   // these roots and keys are in force
	Fetched     time.Time `json:"fetched,omitzero"` // the endpoint's last good answer; missing: none
	Next        time.Time `json:"next,omitzero"`    // when the endpoint is asked
	Error       string    `json:"error,omitempty"`  // why the last attempt failed
}

// LogStatus says how far the attestation log has come.
type LogStatus struct {
	Dir        string    `json:"dir"`
	Records    uint64    `json:"records"`
	RootSHA256 string    `json:"root_sha256"` // of the Merkle tree, hexadecimal
	LastAnchor time.Time `json:"last_anchor"`
	Anchored   uint64    `json:"anchored"` // records that the last anchor covers
	Error      string    `json:"error,omitempty"`

	DiskBytes int64           `json:"disk_bytes"`
	MaxBytes  int64           `json:"max_bytes"`
	Witnesses []WitnessStatus `json:"witnesses,omitempty"`
}

// WitnessStatus says what a witness has signed of the log.
type WitnessStatus struct {
	Name    string    `json:"name"`
	URL     string    `json:"url"`
	Records uint64    `json:"records"`       // that it signed last
	Time    time.Time `json:"time,omitzero"` // when, by its clock
	Error   string    `json:"error,omitempty"`
}

// An Entry is a registration entry as it is listed.
type Entry struct {
	SPIFFEID     string   `json:"spiffe_id"`
	Selectors    []string `json:"selectors"`
	Position     string   `json:"position"` // file:line
	X509TTL      string   `json:"x509_svid_ttl"`
	JWTTTL       string   `json:"jwt_svid_ttl"`
	JWTAlgorithm string   `json:"jwt_algorithm,omitempty"` // missing: the first of authority.jwt_algorithms
	DNSNames     []string `json:"dns_names,omitempty"`     // of X509-SVIDs
	CommonName   string   `json:"cn,omitempty"`
	Hint         string   `json:"hint,omitempty"`
	Credentials  []string `json:"credentials,omitempty"` // names of those it may lease

	FederatesWith []string `json:"federates_with,omitempty"` // trust domains whose bundles it is given

	Unanchored bool      `json:"unanchored,omitempty"` // any user can arrange what it asks for
	Container  bool      `json:"container,omitempty"`  // it means processes of containers, and no others
	Disabled   *Disabled `json:"disabled,omitempty"`   // missing: the identity is in use
}

// An Explanation says what a process is, and what that entitles it to.
type Explanation struct {
	PID       int        `json:"pid"`
	Path      string     `json:"path"`
	Selectors []Selector `json:"selectors"`
	Matches   []Entry    `json:"matches"`
	Nearest   []NearMiss `json:"nearest"`             // entries that do not match, those that lack least first
	Gaps      []string   `json:"gaps"`                // facts that could not be established, and why
	HeldBack  string     `json:"held_back,omitempty"` // why newer entries are not in force
}

// A Selector is a selector and who vouches for it.
type Selector struct {
	Selector string `json:"selector"`
	Trust    string `json:"trust"`
}

// A NearMiss is an entry and what the process lacks for it.
type NearMiss struct {
	Entry
	Missing []string `json:"missing"`
}

// A Disabled is an identity that an administrator has cut off. An entry for it
// entitles nobody.
type Disabled struct {
	SPIFFEID string    `json:"spiffe_id"`
	Since    time.Time `json:"since"`
	By       uint32    `json:"by"` // the administrator's user ID
	Reason   string    `json:"reason,omitempty"`
}

// A Disabling says what became of an identity.
type Disabling struct {
	SPIFFEID   string `json:"spiffe_id"`
	Disabled   bool   `json:"disabled"`
	Changed    bool   `json:"changed"`              // it was not before
	Leases     int    `json:"leases"`               // of it that ended or are about to
	Unfinished string `json:"unfinished,omitempty"` // why not all have ended yet; the daemon keeps trying
}
