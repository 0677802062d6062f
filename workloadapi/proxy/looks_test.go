package proxy

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/attest/process"
)

// TestALookThatHasBegunIsNotForWhoComesLater: of a process that has become another since
// it was attested, nobody who asks afterwards is told otherwise.
func TestALookThatHasBegunIsNotForWhoComesLater(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", "read x; exec sleep 60")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	a := process.NewAttester(process.Options{})
	p, err := process.Pin(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	at, err := a.Attest(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var l looks
	all := func() (bad int) {
		var mu sync.Mutex
		var work sync.WaitGroup
		for range 50 {
			work.Go(func() {
				if err := l.unchanged(a, p, at); err != nil {
					mu.Lock()
					bad++
					mu.Unlock()
				}
			})
		}
		work.Wait()
		return bad
	}
	if n := all(); n != 0 {
		t.Fatalf("%d of 50 looks find another process", n)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	for { // until it has become sleep
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if to != at.Path {
			break
		}
	}
	if n := all(); n != 50 {
		t.Errorf("%d of 50 looks find another process, want all", n)
	}
	if len(l.at) != 0 {
		t.Errorf("%d looks are left", len(l.at))
	}
}
