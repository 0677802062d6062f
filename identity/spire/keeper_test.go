package spire_test

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
	"github.com/vouchd/vouchd/secret"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience bounds what is waited for.
const patience = time.Minute

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// A disk is a store whose writes can fail, or be the last before a crash.
type disk struct {
	mu     sync.Mutex
	files  map[string][]byte
	writes int
	bytes  int // written in all
	last   int // write after which the machine is off; 0: never
}

var errOff = errors.New("the machine is off")

func (d *disk) Load(name string, _ int) ([]byte, int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.files[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return slices.Clone(b), 1, nil
}

func (d *disk) change(f func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writes++; d.last > 0 && d.writes > d.last {
		return errOff
	}
	f()
	return nil
}

func (d *disk) Save(name string, _ int, data []byte) error {
	return d.change(func() { d.files[name], d.bytes = slices.Clone(data), d.bytes+len(data) })
}

func (d *disk) Remove(name string) error { return d.change(func() { delete(d.files, name) }) }

// A chip seals as a TPM does: for itself, under a label.
type chip struct{ aead cipher.AEAD }

func newChip(t testing.TB) chip {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	must(t, err)
	aead, err := cipher.NewGCMWithRandomNonce(block)
	must(t, err)
	return chip{aead}
}

func (c chip) Seal(_ context.Context, label string, secret []byte) ([]byte, error) {
	return c.aead.Seal(nil, nil, secret, []byte(label)), nil
}

func (c chip) Unseal(_ context.Context, label string, blob []byte) ([]byte, error) {
	return c.aead.Open(nil, nil, blob, []byte(label))
}

// A log keeps what is recorded, in order.
type log struct {
	mu      sync.Mutex
	lines   []string
	fail    string // the event whose record fails
	signing map[string]spire.Signing
}

func (l *log) add(event, format string, args ...any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if event == l.fail {
		return errors.New("the log is full")
	}
	l.lines = append(l.lines, event+" "+fmt.Sprintf(format, args...))
	return nil
}

func (l *log) has(line string) bool { return l.count(line) > 0 }

func (l *log) count(prefix string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, have := range l.lines {
		if strings.HasPrefix(have, prefix) {
			n++
		}
	}
	return n
}

func (l *log) Attested(_ context.Context, a spire.Attestation) error {
	return l.add("attest", "%s banned=%t failure=%v", a.Agent, a.Banned, a.Failure)
}

func (l *log) Authorities(_ context.Context, all []spire.Authority) error {
	for _, a := range all {
		if err := l.add("authority", "%s", a.ID); err != nil {
			return err
		}
	}
	return nil
}

func (l *log) Bundle(_ context.Context, b spire.BundleChange) error {
	for _, id := range slices.Concat(b.X509, b.Keys) {
		if b.TrustDomain == "example.org" && !l.has("authority "+id) {
			return fmt.Errorf("authority %s was not recorded before the bundle", id)
		}
	}
	return l.add("bundle", "%s %d tainted=%d", b.TrustDomain, b.Sequence, len(b.Tainted))
}

func (l *log) Entries(_ context.Context, e spire.EntriesChange) error {
	return l.add("entries", "%d +%d -%d ~%d", e.Count, len(e.Added), len(e.Removed), len(e.Changed))
}

func (l *log) Signed(_ context.Context, all []spire.Signing) error {
	for _, s := range all {
		if err := l.add("sign", "%s %s", s.Kind, s.SPIFFEID); err != nil {
			return err
		}
		l.mu.Lock()
		l.signing[s.ID] = s
		l.mu.Unlock()
	}
	return nil
}

func (l *log) Reached(_ context.Context, r spire.Reach) error {
	return l.add("reach", "%t %v", r.Online, r.Cause)
}

// A host is one that joins a server.
type host struct {
	t      testing.TB
	server server
	disk   *disk
	chip   chip
	key    *ecdsa.PrivateKey
	leaf   []*x509.Certificate // that it attests with
	log    *log
	now    atomic.Int64 // its clock is ahead by
	change func(*spire.Options)

	*spire.Keeper
	mu      sync.Mutex
	applied [][]identity.Entry
	stop    func()
}

func newHost(t testing.TB, of *spiretest.Server) *host {
	t.Helper()
	return newHostOf(t, ours{of})
}

func newHostOf(t testing.TB, s server) *host {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return &host{t: t, server: s, disk: &disk{files: make(map[string][]byte)}, chip: newChip(t), key: key, leaf: s.Leaf(key.Public()), log: &log{signing: make(map[string]spire.Signing)}}
}

// options are those of its keeper.
func (h *host) options() spire.Options {
	h.t.Helper()
	o := spire.Options{
		Server: h.server.address(), TrustDomain: h.server.trustDomain(), Roots: h.roots(), AgentKey: h.key,
		Attestor: spire.X509POP(func() ([]*x509.Certificate, crypto.Signer, error) { return h.leaf, h.key, nil }), Store: h.disk, Sealer: h.chip, Version: "test", Recorder: h.log,
		Apply: func(list []identity.Entry, _ [32]byte) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.applied = append(h.applied, list)
		},
		Now: func() time.Time { return time.Now().Add(time.Duration(h.now.Load())) }, Logger: slog.New(slog.DiscardHandler),
	}
	if h.change != nil {
		h.change(&o)
	}
	return o
}

