package audit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// LeafVersion is the version of the leaf's form that this code writes, and the
// highest that it reads. The schema is in schema/record.v1.json.
const LeafVersion = 1

// A Leaf is a record as it stands in the log: what the caller recorded and what
// the log added. Text is in its escaped form (see [Escape]), so it may be
// printed.
type Leaf struct {
	Version int
	Index   uint64        // in the log, from 0
	Time    time.Time     // of the wall clock, to the microsecond
	Mono    time.Duration // since the machine's boot, suspension included
	BootID  string        // of the kernel: Mono compares only within one boot
	Record
	Log *LogEvent // in the log's records about itself
}

// A LogEvent is what the log records about itself.
type LogEvent struct {
	Key    string // [EventSegment]: the log's public key, as a note verifier key; [EventRestart]: that of the log before
	Last   uint64 // [EventSegment]: index of the last anchor; 0 where there is none
	Size   uint64 // [EventAnchor]: records that the anchor covers; [EventPrune]: records removed from the front; [EventRestart]: that the log before was known to have
	Root   string // [EventAnchor]: of the tree with Size records, in base64
	Anchor []byte // [EventAnchor]: what the TPM made; encoding is attest/node's

	Repeated  bool   // in a key's record: it is from before the segment, and said again
	Cut       uint64 // [EventRecover]: bytes of an unfinished batch cut off the end
	CutSHA256 string // digest of them, hexadecimal
	Refused   uint64 // [EventRecover]: records refused while the log could not be written
}

// The records that only the log itself writes.
const (
	EventSegment      Event = "log.segment"       // Log, Node: a new segment, with what is needed to read it alone
	EventAnchorIntent Event = "log.anchor_intent" // the TPM is about to anchor everything up to here
	EventAnchor       Event = "log.anchor"        // Log: the anchor, or why there is none
	EventPrune        Event = "log.prune"         // Log: retention removes the oldest records
	EventRecover      Event = "log.recover"       // Log: an unfinished end was cut off, or writing works again
	EventRestart      Event = "log.restart"       // Log: an administrator had this log begun in place of another
)

// Known tells whether the event is one of those that can be recorded.
func (e Event) Known() bool {
	_, known := events[e]
	return known
}

// Events returns every event that can be recorded, by name.
func Events() []Event { return slices.Sorted(maps.Keys(events)) }

// OfLog tells whether only the log itself records the event.
func (e Event) OfLog() bool { return events[e] }

// events lists every event; nothing else can be recorded. The value says
// whether only the log itself may.
var events = map[Event]bool{
	EventStart: false, EventStop: false, EventReload: false, EventNode: false,
	EventIssuingCA: false, EventJWTKey: false, EventUpstream: false, EventWorkload: false,
	EventX509SVID: false, EventJWTSVID: false, EventWITSVID: false, EventBundle: false,
	EventJWTValidated: false, EventStreamEnd: false, EventRun: false, EventAdmin: false, EventWitness: false, EventFederation: false,
	EventSPIREAttest: false, EventSPIREAuthority: false, EventSPIREBundle: false, EventSPIREEntries: false,
	EventSPIRESign: false, EventSPIREOffline: false, EventSPIREOnline: false,
	EventLeaseIntent: false, EventLeaseGrant: false, EventLeaseRenew: false,
	EventLeaseRevokeIntent: false, EventLeaseRevoke: false, EventLeaseEnd: false, EventUse: false, EventCall: false, EventCallEnd: false,
	EventSecretSeal: false, EventSecretRotate: false, EventSecretRemove: false, EventSecretUndo: false,
	EventSegment: true, EventAnchorIntent: true, EventAnchor: true, EventPrune: true, EventRecover: true, EventRestart: true,
}

// MaxStatement bounds [Node].Statement, in bytes, so that every segment can
// repeat it.
const MaxStatement = 10 << 10

// Limits of texts, in bytes of JSON. Together they stay under MaxLeaf, so a
// record without binary data always fits.
const (
	limitName      = 64   // digests, key IDs, kinds, boot IDs
	limitReason    = 1024 //
	limitID        = 2048 // SPIFFE-ID §2.3: at most 2048 bytes
	limitPath      = 2048 // paths and cgroups
	limitUnit      = 256  // systemd's limit on unit names
	limitEntry     = 512
	limitSelector  = 1024 // one
	limitSelectors = 3072 // all
	limitAudience  = 1024 // all
	limitDNSNames  = 1280 // all; identity bounds them to fewer
)

// AppendLeaf appends the leaf's canonical form to b.
func AppendLeaf(b []byte, l *Leaf) ([]byte, error) {
	c := codec{b: b}
	c.leaf(l)
	if c.err == nil && len(c.b)-len(b) > MaxLeaf {
		c.fail("leaf has %d bytes, more than %d", len(c.b)-len(b), MaxLeaf)
	}
	if c.err != nil {
		return b, fmt.Errorf("encoding %s record: %w", Escape(string(l.Event)), c.err)
	}
	return c.b, nil
}

