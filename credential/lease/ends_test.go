package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vouchd/vouchd/credential"
)

func TestProcessExitRevokesItsLeasesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, exit, _ := agent("one", 1)
		b, _, _ := agent("one", 2)
		h.grant(a)
		h.grant(a)
		kept := h.grant(b)
		began := time.Now()
		close(exit)
		synctest.Wait()
		if took := time.Since(began); took > 0 || h.up.left() != 1 {
			t.Errorf("%d are left after %v", h.up.left(), took)
		}
		if got := h.m.Leases(); len(got) != 1 || got[0].ID != kept.Lease.ID {
			t.Errorf("leases %v, want that of the other process", got)
		}
	})
}

func TestProcessThatExitsWhileTheUpstreamIsAskedLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan struct{})
		h := newHost(t, plainDefinition, func(u *upstream) {
			u.issue = func(ctx context.Context) error { close(asked); <-ctx.Done(); return ctx.Err() }
		})
		a, exit, _ := agent("one", 1)
		done := make(chan error)
		go func() {
			_, err := h.m.Grant(context.Background(), a, askAPI)
			done <- err
		}()
		<-asked
		began := time.Now()
		close(exit)
		if err := <-done; !errors.Is(err, credential.ErrHolderGone) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if h.up.left() != 0 || len(h.m.Leases()) != 0 || time.Since(began) != 0 {
			t.Errorf("%d left upstream after %v", h.up.left(), time.Since(began))
		}
	})
}

func TestLeaseEndsWithWhatItIsBoundTo(t *testing.T) {
	for _, bind := range []credential.Bind{credential.BindProcess, credential.BindUnit, credential.BindLease} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, plainDefinition+"    bind: "+string(bind))
			a, exit, stop := agent("one", 1)
			h.grant(a)
			close(exit)
			synctest.Wait()
			if ended := h.up.left() == 0; ended != (bind == credential.BindProcess) {
				t.Errorf("bind %s: ended with the process: %v", bind, ended)
			}
			close(stop)
			synctest.Wait()
			if ended := h.up.left() == 0; ended != (bind != credential.BindLease) {
				t.Errorf("bind %s: ended with the unit: %v", bind, ended)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if h.up.left() != 0 {
				t.Errorf("bind %s: outlived its expiry", bind)
			}
			h.wantStates(map[credential.State]int{})
		})
	}
}

func TestLeaseIsItsHoldersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+"    renewable: true")
		a, _, _ := agent("one", 1)
		g := h.grant(a)
		other, _, _ := agent("other", 1)
		sibling, _, _ := agent("one", 2)
		recycled, _, _ := agent("one", 1)
		recycled.Process.StartTime++
		for _, stranger := range []credential.Holder{other, sibling, recycled} {
			if err := h.m.Revoke(t.Context(), stranger, g.Lease.ID, nil); !errors.Is(err, credential.ErrNoLease) {
				t.Errorf("revoked by %v: %v", stranger.Process, err)
			}
			if _, err := h.m.Renew(t.Context(), stranger, credential.Renewal{Lease: g.Lease.ID}); !errors.Is(err, credential.ErrNoLease) {
				t.Errorf("renewed by %v: %v", stranger.Process, err)
			}
		}
		if err := h.m.Revoke(t.Context(), a, "x", nil); !errors.Is(err, credential.ErrNoLease) {
			t.Errorf("revoked what there is not: %v", err)
		}
		if h.up.left() != 1 {
			t.Error("somebody else ended it")
		}
		if err := h.m.Revoke(t.Context(), a, g.Lease.ID, nil); err != nil || h.up.left() != 0 {
			t.Errorf("revoked by its holder: %v", err)
		}
	})
}

func TestRenewMovesExpiryUpToTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+"    renewable: true")
		a, _, _ := agent("one", 1)
		g := h.grant(a)
		for range 10 {
			time.Sleep(50 * time.Second)
			l, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID, RequestID: "r"})
			if err != nil {
				t.Fatal(err)
			}
			if want := earlier(time.Now().Add(time.Minute), g.Lease.Latest); !l.Expires.Equal(want) {
				t.Fatalf("expires %v, want %v", l.Expires, want)
			}
		}
		time.Sleep(50 * time.Second) // 9m10s of 10m
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID}); err != nil {
			t.Errorf("up to the latest: %v", err)
		}
		if h.up.renewed != 50*time.Second {
			t.Errorf("the upstream was asked for %v, want the 50s that are left", h.up.renewed)
		}
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID}); !errors.Is(err, credential.ErrNotRenewable) {
			t.Errorf("beyond the latest: %v", err)
		}
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID, TTL: time.Hour}); !errors.Is(err, credential.ErrTTL) {
			t.Errorf("for too long: %v", err)
		}
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("it outlived its latest end")
		}
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID}); !errors.Is(err, credential.ErrNoLease) {
			t.Errorf("after its end: %v", err)
		}
	})
}

func TestRenewalThatFailsChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+"    renewable: true")
		a, _, _ := agent("one", 1)
		g := h.grant(a)
		h.up.renew = func() error { return credential.ErrRefused }
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID, TTL: 5 * time.Minute}); !errors.Is(err, credential.ErrRefused) {
			t.Errorf("refused upstream: %v", err)
		}
		h.up.renew = nil
		h.log.refuse = func(e credential.Event) error {
			if e.Kind == credential.EventRenew {
				return errors.New("disk full")
			}
			return nil
		}
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID, TTL: 5 * time.Minute}); !errors.Is(err, credential.ErrUnrecorded) {
			t.Errorf("that cannot be recorded: %v", err)
		}
		if l := h.m.Leases(); len(l) != 1 || !l[0].Expires.Equal(g.Lease.Expires) {
			t.Errorf("leases %v", l)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("it outlived the expiry it was granted with")
		}
	})
}

func TestLeaseThatIsNotRenewable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		g := h.grant(a)
		if _, err := h.m.Renew(t.Context(), a, credential.Renewal{Lease: g.Lease.ID}); !errors.Is(err, credential.ErrNotRenewable) {
			t.Error(err)
		}
	})
}

func TestRevocationIsRetriedUntilItIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, exit, _ := agent("one", 1)
		h.grant(a)
		h.up.onRevoke(func() error { return credential.ErrUpstream })
		close(exit)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		h.wantStates(map[credential.State]int{credential.Stuck: 1})
		h.wantStory("credential.intent success", "credential.grant success", "credential.revoke error")
		if l := h.m.Leases()[0]; l.Attempts < stuckAfter || l.Reason != "process ended" || l.Failure != credential.ErrUpstream.Error() {
			t.Errorf("stuck lease %+v", l)
		}
		tried := h.up.attempts()
		for i, at := range tried[1:] {
			gap := at.Sub(tried[i])
			if least := min(lastRetry, firstRetry<<(i+1)); gap < least || gap > least*5/4+time.Second {
				t.Errorf("attempt %d came after %v, want at least %v", i+2, gap, least)
			}
		}
		h.up.onRevoke(nil)
		time.Sleep(lastRetry * 5 / 4)
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		h.wantStory("credential.intent success", "credential.grant success", "credential.revoke error", "credential.revoke success")
	})
}

func TestConfirmedEndIsNotAskedForAgainWhenItsRecordFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, exit, _ := agent("one", 1)
		h.grant(a)
		h.log.set(func(credential.Event) error { return errors.New("disk full") })
		close(exit)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		h.wantStates(map[credential.State]int{credential.Revoking: 1})
		h.log.set(nil)
		time.Sleep(lastRetry)
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		h.wantStory("credential.intent success", "credential.grant success", "credential.revoke success")
		if n := len(h.up.attempts()); n != 1 {
			t.Errorf("the upstream was asked %d times to end what it had confirmed", n)
		}
	})
}

