package reader

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// A chain follows what the records say, one after the other: from the TPM's
// statement to the keys, from the keys to the SVIDs, from intents to results,
// and the anchors' counter. The tree proves that the records are the log's; the
// chain tells whether they are a history that can have happened.
type chain struct {
	o      VerifyOptions
	rep    *Report
	vkey   string
	origin string

	index   uint64 // of the record at hand
	begun   bool
	time    time.Time
	mono    time.Duration
	boot    string
	running bool   // between start and stop
	newBoot bool   // no start since the boot ID changed
	news    uint64 // size up to the last record that deserves an anchor
	pruned  uint64 // how many records retention says that it removed

	node      *audit.NodeFacts
	statement [32]byte // digest of the one that node comes from
	whole     bool     // this copy has brought everything that its records rest on

	keys    map[string]keySpan
	server  server
	intents intents

	announced *leafAt // an anchor that is about to come
	lost      uint64  // announcements without an anchor since the last one
	anchor    *audit.AnchorFacts
	unchecked uint64 // anchors that nobody checked
}

// A keySpan is when an authority key may sign.
type keySpan struct {
	event    audit.Event
	from, to time.Time
}

// maxKeys bounds how many authority keys are remembered.
const maxKeys = 4096

func newChain(o VerifyOptions, r *Report) *chain {
	return &chain{o: o, rep: r, keys: map[string]keySpan{}, intents: intents{}}
}

func (c *chain) record(l *leafAt) {
	c.index = l.Index
	c.rep.Events[l.Event]++
	c.clock(&l.Leaf)
	if format.DeservesAnchor(&l.Leaf) {
		c.news = l.Index + 1
	}
	switch l.Event {
	case audit.EventStart, audit.EventStop:
		c.life(&l.Leaf)
	case audit.EventSegment:
		c.segment(&l.Leaf)
	case audit.EventRecover:
		c.recovered(l.Log)
	case audit.EventRestart:
		c.restarted(l.Log, l.Reason)
	case audit.EventPrune:
		if l.Log != nil {
			c.pruned = max(c.pruned, l.Log.Size)
		}
	case audit.EventWitness:
		c.warn("witness-refused", l.Reason,
			"the log was set back, or has two histories, or the witness errs: hold the log against what the witness signed last")
	case audit.EventAnchorIntent:
		c.announce(l)
	case audit.EventAnchor:
		c.anchored(&l.Leaf)
	case audit.EventUpstream:
		c.certified(l.Key)
	case audit.EventIssuingCA, audit.EventJWTKey:
		c.key(&l.Leaf)
	case audit.EventSPIREAttest, audit.EventSPIREAuthority, audit.EventSPIREBundle, audit.EventSPIRESign:
		c.spire(&l.Leaf)
	case audit.EventX509SVID, audit.EventJWTSVID, audit.EventWITSVID:
		c.svid(&l.Leaf)
	case audit.EventLeaseIntent, audit.EventLeaseGrant, audit.EventLeaseRevokeIntent, audit.EventLeaseRevoke, audit.EventLeaseEnd:
		c.intents.take(&l.Leaf)
	}
	if l.Node != nil && len(l.Node.Statement) > 0 {
		c.state(l.Node)
	}
}

// clock checks that time goes forward. The wall clock may be set; the time since
// boot can't.
func (c *chain) clock(l *audit.Leaf) {
	if !c.begun {
		c.begun, c.whole = true, l.Index == 0
		c.rep.From = l.Time
		c.newBoot = false
	} else if l.BootID != c.boot {
		c.newBoot = true
	} else if l.Mono < c.mono {
		c.fail("monotonic-back", fmt.Sprintf("the time since boot goes back by %v", c.mono-l.Mono),
			"the record was not written at this place in the log")
	}
	if back := c.time.Sub(l.Time); back > time.Second {
		c.warn("clock-back", fmt.Sprintf("the wall clock went back by %v", back.Round(time.Second)),
			"the clock was set; order and distance of records hold by the time since boot")
	}
	if c.newBoot && !l.Event.OfLog() && l.Event != audit.EventStart {
		c.fail("boot-without-start", "the machine was booted, and the daemon recorded no start", "a daemon that did not record its start wrote this, or that record was removed")
		c.newBoot = false
	}
	c.time, c.mono, c.boot = l.Time, l.Mono, l.BootID
	c.rep.To = l.Time
}

