package main

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
)

// TestKilledAtRandomMomentsTheDaemonHasRecordedWhatItHandedOut kills the daemon
// again and again while callers fetch as fast as they can. What a caller got is in
// the log afterwards, and the log verifies, anchors included.
func TestKilledAtRandomMomentsTheDaemonHasRecordedWhatItHandedOut(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Configure("log: {anchor_every: 1s}\n")
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	answered := make(map[string]bool) // serial numbers
	const lives = 12
	for life := range lives {
		h.StartProcess()
		stop := make(chan struct{})
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					svid, err := spiffe.FetchX509SVID(t.Context(), spiffe.WithAddr("unix://"+h.Path("agent.sock")))
					if err == nil {
						mu.Lock()
						answered[hex.EncodeToString(svid.Certificates[0].SerialNumber.Bytes())] = true
						mu.Unlock()
					}
				}
			})
		}
		many := func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(answered) >= (life+1)*10
		}
		eventually(t, "identities are handed out", many)
		moment := time.NewTimer(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
		<-moment.C // any moment, which is no condition to wait for
		must(t, h.Cmd.Process.Kill())
		h.Wait()
		close(stop)
		callers.Wait()
		if out, stderr, code := h.Vouch("log", "verify", "--live"); code != 0 {
			t.Fatalf("seed %d, life %d: vouch log verify --live exits %d: %s%s", seed, life, code, out, stderr)
		}
	}
	h.StartProcess()
	h.Stop()
	out, stderr, code := h.Vouch("log", "verify")
	if code != 0 || !strings.Contains(out, fmt.Sprintf("%7d daemon.start", lives+1)) {
		t.Fatalf("seed %d: vouch log verify exits %d: %s%s", seed, code, out, stderr)
	}
	recorded, stderr, code := h.Vouch("log", "show", "--event", "x509_svid.issue", "--output", "json")
	if code != 0 {
		t.Fatal(stderr)
	}
	for serial := range answered {
		if !strings.Contains(recorded, serial) {
			t.Errorf("seed %d: %s was handed out, and no record says so", seed, serial)
		}
	}
	left, err := filepath.Glob(h.Path("state/log/wal/*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if info, err := os.Stat(h.Path("state/log/checkpoint")); err != nil || info.Size() == 0 {
		t.Errorf("no checkpoint is published: %v", err)
	}
	t.Logf("%d identities handed out in %d lives", len(answered), lives)
}
