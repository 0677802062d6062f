package spire_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
	"github.com/vouchd/vouchd/secret"
)

func TestAHostWhoseServerIsAwayAtFirstJoinsItLater(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	s.Stop()
	h := newHost(t, s).start()
	eventually(t, "it says so", func() bool { return h.State().Failure != nil })
	if st := h.State(); st.Online || st.Agent != "" || len(h.entries()) != 0 {
		t.Errorf("state %+v", st)
	}
	if _, err := h.Bundle().ValidateJWT("a.b.c", "api"); err == nil {
		t.Error("a token is valid without any bundle")
	}
	s.Start()
	h.served("/agent")
}

func TestAServerThatGoesInTheMiddleOfASyncTakesNothingAway(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Set(func() { s.Page = 2 })
	for i := range 5 {
		s.Add(s.Entry(fmt.Sprintf("/agent/%d", i), "unix:uid:0"))
	}
	h := newHost(t, s).start()
	eventually(t, "it has the entries", func() bool { return len(h.entries()) == 5 })
	var cut atomic.Int32
	s.Set(func() {
		s.Cut = func(method string, message int) error {
			if method == "SyncAuthorizedEntries" && message == 2 && cut.Add(1) < 3 {
				return status.Error(codes.Unavailable, "the server is closing")
			}
			return nil
		}
	})
	s.Add(s.Entry("/agent/5", "unix:uid:0"))
	eventually(t, "it has the sixth", func() bool { return len(h.entries()) == 6 })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range h.applied {
		if len(list) != 5 && len(list) != 6 {
			t.Errorf("%d entries were in force", len(list))
		}
	}
	if cut.Load() < 3 {
		t.Errorf("the sync was cut %d times", cut.Load())
	}
}

func TestAServerThatGoesInTheMiddleOfSigningIsAskedAgain(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	h := newHost(t, s).start()
	eventually(t, "it is attested", func() bool { return h.State().Online })
	var asked atomic.Int32
	s.Set(func() {
		s.Fault = func(method string) error {
			if method == "BatchNewX509SVID" && asked.Add(1) < 3 {
				return status.Error(codes.Unavailable, "the server is closing")
			}
			return nil
		}
	})
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h.served("/agent")
}

func TestAnEntryThatIsNotSignedForDoesNotKeepOthersFromIt(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	bad := s.Add(s.Entry("/bad", "unix:uid:0"))
	s.Set(func() {
		s.Refuse = func(id string) error {
			if id == bad {
				return status.Error(codes.Internal, "no\x1b[2J")
			}
			return nil
		}
	})
	for i := range 120 { // three batches
		s.Add(s.Entry(fmt.Sprintf("/agent/%d", i), "unix:uid:0"))
	}
	h := newHost(t, s).start()
	for i := range 120 {
		h.served(fmt.Sprintf("/agent/%d", i))
	}
	asked := s.Called("BatchNewX509SVID")
	syncs := s.Called("SyncAuthorizedEntries")
	eventually(t, "it synced some more", func() bool { return s.Called("SyncAuthorizedEntries") > syncs+10 })
	if n := s.Called("BatchNewX509SVID"); n > asked+3 {
		t.Errorf("in ten rounds the server was asked %d times to sign what it refuses", n-asked)
	}
	if st := h.State(); !st.Online || st.Failure != nil {
		t.Errorf("state %+v", st)
	}
	_, err := h.IssueX509(t.Context(), h.entries()["/bad"])
	if !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "Internal: no [2J") {
		t.Errorf("for an entry that is not signed for: %q", err)
	}
}

func TestALimitOnSigningLeavesAllElseAlone(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Set(func() { s.SignLimit = 60 })
	for i := range 110 {
		s.Add(s.Entry(fmt.Sprintf("/agent/%d", i), "unix:uid:0"))
	}
	h := newHost(t, s).start()
	for i := range 110 {
		h.served(fmt.Sprintf("/agent/%d", i))
	}
	if h.log.has("reach false") || s.Called("AttestAgent") != 1 {
		t.Errorf("a server that limits was taken for one that is away: %q", h.log.lines)
	}
}

func TestAHostWhoseSVIDEndedWhileTheServerWasAwayIsAttestedAgain(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Set(func() { s.TTL = 4 * time.Second })
	e := s.Entry("/agent", "unix:uid:0")
	e.X509SvidTtl = 3600
	s.Add(e)
	h := newHost(t, s).start()
	first := h.served("/agent")
	s.Stop()
	eventually(t, "its SVID has ended", func() bool { return time.Now().After(h.State().AgentUntil) && !h.State().Online })
	if svid := h.served("/agent"); svid.Serial != first.Serial || !svid.Server.Offline {
		t.Errorf("served %+v", svid.Server)
	}
	before := s.Called("AttestAgent")
	s.Start()
	eventually(t, "it is attested", func() bool { return h.State().Online && s.Called("AttestAgent") > before })
}