// open loads what is kept, without the server.
func (h *host) open() {
	h.t.Helper()
	k, err := spire.Open(h.t.Context(), h.options())
	must(h.t, err)
	h.Keeper, h.stop = k, func() {}
}

// start opens and runs until stop, or the test's end.
func (h *host) start() *host {
	h.t.Helper()
	h.open()
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run returns %v", err)
		}
	})
	h.t.Cleanup(func() { h.stop() })
	return h
}

func (h *host) roots() []*x509.Certificate {
	text, err := os.ReadFile(h.server.bundleFile())
	must(h.t, err)
	b, err := x509bundle.Parse(h.server.trustDomain(), text)
	must(h.t, err)
	return b.X509Authorities()
}

// entries are those in force now.
func (h *host) entries() map[string]identity.Entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[string]identity.Entry)
	if len(h.applied) > 0 {
		for _, e := range h.applied[len(h.applied)-1] {
			all[e.ID.Path()] = e
		}
	}
	return all
}

// served waits for an entry and returns its SVID.
func (h *host) served(path string) (svid *identity.X509SVID) {
	h.t.Helper()
	eventually(h.t, path+" is served", func() bool {
		e, ok := h.entries()[path]
		if !ok {
			return false
		}
		var err error
		svid, err = h.IssueX509(h.t.Context(), e)
		return err == nil
	})
	return svid
}

func (h *host) signing(name string) (spire.Signing, bool) {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	s, ok := h.log.signing[name]
	return s, ok
}

