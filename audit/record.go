package audit

import "time"

// A Record is one decision. The log adds the version, the sequence number, the
// wall and monotonic times and the boot ID. Only these fields can be recorded:
// there is no map and no free-form value, so a secret has no way in.
//
// Text that comes from outside (paths, cgroups, reasons) may be any bytes; the
// encoding escapes what is not printable.
type Record struct {
	Event     Event
	RequestID string // ties the records of one request together
	SPIFFEID  string // the identity decided about, if any
	Outcome   Outcome
	Reason    string        // why, for everything but success
	Duration  time.Duration // from the request's arrival to this record

	Workload *Workload // who asked
	SVID     *SVID     // what was issued
	Key      *Key      // an authority key taken into use
	Node     *Node     // the machine's state
	Config   *Config   // what was loaded

	Federation *Federation // another trust domain's bundle
	SPIRE      *SPIRE      // what passed between this host and its SPIRE server

	Credential *Credential // a lease: asked for, granted, ended
	Use        *Use        // how a lease was used
	Call       *Call       // one that the proxy made, or did not
}

// An Event names what was decided. The names are stable: they are what an
// auditor filters by.
type Event string

// The events of the host's own life and of identities.
const (
	EventStart        Event = "daemon.start"         // Node, Config
	EventStop         Event = "daemon.stop"          //
	EventReload       Event = "config.reload"        // Config
	EventNode         Event = "node.attest"          // Node
	EventIssuingCA    Event = "authority.issuing_ca" // Key: a new issuing CA
	EventJWTKey       Event = "authority.jwt_key"    // Key: a new JWT signing key
	EventUpstream     Event = "authority.upstream"   // Key: a new certificate of the node key, by a server; failed: there is none
	EventWorkload     Event = "workload.attest"      // Workload: attested; denied where nothing matched
	EventX509SVID     Event = "x509_svid.issue"      // Workload, SVID
	EventJWTSVID      Event = "jwt_svid.issue"       // Workload, SVID
	EventWITSVID      Event = "wit_svid.issue"       // Workload, SVID
	EventBundle       Event = "bundle.fetch"         // Workload
	EventJWTValidated Event = "jwt_svid.validate"    // Workload, SVID
	EventRun          Event = "program.start"        // Workload: who had which program started (vouch run)
	EventStreamEnd    Event = "stream.end"           // Workload: a stream cut off, and why
	EventAdmin        Event = "admin.request"        // Workload: what an administrator asked the daemon to do
	EventWitness      Event = "log.witness"          // a witness refused the log: it saw another history of it
	EventFederation   Event = "federation.bundle"    // Federation: another trust domain's bundle, about to be in force, or refused
)

// The events of leased credentials. A grant and a revocation are two records
// each, the intent and the result, tied by the request ID, so that a crash
// between them shows.
const (
	EventLeaseIntent       Event = "lease.grant_intent"  // Workload, Credential: about to ask the source
	EventLeaseGrant        Event = "lease.grant"         // Workload, Credential
	EventLeaseRenew        Event = "lease.renew"         // Workload, Credential
	EventLeaseRevokeIntent Event = "lease.revoke_intent" // Credential: about to tell the source
	EventLeaseRevoke       Event = "lease.revoke"        // Credential
	EventLeaseEnd          Event = "lease.end"           // Credential: ran out by itself
	EventUse               Event = "credential.use"      // Workload, Credential, Use
)

// The events of calls that the proxy makes for a workload, with a credential that the
// workload does not have. The first is durable before the call is made; what came of
// it follows without anything waiting for it, under the same request ID.
const (
	EventCall    Event = "proxy.call"    // Workload, Credential, Call: about to be made; denied where it is not
	EventCallEnd Event = "proxy.outcome" // Workload, Credential, Call: what came of it
)

// The events of secrets that are sealed to the machine, each before it takes
// effect. Their Credential is the secret: its Handle names the value, NotAfter is
// when it is due to be rotated. Its uses are the grants whose Upstream is
// "sealed:" and its name.
const (
	EventSecretSeal   Event = "secret.seal"   // Workload: who asked; Credential: a value under a new name
	EventSecretRotate Event = "secret.rotate" // Workload, Credential: a value in the place of the last one
	EventSecretRemove Event = "secret.remove" // Workload, Credential: the value that is forgotten
	EventSecretUndo   Event = "secret.undo"   // Workload, Credential: what a migration replaced, about to be given back to who asked
)

// An Outcome is how a decision went.
type Outcome string

const (
	Success Outcome = "success"
	Denied  Outcome = "denied"
	Failed  Outcome = "error"
	Expired Outcome = "expired"
)

// A Workload is the process a decision was about, as it was attested.
type Workload struct {
	PID       int
	StartTime uint64 // clock ticks since boot, /proc/PID/stat field 22
	UID, GID  uint32
	Path      string // of the running program
	SHA256    string // of the running program, hexadecimal
	Device    uint64 // st_dev of the running program's file
	Inode     uint64
	Cgroup    string
	Unit      string   // system unit, if any
	Selectors []string // every attested selector
	Entry     string   // the registration entry that matched: file:line
}

