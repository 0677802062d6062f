package lease

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vouchd/vouchd/credential"
)

const calledDefinition = plainDefinition + `    proxy:
      upstream: https://api.example.com
      slot: {header: Authorization, form: "Bearer {{value}}"}
      handle_prefix: sk-
      rules: [{name: all, effect: allow, methods: [GET], paths: ["/**"]}]
`

func (h *host) call(holder credential.Holder) *Call {
	h.t.Helper()
	c, err := h.m.Call(h.t.Context(), holder, askAPI)
	if err != nil {
		h.t.Fatal(err)
	}
	if len(c.Fields) != 1 || string(c.Fields[0].Value.Reveal()) != canary {
		h.t.Fatalf("a call is made with %v", c.Fields)
	}
	return c
}

func TestCallsOfOneHolderShareALeaseAndOneFollowsTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, _, _ := agent("one", 11)
		b, _, _ := agent("one", 12)
		first := h.call(a)
		if again := h.call(a); !first.New || again.New || again.Lease.ID != first.Lease.ID {
			t.Errorf("the first call has lease %s (new: %t), the second %s (new: %t)", first.Lease.ID, first.New, again.Lease.ID, again.New)
		}
		if other := h.call(b); other.Lease.ID == first.Lease.ID {
			t.Error("two processes share a lease")
		}
		time.Sleep(58 * time.Second) // it has a minute
		if next := h.call(a); !next.New || next.Lease.ID == first.Lease.ID {
			t.Errorf("shortly before its end, a call is made by the lease that is about to expire")
		}
		select {
		case <-first.Over:
			t.Error("the first is over before its time")
		default:
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		select {
		case <-first.Over:
		default:
			t.Error("nobody was told that the first lease is over")
		}
	})
}

func TestRevokedLeaseIsFollowedByNoneUntilItsHolderAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, _, _ := agent("one", 11)
		first := h.call(a)
		if _, err := h.m.RevokeWhere(t.Context(), credential.Where{Credential: "api"}, "revoked by an administrator"); err != nil {
			t.Fatal(err)
		}
		<-first.Over
		if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrRevoked) || !strings.Contains(err.Error(), "by an administrator") {
			t.Errorf("the next call: %v", err)
		}
		time.Sleep(time.Hour)
		if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrRevoked) {
			t.Errorf("an hour later: %v", err)
		}
		h.grant(a)
		h.call(a)
		b, _, _ := agent("one", 12)
		h.call(b)
	})
}

func TestHolderIsGivenAHandleAndNoValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, _, _ := agent("one", 11)
		g := h.grant(a)
		if len(g.Fields) != 1 || g.Fields[0].Name != HandleField {
			t.Fatalf("it gets %v", g.Fields)
		}
		handle := string(g.Fields[0].Value.Reveal())
		if !strings.HasPrefix(handle, "sk-vouch") || len(handle) != len("sk-vouch")+32 || handle != string(h.grant(a).Fields[0].Value.Reveal()) {
			t.Errorf("the handle is %q", handle)
		}
		b, _, _ := agent("one", 12)
		for _, tt := range []struct {
			handle, name string
			p            credential.Process
			want         bool
		}{
			{handle, "api", a.Process, true},
			{strings.TrimPrefix(handle, "sk-"), "api", a.Process, true}, // the prefix is for clients to look at
			{handle, "other", a.Process, false},
			{handle, "api", b.Process, false},
			{handle, "api", credential.Process{PID: 11, StartTime: 6, BootID: "boot"}, false},
			{handle, "api", credential.Process{PID: 11, StartTime: 5, BootID: "later"}, false},
			{handle + "a", "api", a.Process, false},
			{handle[:len(handle)-1], "api", a.Process, false},
			{"", "api", a.Process, false},
		} {
			if got := h.m.IsHandle(tt.handle, tt.name, tt.p); got != tt.want {
				t.Errorf("%q of %s for %+v: %t", tt.handle, tt.name, tt.p, got)
			}
		}
		h.restart()
		if !h.m.IsHandle(handle, "api", a.Process) {
			t.Error("the handle does not outlive a restart")
		}
	})
}

func TestCallsGoOnByTheSameLeaseAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, _, _ := agent("one", 11)
		h.processes[11] = make(chan struct{})
		first := h.call(a)
		b, err := os.ReadFile(filepath.Join(h.dir, "leases"))
		if err != nil || strings.Contains(string(b), canary) {
			t.Errorf("the journal has the value in clear (%v)", err)
		}
		h.restart()
		if again := h.call(a); again.New || again.Lease.ID != first.Lease.ID || h.up.asked != 1 {
			t.Errorf("after the restart the call has lease %s, and before %s; the upstream was asked %d times", again.Lease.ID, first.Lease.ID, h.up.asked)
		}
	})
}

func TestNoCallIsMadeWithWhatHasNoProxyBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, plainDefinition)
		a, _, _ := agent("one", 11)
		if _, err := h.m.Call(t.Context(), a, askAPI); !errors.Is(err, credential.ErrNotGranted) {
			t.Errorf("%v", err)
		}
		other := askAPI
		other.Name = "gone"
		if _, err := h.m.Call(t.Context(), a, other); !errors.Is(err, credential.ErrUndefined) {
			t.Errorf("%v", err)
		}
	})
}

func TestHolderThatEndsLeavesNoSeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, calledDefinition)
		a, exit, _ := agent("one", 11)
		first := h.call(a)
		close(exit)
		<-first.Over
		synctest.Wait()
		h.m.calls.mu.Lock()
		defer h.m.calls.mu.Unlock()
		if n := len(h.m.calls.seats); n != 0 || h.up.left() != 0 {
			t.Errorf("%d seats and %d credentials are left", n, h.up.left())
		}
	})
}
