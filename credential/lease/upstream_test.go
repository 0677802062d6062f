package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/secret"
)

// canary is in every secret that the tests' upstream gives out.
const canary = "canary-4f1b"

// upstream is a service that behaves as a test wants it to. What each function
// is not set to, it does well.
type upstream struct {
	traits   credential.Traits
	plan     func(ctx context.Context) error
	issue    func(ctx context.Context) error
	renew    func() error
	revoke   func() error
	notAfter func(ttl time.Duration) time.Time
	value    []byte

	mu      sync.Mutex
	live    map[string]bool // what it would still accept
	asked   int             // to issue
	revokes []time.Time     // when it was asked to revoke or recover
	renewed time.Duration
}

func (u *upstream) Traits() credential.Traits { return u.traits }

func (u *upstream) Plan(ctx context.Context, r credential.Request) (credential.Plan, error) {
	if u.plan != nil {
		if err := u.plan(ctx); err != nil {
			return credential.Plan{}, err
		}
	}
	p := credential.Plan{Handle: credential.Handle{Name: "handle-" + r.LeaseID, Data: secret.Of([]byte(canary + r.LeaseID))}}
	if u.notAfter != nil {
		p.NotAfter = u.notAfter(r.TTL)
	}
	return p, nil
}

func (u *upstream) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	u.mu.Lock()
	u.asked++
	u.live[p.Handle.Name] = true // it may have taken effect, whatever the answer
	issue := u.issue
	u.mu.Unlock()
	if issue != nil {
		if err := issue(ctx); err != nil {
			return credential.Issued{}, err
		}
	}
	value := u.value
	if value == nil {
		value = []byte(canary)
	}
	i := credential.Issued{Fields: []credential.Field{{Name: "token", Value: secret.Of(slices.Clone(value))}}, Scope: []string{"read"}, Audience: []string{"api"}}
	if u.notAfter != nil {
		i.NotAfter = u.notAfter(r.TTL)
	}
	return i, nil
}

func (u *upstream) Renew(_ context.Context, h credential.Handle, ttl time.Duration) (at time.Time, err error) {
	if u.renew != nil {
		if err := u.renew(); err != nil {
			return at, err
		}
	}
	u.renewed = ttl
	if u.notAfter != nil {
		at = u.notAfter(ttl)
	}
	return at, nil
}

func (u *upstream) Revoke(_ context.Context, h credential.Handle) (credential.Use, error) {
	if string(h.Data.Reveal()[:len(canary)]) != canary {
		return credential.Use{}, errors.New("handle came back changed")
	}
	u.mu.Lock()
	u.revokes = append(u.revokes, time.Now())
	revoke := u.revoke
	u.mu.Unlock()
	if revoke != nil {
		if err := revoke(); err != nil {
			return credential.Use{}, err
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.live, h.Name)
	return credential.Use{Known: true, Count: 1}, nil
}

func (u *upstream) Recover(ctx context.Context, h credential.Handle) error {
	_, err := u.Revoke(ctx, h)
	return err
}

// onRevoke changes what revoking does from now on.
func (u *upstream) onRevoke(f func() error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.revoke = f
}

// set changes it between two requests.
func (u *upstream) set(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
}

// attempts is when it was asked to revoke.
func (u *upstream) attempts() []time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.revokes)
}

func (u *upstream) left() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.live)
}

// log is the attestation log of a test.
type log struct {
	mu     sync.Mutex
	events []credential.Event
	refuse func(credential.Event) error
}

func (l *log) Record(_ context.Context, e credential.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		if err := l.refuse(e); err != nil {
			return err
		}
	}
	l.events = append(l.events, e)
	return nil
}

// set changes what the log refuses.
func (l *log) set(refuse func(credential.Event) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = refuse
}

// story is what the log tells, in short.
func (l *log) story() (steps []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		steps = append(steps, fmt.Sprintf("%s %s", e.Kind, e.Outcome))
	}
	return steps
}