func TestAHostIsServedWhatItsEntriesSay(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	e := s.Entry("/agent", "unix:uid:0")
	e.DnsNames, e.Hint, e.X509SvidTtl = []string{"agent.example.org"}, "main", 600
	id := s.Add(e)
	h := newHost(t, s).start()
	svid := h.served("/agent")
	if svid.ID.String() != "spiffe://example.org/agent" || !slices.Equal(svid.Names.DNS, []string{"agent.example.org"}) || svid.Server.Offline {
		t.Errorf("served %+v", svid)
	}
	got := h.entries()["/agent"]
	if got.Server != id || got.Hint != "main" || got.X509TTL != 10*time.Minute || !slices.Equal(got.Selectors.Strings(), []string{"unix:uid:0"}) {
		t.Errorf("entry %+v", got)
	}
	if signed, ok := h.signing(svid.Server.Signing); !ok || signed.Entry != id || signed.Serial != svid.Serial {
		t.Errorf("signed %+v, %t", signed, ok)
	}
	token, err := h.IssueJWT(t.Context(), got, []string{"api"}, identity.With{})
	must(t, err)
	if valid, err := h.Bundle().ValidateJWT(token.Token, "api"); err != nil || valid.ID != got.ID {
		t.Errorf("token %v, %v", valid, err)
	}
	again, err := h.IssueJWT(t.Context(), got, []string{"api"}, identity.With{})
	must(t, err)
	if again.Token != token.Token || s.Called("NewJWTSVID") != 1 {
		t.Errorf("the server was asked %d times for one token", s.Called("NewJWTSVID"))
	}
	if other, err := h.IssueJWT(t.Context(), got, []string{"other"}, identity.With{}); err != nil || other.Token == token.Token {
		t.Errorf("for another audience: %v, %v", other, err)
	}
	eventually(t, "the server is told the status", func() bool { return s.Called("PostStatus") == 1 })
	if st := h.State(); !st.Online || st.Agent == "" || st.Entries != 1 || st.X509Until.IsZero() || st.JWTUntil.IsZero() || st.Failure != nil {
		t.Errorf("state %+v", st)
	}
}

func TestEachTokenIsUniqueWhereTheEntryWantsIt(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	e := s.Entry("/agent", "unix:uid:0")
	e.AdditionalAttributes = &spirev1.Entry_AdditionalAttributes{JwtSvidIncludeJti: true, DisableX509SvidPrefetch: true}
	s.Add(e)
	h := newHost(t, s).start()
	eventually(t, "it has the entry", func() bool { return len(h.entries()) == 1 })
	one, err := h.IssueJWT(t.Context(), h.entries()["/agent"], []string{"api"}, identity.With{})
	must(t, err)
	two, err := h.IssueJWT(t.Context(), h.entries()["/agent"], []string{"api"}, identity.With{})
	must(t, err)
	if one.JTI == two.JTI || one.JTI == "" {
		t.Errorf("tokens %s and %s", one.JTI, two.JTI)
	}
	if n := s.Called("BatchNewX509SVID"); n != 0 {
		t.Errorf("%d X509-SVIDs were made ahead of need", n)
	}
}

func TestWhatIsForOthersIsNotServed(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	for name, change := range map[string]func(*spirev1.Entry){
		"/admin":      func(e *spirev1.Entry) { e.Admin = true },
		"/downstream": func(e *spirev1.Entry) { e.Downstream = true },
		"/store":      func(e *spirev1.Entry) { e.StoreSvid = true },
		"/ended":      func(e *spirev1.Entry) { e.ExpiresAt = time.Now().Add(-time.Hour).Unix() },
		"/nobody":     func(e *spirev1.Entry) { e.Selectors = nil },
		"/elsewhere":  func(e *spirev1.Entry) { e.SpiffeId.TrustDomain = "other.example" },
		"/alias": func(e *spirev1.Entry) {
			e.Selectors = []*spirev1.Selector{{Type: "spiffe_id", Value: "spiffe://example.org/x"}}
		},
		"/pods": func(e *spirev1.Entry) {
			e.Selectors = append(e.Selectors, &spirev1.Selector{Type: "k8s", Value: "ns:default"})
		},
		"/anybody": func(e *spirev1.Entry) { e.Selectors = []*spirev1.Selector{{Type: "unix", Value: "path:/usr/bin/id"}} },
	} {
		e := s.Entry(name, "unix:uid:0")
		change(e)
		s.Add(e)
	}
	h := newHost(t, s).start()
	eventually(t, "it has the entries", func() bool { return len(h.entries()) > 0 })
	if got := slices.Collect(maps.Keys(h.entries())); !slices.Equal(got, []string{"/anybody"}) {
		t.Errorf("served %q", got)
	}
	st := h.State()
	if all := strings.Join(st.Unknown, "\n"); len(st.Unknown) != 3 || !strings.Contains(all, "k8s:ns:default") || !strings.Contains(all, "other.example") || !strings.Contains(all, "no selectors") {
		t.Errorf("told of %q", st.Unknown)
	}
	if !slices.Equal(st.Unanchored, []string{"spiffe://example.org/anybody"}) {
		t.Errorf("unanchored %q", st.Unanchored)
	}
}