func (c *chain) life(l *audit.Leaf) {
	if l.Event == audit.EventStop {
		c.running = false
		return
	}
	if c.running {
		c.warn("unclean-stop", "the daemon started again without having stopped",
			"it was killed, or crashed, or the machine lost power; its last records before this may not have been anchored")
	}
	c.running, c.newBoot = true, false
}

func (c *chain) segment(l *audit.Leaf) {
	c.whole = true
	if l.Log == nil || l.Log.Key != c.vkey {
		c.fail("foreign-segment", "the segment's first record names another key than the log's", "records of another log were put here")
	}
}

func (c *chain) restarted(e *audit.LogEvent, reason string) {
	message := "an administrator had this log begun in place of another: " + reason
	if e != nil && e.Key != "" {
		message = fmt.Sprintf("an administrator had this log begun in place of one of at least %d records, of the key %s: %s", e.Size, e.Key, reason)
	}
	c.warn("log-restarted", message, "what was recorded before is in that other log, or lost")
}

func (c *chain) recovered(e *audit.LogEvent) {
	switch {
	case e == nil:
	case e.Cut > 0:
		c.warn("recovered", fmt.Sprintf("an unfinished batch of %d bytes was cut off the end before this record", e.Cut),
			"a crash leaves such a batch; no caller was told that it was written")
	case e.Refused > 0:
		c.warn("was-unwritable", fmt.Sprintf("the log could not be written, and %d records were refused", e.Refused),
			"the disk was full or failed; what those records spoke of did not happen")
	}
}

// state checks the TPM's statement on the machine's keys.
func (c *chain) state(n *audit.Node) {
	sum := sha256.Sum256(n.Statement)
	if c.o.TPM == nil || c.node != nil && sum == c.statement {
		return
	}
	key, err := publicKey(c.vkey)
	if err != nil {
		c.fail("statement", err.Error(), "the log's key is none that a TPM could vouch for")
		return
	}
	facts, err := c.o.TPM.Statement(n.Statement, key)
	if err != nil {
		c.fail("statement", err.Error(), "it is not proved that the keys of this log belong to the machine's TPM")
		return
	}
	if c.node != nil && facts.EKSHA256 != c.node.EKSHA256 {
		c.fail("other-machine", "the statement is of another TPM than the one before", "from here on another machine wrote, or the log was moved")
	} else if c.node != nil && facts.AKName != c.node.AKName {
		c.fail("other-ak", "the statement is of another AK than the one before", "the TPM was cleared, or somebody replaced its keys; a new log should have begun")
	}
	if n.EKSHA256 != "" && n.EKSHA256 != facts.EKSHA256 || n.AKName != "" && n.AKName != facts.AKName {
		c.fail("statement", "the record names other keys than its statement proves", "the daemon wrote down another machine than it runs on")
	}
	c.node, c.statement = &facts, sum
	c.rep.EKSHA256, c.rep.AKName = printed(facts.EKSHA256), printed(facts.AKName)
}

// key takes an authority key into account.
func (c *chain) key(l *audit.Leaf) {
	if l.Outcome != audit.Success || l.Key == nil {
		return
	}
	span := keySpan{event: l.Event, from: l.Key.NotBefore, to: l.Key.NotAfter}
	if l.Event == audit.EventIssuingCA {
		cert, err := x509.ParseCertificate(l.Key.Certificate)
		if err != nil {
			c.fail("issuing-ca", "the issuing CA's certificate can't be read: "+err.Error(), "what it signed can't be traced")
			return
		}
		if !strings.EqualFold(fmt.Sprintf("%x", cert.SubjectKeyId), l.Key.KeyID) ||
			len(l.Key.PublicKey) > 0 && !bytes.Equal(l.Key.PublicKey, cert.RawSubjectPublicKeyInfo) {
			c.fail("issuing-ca", "the record names another key than the issuing CA's certificate", "what it signed can't be traced")
		}
		if c.node != nil && c.node.NodeKey != nil {
			root := &x509.Certificate{PublicKey: c.node.NodeKey}
			if err := root.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
				c.fail("issuing-ca", "the issuing CA is not signed by the machine's node key", "SVIDs that it signed do not lead back to the TPM")
			}
		}
		span.from, span.to = cert.NotBefore, cert.NotAfter
	}
	c.quoted(l.Key)
	if len(c.keys) >= maxKeys {
		for id, k := range c.keys {
			if k.to.Before(l.Time.Add(-24 * time.Hour)) {
				delete(c.keys, id)
			}
		}
	}
	if len(c.keys) < maxKeys {
		c.keys[strings.ToLower(l.Key.KeyID)] = span
	}
}

