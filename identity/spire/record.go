package spire

import (
	"context"
	"time"
)

// A Recorder makes each event durable in the log before it takes effect, which its error
// prevents.
type Recorder interface {
	Attested(ctx context.Context, a Attestation) error    // also that it was refused
	Authorities(ctx context.Context, a []Authority) error // those that are new in a bundle, before it
	Bundle(ctx context.Context, b BundleChange) error
	Entries(ctx context.Context, e EntriesChange) error
	Signed(ctx context.Context, s []Signing) error // before first use
	Reached(ctx context.Context, r Reach) error    // the server is away, or back
}

// An Attestation is this host's to the server. Digests are SHA-256 in hexadecimal.
type Attestation struct {
	Server, ServerSerial string // host and port; serial of the SVID that it presented, hexadecimal
	Agent, Attestor      string // this host's SPIFFE ID
	EvidenceSHA256       string // of what was presented
	Key                  []byte // the agent's, DER SubjectPublicKeyInfo
	Serial, SHA256       string // of the agent's SVID
	NotAfter             time.Time
	Failure              error // why there is none
	Banned               bool
}

// An Authority verifies what the server signs.
type Authority struct {
	TrustDomain string
	ID          string // an X.509 authority's subject key ID in hexadecimal, or a key's kid
	SHA256      string // of Certificate or PublicKey
	Certificate []byte // DER; nil for a key of tokens
	WIT         bool   // which are WIT-SVIDs, and not JWT-SVIDs
	PublicKey   []byte // DER SubjectPublicKeyInfo
	NotAfter    time.Time
	Tainted     bool // no longer to be relied on
}

// A BundleChange is a bundle that is about to be in force.
type BundleChange struct {
	TrustDomain string
	Sequence    uint64
	SHA256      string   // over its authorities
	X509, Keys  []string // the authorities' IDs, sorted
	Tainted     []string // of both
}

// An EntriesChange is what makes the entries about to be in force differ.
type EntriesChange struct {
	Count                   int
	SHA256                  string
	Added, Removed, Changed []string // entry IDs, sorted, at most maxNamed each
	More                    int      // that are not named
}

// A Signing is an SVID that the server has signed.
type Signing struct {
	ID         string // names it
	Kind       string // x509, jwt or wit
	Entry      string // its ID
	Revision   int64  // of the entry
	SPIFFEID   string
	SPKISHA256 string // of the key of an X509-SVID or WIT-SVID
	Serial     string // or jti, which may be empty
	SHA256     string // of the certificate or token
	KeyID      string // of the bundle's authority that it leads to
	Audience   []string
	NotAfter   time.Time
}

// A Reach is that the server is away, or back.
type Reach struct {
	Server   string
	Online   bool
	LastSync time.Time
	Until    time.Time // what is served ends then at the latest, if it stays away
	Cause    error     // of its being away
}

// maxNamed bounds the entries that a record names.
const maxNamed = 20