func TestWithoutTheServerAHostServesWhatIsValidAndNothingNew(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.TTL = 2 * time.Hour
	s.Add(s.Entry("/agent", "unix:uid:0"))
	gone := s.Add(s.Entry("/gone", "unix:uid:0"))
	h := newHost(t, s).start()
	first := h.served("/agent")
	h.served("/gone")
	s.Remove(gone)
	eventually(t, "it is removed", func() bool { return len(h.entries()) == 1 })
	eventually(t, "the server knows of it", func() bool { return h.State().LastSync.After(time.Now().Add(-2 * time.Second)) })
	token, err := h.IssueJWT(t.Context(), h.entries()["/agent"], []string{"api"}, identity.With{})
	must(t, err)
	s.Stop()
	eventually(t, "it is away", func() bool { return !h.State().Online })
	if again, err := h.IssueJWT(t.Context(), h.entries()["/agent"], []string{"api"}, identity.With{}); err != nil || again.Token != token.Token || !again.Server.Offline {
		t.Errorf("a token that is kept: %+v, %v", again, err)
	}
	if _, err := h.IssueJWT(t.Context(), h.entries()["/agent"], []string{"other"}, identity.With{}); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "has not answered since ") {
		t.Errorf("a token that is not: %v", err)
	}
	if said := h.State().Failure.Error(); !strings.Contains(said, "connection refused") || strings.Contains(said, "desc =") {
		t.Errorf("it says %s", said)
	}
	h.stop()

	calls := s.Called("AttestAgent")
	h.open() // without the server
	if got := h.entries(); len(got) != 1 {
		t.Fatalf("after a start without the server: %d entries", len(got))
	}
	svid, err := h.IssueX509(t.Context(), h.entries()["/agent"])
	must(t, err)
	if svid.Serial != first.Serial || !svid.Server.Offline || svid.Server.Signing != first.Server.Signing {
		t.Errorf("served %+v, want what was signed before", svid)
	}
	if _, err := h.IssueX509(t.Context(), identity.Entry{ID: spiffeid.RequireFromString("spiffe://example.org/gone"), Server: gone}); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("what was removed: %v", err)
	}
	h.now.Store(int64(90 * time.Minute)) // older than the entries' longest TTL, which is the default of an hour
	if _, err := h.IssueX509(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "max_stale") {
		t.Errorf("with entries that are too old: %v", err)
	}
	h.now.Store(0)
	s.Start()
	h.start()
	eventually(t, "it is back", func() bool { return h.State().Online })
	if svid := h.served("/agent"); svid.Server.Offline {
		t.Errorf("served %+v", svid)
	}
	if s.Called("AttestAgent") != calls {
		t.Error("a host whose SVID is valid was attested again")
	}
	for _, want := range []string{"reach true", "reach false"} {
		if !h.log.has(want) {
			t.Errorf("no record %q", want)
		}
	}
}

func TestAnEmptyAnswerJustAfterAnAttestationTakesNothingAway(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	h.stop()
	s.Evict()
	s.Set(func() { s.Cache = time.Second })
	syncs := s.Called("SyncAuthorizedEntries")
	h.start()
	eventually(t, "it was attested again and has asked twice", func() bool { return len(s.Agents()) == 1 && s.Called("SyncAuthorizedEntries") > syncs+2 })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range h.applied {
		if len(list) == 0 {
			t.Error("the entries were gone in between")
		}
	}
}