func TestAServerThatWasBuiltAnewIsJoinedOnceItsRootsAreBrought(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	for range 5 {
		s.RotateJWT()
	}
	h := newHost(t, s).start()
	h.served("/agent")
	h.stop()
	s.Stop()

	next := spiretest.New(t, "example.org")
	next.PopRoots = s.PopRoots
	next.Add(next.Entry("/agent", "unix:uid:0"))
	h.server = moved{ours{s}, next.Address}
	h.start()
	eventually(t, "with the old roots it is not", func() bool {
		err := h.State().Failure
		return err != nil && strings.Contains(err.Error(), "unknown authority")
	})
	h.stop()
	h.server = ours{next}
	h.start()
	eventually(t, "its bundle is in force", func() bool { return h.Bundle().Sequence == next.Bundle().SequenceNumber })
	eventually(t, "what it signs is served", func() bool {
		leaf, err := x509.ParseCertificate(h.served("/agent").Leaf)
		return err == nil && next.Is(leaf)
	})
}

// moved is a server that is elsewhere.
type moved struct {
	ours
	to string
}

func (m moved) address() string { return m.to }

func TestABundleOfAnotherThatIsWrongTakesNothingAlong(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Federated["bad.example"] = &spirev1.Bundle{TrustDomain: "bad.example", X509Authorities: []*spirev1.X509Certificate{{Asn1: []byte("none")}}}
	s.Federated["other.example"] = &spirev1.Bundle{TrustDomain: "third.example"}
	e := s.Entry("/agent", "unix:uid:0")
	e.FederatesWith = []string{"bad.example", "other.example"}
	s.Add(e)
	h := newHost(t, s).start()
	h.served("/agent")
	syncs := s.Called("SyncAuthorizedEntries")
	eventually(t, "it synced some more", func() bool { return s.Called("SyncAuthorizedEntries") > syncs+3 })
	if st := h.State(); !st.Online || st.Failure != nil {
		t.Errorf("state %+v", st)
	}
}

func TestATokenByAKeyOfThisMomentIsVerifiedByTheNextBundle(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	e := h.entries()["/agent"]
	for i := range 5 {
		s.RotateJWT()
		token, err := h.IssueJWT(t.Context(), e, []string{fmt.Sprint(i)}, identity.With{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Bundle().ValidateJWT(token.Token, fmt.Sprint(i)); err != nil {
			t.Error(err)
		}
	}
}

func TestAnSVIDIsServedNoLongerThanItsAuthorityIsValid(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	end := s.Roots()[0].NotAfter
	s.Set(func() { s.Change = func(c *x509.Certificate) { c.NotAfter = end.Add(1000 * time.Hour) } })
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	if svid := h.served("/agent"); !svid.NotAfter.Equal(end) {
		t.Errorf("served until %v, and its authority ends at %v", svid.NotAfter, end)
	}
}

func TestAClaimOfACallersChoiceIsRefusedAsTheServerSignsNone(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	for _, with := range []identity.With{{Claim: "x", Value: 1}, {Algorithm: identity.RS256}} {
		if token, err := h.IssueJWT(t.Context(), h.entries()["/agent"], []string{"api"}, with); err == nil {
			t.Errorf("with %+v: %v", with, token)
		}
	}
	if token, err := h.IssueJWT(t.Context(), h.entries()["/agent"], nil, identity.With{}); err == nil {
		t.Errorf("without an audience: %v", token)
	}
	if !h.Signs(identity.ES256) || h.Signs(identity.RS256) {
		t.Error("it does not say what the server signs with")
	}
}

func TestASyncThatChangesNothingWritesNothing(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	for i := range 2000 {
		e := s.Entry(fmt.Sprintf("/agent/%d", i), "unix:uid:0")
		e.AdditionalAttributes = &spirev1.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true}
		s.Add(e)
	}
	h := newHost(t, s).start()
	eventually(t, "it has the entries", func() bool { return len(h.entries()) == 2000 })
	writes := func() (n, bytes int) {
		h.disk.mu.Lock()
		defer h.disk.mu.Unlock()
		return h.disk.writes, h.disk.bytes
	}
	more := func() {
		syncs := s.Called("SyncAuthorizedEntries")
		eventually(t, "it synced some more", func() bool { return s.Called("SyncAuthorizedEntries") > syncs+3 })
	}
	more()
	before, _ := writes()
	more()
	if now, _ := writes(); now != before {
		t.Errorf("%d files were written", now-before)
	}
	_, whole := writes()
	s.Remove(h.entries()["/agent/7"].Server)
	eventually(t, "one is gone", func() bool { return len(h.entries()) == 1999 })
	more()
	if now, bytes := writes(); now-before > 3 || bytes-whole > whole/10 {
		t.Errorf("for one entry that is gone, %d writes of %d bytes, where all entries take %d", now-before, bytes-whole, whole)
	}
}

func TestAFileThatIsDamagedCostsWhatIsInIt(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"spire-agent", "spire-sync", "spire-bundle", "spire-entries-", "spire-svid-"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spiretest.New(t, "example.org")
			s.Add(s.Entry("/agent", "unix:uid:0"))
			h := newHost(t, s).start()
			h.served("/agent")
			eventually(t, "it is kept", func() bool {
				h.disk.mu.Lock()
				defer h.disk.mu.Unlock()
				for file := range h.disk.files {
					if strings.HasPrefix(file, name) {
						return true
					}
				}
				return false
			})
			h.stop()
			for file, b := range h.disk.files {
				if strings.HasPrefix(file, name) {
					b = bytes.Clone(b)
					b[len(b)/2] ^= 1
					h.disk.files[file] = b
				}
			}
			h.start()
			h.served("/agent")
		})
	}
}

