package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startService starts a service of its own for the test, and returns its name
// and invocation.
func startService(t *testing.T, u *Units, lines ...string) Invocation {
	t.Helper()
	f, err := os.CreateTemp("/etc/systemd/system", "test-*.service")
	must(t, err)
	name := filepath.Base(f.Name())
	_, err = f.WriteString("[Service]\n" + strings.Join(lines, "\n") + "\n")
	must(t, errors.Join(err, f.Close()))
	t.Cleanup(func() {
		exec.Command("systemctl", "kill", "--signal=KILL", name).Run()
		exec.Command("systemctl", "stop", name).Run()
		os.Remove(f.Name())
	})
	systemctl(t, "daemon-reload")
	systemctl(t, "start", name)
	return current(t, u, name)
}

func current(t *testing.T, u *Units, name string) Invocation {
	t.Helper()
	unit, err := u.Unit(t.Context(), name)
	must(t, err)
	return Invocation{Unit: name, ID: unit.InvocationID}
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func watching(t *testing.T, u *Units) *Invocations {
	t.Helper()
	w, err := NewInvocations(u)
	must(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

func ends(t *testing.T, end <-chan struct{}) {
	t.Helper()
	select {
	case <-end:
	case <-time.After(30 * time.Second):
		t.Fatal("its end was not noticed")
	}
}

func goesOn(t *testing.T, end <-chan struct{}) {
	t.Helper()
	select {
	case <-end:
		t.Fatal("it counts as ended")
	default:
	}
}

func TestSystemInvocationEndsWithItsUnit(t *testing.T) {
	u := needSystemd(t)
	w := watching(t, u)
	const sleeps = "ExecStart=/bin/sleep infinity"
	for _, tt := range []struct {
		name  string
		lines []string
		end   func(t *testing.T, unit string)
	}{
		{"stopped", []string{sleeps}, func(t *testing.T, unit string) { systemctl(t, "stop", unit) }},
		{"restarted", []string{sleeps}, func(t *testing.T, unit string) { systemctl(t, "restart", unit) }},
		{"its main process is killed", []string{sleeps}, func(t *testing.T, unit string) {
			systemctl(t, "kill", "--signal=KILL", unit)
		}},
		{"restarted by systemd, at once", []string{sleeps, "Restart=always", "RestartSec=0"}, func(t *testing.T, unit string) {
			systemctl(t, "kill", "--signal=KILL", unit)
		}},
		{"stopped, and a process is left behind", []string{"ExecStart=/bin/sh -c 'sleep infinity & exec sleep infinity'", "KillMode=process"}, func(t *testing.T, unit string) {
			systemctl(t, "stop", unit)
		}},
		{"restarted, and a process is left behind", []string{"ExecStart=/bin/sh -c 'sleep infinity & exec sleep infinity'", "KillMode=process"}, func(t *testing.T, unit string) {
			systemctl(t, "restart", unit)
		}},
		{"fails", []string{"ExecStart=/bin/sh -c 'until [ -e /run/%n ]; do sleep 0.01; done; exit 1'"}, func(t *testing.T, unit string) {
			must(t, os.WriteFile("/run/"+unit, nil, 0o600))
			t.Cleanup(func() { os.Remove("/run/" + unit) })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			of := startService(t, u, tt.lines...)
			end, err := w.Watch(t.Context(), of)
			must(t, err)
			goesOn(t, end)
			tt.end(t, of.Unit)
			ends(t, end)
			if _, err := w.Watch(t.Context(), of); !errors.Is(err, ErrEnded) {
				t.Errorf("it is watched again: %v, want %v", err, ErrEnded)
			}
		})
	}
}

func TestSystemActiveUnitWithoutProcessesHasEnded(t *testing.T) {
	u := needSystemd(t)
	w := watching(t, u)
	if w.mount == "" {
		t.Skip("control groups of version 2 are not mounted, so nothing tells")
	}
	of := startService(t, u, "ExecStart=/bin/sleep infinity", "RemainAfterExit=yes")
	end, err := w.Watch(t.Context(), of)
	must(t, err)
	systemctl(t, "kill", "--signal=TERM", of.Unit)
	ends(t, end)
	if now := current(t, u, of.Unit); now != of {
		t.Errorf("it was started anew as %v", now)
	}
}

// A credential may be fetched before the main process starts.
func TestSystemInvocationGoesOnBetweenOneCommandAndTheNext(t *testing.T) {
	u := needSystemd(t)
	w := watching(t, u)
	gate := t.TempDir()
	f, err := os.CreateTemp("/etc/systemd/system", "test-*.service")
	must(t, err)
	name := filepath.Base(f.Name())
	var pre strings.Builder
	for i := range 20 { // a moment without a process after each
		fmt.Fprintf(&pre, "ExecStartPre=/bin/true %d\n", i)
	}
	_, err = fmt.Fprintf(f, "[Service]\nExecStartPre=/bin/sh -c 'until [ -e %s/go ]; do sleep 0.01; done'\n%sExecStart=/bin/sleep infinity\n", gate, pre.String())
	must(t, errors.Join(err, f.Close()))
	t.Cleanup(func() {
		exec.Command("systemctl", "stop", name).Run()
		os.Remove(f.Name())
	})
	systemctl(t, "daemon-reload")
	systemctl(t, "start", "--no-block", name)
	waitFor(t, "it is starting", func() bool { return current(t, u, name).ID != strings.Repeat("0", 32) && current(t, u, name).ID != "" })
	end, err := w.Watch(t.Context(), current(t, u, name))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(gate, "go"), nil, 0o600))
	waitFor(t, "it has started", func() bool {
		return exec.Command("systemctl", "is-active", "--quiet", name).Run() == nil
	})
	goesOn(t, end)
	systemctl(t, "stop", name)
	ends(t, end)
}

func TestSystemEndIsNoticedThoughSystemdHasReexecutedItself(t *testing.T) {
	u := needSystemd(t)
	w := watching(t, u)
	of := startService(t, u, "ExecStart=/bin/sleep infinity")
	end, err := w.Watch(t.Context(), of)
	must(t, err)
	systemctl(t, "daemon-reexec")
	goesOn(t, end)
	systemctl(t, "stop", of.Unit)
	ends(t, end)
}

func TestSystemUnitsWithoutProcessesAreNotWatched(t *testing.T) {
	u := needSystemd(t)
	w := watching(t, u)
	for _, name := range []string{"multi-user.target", "nonsense"} {
		if _, err := w.Watch(t.Context(), Invocation{Unit: name}); err == nil || errors.Is(err, ErrEnded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Watch(t.Context(), Invocation{Unit: "no-such.service", ID: "00"}); !errors.Is(err, ErrEnded) {
		t.Errorf("a unit that is not there: %v, want %v", err, ErrEnded)
	}
}

// BenchmarkSystemInvocationEnd is from the kill of a unit's process to the
// notice of its end.
func BenchmarkSystemInvocationEnd(b *testing.B) {
	u := needSystemd(b)
	w, err := NewInvocations(u)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	var took []time.Duration
	for b.Loop() {
		name := fmt.Sprintf("bench-%d.service", len(took))
		if out, err := exec.Command("systemd-run", "--collect", "--unit="+name, "sleep", "infinity").CombinedOutput(); err != nil {
			b.Fatalf("systemd-run: %v: %s", err, out)
		}
		unit, err := u.Unit(b.Context(), name)
		if err != nil {
			b.Fatal(err)
		}
		end, err := w.Watch(b.Context(), Invocation{Unit: name, ID: unit.InvocationID})
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := syscall.Kill(unit.Service.MainPID, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		<-end
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

func TestKernelTellsWhetherAControlGroupHasProcesses(t *testing.T) {
	t.Parallel()
	w := watching(t, &Units{})
	if w.mount == "" {
		t.Skip("control groups of version 2 are not mounted, so the kernel does not tell")
	}
	group, err := os.MkdirTemp(w.mount, "vouchd-test")
	must(t, err)
	t.Cleanup(func() { os.Remove(group) })
	below := filepath.Join(group, "below")
	must(t, os.Mkdir(below, 0o755))
	t.Cleanup(func() { os.Remove(below) })
	events := filepath.Join(group, "cgroup.events")
	if !empty(events) {
		t.Error("a new group has processes")
	}
	of := Invocation{Unit: "x.service"}
	watch := &invocationWatch{ended: make(chan struct{})}
	w.watched[of] = watch
	if got, err := w.watchGroup(watch, "/"+filepath.Base(group)); err != nil || got != events {
		t.Fatalf("watching it: %q, %v", got, err)
	}
	cmd := exec.Command("sleep", "infinity")
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	must(t, os.WriteFile(filepath.Join(below, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0))
	if empty(events) {
		t.Error("a group with a process below it is empty")
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	waitFor(t, "it is empty", func() bool { return empty(events) })
	must(t, os.Remove(below))
	must(t, os.Remove(group))
	if !empty(events) {
		t.Error("a group that is gone has processes")
	}
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	late := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
