package systemd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// The tests of this file ask a real systemd: make system-test boots one.

func needSystemd(t testing.TB) *Units {
	t.Helper()
	comm, _ := os.ReadFile("/proc/1/comm")
	if string(comm) != "systemd\n" || os.Geteuid() != 0 {
		t.Skip("systemd is not PID 1 here, or this is not root")
	}
	u := &Units{}
	t.Cleanup(func() { u.Close() })
	return u
}

func TestSystemUnitIsAsSystemctlShowsIt(t *testing.T) {
	u := needSystemd(t)
	for _, name := range []string{"init.scope", "system.slice", "dbus.service", "dbus.socket"} {
		unit, err := u.Unit(t.Context(), name)
		must(t, err)
		show := func(property string) string {
			out, err := exec.Command("systemctl", "show", "--value", "-p", property, name).Output()
			must(t, err)
			return strings.TrimSpace(string(out))
		}
		if unit.Name != show("Id") || unit.InvocationID != show("InvocationID") || unit.FragmentPath != show("FragmentPath") {
			t.Errorf("%s: got %+v", name, unit)
		}
		if (unit.Service != nil) != strings.HasSuffix(name, ".service") {
			t.Errorf("%s: service is %+v", name, unit.Service)
		}
		if s := unit.Service; s != nil {
			if s.Type != show("Type") || s.NotifyAccess != show("NotifyAccess") || len(s.ExecStart) != 1 ||
				!strings.Contains(show("ExecStart"), "argv[]="+strings.Join(s.ExecStart[0].Args, " ")) {
				t.Errorf("%s: service is %+v", name, s)
			}
		}
		if unit.Loaded.IsZero() || unit.Loaded.After(time.Now()) {
			t.Errorf("%s: loaded at %v", name, unit.Loaded)
		}
	}
}

func TestSystemUnitThatIsNotThere(t *testing.T) {
	u := needSystemd(t)
	if unit, err := u.Unit(t.Context(), "no-such-unit.service"); !errors.Is(err, ErrNoUnit) {
		t.Errorf("got %v, %v; want %v", unit, err, ErrNoUnit)
	}
	if _, err := u.Unit(t.Context(), "../x"); err == nil {
		t.Error("a name that is none has a unit")
	}
}

func TestSystemIsAskedAgainAfterItHasReexecutedItself(t *testing.T) {
	u := needSystemd(t)
	_, err := u.Unit(t.Context(), "dbus.service")
	must(t, err)
	if out, err := exec.Command("systemctl", "daemon-reexec").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	unit, err := u.Unit(t.Context(), "dbus.service")
	if err != nil || !slices.Contains([]string{"simple", "notify"}, unit.Service.Type) {
		t.Errorf("got %+v, %v", unit, err)
	}
}

// A short message that systemd reads together with the end of the handshake must
// not wait for the next one.
func TestSystemAnswersTheFirstCallOnAConnection(t *testing.T) {
	needSystemd(t)
	for range 200 {
		var u Units
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := u.Signal(ctx, "x.service", 0)
		cancel()
		if !isNoUnit(err) {
			t.Fatalf("got %v, want that there is no such unit", err)
		}
		must(t, u.Close())
	}
}

func TestAskingEndsWithItsContext(t *testing.T) {
	u := needSystemd(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.Unit(ctx, "dbus.service"); err == nil {
		t.Error("asked all the same")
	}
}

func TestManagerThatTakesConnectionsAndSaysNothingIsNotWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if conn, err := dial(ctx, path); err == nil {
		conn.Close()
		t.Error("connected to nobody")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("waited for %v", took)
	}
}

// A manager that executes itself anew may end its connections anywhere.
func TestMessageThatIsCutOffAnywhereIsAnError(t *testing.T) {
	reply := &dbus.Message{
		Type: dbus.TypeMethodReply,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(uint32(1)),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf("")),
		},
		Body: []any{"active"},
	}
	var whole bytes.Buffer
	must(t, reply.EncodeTo(&whole, binary.LittleEndian))
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	for n := range whole.Len() {
		go func() {
			manager, err := l.Accept()
			if err != nil {
				return
			}
			defer manager.Close()
			said := bufio.NewReader(manager)
			said.ReadString('\n') // AUTH
			io.WriteString(manager, "REJECTED EXTERNAL\r\n")
			said.ReadString('\n') // AUTH EXTERNAL
			io.WriteString(manager, "OK 0123456789abcdef0123456789abcdef\r\n")
			said.ReadString('\n') // BEGIN
			if call, _ := said.Peek(1); len(call) == 0 {
				t.Error("the handshake failed before the call")
			}
			manager.Write(whole.Bytes()[:n])
		}()
		if conn, err := dial(t.Context(), path); err == nil {
			conn.Close()
			t.Errorf("took the first %d of %d bytes for an answer", n, whole.Len())
		}
	}
}

func TestWithoutSystemdThereAreNoUnits(t *testing.T) {
	if _, err := os.Stat("/run/systemd/private"); err == nil {
		t.Skip("there is a systemd")
	}
	var u Units
	if unit, err := u.Unit(t.Context(), "dbus.service"); err == nil || !strings.Contains(err.Error(), "asking systemd about unit dbus.service") {
		t.Errorf("got %v, %v", unit, err)
	}
	must(t, u.Close())
}

// BenchmarkSystemUnit tells processor times, too, on both sides, which a busy
// machine disturbs less.
func BenchmarkSystemUnit(b *testing.B) {
	u := needSystemd(b)
	own, systemds := processorTimes(b)
	asked := 0
	for b.Loop() {
		asked++
		if _, err := u.Unit(b.Context(), "dbus.service"); err != nil {
			b.Fatal(err)
		}
	}
	ownAfter, systemdsAfter := processorTimes(b)
	b.ReportMetric(float64((ownAfter-own).Microseconds())/float64(asked), "own-µs/op")
	b.ReportMetric(float64((systemdsAfter-systemds).Microseconds())/float64(asked), "systemd-µs/op")
}

// processorTimes returns what this process and systemd have used.
func processorTimes(b *testing.B) (own, systemds time.Duration) {
	b.Helper()
	var used unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &used))
	stat, err := os.ReadFile("/proc/1/stat")
	must(b, err)
	var user, system int64 // fields 14 and 15 of proc_pid_stat(5), in ticks
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	_, err = fmt.Sscan(strings.Join(fields[11:13], " "), &user, &system)
	must(b, err)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()), time.Duration(user+system) * 10 * time.Millisecond
}