func TestABannedHostIsCutOffAndDoesNotAsk(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	e := h.entries()["/agent"]
	s.Ban()
	eventually(t, "it is cut off", func() bool { return len(h.entries()) == 0 })
	if _, err := h.IssueX509(t.Context(), e); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "banned") {
		t.Errorf("X509-SVID: %v", err)
	}
	if _, err := h.IssueJWT(t.Context(), e, []string{"api"}, identity.With{}); !errors.Is(err, identity.ErrNoAuthority) {
		t.Errorf("JWT-SVID: %v", err)
	}
	if h.log.count("attest ") < 2 || !h.State().Banned {
		t.Errorf("recorded %q", h.log.lines)
	}
	h.stop()
	h.open()
	if len(h.entries()) != 0 {
		t.Error("after a restart it is served again")
	}
	for name := range h.disk.files {
		if strings.HasPrefix(name, "spire-svid-") || name == "spire-agent" {
			t.Errorf("%s is still there", name)
		}
	}
	h.start()
	eventually(t, "it is banned again", func() bool { return h.State().Banned })
}

// A refusal is an answer: unlike a server that is away, it ends what is handed out, once the
// agent's own SVID is over.
func TestAHostThatTheServerRefusesHandsOutNothingMore(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	e := s.Entry("/agent", "unix:uid:0")
	e.X509SvidTtl = 3600
	s.Add(e)
	s.Set(func() { s.TTL = 4 * time.Second })
	h := newHost(t, s).start()
	h.served("/agent")
	s.Set(func() { s.PopRoots = x509.NewCertPool() })
	eventually(t, "it is refused", func() bool { return h.State().Refused })
	if st := h.State(); !st.X509Until.IsZero() || !st.EntriesUntil.IsZero() {
		t.Errorf("nothing is served, and the state says until %v and %v", st.X509Until, st.EntriesUntil)
	}
	if svid, err := h.IssueX509(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) || !strings.Contains(err.Error(), "has refused this host") {
		t.Errorf("served %v, %v", svid, err)
	}
	s.Stop()
	if svid, err := h.IssueX509(t.Context(), h.entries()["/agent"]); err == nil {
		t.Errorf("once the server is away, too: served %v", svid)
	}
	s.Start()
	h.stop()
	h.leaf = s.Leaf(h.key.Public())
	h.start()
	h.served("/agent")
}

func TestAHostThatTheServerHasForgottenIsAttestedAgain(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	s.Evict()
	eventually(t, "it is attested again", func() bool { return len(s.Agents()) == 1 })
	h.served("/agent")
}

func TestABundleThatGoesBackIsRefused(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	sequence := h.Bundle().Sequence
	s.SetBack()
	eventually(t, "it says so", func() bool {
		err := h.State().Failure
		return err != nil && strings.Contains(err.Error(), fmt.Sprintf("goes from sequence %d back to %d", sequence, sequence-1))
	})
	if got := h.Bundle().Sequence; got != sequence {
		t.Errorf("sequence %d is in force", got)
	}
}

func TestWhatATaintedAuthoritySignedIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	first := h.served("/agent")
	changed := h.Changed()
	s.RotateX509()
	s.RotateJWT()
	s.Taint()
	<-changed
	eventually(t, "another SVID is served", func() bool {
		svid := h.served("/agent")
		leaf, err := x509.ParseCertificate(svid.Leaf)
		must(t, err)
		return svid.Serial != first.Serial && s.Is(leaf)
	})
	if n := len(h.Bundle().Tainted); n != 2 {
		t.Errorf("%d authorities are tainted", n)
	}
}