// An SVID is an issued (or presented) identity document; never its key or
// signature.
type SVID struct {
	Kind     string // "x509", "jwt" or "wit"
	ID       string // serial number in hexadecimal, or the jti claim; empty: it has none
	SHA256   string // of the DER certificate, or of the compact token, hexadecimal
	KeyID    string // the issuing CA's subject key ID in hexadecimal, or the JWT's kid
	Audience []string

	CommonName string   // of an X509-SVID's subject
	DNSNames   []string // beside the SPIFFE ID
	NotBefore  time.Time
	NotAfter   time.Time

	Signing string // of a SPIRE server's: its spire.sign record
	Offline bool   // handed out while that server was away
}

// A Key is an authority key taken into use. An issuing CA brings its
// certificate and a JWT key its public key, so that what they signed can be
// traced from the log alone.
type Key struct {
	KeyID       string
	Certificate []byte // DER; an issuing CA's
	PublicKey   []byte // DER, SubjectPublicKeyInfo; a JWT key's
	NotBefore   time.Time
	NotAfter    time.Time
	Quote       []byte // TPM quote taken when the key was made, over the key; encoding is attest/node's
}

// A Node is the machine's state: which TPM, and how it booted.
type Node struct {
	EKSHA256       string // of the EK's public key, hexadecimal
	AKName         string // TPM name of the AK, hexadecimal
	PCRSHA256      string // digest over the quoted PCRs, hexadecimal
	EvidenceSHA256 string // digest of the evidence document, hexadecimal
	Resets         uint32 // the TPM's reset count: one more each boot
	Statement      []byte // what proves the keys, in the log's first record; encoding is attest/node's
}

// A Config is a configuration taken into force, or refused.
type Config struct {
	SHA256  string // over the files, hexadecimal
	Entries int
	Version string // of the daemon
}

// A Federation is a bundle of another trust domain. One without roots and keys has nothing
// of that trust domain trusted.
type Federation struct {
	TrustDomain string
	Source      string // the endpoint's URL, or the file
	Profile     string // of the endpoint: https_web or https_spiffe; empty: a file
	Sequence    uint64
	SHA256      string // over its roots and keys, hexadecimal; empty: none that could be read
	Roots       int
	Keys        int
}

// A Credential is a lease on a secret for a system outside SPIFFE; never the
// secret, and of the lease's ID only a keyed hash. The handle is how the source
// and its own log call what was granted.
type Credential struct {
	Lease        string // keyed hash of the lease's ID, hexadecimal
	Name         string // of the credential in the configuration
	Kind         string // of the source: vault, oauth, postgres
	Upstream     string // where it comes from: host or URL without a query
	ScopeAsked   string
	ScopeGranted string
	Audience     []string
	NotBefore    time.Time
	NotAfter     time.Time
	TTL          time.Duration // granted; whole seconds
	Handle       string        // at the source, such as a role's name
	Revocation   string        // what the source can do before it expires: hard, grant-wide or expiry-only
	Exposure     string        // where the values went, as the caller said: memory, file or environment
}

// A Call is a request that the proxy made with a credential. It has nothing of what was
// sent: no query, no header, no content. Its path is that of the rule which allowed it,
// so that names in it are not recorded; only of a refused one it is the request's own.
type Call struct {
	Door       string // by which it came: unix, http2, loopback, connect, sandbox, postgres or redis
	Processes  string // that made it by way of another, which has the lease: path and PID, with commas
	Authority  string // SHA-256 of the certificate by which that one looked into TLS, if it did
	Method     string // of HTTP; CONNECT or CANCEL of a database; of what leads nowhere, its kind, such as tcp or dns
	Path       string // of a database its name; of what leads nowhere, where to
	Rule       string // that allowed or refused it; empty if none matched
	Unenforced bool   // the rules would refuse it, but are only tried out
	Count      uint64 // of calls, where one record is for several
	Status     uint64 // of HTTP; 0 without an answer
	Sent       uint64 // bytes of content to the upstream
	Received   uint64 // bytes of content from it
	Rows       uint64 // of a database's connection: that came, or were changed
	Statements string // of one: how many of which command, SELECT=12,INSERT=1, and how many were refused
	Redacted   uint64 // how often the credential was in the response, and was taken out
	Shapes     string // of other secrets that were in the response, by name, with commas
	WithinTTL  bool   // the lease had not ended when the call had
}

// OfDatabase reports whether it is a connection to a database, which has no status and no
// rule.
func (c *Call) OfDatabase() bool { return c.Door == "postgres" || c.Door == "redis" }

// A Use sums up how a lease was used between two times.
type Use struct {
	First, Last time.Time
	Count       uint64
	WithinTTL   bool
	Source      string // who saw it: proxy, upstream or unknown
}
