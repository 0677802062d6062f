package lease

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/vouchd/vouchd/credential"
)

// Whatever happens in whatever order, nothing is upstream that no lease knows,
// and once the upstream is well and every process is gone, nothing is left.
func TestNothingIsEverOrphaned(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{
			"grant", "grant", "grant slowly", "exit", "revoke", "renew", "wait", "restart",
			"issuing fails", "revoking fails", "log is full", "clock jumps", "well",
		}), 1, 25).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, plainDefinition+"    renewable: true")
			live(rt, h, steps)
		})
	})
}

// live takes a host through steps and checks it after each.
func live(t *rapid.T, h *host, steps []string) {
	exits := make(map[int]chan struct{})
	holders := make(map[int]credential.Holder)
	var grants []*credential.Grant
	failing := errors.New("log is full")
	for i, step := range steps {
		switch step {
		case "grant", "grant slowly":
			a, exit, _ := agent("one", i)
			exits[i], holders[i], h.processes[i] = exit, a, exit
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			if step == "grant slowly" {
				h.up.set(func() { h.up.issue = func(ctx context.Context) error { <-ctx.Done(); return credential.ErrUpstream } })
			}
			if g, err := h.m.Grant(ctx, a, askAPI); err == nil {
				grants = append(grants, g)
			}
			cancel()
		case "exit":
			for pid, exit := range exits {
				close(exit)
				delete(exits, pid)
				delete(h.processes, pid)
				break
			}
		case "revoke", "renew":
			if len(grants) == 0 {
				continue
			}
			g := grants[len(grants)-1]
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			if step == "revoke" {
				h.m.Revoke(ctx, holders[g.Lease.Process.PID], g.Lease.ID, nil)
			} else {
				h.m.Renew(ctx, holders[g.Lease.Process.PID], credential.Renewal{Lease: g.Lease.ID})
			}
			cancel()
		case "wait":
			time.Sleep(20 * time.Second)
		case "restart":
			h.restart()
		case "issuing fails":
			h.up.set(func() { h.up.issue = func(context.Context) error { return credential.ErrUpstream } })
		case "revoking fails":
			h.up.onRevoke(func() error { return credential.ErrUpstream })
		case "log is full":
			h.log.set(func(credential.Event) error { return failing })
		case "clock jumps":
			h.skew.Add(int64(time.Hour))
		case "well":
			h.well()
		}
		synctest.Wait()
		if err := h.orphans(); err != nil {
			t.Fatalf("after %q: %v", steps[:i+1], err)
		}
	}
	h.well()
	for _, exit := range exits {
		close(exit)
	}
	time.Sleep(2 * lastRetry)
	synctest.Wait()
	if h.up.left() != 0 || len(h.m.Leases()) != 0 {
		t.Fatalf("after %q: %d are left upstream, and leases %v", steps, h.up.left(), h.m.Leases())
	}
}

// well lets the upstream and the log work again.
func (h *host) well() {
	h.up.onRevoke(nil)
	h.up.set(func() { h.up.issue = nil })
	h.log.set(nil)
}

// orphans reports what is upstream and in no lease.
func (h *host) orphans() error {
	known := make(map[string]bool)
	for _, l := range h.m.Leases() {
		known[l.Handle] = true
	}
	h.up.mu.Lock()
	defer h.up.mu.Unlock()
	for handle := range h.up.live {
		if !known[handle] {
			return fmt.Errorf("%s is upstream, and no lease knows it", handle)
		}
	}
	return nil
}