// certified checks that a certificate of the node key is one.
func (c *chain) certified(k *audit.Key) {
	if k == nil || c.node == nil || c.node.NodeKey == nil {
		return
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if of, ok := c.node.NodeKey.(interface{ Equal(crypto.PublicKey) bool }); err != nil || !ok || !of.Equal(cert.PublicKey) {
		c.fail("upstream", "the certificate is not one of the machine's node key", "what is below it does not lead back to the TPM")
	}
}

// quoted checks the quote that was taken as the key was made.
func (c *chain) quoted(k *audit.Key) {
	v, ok := c.o.TPM.(audit.QuoteVerifier)
	if !ok || c.node == nil || len(k.Quote) == 0 {
		return
	}
	if err := v.Quote(k.Quote, sha256.Sum256(k.PublicKey)); err != nil {
		c.fail("key-quote", err.Error(), "it is not proved in which boot state the key was made")
	}
}

// svid checks that an issued SVID was signed by a key of the log.
func (c *chain) svid(l *audit.Leaf) {
	if l.Outcome != audit.Success || l.SVID == nil {
		return
	}
	if l.SVID.Signing != "" {
		c.handedOut(l)
		return
	}
	want := audit.EventIssuingCA
	if l.Event == audit.EventJWTSVID {
		want = audit.EventJWTKey
	}
	k, ok := c.keys[strings.ToLower(l.SVID.KeyID)]
	switch {
	case (!ok || k.event != want) && !c.whole:
		c.add(Note, "svid-key-earlier", "the key that signed the SVID is not in this copy", "it was recorded before this copy begins")
	case !ok || k.event != want:
		c.fail("svid-without-key", fmt.Sprintf("no %s record before this has the SVID's key %s", want, l.SVID.KeyID),
			"the SVID does not lead back to a key of this machine's TPM")
	case !k.to.IsZero() && l.SVID.NotAfter.After(k.to), l.SVID.NotBefore.Before(k.from):
		c.fail("svid-outlives-key", "the SVID is valid when its key is not", "the daemon does not issue such an SVID")
	}
}

// announce remembers where the next anchor must hold.
func (c *chain) announce(l *leafAt) {
	if c.announced != nil {
		c.lost++
	}
	c.announced = &leafAt{Leaf: audit.Leaf{Index: l.Index}, root: l.root}
}

func (c *chain) anchored(l *audit.Leaf) {
	a := c.announced
	c.announced = nil
	switch {
	case !c.whole && (a == nil || c.node == nil):
		c.add(Note, "anchor-earlier", "the anchor rests on records from before this copy", "it was not checked; later ones are")
		return
	case a == nil || l.Log == nil:
		c.fail("anchor-unannounced", "an anchor that no record announced", "the announcement was removed")
		return
	case l.Outcome != audit.Success:
		c.lost++
		c.warn("anchor-failed", "the TPM made no anchor: "+l.Reason, "records wait for the next anchor; until then their end could be cut off unseen")
		return
	case l.Log.Size != a.Index+1 || l.Log.Root != base64.StdEncoding.EncodeToString(a.root[:]):
		c.fail("anchor-mismatch", "the anchor is of another state than the one announced", "records before it were changed, or it was taken from another log")
		return
	}
	c.rep.Anchors++
	if c.o.TPM == nil {
		c.unchecked++
		c.rep.Anchored = l.Log.Size
		return
	}
	if c.node == nil {
		c.fail("anchor-without-statement", "an anchor before any statement on the TPM's keys", "it can't be told which TPM made it")
		return
	}
	digest := format.AnchorDigest(c.vkey, audit.Checkpoint{Origin: c.origin, Size: l.Log.Size, Root: a.root})
	facts, err := c.o.TPM.Anchor(l.Log.Anchor, digest)
	if err != nil {
		c.fail("anchor-invalid", err.Error(), "the machine's TPM did not make this anchor over these records")
		return
	}
	c.count(facts)
	c.rep.AnchorsByTPM = true
	c.rep.Anchored, c.rep.Counter = l.Log.Size, facts.Counter
}

// count checks that no anchor is missing between this one and the last.
func (c *chain) count(facts audit.AnchorFacts) {
	last, lost := c.anchor, c.lost
	c.anchor, c.lost = &facts, 0
	if last == nil {
		c.rep.FirstCounter = facts.Counter
		if born := c.node.Born; born > 0 && c.rep.First == 0 && facts.Counter > born {
			c.fail("begun-anew", fmt.Sprintf("the log's first anchor has the counter's value %d, and its key was made at %d", facts.Counter, born),
				"an earlier log of this key was removed, with its anchors")
		}
		return
	}
	switch step := facts.Counter - last.Counter; {
	case facts.Index != last.Index:
		c.fail("other-counter", "the TPM's counter was removed and defined anew", "anchors made in between, and the records before them, could have been dropped")
	case facts.Counter < last.Counter:
		c.fail("counter-back", fmt.Sprintf("the TPM's counter goes from %d to %d", last.Counter, facts.Counter), "anchors were swapped, or copied from elsewhere")
	case step == 0:
		c.warn("anchor-not-final", fmt.Sprintf("two anchors have the counter's value %d", facts.Counter), "the daemon was interrupted, or the TPM failed, before the first was counted; both hold")
	case step > 1 && step-1 <= lost:
		c.fail("counter-gap", fmt.Sprintf("the TPM's counter goes from %d to %d: %d anchors are missing, and as many were announced", last.Counter, facts.Counter, step-1),
			"records were removed before this one; or the daemon was interrupted while it made an anchor in one step, which can't be told apart")
	case step > 1:
		c.fail("counter-gap", fmt.Sprintf("the TPM's counter goes from %d to %d: %d anchors are missing", last.Counter, facts.Counter, step-1),
			"records were removed before this one, or an older copy of the log was put in its place")
	}
	if back := int32(last.Resets - facts.Resets); back > 0 { // the TPM offsets the count, modulo 2^32
		c.fail("resets-back", fmt.Sprintf("the TPM's reset count goes back by %d", back), "the anchors are not in the order they were made in, or the TPM was cleared")
	}
}

// end says what the end of the log leaves open.
func (c *chain) end(size uint64) {
	open := Failure
	if c.o.Live {
		open = Note
	}
	c.index = max(size, 1) - 1
	if at, first := max(c.o.From, c.pruned), c.rep.First; first > at {
		c.rep.add(Finding{Severity: Failure, Name: "records-missing", Index: &at, Message: fmt.Sprintf("records %d to %d are missing", at, first-1),
			Meaning: "no record says that retention removed them; if this copy is known to begin later, say from where"})
	} else if first > c.o.From {
		c.add(Warning, "records-pruned", fmt.Sprintf("records %d to %d are gone, and a record says that retention removed them", c.o.From, first-1),
			"the bound on the log's size was reached, or somebody with root wanted them gone; archives have them")
	}
	if c.running {
		c.add(open, "open-end", "the log does not end with the daemon's stop",
			"the daemon still ran when this copy was made, or was killed, or the end was cut off")
	}
	if c.rep.Anchors > 0 && c.news > c.rep.Anchored {
		c.add(open, "end-not-anchored", fmt.Sprintf("the last %d records are not anchored", size-c.rep.Anchored),
			"records after the last anchor can have been dropped by whoever had root on the machine")
	}
	switch {
	case c.o.TPM == nil:
		c.add(Note, "anchors-not-checked", fmt.Sprintf("%d anchors were not checked", c.unchecked),
			"that the machine's TPM stands behind this log was not established; give the machine's evidence to check it")
	case c.rep.Anchors == 0:
		c.fail("no-anchors", "the log has no anchor", "whoever had the log's key can have rewritten it")
	}
	if c.o.Counter > 0 && c.rep.Counter < c.o.Counter {
		c.fail("rolled-back", fmt.Sprintf("the TPM's counter was seen at %d, and the last anchor has %d", c.o.Counter, c.rep.Counter),
			"records at the end were removed, or this is an older copy")
	}
	for _, i := range c.intents.orphans(c.time) {
		if !c.o.Live || i.index < c.rep.Anchored {
			c.rep.add(i.finding(c.time))
		}
	}
}

func (c *chain) add(s Severity, name, message, meaning string) {
	at := c.index
	c.rep.add(Finding{Severity: s, Name: name, Index: &at, Message: message, Meaning: meaning})
}

func (c *chain) fail(name, message, meaning string) { c.add(Failure, name, message, meaning) }
func (c *chain) warn(name, message, meaning string) { c.add(Warning, name, message, meaning) }

// publicKey returns the Ed25519 key in a note verifier key.
func publicKey(vkey string) (ed25519.PublicKey, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a note verifier key")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 1+ed25519.PublicKeySize || key[0] != 1 {
		return nil, errors.New("not an Ed25519 note verifier key")
	}
	return ed25519.PublicKey(key[1:]), nil
}
