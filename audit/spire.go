package audit

import "time"

// The events of a host that is the agent of a SPIRE server, each durable before it takes
// effect. What a workload is handed is an x509_svid.issue, jwt_svid.issue or wit_svid.issue
// as ever, whose SVID names its spire.sign.
const (
	EventSPIREAttest    Event = "spire.attest"    // SPIRE, Key: the agent's, quoted; denied or failed: why this host is no agent
	EventSPIREAuthority Event = "spire.authority" // SPIRE, Key: one of the server's, before a bundle that has it
	EventSPIREBundle    Event = "spire.bundle"    // SPIRE: about to be in force
	EventSPIREEntries   Event = "spire.entries"   // SPIRE: about to be in force
	EventSPIRESign      Event = "spire.sign"      // SPIRE, SVID: what the server signed, before it is used
	EventSPIREOffline   Event = "spire.offline"   // SPIRE: the server is away
	EventSPIREOnline    Event = "spire.online"    // SPIRE: it is back
)

// A SPIRE is what passed between this host and the SPIRE server whose agent it is. Each
// event sets what it is about.
type SPIRE struct {
	Server         string // host and port
	ServerSerial   string // of the SVID that it presented, hexadecimal
	Agent          string // this host's SPIFFE ID
	Attestor       string // how it proved which host it is
	EvidenceSHA256 string // of what it presented for that, hexadecimal
	SHA256         string // of the agent's SVID, the bundle or the entries, hexadecimal
	NotAfter       time.Time

	TrustDomain string   // whose bundle, or authority, it is
	Sequence    uint64   // of the bundle
	Authorities []string // in the bundle: key IDs, sorted
	Tainted     []string // of these, those that are no longer to be relied on

	Entries int      // in force
	Added   []string // entries' IDs
	Removed []string
	Changed []string

	Signing    string // a name of this signing
	Entry      string // the entry's ID
	Revision   uint64 // of the entry
	SPKISHA256 string // of the key that was signed, hexadecimal

	LastSync time.Time // when the server last answered
	Until    time.Time // what is served ends then at the latest, if the server stays away
}

func (c *codec) spire(v **SPIRE) {
	if !c.begin("spire", *v != nil) {
		return
	}
	x := made(c, v)
	c.texts("added", &x.Added, limitName, limitAudience)
	c.text("agent", &x.Agent, limitID)
	c.text("attestor", &x.Attestor, limitName)
	c.texts("authorities", &x.Authorities, 2*limitName, limitSelectors)
	c.texts("changed", &x.Changed, limitName, limitAudience)
	c.number("entries", &x.Entries)
	c.text("entry", &x.Entry, limitUnit)
	c.text("evidence_sha256", &x.EvidenceSHA256, limitName)
	c.time("last_sync", &x.LastSync, timeSeconds)
	c.time("not_after", &x.NotAfter, timeSeconds)
	c.texts("removed", &x.Removed, limitName, limitAudience)
	c.decimal("revision", &x.Revision)
	c.decimal("sequence", &x.Sequence)
	c.text("server", &x.Server, limitUnit)
	c.text("server_serial", &x.ServerSerial, 2*limitName)
	c.text("sha256", &x.SHA256, limitName)
	c.text("signing", &x.Signing, limitName)
	c.text("spki_sha256", &x.SPKISHA256, limitName)
	c.texts("tainted", &x.Tainted, 2*limitName, limitSelectors)
	c.text("trust_domain", &x.TrustDomain, limitUnit)
	c.time("until", &x.Until, timeSeconds)
	c.end()
}
