package lease

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vouchd/vouchd/credential"
)

const fullDefinition = `
credentials:
  - name: api
    broker: vault
    vault: {path: x}
    ttl: 1m
    max_ttl: 10m
    bind: unit
    limits: {rate: 4/1m, concurrent: 2, hours: [mon-fri 08:00-18:00]}
    parameters:
      - {name: object, one_of: [contact, deal]}
      - {name: ticket, pattern: "[A-Z]{2}-[0-9]{1,4}", default: AB-1}
`

func TestGrantIsRecordedBeforeAndAfterTheUpstreamIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fullDefinition)
		time.Sleep(58 * time.Hour) // the bubble begins on a Saturday at midnight
		a, _, _ := agent("research", 1)
		g, err := h.m.Grant(t.Context(), a, credential.Ask{
			Name: "api", Granted: []string{"other", "api"}, Params: map[string]string{"object": "deal"},
			RequestID: "r1", Exposure: credential.InFile, TTL: 2 * time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(g.Fields) != 1 || string(g.Fields[0].Value.Reveal()) != canary {
			t.Errorf("fields %v", g.Fields)
		}
		if l := g.Lease; l.State != credential.Active || !l.Expires.Equal(l.Granted.Add(2*time.Minute)) || l.Handle != "handle-"+l.ID || l.Identity != a.ID || l.Process != a.Process {
			t.Errorf("lease %+v", l)
		}
		h.wantStory("credential.intent success", "credential.grant success")
		for i, e := range h.log.events {
			if e.Lease != h.m.LeaseHash(g.Lease.ID) || e.Lease == g.Lease.ID || e.RequestID != "r1" || e.Identity != a.ID || e.Process != a.Process ||
				e.Credential != "api" || e.Broker != "vault" || e.Upstream != "https://api" || e.Handle != g.Lease.Handle || e.Exposure != credential.InFile ||
				e.TTL != 2*time.Minute || !e.NotAfter.Equal(g.Lease.Expires) || e.Revocation != credential.Hard ||
				!slices.Equal(e.ScopeAsked, []string{"object=deal", "ticket=AB-1"}) {
				t.Errorf("event %d: %+v", i, e)
			}
		}
		if e := h.log.events[1]; !slices.Equal(e.ScopeGranted, []string{"read"}) || !slices.Equal(e.Audience, []string{"api"}) {
			t.Errorf("result %+v", e)
		}
	})
}

