package gate_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// A launcher is a process that execs another program when it is told, as
// wrappers and plugins do.
type launcher struct {
	self
	tell io.Writer
}

func newLauncher(t *testing.T) *launcher {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "echo ready; read line; exec sleep 60")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	p, err := process.Pin(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &launcher{self: self{pinned: p}, tell: in}
}

// exec returns once the process runs the other program.
func (l *launcher) exec(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(l.tell, "go\n"); err != nil {
		t.Fatal(err)
	}
	exe := fmt.Sprintf("/proc/%d/exe", l.pinned.PID())
	for t.Context().Err() == nil {
		if path, err := os.Readlink(exe); err == nil && strings.HasSuffix(path, "/sleep") {
			return
		}
	}
}

// Whenever it execs between being attested and getting its answer, it gets
// nothing.
func TestAnExecInAnyWindowIsRefused(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, gatetest.Entry("/agent", os.Getuid()))
	answer := func(c *gate.Caller, during func()) error {
		_, err := gate.Answer(t.Context(), c, func(_ context.Context, c *gate.Caller) (string, []audit.Record, error) {
			during()
			return "value", []audit.Record{c.Describe(audit.EventWorkload)}, nil
		})
		return err
	}
	for _, tt := range []struct {
		name string
		ask  func(l *launcher, c *gate.Caller) error
	}{
		{"before the answer is made", func(l *launcher, c *gate.Caller) error {
			l.exec(t)
			return answer(c, func() {})
		}},
		{"while it is made", func(l *launcher, c *gate.Caller) error {
			return answer(c, func() { l.exec(t) })
		}},
		{"while it proves its presence", func(l *launcher, c *gate.Caller) error {
			l.present = func() error { l.exec(t); return nil }
			return answer(c, func() {})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLauncher(t)
			c, err := s.Gate.Admit(t.Context(), gate.Request{Peer: l, Event: audit.EventWorkload})
			if err != nil {
				t.Fatal(err)
			}
			before := len(s.Records(audit.EventWorkload))
			if err := tt.ask(l, c); err == nil {
				t.Error("it was answered")
			}
			r := s.Records(audit.EventWorkload)[before:]
			if len(r) != 1 || r[0].Outcome != audit.Denied {
				t.Errorf("recorded %+v, want one refusal", r)
			}
		})
	}
}

// What it got before is given again to a process that asks too often, but not past its end.
func TestWhatHasEndedIsNotGivenAgain(t *testing.T) {
	t.Parallel()
	const asks = 60
	s := gatetest.Start(t, gatetest.Entry("/agent", os.Getuid()))
	for end, again := range map[time.Duration]bool{time.Hour: true, 0: false} {
		peer, err := process.Pin(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { peer.Close() })
		made := 0
		for range asks {
			c, err := s.Gate.Admit(t.Context(), gate.Request{Peer: &self{pinned: peer}, Event: audit.EventX509SVID})
			if err != nil {
				t.Fatal(err)
			}
			_, err = gate.AnswerAgain(t.Context(), c, gate.Repeat{Of: end.String(), For: time.Hour}, func(_ context.Context, c *gate.Caller) (string, []audit.Record, error) {
				made++
				now := time.Now()
				svid := &identity.X509SVID{Leaf: []byte("leaf"), Serial: "01", NotBefore: now.Add(-time.Minute), NotAfter: now.Add(end)}
				return "value", []audit.Record{c.DescribeX509(c.Entries[0], svid)}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := made < asks; got != again {
			t.Errorf("an SVID that ends in %v was made %d times for %d requests", end, made, asks)
		}
	}
}