// DecodeLeaf reads a leaf. It accepts exactly what the log writes: canonical
// JSON (RFC 8785) with known fields only.
func DecodeLeaf(raw []byte) (Leaf, error) {
	var l Leaf
	if len(raw) > MaxLeaf {
		return Leaf{}, fmt.Errorf("leaf has %d bytes, more than %d", len(raw), MaxLeaf)
	}
	c := codec{b: raw, reading: true}
	c.leaf(&l)
	if c.err == nil && c.pos != len(raw) {
		c.err = errTrailing
	}
	if c.err != nil {
		return Leaf{}, fmt.Errorf("decoding leaf: %w", c.err)
	}
	return l, nil
}

// leaf describes the form: every field in the order of names (RFC 8785 §3.2.3).
func (c *codec) leaf(l *Leaf) {
	c.byte('{')
	c.needText("boot", &l.BootID, limitName)
	c.call(&l.Call)
	c.config(&l.Config)
	c.credential(&l.Credential)
	c.micros("duration_us", &l.Duration)
	c.name("event", (*string)(&l.Event))
	c.federation(&l.Federation)
	c.issuingKey(&l.Key)
	c.logEvent(&l.Log)
	c.micros("mono_us", &l.Mono)
	c.node(&l.Node)
	c.name("outcome", (*string)(&l.Outcome))
	c.text("reason", &l.Reason, limitReason)
	c.text("request_id", &l.RequestID, limitName)
	c.needUint("seq", &l.Index)
	c.text("spiffe_id", &l.SPIFFEID, limitID)
	c.spire(&l.SPIRE)
	c.svid(&l.SVID)
	c.time("time", &l.Time, timeMicros)
	c.use(&l.Use)
	version := uint64(l.Version)
	c.needUint("v", &version)
	l.Version = int(version)
	c.workload(&l.Workload)
	c.end()
	if c.err == nil {
		c.err = l.check()
	}
}

// check refuses what no part of the description can.
func (l *Leaf) check() error {
	switch {
	case l.Version != LeafVersion:
		return fmt.Errorf("version %d is not known here; a newer vouch may read it", l.Version)
	case !l.Event.Known():
		return fmt.Errorf("unknown event \"%s\"", Escape(string(l.Event)))
	case !l.Event.OfLog() && l.Log != nil && !(l.Log.Repeated && l.Key != nil):
		return fmt.Errorf("event %s brings the log's own fields", l.Event)
	case l.Outcome != Success && l.Outcome != Denied && l.Outcome != Failed && l.Outcome != Expired:
		return fmt.Errorf("unknown outcome \"%s\"", Escape(string(l.Outcome)))
	case l.Time.IsZero():
		return errors.New("time is missing")
	}
	return nil
}

// name is a needed text from this package's own lists: check judges it.
func (c *codec) name(name string, v *string) { c.needText(name, v, limitName) }

func (c *codec) call(v **Call) {
	if !c.begin("call", *v != nil) {
		return
	}
	x := made(c, v)
	c.text("authority", &x.Authority, limitName)
	c.uint("count", &x.Count)
	c.text("door", &x.Door, limitName)
	c.text("method", &x.Method, limitName)
	c.text("path", &x.Path, limitReason)
	c.text("processes", &x.Processes, limitReason)
	c.uint("received", &x.Received)
	c.uint("redacted", &x.Redacted)
	c.uint("rows", &x.Rows)
	c.text("rule", &x.Rule, limitName)
	c.uint("sent", &x.Sent)
	c.text("shapes", &x.Shapes, limitReason)
	c.text("statements", &x.Statements, limitReason)
	c.uint("status", &x.Status)
	c.flag("unenforced", &x.Unenforced)
	c.flag("within_ttl", &x.WithinTTL)
	c.end()
}

func (c *codec) config(v **Config) {
	if !c.begin("config", *v != nil) {
		return
	}
	x := made(c, v)
	c.number("entries", &x.Entries)
	c.text("sha256", &x.SHA256, limitName)
	c.text("version", &x.Version, limitName)
	c.end()
}

func (c *codec) credential(v **Credential) {
	if !c.begin("credential", *v != nil) {
		return
	}
	x := made(c, v)
	c.texts("audience", &x.Audience, limitSelector, limitAudience)
	c.text("exposure", &x.Exposure, limitName)
	c.text("handle", &x.Handle, limitUnit)
	c.text("kind", &x.Kind, limitName)
	c.text("lease", &x.Lease, limitName)
	c.text("name", &x.Name, limitUnit)
	c.time("not_after", &x.NotAfter, timeSeconds)
	c.time("not_before", &x.NotBefore, timeSeconds)
	c.text("revocation", &x.Revocation, limitName)
	c.text("scope_asked", &x.ScopeAsked, limitReason)
	c.text("scope_granted", &x.ScopeGranted, limitReason)
	ttl := uint64(max(0, x.TTL/time.Second))
	c.uint("ttl_s", &ttl)
	if c.reading {
		x.TTL = time.Duration(min(ttl, maxInt/uint64(time.Second))) * time.Second
	}
	c.text("upstream", &x.Upstream, limitUnit)
	c.end()
}

