package lease

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
)

// steps are those of a drill that a test has no question about.
var steps = DrillSteps{Begin: func(Drill) error { return nil }, End: func(Drill) {}}

func (h *host) drill(s DrillSteps) {
	h.t.Helper()
	if err := h.m.BeginDrill(h.t.Context(), "api", spiffeid.ID{}, time.Minute, false, s); err != nil {
		h.t.Fatal(err)
	}
}

func TestCallsGoOnAfterADrillAndNotAfterARevocationDuringOne(t *testing.T) {
	for _, tt := range []struct {
		name    string
		confirm bool // the upstream, what the drill ends
		where   credential.Where
		stays   bool // revoked
	}{
		{name: "nobody revokes", confirm: true},
		{"the credential", true, credential.Where{Credential: "api"}, true},
		{"the credential, with the first end unconfirmed", false, credential.Where{Credential: "api"}, true},
		{"the identity", true, credential.Where{Identity: spiffeid.RequireFromString("spiffe://example.org/one")}, true},
		{"everything", true, credential.Where{All: true}, true},
		{"another identity", true, credential.Where{Identity: spiffeid.RequireFromString("spiffe://example.org/two")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, calledDefinition)
				a, _, _ := agent("one", 11)
				h.call(a)
				if !tt.confirm {
					h.up.onRevoke(func() error { return errors.New("not now") })
					go h.drill(steps)
					synctest.Wait()
				} else {
					h.drill(steps)
				}
				if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrDrill) {
					t.Errorf("a call during the drill: %v", err)
				}
				h.up.onRevoke(nil)
				if tt.where != (credential.Where{}) {
					n, err := h.m.RevokeWhere(t.Context(), tt.where, "revoked for good")
					if want := map[bool]int{true: 1}[tt.stays]; n != want || err != nil {
						t.Errorf("%d revoked, %v, want %d", n, err, want)
					}
				}
				if err := h.m.EndDrill("api"); err != nil {
					t.Fatal(err)
				}
				_, err := h.m.Call(t.Context(), a, askAPI)
				if !tt.stays {
					if err != nil {
						t.Errorf("a call after the drill: %v", err)
					}
					return
				}
				if !errors.Is(err, credential.ErrRevoked) || errors.Is(err, credential.ErrDrill) || !strings.Contains(err.Error(), "revoked for good") {
					t.Errorf("a call after the drill, and the revocation: %v", err)
				}
				h.grant(a) // who asks anew gets another, as ever
				h.call(a)
			})
		})
	}
}

func TestALeaseThatWasRevokedBeforeADrillStaysRevokedAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, _, _ := agent("one", 11)
		h.call(a)
		h.up.onRevoke(func() error { return errors.New("not now") })
		go h.m.RevokeWhere(t.Context(), credential.Where{Credential: "api"}, "revoked for good")
		synctest.Wait() // its end is not confirmed
		go h.drill(steps)
		synctest.Wait()
		h.up.onRevoke(nil)
		if err := h.m.EndDrill("api"); err != nil {
			t.Fatal(err)
		}
		if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrRevoked) || !strings.Contains(err.Error(), "revoked for good") {
			t.Errorf("a call after the drill: %v", err)
		}
	})
}

func TestADrillTakesEffectOnceItIsRecordedAndSoDoesItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, _, _ := agent("one", 11)
		h.call(a)
		full := errors.New("disk full")
		err := h.m.BeginDrill(t.Context(), "api", spiffeid.ID{}, time.Minute, false, DrillSteps{Begin: func(Drill) error { return full }, End: func(Drill) { t.Error("what never began ends") }})
		if !errors.Is(err, full) || len(h.m.Drills()) != 0 {
			t.Errorf("a drill that is not recorded: %v, %v", err, h.m.Drills())
		}
		lease := h.call(a).Lease.ID
		var told []string
		h.drill(DrillSteps{
			Begin: func(d Drill) error {
				told = append(told, "begin")
				if h.call(a).Lease.ID != lease || d.Until.Sub(d.Began) != time.Minute {
					t.Errorf("it began before it was recorded, or lasts otherwise: %+v", d)
				}
				return nil
			},
			End: func(Drill) {
				told = append(told, "end")
				if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrDrill) {
					t.Errorf("it ended before that was recorded: %v", err)
				}
			},
		})
		time.Sleep(time.Minute - time.Second)
		if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrDrill) {
			t.Errorf("before its time: %v", err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		h.call(a)
		if err := h.m.EndDrill("api"); err != nil {
			t.Error(err)
		}
		if got := strings.Join(told, " "); got != "begin end" {
			t.Errorf("its steps were %s", got)
		}
	})
}

func TestWhatADrillRefusesIsRecordedAsThatAndOnlyWhoIsGrantedItIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 11)
		stranger, _, _ := agent("two", 12)
		h.grant(a)
		h.drill(steps)
		if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrDrill) {
			t.Errorf("an ask: %v", err)
		}
		if _, err := h.m.Grant(t.Context(), stranger, credential.Ask{Name: "api"}); !errors.Is(err, credential.ErrNotGranted) || errors.Is(err, credential.ErrRevoked) {
			t.Errorf("an ask of who is not granted it: %v", err)
		}
		d, err := h.m.Drill("api")
		if err != nil || len(d.Holders) != 1 || d.Leases != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
		if w := d.Holders[0]; w.Identity != a.ID || !w.Held || !w.Value || w.Revocation != credential.Hard || w.Asks != 1 || w.Calls != 0 {
			t.Errorf("watched: %+v", w)
		}
		h.log.mu.Lock()
		defer h.log.mu.Unlock()
		var reasons []string
		for _, e := range h.log.events {
			if e.Outcome == credential.Denied || e.Kind == credential.EventRevoke {
				reasons = append(reasons, e.Reason)
			}
		}
		if len(reasons) != 3 || reasons[0] != "revoked by an administrator, for a drill" || !strings.Contains(reasons[1], "revoked for a drill: api: withheld until") || !strings.Contains(reasons[2], "not granted") {
			t.Errorf("the log has %q", reasons)
		}
	})
}

func TestHolderOfALeaseIsNotToldThatItWasPulledForADrill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 11)
		g := h.grant(a)
		h.up.onRevoke(func() error { return errors.New("not now") })
		go h.drill(steps)
		synctest.Wait()
		reason, expired, err := h.m.Await(t.Context(), a, g.Lease.ID)
		if reason != "revoked by an administrator" || expired || err != nil {
			t.Errorf("it is told %q, %t, %v", reason, expired, err)
		}
		h.up.onRevoke(nil)
	})
}
