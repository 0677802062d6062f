package view

import (
	"encoding/json"
	"time"
)

// TPMTime is how long a request may take that a TPM answers: one on a slow bus
// takes most of a minute for one key.
const TPMTime = 3 * time.Minute

// An Enrolment says whose certificate the node has.
type Enrolment struct {
	TrustDomain string    `json:"trust_domain"`
	RootSHA256  string    `json:"root_sha256"` // of the root's certificate (DER), hexadecimal
	Serial      string    `json:"serial"`      // of the node's CA certificate, hexadecimal
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`       // of the chain's first to end
	InForce     bool      `json:"in_force"`        // whether this daemon issues under it
	Agent       string    `json:"agent,omitempty"` // the host's name, where it is one to join a SPIRE server with; otherwise it makes the node key a CA
}

// A NodeStatus says whether the machine satisfies its appraisal policy.
type NodeStatus struct {
	State     string          `json:"state"` // NodePassed, NodeFailed, NodeUnknown or NodeNotAppraised
	Policy    string          `json:"policy"`
	Checked   time.Time       `json:"checked,omitzero"` // when it was last appraised
	Evidence  string          `json:"evidence_sha256,omitempty"`
	Selectors []string        `json:"selectors"` // what entries can ask of the node
	Result    json.RawMessage `json:"result,omitempty"`
	Bound     bool            `json:"keys_bound"`      // to approved boot states
	Agent     *Enrolment      `json:"agent,omitempty"` // the certificate by which this host joins a SPIRE server
	Enrolment *Enrolment      `json:"enrolment,omitempty"`
}

// The states of a node.
const (
	NodePassed       = "passed"
	NodeFailed       = "failed"        // issues nothing
	NodeUnknown      = "unknown"       // has a policy and no appraisal could be made: issues nothing
	NodeNotAppraised = "not appraised" // has no policy
)

// A Bundle is what verifies everything that this host issues. There is no
// secret in it.
type Bundle struct {
	TrustDomain string          `json:"trust_domain"`
	JWTIssuer   string          `json:"jwt_issuer"` // the iss claim of JWT-SVIDs
	Sequence    uint64          `json:"sequence"`   // rises with every change
	X509        []byte          `json:"x509"`       // root certificates, DER, concatenated
	JWKS        json.RawMessage `json:"jwks"`       // of use jwt-svid (Workload API §6.2.2)
	// JWKSGoodUntil is when a copy of the JWKS lacks a key that signs; missing:
	// never.
	JWKSGoodUntil time.Time `json:"jwks_good_until,omitzero"`
}