func TestAServerThatIsNotTheTrustDomainsIsGivenNothing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(s *spiretest.Server, h *host)
		want   string
	}{
		"another trust domain": {func(s *spiretest.Server, h *host) {
			h.change = func(o *spire.Options) { o.TrustDomain = spiffeid.RequireTrustDomainFromString("other.example") }
		}, "the server is spiffe://example.org/spire/server and not spiffe://other.example/spire/server"},
		"a certificate of somebody else's": {func(s *spiretest.Server, h *host) {
			roots := h.roots()
			s.Stop()
			s.RotateX509()
			s.Start()
			h.change = func(o *spire.Options) { o.Roots = roots }
		}, "certificate signed by unknown authority"},
		"an old TLS": {func(s *spiretest.Server, h *host) {
			s.Stop()
			s.Set(func() { s.OldTLS = true })
			s.Start()
		}, "tls"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spiretest.New(t, "example.org")
			h := newHost(t, s)
			tt.change(s, h)
			h.start()
			eventually(t, "it says why", func() bool {
				err := h.State().Failure
				return err != nil && strings.Contains(err.Error(), tt.want)
			})
			if n := s.Called("AttestAgent"); n != 0 {
				t.Errorf("it attested itself %d times", n)
			}
		})
	}
}

func TestWhatTheServerSignsIsVerifiedBeforeItIsServed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*spiretest.Server){
		"for another key":          func(s *spiretest.Server) { s.OtherKey = true },
		"for another identity":     func(s *spiretest.Server) { s.Change = func(c *x509.Certificate) { c.URIs[0].Path = "/other" } },
		"for another trust domain": func(s *spiretest.Server) { s.Change = func(c *x509.Certificate) { c.URIs[0].Host = "other.example" } },
		"a CA":                     func(s *spiretest.Server) { s.Change = func(c *x509.Certificate) { c.IsCA = true } },
		"one that is over": func(s *spiretest.Server) {
			s.Change = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }
		},
		"by a new authority unheard": func(s *spiretest.Server) { s.Change = func(*x509.Certificate) { s.SignUnknown() } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spiretest.New(t, "example.org")
			h := newHost(t, s).start()
			eventually(t, "it is attested", func() bool { return h.State().Online })
			s.Set(func() { change(s) })
			s.Add(s.Entry("/agent", "unix:uid:0"))
			eventually(t, "it has the entry", func() bool { return len(h.entries()) == 1 })
			if svid, err := h.IssueX509(t.Context(), h.entries()["/agent"]); !errors.Is(err, identity.ErrNoAuthority) {
				t.Errorf("served %v, %v", svid, err)
			}
			if h.log.has("sign") {
				t.Error("it is recorded as signed")
			}
		})
	}
}

func TestNothingTakesEffectThatIsNotRecorded(t *testing.T) {
	t.Parallel()
	for _, event := range []string{"attest", "authority", "bundle", "entries", "sign"} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			s := spiretest.New(t, "example.org")
			s.Add(s.Entry("/agent", "unix:uid:0"))
			h := newHost(t, s)
			h.log.fail = event
			h.start()
			if event == "sign" {
				eventually(t, "it has the entry", func() bool { return len(h.entries()) == 1 })
				if svid, err := h.IssueX509(t.Context(), h.entries()["/agent"]); err == nil {
					t.Errorf("served %v", svid)
				}
				return
			}
			eventually(t, "it says so", func() bool {
				err := h.State().Failure
				return err != nil && strings.Contains(err.Error(), "the log is full")
			})
			if len(h.entries()) != 0 {
				t.Error("there are entries in force")
			}
		})
	}
}

func TestACrashAtAnyWriteLosesNothingThatIsNeeded(t *testing.T) {
	t.Parallel()
	for last := 1; ; last++ {
		s := spiretest.New(t, "example.org")
		s.Add(s.Entry("/agent", "unix:uid:0"))
		h := newHost(t, s)
		h.disk.last = last
		ended := false
		func() {
			h.start()
			defer h.stop()
			eventually(t, "it is served, or the machine is off", func() bool {
				h.disk.mu.Lock()
				off := h.disk.writes > h.disk.last
				h.disk.mu.Unlock()
				ended = h.State().Online && h.State().X509Until.After(time.Now())
				return off || ended
			})
		}()
		h.disk.last = 0
		h.start()
		h.served("/agent")
		h.stop()
		s.Stop()
		if ended {
			if last < 5 {
				t.Errorf("served after %d writes", last)
			}
			return
		}
	}
}