func TestAdministratorNeedNotWaitForTheNextAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, exit, _ := agent("one", 1)
		h.grant(a)
		h.up.onRevoke(func() error { return credential.ErrUpstream })
		close(exit)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		h.up.onRevoke(nil)
		began := time.Now()
		if n, err := h.m.RevokeWhere(t.Context(), credential.Where{Credential: "api"}, "incident"); n != 1 || err != nil || time.Since(began) != 0 {
			t.Errorf("%d, %v after %v", n, err, time.Since(began))
		}
		h.wantStates(map[credential.State]int{})
	})
}

func TestLeaseIsProvablyExpiredWhenTheUpstreamEndsItItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition, func(u *upstream) {
			u.notAfter = func(ttl time.Duration) time.Time { return time.Now().Add(ttl) }
		})
		a, exit, _ := agent("one", 1)
		h.grant(a)
		h.up.onRevoke(func() error { return credential.ErrUpstream })
		close(exit)
		time.Sleep(time.Minute)
		if n := len(h.m.Leases()); n != 1 {
			t.Fatalf("%d leases at the upstream's own end, want 1: clocks differ", n)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		if s := h.log.story(); s[len(s)-1] != "credential.revoke expired" {
			t.Errorf("the log tells %q", s)
		}
	})
}

func TestExpiryOnlyLeaseIsNotSaidToBeRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition, func(u *upstream) {
			u.traits.Revocation, u.traits.ChoosesTTL = credential.ExpiryOnly, true
			u.notAfter = func(time.Duration) time.Time { return time.Now().Add(5 * time.Minute) }
		})
		a, exit, _ := agent("one", 1)
		if g := h.grant(a); !g.Lease.Expires.Equal(time.Now().Add(5 * time.Minute)) {
			t.Errorf("expires %v, want what the upstream said", g.Lease.Expires)
		}
		if n, err := h.m.RevokeWhere(t.Context(), credential.Where{All: true}, "incident"); n != 1 || err != nil {
			t.Errorf("ending it: %d, %v; want what can be done at once", n, err)
		}
		close(exit)
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		h.wantStates(map[credential.State]int{credential.Revoking: 1})
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		h.wantStory("credential.intent success", "credential.grant success", "credential.revoke expired")
		if len(h.up.attempts()) != 0 {
			t.Error("the upstream was asked for what it cannot do")
		}
	})
}

func TestClockJumps(t *testing.T) {
	for _, tt := range []struct {
		name string
		jump time.Duration
		ends time.Duration
	}{
		{"a day forward ends what has expired by it", 24 * time.Hour, 2 * time.Second},
		{"a day back prolongs nothing", -24 * time.Hour, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, plainDefinition)
				a, _, _ := agent("one", 1)
				h.grant(a)
				synctest.Wait()
				h.skew.Store(int64(tt.jump))
				began := time.Now()
				for h.up.left() > 0 && time.Since(began) < time.Hour {
					time.Sleep(time.Second)
					synctest.Wait()
				}
				if took := time.Since(began); took > tt.ends {
					t.Errorf("ended after %v, want %v at most", took, tt.ends)
				}
				h.skew.Add(int64(time.Hour))
				h.grant(a)
			})
		})
	}
}

func TestRevokeWhereChoosesByWhatIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+strings.ReplaceAll(strings.TrimPrefix(plainDefinition, "\ncredentials:"), "api", "second"))
		one, _, _ := agent("one", 1)
		two, _, _ := agent("two", 2)
		both := []string{"api", "second"}
		ask := func(holder credential.Holder, name string) string {
			g, err := h.m.Grant(t.Context(), holder, credential.Ask{Name: name, Granted: both})
			if err != nil {
				t.Fatal(err)
			}
			return g.Lease.ID
		}
		for _, tt := range []struct {
			where credential.Where
			want  int
		}{
			{credential.Where{}, 0},
			{credential.Where{Credential: "third"}, 0},
			{credential.Where{Credential: "second", Identity: one.ID}, 1},
			{credential.Where{Credential: "second"}, 2},
			{credential.Where{Identity: two.ID}, 2},
			{credential.Where{All: true}, 4},
		} {
			for _, holder := range []credential.Holder{one, two} {
				for _, name := range both {
					ask(holder, name)
				}
			}
			if n, err := h.m.RevokeWhere(t.Context(), tt.where, "incident"); n != tt.want || err != nil {
				t.Errorf("%+v ended %d, %v; want %d", tt.where, n, err, tt.want)
			}
			if _, err := h.m.RevokeWhere(t.Context(), credential.Where{All: true}, "tidy"); err != nil {
				t.Fatal(err)
			}
		}
		id := ask(one, "api")
		ask(one, "api")
		if n, err := h.m.RevokeWhere(t.Context(), credential.Where{Lease: id}, "incident"); n != 1 || err != nil {
			t.Errorf("by its ID ended %d, %v", n, err)
		}
	})
}

func TestOneSlowUpstreamHoldsNoOtherUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		slow, exit, _ := agent("slow", 1)
		for range 3 * workers {
			h.grant(slow)
		}
		release := make(chan struct{})
		h.up.onRevoke(func() error { <-release; return nil })
		close(exit)
		synctest.Wait()
		fast := &upstream{traits: h.up.traits, live: make(map[string]bool)}
		h.up = fast
		h.m.SetDefinitions(h.definitions())
		a, leaves, _ := agent("one", 2)
		h.grant(a)
		close(leaves)
		synctest.Wait()
		if fast.left() != 0 {
			t.Error("a lease of another upstream was not ended")
		}
		close(release)
	})
}

func TestRemovedDefinitionEndsItsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		h.grant(a)
		h.define(plainDefinition + "    description: changed\n")
		h.m.SetDefinitions(h.definitions())
		synctest.Wait()
		h.wantStates(map[credential.State]int{credential.Active: 1})
		h.define("")
		h.m.SetDefinitions(h.definitions())
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		if h.up.left() != 0 {
			t.Error("it is left upstream")
		}
		if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrUndefined) {
			t.Error(err)
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+"    renewable: true")
		var holders []credential.Holder
		for pid := 11; pid <= 13; pid++ { // 13 cannot be looked for
			a, _, _ := agent("one", pid)
			holders = append(holders, a)
			h.grant(a)
		}
		exit := make(chan struct{})
		h.processes[11] = exit
		time.Sleep(10 * time.Second)
		h.restart()
		synctest.Wait()
		leases := h.m.Leases()
		if len(leases) != 1 || leases[0].Process.PID != 11 || h.up.left() != 1 {
			t.Fatalf("after the restart there are %v, want that of the process that lives", leases)
		}
		if _, err := h.m.Renew(t.Context(), holders[0], credential.Renewal{Lease: leases[0].ID}); err != nil {
			t.Errorf("renewing a lease from before: %v", err)
		}
		close(exit)
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("a process's exit went unseen after the restart")
		}

		h.processes[11] = make(chan struct{})
		h.grant(holders[0])
		h.m.Close()
		time.Sleep(time.Hour)
		h.start()
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("what expired while the daemon was down is left")
		}

		h.grant(holders[0])
		h.m.Close()
		h.skew.Store(-int64(24 * time.Hour))
		h.start()
		time.Sleep(10*time.Minute + time.Second)
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("setting the clock back over a restart prolonged a lease")
		}
	})
}