func TestAKeyThatTheTPMDoesNotUnsealForAMomentIsNotReplaced(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	h.stop()
	s.Stop()
	o := h.options()
	o.Sealer = brokenSealer{h.chip}
	if _, err := spire.Open(t.Context(), o); err == nil {
		t.Error("opened without the key")
	}
	h.open()
	h.served("/agent")
}

type brokenSealer struct{ chip }

func (brokenSealer) Unseal(context.Context, string, []byte) ([]byte, error) {
	return nil, errors.New("TPM_RC_RETRY")
}

func TestWhatWasSignedForAnEntryThatIsGoneIsNotKept(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	id := s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	s.Remove(id)
	eventually(t, "it is gone", func() bool { return len(h.entries()) == 0 })
	h.stop()
	for name := range h.disk.files {
		if strings.HasPrefix(name, "spire-svid-") || strings.HasPrefix(name, "spire-entries-") {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestAnSVIDThatSaysMoreThanItsEntryNowDoesIsNotServed(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	revise := func(id, hint string, names ...string) string {
		e := s.Entry("/agent", "unix:uid:0")
		e.Id, e.Hint, e.DnsNames = id, hint, names
		return s.Add(e)
	}
	id := revise("", "", "one.example.org", "two.example.org")
	h := newHost(t, s).start()
	first := h.served("/agent")
	s.Set(func() {
		s.Refuse = func(string) error { return status.Error(codes.Internal, "no key") }
	})
	revise(id, "other", "two.example.org", "one.example.org")
	eventually(t, "it has the next revision", func() bool { return h.entries()["/agent"].Hint == "other" })
	if svid := h.served("/agent"); svid.Serial != first.Serial {
		t.Errorf("served %s, want what says the same as before", svid.Serial)
	}
	revise(id, "less", "two.example.org")
	eventually(t, "it has the one after that", func() bool { return h.entries()["/agent"].Hint == "less" })
	if _, err := h.IssueX509(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("served, or refused with %v", err)
	}
}

func TestAHostThatIsToProveItselfInAnotherWayIsAttestedAnew(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	token := s.Token()
	h := newHost(t, s)
	h.change = func(o *spire.Options) {
		o.Attestor = spire.JoinToken(func() (secret.Bytes, error) { return secret.Of([]byte(token)), nil }, func() error { return nil })
	}
	h.start()
	before := h.served("/agent")
	h.stop()

	h.change = nil // by a certificate, then
	s.Stop()
	h.start()
	if svid := h.served("/agent"); svid.Serial != before.Serial || h.State().Agent != "" {
		t.Errorf("while the server is away, %s is served by %q", svid.Serial, h.State().Agent)
	}
	s.Set(func() { s.PopRoots = x509.NewCertPool() })
	s.Start()
	eventually(t, "it is refused", func() bool { return h.State().Refused })
	if svid, err := h.IssueX509(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("served %v, %v", svid, err)
	}
	s.Set(func() { s.PopRoots.AddCert(h.leaf[0]) })
	eventually(t, "it is attested", func() bool { return strings.Contains(h.State().Agent, "/spire/agent/x509pop/") })
}