func TestFilesOfAnotherMachineAreOfNoUse(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	h.stop()
	thief := newHost(t, s)
	thief.disk = h.disk
	s.Stop()
	if _, err := spire.Open(t.Context(), thief.options()); err == nil || !strings.Contains(err.Error(), "remove spire-key") {
		t.Errorf("opened: %v", err)
	}
	delete(thief.disk.files, "spire-key") // and so with a key of its own
	thief.open()
	if st := thief.State(); len(thief.entries()) != 0 || st.Agent != "" || st.X509Until.After(time.Now()) {
		t.Errorf("it has %d entries, %+v", len(thief.entries()), st)
	}
}

func TestAJoinTokenIsUsedOnceAndRenewedAfterwards(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.TTL = 20 * time.Second
	s.Add(s.Entry("/agent", "unix:uid:0"))
	token, used := s.Token(), atomic.Int32{}
	h := newHost(t, s)
	h.change = func(o *spire.Options) {
		o.Attestor = spire.JoinToken(func() (secret.Bytes, error) { return secret.Of([]byte(token + "\n")), nil }, func() error { used.Add(1); return nil })
	}
	h.start()
	h.served("/agent")
	eventually(t, "its SVID is renewed", func() bool { return s.Called("RenewAgent") > 0 })
	if used.Load() != 1 || s.Called("AttestAgent") != 1 {
		t.Errorf("the token was used %d times, in %d attestations", used.Load(), s.Called("AttestAgent"))
	}
	thief := newHost(t, s)
	thief.change = h.change
	thief.start()
	eventually(t, "the token is refused to another", func() bool {
		err := thief.State().Failure
		return err != nil && strings.Contains(err.Error(), "join token does not exist or has already been used")
	})
	if !thief.log.has("attest  banned=false failure=attesting this host at SPIRE server") {
		t.Errorf("recorded %q", thief.log.lines)
	}
}

func TestThousandsOfEntriesAreSyncedAndOnlyTheDifferenceIsSentAgain(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	const all = 10_000
	var last string
	for i := range all {
		e := s.Entry(fmt.Sprintf("/agent/%d", i), "unix:uid:0", fmt.Sprintf("unix:gid:%d", i))
		e.AdditionalAttributes = &spirev1.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true}
		last = s.Add(e)
	}
	h := newHost(t, s).start()
	eventually(t, "it has them", func() bool { return len(h.entries()) == all })
	h.served("/agent/77")
	s.Remove(last)
	eventually(t, "one is gone", func() bool { return len(h.entries()) == all-1 })
	if !h.log.has(fmt.Sprintf("entries %d +0 -1 ~0", all-1)) {
		t.Errorf("recorded %q", h.log.lines)
	}
	if n := s.Called("BatchNewX509SVID"); n != 1 {
		t.Errorf("%d SVIDs were asked for", n)
	}
}

func TestAnEntryThatChangesIsSignedForAnew(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	id := s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	first := h.served("/agent")
	e := s.Entry("/agent", "unix:uid:0")
	e.Id, e.DnsNames = id, []string{"other.example.org"}
	s.Add(e)
	eventually(t, "it is another", func() bool { return h.served("/agent").Serial != first.Serial })
	if svid := h.served("/agent"); !slices.Equal(svid.Names.DNS, []string{"other.example.org"}) {
		t.Errorf("served %+v", svid.Names)
	}
}