func TestRefusalsAreRecordedAndAskNothingOfTheUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fullDefinition)
		time.Sleep(58 * time.Hour)
		ok := credential.Ask{Name: "api", Granted: []string{"api"}, Params: map[string]string{"object": "deal"}}
		for _, tt := range []struct {
			name   string
			change func(*credential.Ask, *credential.Holder)
			want   error
			says   string
		}{
			{"nothing granted", func(a *credential.Ask, _ *credential.Holder) { a.Granted = nil }, credential.ErrNotGranted, "its entry must list it"},
			{"another granted", func(a *credential.Ask, _ *credential.Holder) { a.Granted = []string{"ap", "api2"} }, credential.ErrNotGranted, "api"},
			{"no name", func(a *credential.Ask, _ *credential.Holder) { a.Name = "" }, credential.ErrNotGranted, ""},
			{"granted and not defined", func(a *credential.Ask, _ *credential.Holder) { a.Name, a.Granted = "gone", []string{"gone"} }, credential.ErrUndefined, "gone"},
			{"a parameter missing", func(a *credential.Ask, _ *credential.Holder) { a.Params = nil }, credential.ErrParameter, "needs parameter object"},
			{"a parameter unknown", func(a *credential.Ask, _ *credential.Holder) {
				a.Params = map[string]string{"object": "deal", "x": "y"}
			}, credential.ErrParameter, "it has object, ticket"},
			{"a parameter not in its list", func(a *credential.Ask, _ *credential.Holder) { a.Params = map[string]string{"object": "billing"} }, credential.ErrParameter, "is not one of contact, deal"},
			{"a parameter that is empty", func(a *credential.Ask, _ *credential.Holder) { a.Params = map[string]string{"object": ""} }, credential.ErrParameter, "is empty"},
			{"a pattern with more after it", func(a *credential.Ask, _ *credential.Holder) { a.Params["ticket"] = "AB-12345" }, credential.ErrParameter, "does not match [A-Z]{2}-[0-9]{1,4}"},
			{"a pattern with a line end", func(a *credential.Ask, _ *credential.Holder) { a.Params["ticket"] = "AB-1\n" }, credential.ErrParameter, "does not print"},
			{"a value that is no UTF-8", func(a *credential.Ask, _ *credential.Holder) { a.Params["ticket"] = "\xff" }, credential.ErrParameter, "UTF-8"},
			{"a value without end", func(a *credential.Ask, _ *credential.Holder) { a.Params["ticket"] = strings.Repeat("A", 1<<20) }, credential.ErrParameter, "may have 512"},
			{"a ttl above the maximum", func(a *credential.Ask, _ *credential.Holder) { a.TTL = 11 * time.Minute }, credential.ErrTTL, "above the 10m"},
			{"a negative ttl", func(a *credential.Ask, _ *credential.Holder) { a.TTL = -1 }, credential.ErrTTL, ""},
			{"an exposure that there is not", func(a *credential.Ask, _ *credential.Holder) { a.Exposure = "wall" }, credential.ErrParameter, ""},
			{"a request ID with a line end", func(a *credential.Ask, _ *credential.Holder) { a.RequestID = "a\nb" }, credential.ErrParameter, ""},
			{"a process in no unit", func(_ *credential.Ask, h *credential.Holder) { h.Stop = nil }, credential.ErrHolderGone, "unit"},
		} {
			before := len(h.log.events)
			a, holder := ok, credential.Holder{}
			holder, _, _ = agent("research", 1)
			a.Params = map[string]string{"object": "deal"}
			tt.change(&a, &holder)
			g, err := h.m.Grant(t.Context(), holder, a)
			if g != nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || len(err.Error()) > 1000 {
				t.Errorf("%s: %v, want %v with %q", tt.name, err, tt.want, tt.says)
			}
			if events := h.log.events[before:]; len(events) != 1 || events[0].Outcome != credential.Denied || events[0].Kind != credential.EventIntent || events[0].Reason == "" {
				t.Errorf("%s: recorded %+v", tt.name, events)
			}
		}
		time.Sleep(10 * time.Hour)
		a, _, _ := agent("research", 1)
		if _, err := h.m.Grant(t.Context(), a, ok); !errors.Is(err, credential.ErrHours) {
			t.Errorf("at eight in the evening: %v", err)
		}
		if h.up.asked != 0 || len(h.m.Leases()) != 0 {
			t.Errorf("the upstream was asked %d times, and there are leases %v", h.up.asked, h.m.Leases())
		}
	})
}

func TestAskerIsInTheEventsOfWhatWasAskedAndInNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition+"    renewable: true")
		a, _, _ := agent("one", 1)
		first, second, third := &credential.Asker{PID: 1, Entry: "a.yaml:1"}, &credential.Asker{PID: 2}, &credential.Asker{PID: 3}
		ask := askAPI
		ask.Asker = first
		g, err := h.m.Grant(t.Context(), a, ask)
		if err != nil {
			t.Fatal(err)
		}
		denied := ask
		denied.Granted = nil
		if _, err := h.m.Grant(t.Context(), a, denied); !errors.Is(err, credential.ErrNotGranted) {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, renewal := range []credential.Renewal{{Lease: g.Lease.ID, Asker: second}, {Lease: "none", Asker: second}} {
			if _, err := h.m.Renew(t.Context(), a, renewal); (err == nil) != (renewal.Lease == g.Lease.ID) {
				t.Fatal(err)
			}
		}
		if err := h.m.Revoke(t.Context(), a, g.Lease.ID, third); err != nil {
			t.Fatal(err)
		}
		h.up.set(func() { h.up.issue = func(context.Context) error { return credential.ErrRefused } })
		if _, err := h.m.Grant(t.Context(), a, ask); !errors.Is(err, credential.ErrRefused) {
			t.Fatal(err)
		}
		synctest.Wait()
		h.up.set(func() { h.up.issue = nil })
		if _, err := h.m.Grant(t.Context(), a, ask); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		h.wantStory(
			"credential.intent success", "credential.grant success", "credential.intent denied", "credential.renew success", "credential.renew denied", "credential.revoke success",
			"credential.intent success", "credential.grant error", "credential.revoke success", // of what may have been left behind
			"credential.intent success", "credential.grant success", "credential.revoke success", // of what expired
		)
		for i, want := range []*credential.Asker{first, first, first, second, second, third, first, first, nil, first, first, nil} {
			if i < len(h.log.events) && h.log.events[i].Asker != want {
				t.Errorf("event %d is of %+v, want %+v", i, h.log.events[i].Asker, want)
			}
		}
	})
}

func TestLimitsAreOfEachIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, strings.Replace(fullDefinition, ", hours: [mon-fri 08:00-18:00]", "", 1))
		ask := credential.Ask{Name: "api", Granted: []string{"api"}, Params: map[string]string{"object": "deal"}}
		one, _, _ := agent("one", 1)
		other, _, _ := agent("other", 2)
		var grants []*credential.Grant
		for range 2 {
			g, err := h.m.Grant(t.Context(), one, ask)
			if err != nil {
				t.Fatal(err)
			}
			grants = append(grants, g)
		}
		if _, err := h.m.Grant(t.Context(), one, ask); !errors.Is(err, credential.ErrLimit) || !strings.Contains(err.Error(), "has 2 leases") {
			t.Errorf("a third lease at a time: %v", err)
		}
		if _, err := h.m.Grant(t.Context(), other, ask); err != nil {
			t.Errorf("another identity: %v", err)
		}
		for i := range 2 {
			if err := h.m.Revoke(t.Context(), one, grants[i].Lease.ID, nil); err != nil {
				t.Fatal(err)
			}
			g, err := h.m.Grant(t.Context(), one, ask)
			if err != nil {
				t.Fatal(err)
			}
			grants = append(grants, g)
		}
		if err := h.m.Revoke(t.Context(), one, grants[2].Lease.ID, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := h.m.Grant(t.Context(), one, ask); !errors.Is(err, credential.ErrLimit) || !strings.Contains(err.Error(), "4/1m") {
			t.Errorf("a fifth in a minute: %v", err)
		}
		time.Sleep(16 * time.Second)
		if _, err := h.m.Grant(t.Context(), one, ask); err != nil {
			t.Errorf("a quarter of a minute later: %v", err)
		}
	})
}

func TestLeaseDoesNotOutliveItsHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fullDefinition)
		time.Sleep(48*time.Hour + 17*time.Hour + 59*time.Minute + 30*time.Second)
		a, _, _ := agent("one", 1)
		g, err := h.m.Grant(t.Context(), a, credential.Ask{Name: "api", Granted: []string{"api"}, Params: map[string]string{"object": "deal"}})
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(g.Lease.Expires); left != 30*time.Second || g.Lease.Latest != g.Lease.Expires {
			t.Errorf("half a minute before closing it lives for %v, and until %v at most", left, g.Lease.Latest)
		}
	})
}

func TestNothingIsHandedOutThatIsNotRecorded(t *testing.T) {
	for _, kind := range []credential.EventKind{credential.EventIntent, credential.EventGrant} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, plainDefinition)
			full := true
			h.log.refuse = func(e credential.Event) error {
				if e.Kind == kind && full {
					return errors.New("disk full")
				}
				return nil
			}
			a, _, _ := agent("one", 1)
			g, err := h.m.Grant(t.Context(), a, askAPI)
			if g != nil || !errors.Is(err, credential.ErrUnrecorded) {
				t.Errorf("%s: %v", kind, err)
			}
			if kind == credential.EventIntent && h.up.asked != 0 {
				t.Error("the upstream was asked without a record")
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if h.up.left() != 0 || len(h.m.Leases()) != 0 {
				t.Errorf("%s: %d are left upstream, leases %v", kind, h.up.left(), h.m.Leases())
			}
			full = false
			h.grant(a)
		})
	}
}

func TestNothingIsHandedOutThatIsNotInTheJournal(t *testing.T) {
	t.Parallel()
	h := newHost(t, plainDefinition)
	a, _, _ := agent("one", 1)
	h.grant(a)
	fillDisk(t, filepath.Join(h.dir, "leases"))
	if g, err := h.m.Grant(t.Context(), a, askAPI); g != nil || !errors.Is(err, credential.ErrUnrecorded) {
		t.Errorf("with a full disk: %v", err)
	}
	if h.up.asked != 1 {
		t.Error("the upstream was asked for what could not be written down")
	}
	if err := h.m.Err(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the manager's state is %v", err)
	}
	// What there is can still be ended.
	if _, err := h.m.RevokeWhere(t.Context(), credential.Where{All: true}, "incident"); err != nil || h.up.left() != 0 {
		t.Errorf("with a full disk: %v, %d left", err, h.up.left())
	}
}

