package spire_test

import (
	"crypto/ecdsa"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// wit has a WIT-SVID issued, and checks it as who relies on it does.
func (h *host) wit(path string) *identity.WITSVID {
	h.t.Helper()
	s, err := h.IssueWIT(h.t.Context(), h.entries()[path])
	must(h.t, err)
	b, err := witbundle.Parse(s.ID.TrustDomain(), h.Bundle().WITKeys)
	must(h.t, err)
	valid, err := witsvid.ParseAndValidate(s.Token, b)
	must(h.t, err)
	var key jose.JSONWebKey
	must(h.t, key.UnmarshalJSON(s.PrivateKey.Reveal()))
	private, ok := key.Key.(*ecdsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(valid.PublicKey) {
		h.t.Errorf("%v does not belong to the key that came with it", s)
	}
	if valid.ID.Path() != path || valid.ID != s.ID || !valid.Expiry.Equal(s.ExpiresAt) || !s.IssuedAt.Before(s.ExpiresAt) {
		h.t.Errorf("%v is of %v, from %v to %v", s, valid.ID, s.IssuedAt, s.ExpiresAt)
	}
	return s
}

// newWITHost is a host with one entry, /agent, of a server that signs WIT-SVIDs.
func newWITHost(t *testing.T) (*spiretest.Server, *host) {
	t.Helper()
	s := spiretest.New(t, "example.org")
	s.RotateWIT()
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	return s, h
}

func TestAWITSVIDIsOneForAKeyThatIsHere(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.RotateWIT()
	id := s.Add(s.Entry("/agent", "unix:uid:0"))
	s.Add(s.Entry("/other", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	h.served("/other")
	wit := h.wit("/agent")
	if signed, ok := h.signing(wit.Server.Signing); !ok || signed.Kind != "wit" || signed.Entry != id || signed.KeyID != wit.KeyID || signed.SPKISHA256 == "" || signed.SHA256 == "" {
		t.Errorf("signed %+v, %t", signed, ok)
	}
	if strings.Contains(wit.String(), wit.Token) {
		t.Error("the token can be printed")
	}
	if other := h.wit("/other"); other.KeyID != wit.KeyID {
		t.Errorf("signed by %s and %s", wit.KeyID, other.KeyID)
	}
}

func TestAWITSVIDIsGivenAgainForHalfItsLifeAndWithoutTheServerToItsEnd(t *testing.T) {
	t.Parallel()
	s, h := newWITHost(t)
	first := h.wit("/agent")
	if again := h.wit("/agent"); again.Token != first.Token || s.Called("BatchNewWITSVID") != 1 {
		t.Errorf("the server was asked %d times", s.Called("BatchNewWITSVID"))
	}
	h.now.Store(int64(31 * time.Minute))
	second := h.wit("/agent")
	if second.Token == first.Token {
		t.Error("it was given again past half of its life")
	}
	h.now.Store(0)
	s.Stop()
	eventually(t, "the server is away", func() bool { return !h.State().Online })
	h.now.Store(int64(59 * time.Minute))
	if kept := h.wit("/agent"); kept.Token != second.Token || !kept.Server.Offline {
		t.Errorf("without the server: %+v", kept)
	}
	h.now.Store(int64(61 * time.Minute))
	if w, err := h.IssueWIT(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("past its end: %v, %v", w, err)
	}
}

func TestAWITSVIDThatIsWrongIsNotServed(t *testing.T) {
	t.Parallel()
	s, h := newWITHost(t)
	for _, tt := range []struct {
		name      string
		set, back func()
		want      string
	}{
		{"another key", func() { s.OtherKey = true }, func() { s.OtherKey = false }, "another key than this host's"},
		{"a key that the bundle does not have", s.SignUnknownWIT, func() {}, "the bundle does not verify it"},
	} {
		s.Set(tt.set)
		if w, err := h.IssueWIT(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v", tt.name, w, err)
		}
		s.Set(tt.back)
	}
}

func TestAWITSVIDOfATaintedAuthorityIsReplaced(t *testing.T) {
	t.Parallel()
	s, h := newWITHost(t)
	first := h.wit("/agent")
	s.RotateWIT()
	s.Taint()
	eventually(t, "the authority is known to be tainted", func() bool { return slices.Contains(h.Bundle().Tainted, first.KeyID) })
	if next := h.wit("/agent"); next.KeyID == first.KeyID {
		t.Errorf("%s still signs", next.KeyID)
	}
}

func TestAWITSVIDByAKeyOfThisMomentIsVerifiedByTheNextBundle(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.RotateWIT()
	for _, path := range []string{"/1", "/2", "/3"} {
		s.Add(s.Entry(path, "unix:uid:0"))
	}
	h := newHost(t, s).start()
	for _, path := range []string{"/1", "/2", "/3"} {
		h.served(path)
		s.RotateWIT()
		h.wit(path)
	}
}

func TestWhereTheServerSignsNoWITSVIDsThereAreNone(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	if w, err := h.IssueWIT(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "feature flag") {
		t.Errorf("%v, %v", w, err)
	}
	if h.Bundle().WITKeys != nil || s.Called("BatchNewWITSVID") != 0 {
		t.Errorf("it was asked %d times, and has keys %s", s.Called("BatchNewWITSVID"), h.Bundle().WITKeys)
	}
	s.RotateWIT()
	eventually(t, "it signs them now", func() bool { return h.Bundle().WITKeys != nil })
	h.wit("/agent")
}
