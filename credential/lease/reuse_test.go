package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vouchd/vouchd/credential"
)

// helperDefinition is of an upstream whose credentials can only expire, as those
// that AWS gives.
const helperDefinition = `
credentials:
  - name: api
    broker: vault
    vault: {path: x}
    parameters: [{name: object, one_of: [deal, lead], default: deal}]
    ttl: 15m
    max_ttl: 15m
    limits: {rate: 1000/1m, concurrent: 2}
`

func onlyExpires(u *upstream) {
	u.traits.Revocation = credential.ExpiryOnly
	u.traits.ChoosesTTL = true
	u.traits.Renews = false
	u.notAfter = func(ttl time.Duration) time.Time { return time.Now().Add(ttl) }
	u.revoke = func() error { return credential.ErrOnlyExpires }
}

// help asks as a tool's helper does, which exits as soon as it has its answer.
func (h *host) help(name string, pid int, object string) (*credential.Grant, error) {
	a, exit, _ := agent(name, pid)
	defer synctest.Wait()
	defer close(exit)
	return h.m.Grant(context.Background(), a, credential.Ask{Name: "api", Granted: []string{"api"}, Params: map[string]string{"object": object}, Reuse: true})
}

func TestHelpersOfOneIdentityShareALeaseWhileItHasHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, helperDefinition, onlyExpires)
		leases := make(map[string]int)
		for i := range 60 { // a tool that asks each half a minute, as boto3 does near the end
			g, err := h.help("one", 100+i, "deal")
			if err != nil {
				t.Fatalf("after %d asks: %v", i, err)
			}
			if string(g.Fields[0].Value.Reveal()) != canary || time.Until(g.Lease.Expires) < 7*time.Minute {
				t.Fatalf("ask %d has %v left of %q", i, time.Until(g.Lease.Expires), g.Fields[0].Value.Reveal())
			}
			g.Wipe()
			leases[g.Lease.ID]++
			time.Sleep(30 * time.Second)
		}
		if len(leases) != 4 {
			t.Errorf("half an hour took %d leases of 15 minutes, want one for each half of one", len(leases))
		}
		grants := 0
		for _, e := range h.log.events {
			if e.Kind == credential.EventGrant {
				grants++
			}
		}
		if grants != 60 {
			t.Errorf("%d of 60 answers are recorded", grants)
		}
	})
}

func TestLeaseIsReusedForTheSameAskAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, strings.Replace(helperDefinition, "concurrent: 2", "concurrent: 20", 1), onlyExpires)
		first, err := h.help("one", 1, "deal")
		if err != nil {
			t.Fatal(err)
		}
		other := func(why string, g *credential.Grant, err error) {
			t.Helper()
			if err != nil || g.Lease.ID == first.Lease.ID || g.Reused {
				t.Errorf("%s: %v, the same lease: %v", why, err, err == nil && g.Lease.ID == first.Lease.ID)
			}
		}
		g, err := h.help("other", 2, "deal")
		other("another identity", g, err)
		g, err = h.help("one", 3, "lead")
		other("another parameter", g, err)
		a, _, _ := agent("one", 4)
		g, err = h.m.Grant(t.Context(), a, askAPI)
		other("no helper", g, err)
		if g, err = h.help("one", 5, "deal"); err != nil || g.Lease.ID != first.Lease.ID || !g.Reused {
			t.Errorf("the same ask: %v", err)
		}
		h.define(strings.Replace(helperDefinition, "concurrent: 2", "concurrent: 21", 1))
		h.m.SetDefinitions(h.definitions())
		g, err = h.help("one", 6, "deal")
		other("another definition", g, err)
		first = g
		if err := h.m.Revoke(t.Context(), a, g.Lease.ID, nil); err != nil {
			t.Fatal(err)
		}
		g, err = h.help("one", 7, "deal")
		other("one that was revoked", g, err)
	})
}

func TestReuseIsRecordedBeforeItIsHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, helperDefinition, onlyExpires)
		if _, err := h.help("one", 1, "deal"); err != nil {
			t.Fatal(err)
		}
		h.log.set(func(credential.Event) error { return errors.New("disk full") })
		if g, err := h.help("one", 2, "deal"); g != nil || !errors.Is(err, credential.ErrUnrecorded) {
			t.Errorf("without a record: %v", err)
		}
	})
}

func TestLeaseThatOnlyExpiryEndsIsNotHeldOnceItsHolderIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, helperDefinition, onlyExpires)
		for i := range 10 { // as a loop of vouch exec
			a, exit, _ := agent("one", 10+i)
			if _, err := h.m.Grant(t.Context(), a, askAPI); err != nil {
				t.Fatalf("run %d: %v", i, err)
			}
			close(exit)
			synctest.Wait()
		}
		h.wantStates(map[credential.State]int{credential.Revoking: 10})
		for i := range 2 {
			a, _, _ := agent("one", 30+i)
			h.grant(a)
		}
		a, _, _ := agent("one", 40)
		if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrLimit) {
			t.Errorf("a third that is held: %v", err)
		}
		h.restart() // none of their processes is there any more
		synctest.Wait()
		h.grant(a)
	})
}

func TestAskThatFailedDoesNotCount(t *testing.T) {
	for _, tt := range []struct {
		cause error
		left  int // leases, once the asks have failed
	}{
		{fmt.Errorf("%w: 400", credential.ErrRefused), 0},
		{fmt.Errorf("%w: 503", credential.ErrUpstream), 9}, // it may have been issued
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, helperDefinition, onlyExpires)
			h.up.issue = func(context.Context) error { return tt.cause }
			for i := range 9 {
				a, exit, _ := agent("one", 1+i)
				if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, tt.cause) {
					t.Errorf("ask %d: %v, want the upstream's answer", i, err)
				}
				close(exit)
				synctest.Wait()
			}
			if n := len(h.m.Leases()); n != tt.left {
				t.Errorf("%v: %d leases are left, want %d", tt.cause, n, tt.left)
			}
			h.up.set(func() { h.up.issue = nil })
			a, _, _ := agent("one", 20)
			h.grant(a)
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			if n := len(h.m.Leases()); n != 0 {
				t.Errorf("%v: %d leases are left for good", tt.cause, n)
			}
		})
	}
}

func TestAdministratorFreesAnIdentityWhoseLeasesDoNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, strings.Replace(plainDefinition, "concurrent: 20000", "concurrent: 1", 1))
		h.up.onRevoke(func() error { return credential.ErrUpstream })
		a, exit, _ := agent("one", 1)
		h.grant(a)
		close(exit)
		synctest.Wait()
		a, _, _ = agent("one", 2)
		if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrLimit) {
			t.Fatalf("while the first is not known to have ended: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := h.m.RevokeWhere(ctx, credential.Where{Identity: a.ID}, "freed"); n != 1 || err == nil {
			t.Errorf("%d leases, %v", n, err)
		}
		h.grant(a)
		if n := len(h.m.Leases()); n != 2 {
			t.Errorf("%d leases, want the one that is still being ended and the new one", n)
		}
	})
}

func TestNothingOfASharedLeaseIsInTheJournal(t *testing.T) {
	t.Parallel()
	h := newHost(t, strings.Replace(helperDefinition, "ttl: 15m", "bind: lease\n    ttl: 15m", 1), onlyExpires)
	a, _, _ := agent("one", 1)
	ask := askAPI
	ask.Reuse = true
	first, err := h.m.Grant(t.Context(), a, ask)
	if err != nil {
		t.Fatal(err)
	}
	h.m.engine.book.mu.Lock()
	state := h.m.engine.book.leases[first.Lease.ID].encode()
	h.m.engine.book.mu.Unlock()
	if strings.Contains(string(state), `"fields"`) {
		t.Errorf("the journal has %s", state)
	}
	h.restart()
	next, err := h.m.Grant(t.Context(), a, ask)
	if err != nil || next.Lease.ID == first.Lease.ID || !slices.ContainsFunc(h.m.Leases(), func(l credential.Lease) bool { return l.ID == first.Lease.ID }) {
		t.Errorf("after a restart: %v", err)
	}
}