func (c *codec) federation(v **Federation) {
	if !c.begin("federation", *v != nil) {
		return
	}
	x := made(c, v)
	c.number("keys", &x.Keys)
	c.text("profile", &x.Profile, limitName)
	c.number("roots", &x.Roots)
	c.decimal("sequence", &x.Sequence)
	c.text("sha256", &x.SHA256, limitName)
	c.text("source", &x.Source, limitReason)
	c.text("trust_domain", &x.TrustDomain, limitUnit)
	c.end()
}

// number is a count, absent when it is none.
func (c *codec) number(name string, v *int) {
	n := uint64(max(0, *v))
	c.uint(name, &n)
	*v = int(n)
}

func (c *codec) issuingKey(v **Key) {
	if !c.begin("key", *v != nil) {
		return
	}
	x := made(c, v)
	c.bytes("certificate", &x.Certificate)
	c.text("key_id", &x.KeyID, limitName)
	c.time("not_after", &x.NotAfter, timeSeconds)
	c.time("not_before", &x.NotBefore, timeSeconds)
	c.bytes("public_key", &x.PublicKey)
	c.bytes("quote", &x.Quote)
	c.end()
}

func (c *codec) logEvent(v **LogEvent) {
	if !c.begin("log", *v != nil) {
		return
	}
	x := made(c, v)
	c.bytes("anchor", &x.Anchor)
	c.uint("cut", &x.Cut)
	c.text("cut_sha256", &x.CutSHA256, limitName)
	c.text("key", &x.Key, limitReason)
	c.uint("last_anchor", &x.Last)
	c.uint("refused", &x.Refused)
	c.flag("repeated", &x.Repeated)
	c.text("root", &x.Root, limitName)
	c.uint("size", &x.Size)
	c.end()
}

func (c *codec) node(v **Node) {
	if !c.begin("node", *v != nil) {
		return
	}
	x := made(c, v)
	c.text("ak_name", &x.AKName, 2*limitName)
	c.text("ek_sha256", &x.EKSHA256, limitName)
	c.text("evidence_sha256", &x.EvidenceSHA256, limitName)
	c.text("pcr_sha256", &x.PCRSHA256, limitName)
	resets := uint64(x.Resets)
	c.uint("resets", &resets)
	if resets > 1<<32-1 {
		c.fail("resets is %d, more than a TPM can count", resets)
	}
	x.Resets = uint32(resets)
	if len(x.Statement) > MaxStatement {
		c.fail("statement has %d bytes, more than %d", len(x.Statement), MaxStatement)
	}
	c.bytes("statement", &x.Statement)
	c.end()
}

func (c *codec) svid(v **SVID) {
	if !c.begin("svid", *v != nil) {
		return
	}
	x := made(c, v)
	c.texts("audience", &x.Audience, limitSelector, limitAudience)
	c.text("common_name", &x.CommonName, limitUnit)
	c.texts("dns_names", &x.DNSNames, limitUnit, limitDNSNames)
	c.text("id", &x.ID, 2*limitName)
	c.text("key_id", &x.KeyID, 2*limitName)
	c.text("kind", &x.Kind, limitName)
	c.time("not_after", &x.NotAfter, timeSeconds)
	c.time("not_before", &x.NotBefore, timeSeconds)
	c.flag("offline", &x.Offline)
	c.text("sha256", &x.SHA256, limitName)
	c.text("signing", &x.Signing, limitName)
	c.end()
}

func (c *codec) use(v **Use) {
	if !c.begin("use", *v != nil) {
		return
	}
	x := made(c, v)
	c.uint("count", &x.Count)
	c.time("first", &x.First, timeMicros)
	c.time("last", &x.Last, timeMicros)
	c.text("source", &x.Source, limitName)
	c.flag("within_ttl", &x.WithinTTL)
	c.end()
}

func (c *codec) workload(v **Workload) {
	if !c.begin("workload", *v != nil) {
		return
	}
	x := made(c, v)
	c.text("cgroup", &x.Cgroup, limitPath)
	c.decimal("device", &x.Device)
	c.text("entry", &x.Entry, limitEntry)
	c.id("gid", &x.GID)
	c.decimal("inode", &x.Inode)
	c.text("path", &x.Path, limitPath)
	pid := uint64(max(0, x.PID))
	c.needUint("pid", &pid)
	x.PID = int(pid)
	c.texts("selectors", &x.Selectors, limitSelector, limitSelectors)
	c.text("sha256", &x.SHA256, limitName)
	c.needUint("start_time", &x.StartTime)
	c.id("uid", &x.UID)
	c.text("unit", &x.Unit, limitUnit)
	c.end()
}

// id is a user or group ID: always there, since 0 means root and not nothing.
func (c *codec) id(name string, v *uint32) {
	n := uint64(*v)
	c.needUint(name, &n)
	if n > 1<<32-1 {
		c.fail("%s is %d, more than an ID can be", name, n)
	}
	*v = uint32(n)
}

// made returns the part to describe: the caller's, or a new one to read into.
func made[T any](c *codec, v **T) *T {
	if c.reading {
		*v = new(T)
	}
	return *v
}
