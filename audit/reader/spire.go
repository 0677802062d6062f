package reader

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A server is what the records say of the SPIRE server whose agent the host is: which of its
// authorities are in force, and what it signed.
type server struct {
	bundle   *audit.SPIRE       // of the host's own trust domain; nil: none in this copy
	signings map[string]signing // by name
}

// A signing is what a hand-out must agree with.
type signing struct {
	id, sha256 string
	notAfter   time.Time
}

// maxSignings bounds how many signings are remembered.
const maxSignings = 1 << 18

// spire follows what passed between the host and its server: a hand-out leads to its
// signing, that to an authority of the bundle in force, and the agent's key to the TPM. That
// the server signed nothing else can't be proved from here.
func (c *chain) spire(l *audit.Leaf) {
	if l.Outcome != audit.Success || l.SPIRE == nil {
		return
	}
	switch s := l.SPIRE; l.Event {
	case audit.EventSPIREAttest:
		if l.Key != nil {
			c.quoted(l.Key)
		}
	case audit.EventSPIREAuthority:
		c.key(l)
	case audit.EventSPIREBundle:
		c.bundle(s)
	case audit.EventSPIRESign:
		c.signed(l)
	}
}

func (c *chain) bundle(s *audit.SPIRE) {
	for _, id := range s.Authorities {
		if k, ok := c.keys[strings.ToLower(id)]; (!ok || k.event != audit.EventSPIREAuthority) && c.whole {
			c.fail("bundle-authority", fmt.Sprintf("the bundle has authority %s, of which no record before tells", id), "what it signs can't be traced")
		}
	}
	if old := c.server.bundle; old != nil && old.TrustDomain == s.TrustDomain && s.Sequence < old.Sequence {
		c.fail("bundle-back", fmt.Sprintf("the server's bundle goes from sequence %d back to %d", old.Sequence, s.Sequence), "the daemon does not take an older bundle")
	}
	c.server.bundle = s
}

func (c *chain) signed(l *audit.Leaf) {
	s := l.SVID
	if s == nil || l.SPIRE.Signing == "" {
		c.fail("signing", "the record of a signing does not say what was signed", "what was handed out of it can't be traced")
		return
	}
	switch b := c.server.bundle; {
	case b == nil && !c.fromStart():
		c.add(Note, "signing-bundle-earlier", "the bundle that was in force is not in this copy", "it was recorded before this copy begins")
	case b == nil, !slices.ContainsFunc(b.Authorities, func(id string) bool { return strings.EqualFold(id, s.KeyID) }):
		c.fail("signing-authority", fmt.Sprintf("authority %s, which signed, is not in the bundle in force", s.KeyID), "the daemon uses nothing that the bundle does not verify")
	}
	if len(c.server.signings) >= maxSignings {
		for name, old := range c.server.signings {
			if old.notAfter.Before(l.Time) {
				delete(c.server.signings, name)
			}
		}
	}
	if c.server.signings == nil {
		c.server.signings = make(map[string]signing)
	}
	if len(c.server.signings) < maxSignings {
		c.server.signings[l.SPIRE.Signing] = signing{l.SPIFFEID, s.SHA256, s.NotAfter}
	}
}

// handedOut checks that what was handed out is what the server signed.
func (c *chain) handedOut(l *audit.Leaf) {
	s, ok := c.server.signings[l.SVID.Signing]
	switch {
	case !ok && (!c.fromStart() || len(c.server.signings) >= maxSignings):
		c.add(Note, "svid-signing-earlier", "the signing of the SVID is not in this copy", "it was recorded before this copy begins")
	case !ok:
		c.fail("svid-without-signing", fmt.Sprintf("no spire.sign record before this is %s", l.SVID.Signing), "the SVID does not lead back to the SPIRE server")
	case s.id != l.SPIFFEID || s.sha256 != l.SVID.SHA256:
		c.fail("svid-other-signing", fmt.Sprintf("the SVID is not what the server signed as %s", l.SVID.Signing), "the daemon hands out what the server signed, and nothing else")
	}
}

// fromStart reports whether this copy has every record since the log began.
func (c *chain) fromStart() bool { return c.rep.First == 0 }