// The file was written once, by a daemon that had a lease in each of the three
// states: it must stay readable.
func TestJournalOfAnEarlierVersionIsTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+"    bind: lease\n    renewable: true")
		h.m.Close()
		b, err := os.ReadFile("testdata/leases")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(h.dir, "leases"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		const handedOut, ending, asked = "2P76D46IFCF3A4J4KAVIF35W4D", "KMF7DA6IXX7A4ETOHIJX6ZS6XK", "5HXXEGNNRCCMIFGLTU6IT2KWVD"
		for _, id := range []string{handedOut, ending, asked} {
			h.up.live["handle-"+id] = true
		}
		granted := time.Date(2026, 11, 26, 8, 49, 50, 0, time.UTC)
		h.skew.Store(int64(time.Until(granted)))
		h.start()
		synctest.Wait()
		l := h.m.Leases()
		if len(l) != 1 || l[0].ID != handedOut || l[0].State != credential.Active || !l[0].Renewable || h.m.LeaseHash(handedOut) != "97ef1af561db4c25fb8b8b6709d6d994" {
			t.Fatalf("leases %+v, want the one that was handed out", l)
		}
		reasons := make(map[string]string)
		for _, e := range h.log.events {
			reasons[e.Lease] = fmt.Sprintf("%s %s: %s", e.Kind, e.Outcome, e.Reason)
		}
		if want := map[string]string{
			h.m.LeaseHash(ending): "credential.revoke success: revoked by its holder",
			h.m.LeaseHash(asked):  "credential.revoke success: vouchd stopped before the upstream had answered",
		}; !maps.Equal(reasons, want) || h.up.left() != 1 {
			t.Errorf("recorded %v, want %v; %d left upstream", reasons, want, h.up.left())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
	})
}

func TestRestartGoesOnWithAnEndThatWasNotConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, exit, _ := agent("one", 1)
		h.grant(a)
		h.processes[1] = exit
		h.up.onRevoke(func() error { return credential.ErrUpstream })
		close(exit)
		synctest.Wait()
		h.m.Close()
		h.up.onRevoke(nil)
		h.start()
		synctest.Wait()
		if h.up.left() != 0 || len(h.m.Leases()) != 0 {
			t.Errorf("%d left upstream", h.up.left())
		}
		if e := h.log.events[len(h.log.events)-1]; e.Reason != "process ended" || e.Outcome != credential.Success {
			t.Errorf("recorded %+v", e)
		}
	})
}

func TestLeaseOfADefinitionThatIsGoneIsStuckUntilItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		h.grant(a)
		h.m.Close()
		h.define("")
		h.start()
		synctest.Wait()
		h.wantStates(map[credential.State]int{credential.Stuck: 1})
		if e := h.log.events[len(h.log.events)-1]; e.Outcome != credential.Failed || !strings.Contains(e.Reason, "define it again") {
			t.Errorf("recorded %+v", e)
		}
		h.up.traits.Upstream = "https://elsewhere"
		h.define(plainDefinition)
		h.m.SetDefinitions(h.definitions())
		synctest.Wait()
		h.wantStates(map[credential.State]int{credential.Stuck: 1}) // the same name for another upstream
		h.up.traits.Upstream = "https://api"
		h.m.SetDefinitions(h.definitions())
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		if h.up.left() != 0 {
			t.Error("it is left upstream")
		}
	})
}

func TestWatchGrantsTheNextBeforeTheLastExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		ctx, cancel := context.WithCancel(t.Context())
		var got []*credential.Grant
		began := time.Now()
		var at []time.Duration
		err := h.m.Watch(ctx, a, askAPI, noCheck, func(g *credential.Grant) error {
			got, at = append(got, g), append(at, time.Since(began))
			if len(got) == 4 {
				cancel()
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) || !slices.Equal(at, []time.Duration{0, 40 * time.Second, 80 * time.Second, 120 * time.Second}) {
			t.Errorf("%v; sent after %v", err, at)
		}
		time.Sleep(time.Second)
		h.wantStates(map[credential.State]int{credential.Active: 2}) // the last two; the earlier ones have expired
		time.Sleep(time.Minute)
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("leases outlived their expiry")
		}
	})
}