func TestBundlesOfOthersAreThoseOfTheServer(t *testing.T) {
	t.Parallel()
	s, other := spiretest.New(t, "example.org"), spiretest.New(t, "partner.example")
	s.Federated["partner.example"] = other.Bundle()
	e := s.Entry("/agent", "unix:uid:0")
	e.FederatesWith = []string{"spiffe://partner.example", "nobody.example"}
	id := s.Add(e)
	h := newHost(t, s).start()
	td := other.TrustDomain
	changed := h.ForeignChanged()
	eventually(t, "it has the bundle", func() bool { return h.ForeignBundle(td) != nil })
	<-changed
	if got := h.ForeignBundle(td); len(got.Roots) != 1 || got.Keys != 1 {
		t.Errorf("bundle %+v", got)
	}
	h.stop()
	s.Stop()
	h.open()
	if h.ForeignBundle(td) == nil {
		t.Error("after a restart without the server it is gone")
	}
	s.Start()
	s.Remove(id)
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h.start()
	eventually(t, "nobody federates any more", func() bool { return h.ForeignBundle(td) == nil })
}

func TestAServerThatDoesNotKnowSyncIsAskedForAll(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.NoSync = true
	s.Add(s.Entry("/agent", "unix:uid:0"))
	newHost(t, s).start().served("/agent")
}

func TestAClockThatIsOffIsTold(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.TTL = 6 * time.Hour
	s.Add(s.Entry("/agent", "unix:uid:0"))
	for _, tt := range []struct {
		ahead time.Duration
		joins bool // the server's certificate is good for an hour
	}{{50 * time.Minute, true}, {2 * time.Hour, false}, {-time.Hour, false}} {
		t.Run(tt.ahead.String(), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, s)
			h.now.Store(int64(tt.ahead))
			h.start()
			if tt.joins {
				eventually(t, "how far", func() bool { return (h.State().Skew - tt.ahead).Abs() < time.Minute })
				return
			}
			eventually(t, "what to do", func() bool {
				err := h.State().Failure
				return err != nil && strings.Contains(err.Error(), "set the clock")
			})
			if skew := h.State().Skew; skew.Abs() < 50*time.Minute || skew > 0 != (tt.ahead > 0) {
				t.Errorf("the clock is told to be %v ahead, and is %v", skew, tt.ahead)
			}
		})
	}
}

func TestAServerThatLimitsIsNotTakenForOneThatIsAway(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(t, s).start()
	h.served("/agent")
	var limited atomic.Int32
	s.Set(func() {
		s.Fault = func(method string) error {
			if method == "SyncAuthorizedEntries" && limited.Add(1) == 1 {
				return status.Error(codes.ResourceExhausted, "rate limited")
			}
			return nil
		}
	})
	eventually(t, "it was limited and asked again", func() bool { return limited.Load() > 1 })
	if h.log.has("reach false") {
		t.Errorf("recorded %q", h.log.lines)
	}
}

func TestAServerThatIsToldNoStatusIsGoneOnWith(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	s.Set(func() {
		s.Fault = func(method string) error {
			if method == "PostStatus" {
				return status.Error(codes.ResourceExhausted, "rejecting request due to post status rate limiting")
			}
			return nil
		}
	})
	h := newHost(t, s).start()
	h.served("/agent")
	eventually(t, "it tried", func() bool { return s.Called("PostStatus") > 0 })
	syncs := s.Called("SyncAuthorizedEntries")
	eventually(t, "it synced some more", func() bool { return s.Called("SyncAuthorizedEntries") > syncs+5 })
	if st := h.State(); !st.Online || st.Failure != nil {
		t.Errorf("state %+v", st)
	}
	if n := s.Called("PostStatus"); n >= s.Called("SyncAuthorizedEntries") {
		t.Errorf("it was told %d times, in %d rounds", n, s.Called("SyncAuthorizedEntries"))
	}
	s.Set(func() { s.Fault = nil })
	told := s.Called("PostStatus")
	eventually(t, "it is told in the end", func() bool { return s.Called("PostStatus") > told })
}