// fillDisk lets every later write to a file that this process has open fail.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range open {
		if target, err := os.Readlink(link); err != nil || target != path {
			continue
		}
		fd, err := strconv.Atoi(filepath.Base(link))
		if err == nil {
			err = syscall.Dup3(int(full.Fd()), fd, syscall.O_CLOEXEC)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s is not open", path)
}

func TestUpstreamFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		issue func(ctx context.Context) error
		want  error
	}{
		{"refuses", func(context.Context) error { return fmt.Errorf("%w: scope", credential.ErrRefused) }, credential.ErrRefused},
		{"hangs", func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("%w: %w", credential.ErrUpstream, ctx.Err())
		}, credential.ErrUpstream},
		{"fails, though it took effect", func(context.Context) error { return credential.ErrUpstream }, credential.ErrUpstream},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, plainDefinition, func(u *upstream) { u.issue = tt.issue })
				a, _, _ := agent("one", 1)
				began := time.Now()
				if g, err := h.m.Grant(t.Context(), a, askAPI); g != nil || !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if took := time.Since(began); took > issueTimeout {
					t.Errorf("took %v", took)
				}
				synctest.Wait()
				if h.up.left() != 0 {
					t.Error("what may exist upstream was not ended")
				}
				h.wantStates(map[credential.State]int{})
				h.wantStory("credential.intent success", "credential.grant error", "credential.revoke success")
			})
		})
	}
}

func TestPlanThatFailsLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition, func(u *upstream) { u.plan = func(context.Context) error { return credential.ErrUpstream } })
		a, _, _ := agent("one", 1)
		if _, err := h.m.Grant(t.Context(), a, askAPI); !errors.Is(err, credential.ErrUpstream) {
			t.Error(err)
		}
		synctest.Wait()
		h.wantStates(map[credential.State]int{})
		h.wantStory("credential.grant error")
	})
}

func TestCallerWhoLeavesLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition, func(u *upstream) {
			u.issue = func(context.Context) error { time.Sleep(time.Second); return nil } // hears nothing of it
		})
		a, _, _ := agent("one", 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if g, err := h.m.Grant(ctx, a, askAPI); g != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if h.up.left() != 0 {
			t.Error("a credential that nobody took is left")
		}
	})
}

func TestExpiryOnlyUpstreamMustKeepToTheMaximum(t *testing.T) {
	for name, notAfter := range map[string]time.Duration{"lives too long": time.Hour, "does not say": 0} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, plainDefinition, func(u *upstream) {
				u.traits.Revocation, u.traits.ChoosesTTL = credential.ExpiryOnly, true
				u.notAfter = func(time.Duration) time.Time {
					if notAfter == 0 {
						return time.Time{}
					}
					return time.Now().Add(notAfter)
				}
			})
			a, _, _ := agent("one", 1)
			if g, err := h.m.Grant(t.Context(), a, askAPI); g != nil || !errors.Is(err, credential.ErrUpstream) {
				t.Errorf("%s: %v", name, err)
			}
			if notAfter > 0 {
				synctest.Wait()
				h.wantStates(map[credential.State]int{credential.Revoking: 1}) // it cannot be ended, and is not forgotten
				time.Sleep(notAfter + time.Second)
			}
		})
	}
}

func TestNoSecretIsInAnythingButTheGrant(t *testing.T) {
	t.Parallel()
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	h := newHost(t, plainDefinition, func(u *upstream) { u.value = append([]byte(canary), every...) })
	a, _, _ := agent("one", 1)
	g := h.grant(a)
	if string(g.Fields[0].Value.Reveal()) != canary+string(every) {
		t.Error("a secret of every byte value came back changed")
	}
	h.up.onRevoke(func() error { return credential.ErrRefused })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	revoked := h.m.Revoke(ctx, a, g.Lease.ID, nil)
	if revoked == nil {
		t.Error("a revocation that was refused is confirmed")
	}
	shown := fmt.Sprintf("%v %+v %#v %v %+v %v", g, g, g, h.m.Leases(), h.log.events, revoked)
	h.m.Close()
	journal, err := os.ReadFile(filepath.Join(h.dir, "leases"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"values that were printed": shown, "diagnostics": h.said.String(), "the journal": string(journal)} {
		if strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) || strings.Contains(text, fmt.Sprint([]byte(canary))) {
			t.Errorf("%s show the secret", name)
		}
	}
	if !strings.Contains(h.said.String(), "revoking a lease") {
		t.Error("the refused revocation was not even said, so this shows nothing")
	}
}