func TestWatchGoesOnThroughAnOutageThatIsShorterThanALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		sent := 0
		began := time.Now()
		h.up.issue = func(context.Context) error {
			if since := time.Since(began); since > 30*time.Second && since < 50*time.Second || since > 80*time.Second {
				return credential.ErrUpstream
			}
			return nil
		}
		err := h.m.Watch(t.Context(), a, askAPI, noCheck, func(*credential.Grant) error { sent++; return nil })
		if !errors.Is(err, credential.ErrUpstream) || sent != 2 {
			t.Errorf("%v after %d, want the second to come late, and the third never", err, sent)
		}
	})
}

// noCheck lets a watch go on.
func noCheck() error { return nil }

func TestWatchAsksNothingForACallerThatIsNoLongerEntitled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		lost := errors.New("no longer entitled")
		sent := 0
		err := h.m.Watch(t.Context(), a, askAPI, func() error { return lost }, func(*credential.Grant) error { sent++; return nil })
		if !errors.Is(err, lost) || sent != 1 || h.up.asked != 1 {
			t.Errorf("%v after %d grants, and the upstream was asked %d times", err, sent, h.up.asked)
		}
	})
}

func TestWatchThatIsCutRevokesWhatDidNotArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		cut := errors.New("stream is cut")
		if err := h.m.Watch(t.Context(), a, askAPI, noCheck, func(*credential.Grant) error { return cut }); !errors.Is(err, cut) {
			t.Error(err)
		}
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("a credential that did not arrive is left")
		}
	})
}

func TestWatchEndsWhenItsLeaseIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 1)
		done := make(chan error)
		go func() {
			done <- h.m.Watch(context.Background(), a, askAPI, noCheck, func(*credential.Grant) error { return nil })
		}()
		synctest.Wait()
		if n, err := h.m.RevokeWhere(t.Context(), credential.Where{All: true}, "incident"); n != 1 || err != nil {
			t.Error(n, err)
		}
		if err := <-done; !errors.Is(err, credential.ErrHolderGone) {
			t.Error(err)
		}
	})
}

func TestTenThousandLeasesEndAtOnceAndSurviveARestart(t *testing.T) {
	t.Parallel()
	const n = 10_000
	h := newHost(t, plainDefinition+"    bind: lease")
	work := make(chan int)
	errs := make(chan error)
	for range 64 {
		go func() {
			for i := range work {
				a, _, _ := agent(fmt.Sprint("agent", i%100), i)
				_, err := h.m.Grant(context.Background(), a, askAPI)
				errs <- err
			}
		}()
	}
	go func() {
		for i := range n {
			work <- i
		}
		close(work)
	}()
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	h.restart()
	if got := len(h.m.Leases()); got != n {
		t.Fatalf("%d leases after the restart", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if ended, err := h.m.RevokeWhere(ctx, credential.Where{All: true}, "incident"); ended != n || err != nil || h.up.left() != 0 {
		t.Errorf("ended %d, %v; %d left", ended, err, h.up.left())
	}
}

func TestClosedManagerGrantsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t, plainDefinition)
	h.m.Close()
	a, _, _ := agent("one", 1)
	if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrClosed) {
		t.Error(err)
	}
}

func TestCredentialThatCannotBeFoundExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition, func(u *upstream) {
			u.notAfter = func(time.Duration) time.Time { return time.Now().Add(time.Hour) }
			u.issue = func(context.Context) error { return credential.ErrUpstream } // the answer is lost
			u.revoke = func() error { return credential.ErrOnlyExpires }
		})
		a, _, _ := agent("one", 1)
		if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrUpstream) {
			t.Fatal(err)
		}
		synctest.Wait()
		if l := h.m.Leases(); len(l) != 1 || l[0].State != credential.Revoking || l[0].Revocation != credential.ExpiryOnly || l[0].Attempts != 0 {
			t.Errorf("leases %+v, want one that waits for the upstream's clock", l)
		}
		if n, err := h.m.RevokeWhere(t.Context(), credential.Where{All: true}, "incident"); n != 1 || err != nil {
			t.Errorf("ending it: %d, %v", n, err)
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		h.wantStory("credential.intent success", "credential.grant error", "credential.revoke expired")
	})
}
