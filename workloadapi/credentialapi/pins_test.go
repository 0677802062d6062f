package credentialapi

import (
	"os/exec"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/credential"
)

func TestPinsKnowAProcessAgain(t *testing.T) {
	t.Parallel()
	ps, err := NewPins(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ps.Close()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	pin, err := process.Pin(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Close()
	start, err := pin.StartTime()
	if err != nil {
		t.Fatal(err)
	}
	p := credential.Process{PID: cmd.Process.Pid, StartTime: start, BootID: ps.bootID}
	end, alive, err := ps.Find(p, credential.BindProcess)
	if err != nil || !alive {
		t.Fatalf("a living process is not found: %v", err)
	}
	for name, other := range map[string]credential.Process{
		"of another boot":          {PID: p.PID, StartTime: p.StartTime, BootID: "another"},
		"that had its PID earlier": {PID: p.PID, StartTime: p.StartTime - 1, BootID: p.BootID},
		"that has been reaped":     {PID: 1 << 22, StartTime: p.StartTime, BootID: p.BootID},
	} {
		if _, alive, err := ps.Find(other, credential.BindProcess); alive || err != nil {
			t.Errorf("a process %s is alive (%v)", name, err)
		}
	}
	cmd.Process.Kill()
	select {
	case <-end:
	case <-time.After(10 * time.Second):
		t.Error("its exit is not noticed")
	}
}

func TestPinsWithoutSystemdKnowNoUnit(t *testing.T) {
	t.Parallel()
	ps, err := NewPins(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ps.Close()
	p := credential.Process{BootID: ps.bootID, Unit: "agent.service", Invocation: "5a3c"}
	if _, alive, err := ps.Find(p, credential.BindUnit); alive || err == nil {
		t.Errorf("a unit is found: %v, %v", alive, err)
	}
	p.BootID = "another"
	if _, alive, err := ps.Find(p, credential.BindUnit); alive || err != nil {
		t.Errorf("a unit of another boot is alive (%v)", err)
	}
}
