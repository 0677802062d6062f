package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/identity"
)

// An organisation signs hosts into its trust domain.
type organisation struct{ appraisal.Authority }

func newOrganisation(t *testing.T) organisation {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.NewAuthority(key, domain, time.Now(), 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return organisation{a}
}

// enrol goes the whole way for a host.
func (org organisation) enrol(h *host, life time.Duration) identity.Upstream {
	h.t.Helper()
	p, err := appraisal.ParsePolicy("policy", []byte("boot_state: any\nendorsement: {keys: [\""+h.node.EKSHA256()+"\"]}\n"))
	if err != nil {
		h.t.Fatal(err)
	}
	request, err := h.node.Request(h.t.Context(), domain, nil, node.Sources{})
	if err != nil {
		h.t.Fatal(err)
	}
	approval, _, _, err := org.Approve(request, appraisal.Terms{Policy: p, AnyNonce: true, Life: life, Now: time.Now()})
	if err != nil {
		h.t.Fatal(err)
	}
	root := sha256.Sum256(org.Root.Raw)
	e, err := h.node.Install(h.t.Context(), approval, hex.EncodeToString(root[:]))
	if err != nil {
		h.t.Fatal(err)
	}
	return identity.Upstream{Chain: e.Chain, Root: e.Root}
}

func TestAnEnrolledHostIssuesUnderTheOrganisationsRoot(t *testing.T) {
	t.Parallel()
	h, org := newHost(t), newOrganisation(t)
	a := h.start(func(o *options) { o.Upstream = new(identity.Upstream) })

	if _, err := a.IssueX509(t.Context(), identity.Entry{ID: agent, X509TTL: time.Hour}); !errors.Is(err, identity.ErrNotEnrolled) || !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("before it is enrolled, X.509: %v", err)
	}
	if _, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Minute}, []string{"api"}, identity.With{}); !errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("before it is enrolled, JWT: %v", err)
	}
	if b := a.Bundle(); len(b.X509) != 0 {
		t.Error("before it is enrolled there is a root in the bundle")
	}

	changed := a.Changed()
	if err := a.SetUpstream(t.Context(), org.enrol(h, 24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("the bundle's change was not told")
	}
	if err := a.SelfCheck(t.Context()); err != nil {
		t.Error(err)
	}
	svid, err := a.IssueX509(t.Context(), identity.Entry{ID: agent, X509TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := x509.ParseCertificates(svid.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 {
		t.Fatalf("chain of %d certificates, want leaf, issuing CA, node CA", len(chain))
	}
	if id, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(domain, []*x509.Certificate{org.Root})); err != nil || id != agent {
		t.Errorf("a stranger who knows the root alone finds %v, %v", id, err)
	}
	if got := a.Bundle().X509; string(got) != string(org.Root.Raw) {
		t.Error("the bundle is not the organisation's root")
	}
}

func TestAnEnrolmentThatEndsEndsIssuing(t *testing.T) {
	t.Parallel()
	h, org := newHost(t), newOrganisation(t)
	up := org.enrol(h, 3*time.Hour)
	a := h.start(func(o *options) { o.Upstream, o.HowToEnrol = &up, "run vouch node request" })
	h.clock.move(2*time.Hour + 30*time.Minute)
	for range 5 {
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cas := 0
	for _, k := range h.announced {
		if k.Certificate != nil {
			cas++
		}
	}
	if cas != 1 {
		t.Errorf("%d issuing CAs were made, want the one that lasts as long as the enrolment", cas)
	}
	svid, err := a.IssueX509(t.Context(), identity.Entry{ID: agent, X509TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if svid.NotAfter.After(up.Chain[0].NotAfter) {
		t.Errorf("an SVID lasts until %v and the enrolment until %v", svid.NotAfter, up.Chain[0].NotAfter)
	}
	h.clock.move(time.Hour)
	_, err = a.IssueX509(t.Context(), identity.Entry{ID: agent, X509TTL: time.Hour})
	if !errors.Is(err, identity.ErrNotEnrolled) || !strings.Contains(err.Error(), "vouch node request") {
		t.Errorf("after its end: %v", err)
	}
	if _, err := a.IssueJWT(t.Context(), identity.Entry{ID: agent, JWTTTL: time.Minute}, []string{"api"}, identity.With{}); !errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("after its end, JWT: %v", err)
	}
}

func TestAnUpstreamThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	h, org := newHost(t), newOrganisation(t)
	good := org.enrol(h, 24*time.Hour)
	a := h.start(func(o *options) { o.Upstream = &good })
	other := newHost(t)
	for name, u := range map[string]identity.Upstream{
		"another host's certificate": org.enrol(other, 24*time.Hour),
		"another root":               {Chain: good.Chain, Root: newOrganisation(t).Root},
		"no root":                    {Chain: good.Chain},
		"no certificate":             {Root: good.Root},
	} {
		if err := a.SetUpstream(t.Context(), u); err == nil {
			t.Errorf("%s is in force", name)
		}
		if err := a.SelfCheck(t.Context()); err != nil {
			t.Errorf("after refusing %s: %v", name, err)
		}
	}
	if err := h.start().SetUpstream(t.Context(), good); err == nil {
		t.Error("a standalone authority took an upstream")
	}
}