// alive is the processes that are found again after a restart.
type alive map[int]chan struct{}

func (a alive) Find(p credential.Process, _ credential.Bind) (<-chan struct{}, bool, error) {
	end, ok := a[p.PID]
	if p.PID == 13 {
		return nil, false, errors.New("no pidfd left")
	}
	return end, ok, nil
}

// host is a daemon with one credential, from an upstream of the test's.
type host struct {
	t         testing.TB
	dir       string
	up        *upstream
	log       *log
	processes alive
	skew      atomic.Int64 // of the wall clock, a time.Duration
	said      bytes.Buffer // diagnostics
	m         *Manager
}

const plainDefinition = `
credentials:
  - name: api
    broker: vault
    vault: {path: x}
    ttl: 1m
    max_ttl: 10m
    limits: {rate: 10000/1m, concurrent: 20000}
`

// newHost starts a daemon with definitions; traits are those of a service that
// can do everything unless the test changes them.
func newHost(t testing.TB, definitions string, change ...func(*upstream)) *host {
	h := &host{
		t: t, dir: t.TempDir(), log: &log{}, processes: alive{},
		up: &upstream{traits: credential.Traits{Upstream: "https://api", Revocation: credential.Hard, Renews: true}, live: make(map[string]bool)},
	}
	for _, c := range change {
		c(h.up)
	}
	h.define(definitions)
	h.start()
	t.Cleanup(func() { h.m.Close() })
	return h
}

func (h *host) define(definitions string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.dir, "credentials.d"), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "credentials.d", "a.yaml"), []byte(definitions), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) definitions() *credential.Definitions {
	h.t.Helper()
	open := func(*credential.Definition, config.Section) (credential.Broker, error) { return h.up, nil }
	defs, err := credential.LoadDefinitions(filepath.Join(h.dir, "credentials.d"), credential.Brokers{"vault": open}, true)
	if err != nil {
		h.t.Fatal(err)
	}
	return defs
}

func (h *host) start() {
	h.t.Helper()
	m, err := Open(context.Background(), Config{
		Journal:     filepath.Join(h.dir, "leases"),
		Sealer:      credentialtest.Machine(1),
		Recorder:    h.log,
		Processes:   h.processes,
		Definitions: h.definitions(),
		Log:         slog.New(slog.NewJSONHandler(&h.said, nil)),
		Now:         func() time.Time { return time.Now().Add(time.Duration(h.skew.Load())) },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.m = m
}

func (h *host) restart() {
	h.t.Helper()
	h.m.Close()
	h.start()
}

// agent is a process of an identity, in a unit.
func agent(name string, pid int) (h credential.Holder, exit, stop chan struct{}) {
	exit, stop = make(chan struct{}), make(chan struct{})
	return credential.Holder{
		ID:      spiffeid.RequireFromString("spiffe://example.org/" + name),
		Process: credential.Process{PID: pid, StartTime: 5, BootID: "boot", Unit: name + ".service", Invocation: "i"},
		Exit:    exit,
		Stop:    stop,
	}, exit, stop
}

var askAPI = credential.Ask{Name: "api", Granted: []string{"api"}}

func (h *host) grant(holder credential.Holder) *credential.Grant {
	h.t.Helper()
	g, err := h.m.Grant(context.Background(), holder, askAPI)
	if err != nil {
		h.t.Fatal(err)
	}
	return g
}

// states counts the leases in each state.
func (h *host) states() map[credential.State]int {
	n := make(map[credential.State]int)
	for _, l := range h.m.Leases() {
		n[l.State]++
	}
	return n
}

func (h *host) wantStates(want map[credential.State]int) {
	h.t.Helper()
	if got := h.states(); !maps.Equal(got, want) {
		h.t.Errorf("leases %v, want %v", got, want)
	}
}

func (h *host) wantStory(want ...string) {
	h.t.Helper()
	if got := h.log.story(); !slices.Equal(got, want) {
		h.t.Errorf("the log tells %q, want %q", got, want)
	}
}
