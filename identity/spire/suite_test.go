package spire_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
	"github.com/vouchd/vouchd/secret"
)

// A server is the one of package spiretest, or SPIRE's own: what holds of the one is held of
// the other.
type server interface {
	address() string
	trustDomain() spiffeid.TrustDomain
	bundleFile() string
	federate(td spiffeid.TrustDomain, roots ...*x509.Certificate)
	signsWIT() bool

	Start()
	Stop()
	Token() string
	Leaf(key crypto.PublicKey) []*x509.Certificate
	Add(e *spirev1.Entry) string
	Remove(id string)
	Taint()
	Ban()
}

type ours struct{ *spiretest.Server }

func (s ours) address() string                   { return s.Address }
func (s ours) trustDomain() spiffeid.TrustDomain { return s.TrustDomain }
func (s ours) bundleFile() string                { return s.BundleFile }
func (s ours) signsWIT() bool                    { return true }

func (s ours) federate(td spiffeid.TrustDomain, roots ...*x509.Certificate) {
	b := &spirev1.Bundle{TrustDomain: td.Name(), SequenceNumber: 1}
	for _, r := range roots {
		b.X509Authorities = append(b.X509Authorities, &spirev1.X509Certificate{Asn1: r.Raw})
	}
	s.Set(func() { s.Federated[td.Name()] = b })
}

// Taint rotates first, so that there is an authority to go on with.
func (s ours) Taint() {
	s.RotateX509()
	s.RotateJWT()
	s.Server.Taint()
}

type real struct{ *spiretest.Real }

func (r real) address() string                   { return r.Address }
func (r real) trustDomain() spiffeid.TrustDomain { return r.TrustDomain }
func (r real) bundleFile() string                { return r.BundleFile }
func (r real) signsWIT() bool                    { return r.WIT }

func (r real) federate(td spiffeid.TrustDomain, roots ...*x509.Certificate) {
	b := spiffebundle.New(td)
	b.SetSequenceNumber(1)
	for _, c := range roots {
		b.AddX509Authority(c)
	}
	document, err := b.Marshal()
	if err != nil {
		panic(err)
	}
	r.Federate(td, document)
}

var _ = real{} // in the suite against SPIRE's own server

func TestOurServerHoldsToTheSuite(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Set(func() { s.TTL, s.Cache = time.Minute, time.Second })
	s.RotateWIT()
	suite(t, ours{s})
}

func entryFor(path string, selectors ...string) *spirev1.Entry {
	of := &spiretest.Server{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")}
	return of.Entry(path, selectors...)
}

// suite is what a host and a server have to do with each other, in order.
func suite(t *testing.T, s server) {
	first := s.Add(entryFor("/first", "unix:uid:0"))

	byToken := newHostOf(t, s)
	token, spent := s.Token(), 0
	byToken.change = func(o *spire.Options) {
		o.Attestor = spire.JoinToken(func() (secret.Bytes, error) { return secret.Of([]byte(token)), nil }, func() error { spent++; return nil })
	}
	byToken.start()
	h := newHostOf(t, s).start()
	for _, h := range []*host{byToken, h} {
		svid := h.served("/first")
		if signed, ok := h.signing(svid.Server.Signing); !ok || signed.Entry != first || svid.Server.Offline {
			t.Errorf("served %s, signed %+v", svid.ID, signed)
		}
	}
	t.Logf("attested as %s and %s; WIT-SVIDs: %t", byToken.State().Agent, h.State().Agent, s.signsWIT())
	if spent != 1 || !strings.Contains(byToken.State().Agent, "/spire/agent/join_token/") || !strings.Contains(h.State().Agent, "/spire/agent/x509pop/") {
		t.Errorf("attested as %s and %s, the token was spent %d times", byToken.State().Agent, h.State().Agent, spent)
	}
	thief := newHostOf(t, s)
	thief.change = byToken.change
	thief.start()
	eventually(t, "a spent token is refused", func() bool { return thief.State().Failure != nil })
	thief.stop()

	e := entryFor("/second", "unix:uid:0", "systemd:id:x.service")
	e.DnsNames, e.Hint = []string{"second.example.org"}, "two"
	second := s.Add(e)
	if svid := h.served("/second"); svid.Names.DNS[0] != "second.example.org" || h.entries()["/second"].Hint != "two" {
		t.Errorf("served %+v as %+v", svid.Names, h.entries()["/second"])
	}
	token1, err := h.IssueJWT(t.Context(), h.entries()["/second"], []string{"one", "two"}, identity.With{})
	must(t, err)
	for _, audience := range []string{"one", "two"} {
		if valid, err := h.Bundle().ValidateJWT(token1.Token, audience); err != nil || valid.ID != token1.ID {
			t.Errorf("a token of %v: %v", valid, err)
		}
	}
	if s.signsWIT() {
		h.wit("/second")
	} else if _, err := h.IssueWIT(t.Context(), h.entries()["/second"]); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("a WIT-SVID of a server that signs none: %v", err)
	}
	s.Remove(second)
	eventually(t, "an entry is gone", func() bool { return len(h.entries()) == 1 })
	if _, err := h.IssueX509(t.Context(), identity.Entry{ID: idOf(s, "/second"), Server: second}); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("for an entry that is gone: %v", err)
	}

	partner := spiffeid.RequireTrustDomainFromString("partner.example")
	s.federate(partner, spiretest.New(t, partner.Name()).Roots()...)
	e = entryFor("/third", "unix:uid:0")
	e.FederatesWith = []string{partner.IDString()}
	third := s.Add(e)
	eventually(t, "the partner's bundle is there", func() bool { b := h.ForeignBundle(partner); return b != nil && len(b.Roots) == 1 })

	until, untilByToken := h.State().AgentUntil, byToken.State().AgentUntil
	eventually(t, "both agents' SVIDs are renewed", func() bool {
		return h.State().AgentUntil.After(until) && byToken.State().AgentUntil.After(untilByToken)
	})

	before := h.served("/first").Serial
	s.Taint()
	eventually(t, "an SVID of another authority", func() bool { return h.served("/first").Serial != before })
	for _, h := range []*host{h, byToken} {
		eventually(t, "the tainted authorities are known", func() bool { return len(h.Bundle().Tainted) == 2 })
		eventually(t, "they are online", func() bool { return h.State().Online })
	}

	s.Stop()
	eventually(t, "the server is away", func() bool { return !h.State().Online })
	kept := h.served("/first")
	if !kept.Server.Offline {
		t.Errorf("served %+v", kept.Server)
	}
	h.stop()
	h.open()
	if svid := h.served("/first"); svid.Serial != kept.Serial || !svid.Server.Offline {
		t.Errorf("served %s after a start without the server, want %s", svid.Serial, kept.Serial)
	}
	if _, err := h.IssueJWT(t.Context(), h.entries()["/first"], []string{"other"}, identity.With{}); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "has not answered since") {
		t.Errorf("a token: %v", err)
	}
	s.Start()
	h.start()
	eventually(t, "the server is back", func() bool { return h.State().Online })
	s.Remove(third)
	eventually(t, "it is in step again", func() bool { return len(h.entries()) == 1 })
	eventually(t, "the other host is back", func() bool { return byToken.State().Online })

	s.Ban()
	eventually(t, "both are cut off", func() bool {
		return h.State().Banned && byToken.State().Banned && len(h.entries()) == 0 && len(byToken.entries()) == 0
	})
}

func idOf(s server, path string) spiffeid.ID {
	return spiffeid.RequireFromPath(s.trustDomain(), path)
}
