package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The tests set environment variables as systemd does, and so run one by one.

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "helper:listeners" {
		printPassed()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// manager receives what the daemon says.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func receive(t *testing.T, c *net.UnixConn) []string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := c.Read(b)
	must(t, err)
	return strings.Split(string(b[:n]), "\n")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNotifications(t *testing.T) {
	c := manager(t)
	for _, tt := range []struct {
		name string
		say  func() error
		want []string
	}{
		{"ready", func() error { return Ready("serving") }, []string{"READY=1", "STATUS=serving"}},
		{"status cannot say more than a status", func() error { return Status("x\nREADY=1") }, []string{"STATUS=x READY=1"}},
		{"stopping", Stopping, []string{"STOPPING=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, tt.say())
			if got := receive(t, c); !slices.Equal(got, tt.want) {
				t.Errorf("said %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReloadingSaysWhen(t *testing.T) {
	c := manager(t)
	var said []int64
	for range 2 {
		must(t, Reloading())
		got := receive(t, c)
		if len(got) != 2 || got[0] != "RELOADING=1" {
			t.Fatalf("said %q", got)
		}
		value, ok := strings.CutPrefix(got[1], "MONOTONIC_USEC=")
		usec, err := strconv.ParseInt(value, 10, 64)
		if !ok || err != nil || usec <= 0 {
			t.Fatalf("said %q", got)
		}
		said = append(said, usec)
	}
	if said[0] > said[1] {
		t.Errorf("the second reload, at %d, is before the first, at %d", said[1], said[0])
	}
}

func TestWithoutSystemdNothingHappens(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		t.Setenv(name, "") // restores it after the test
		os.Unsetenv(name)
	}
	must(t, Ready("x"))
	must(t, Reloading())
	must(t, Stopping())
	must(t, Watchdog(t.Context(), func(context.Context) error {
		t.Error("there is no watchdog, and yet the daemon is checked")
		return nil
	}))
	if l, f, err := Passed(); len(l)+len(f) != 0 || err != nil {
		t.Errorf("listeners %v, %v", l, err)
	}
}

func TestWatchdogIsSilentWhileTheDaemonIsIll(t *testing.T) {
	c := manager(t)
	t.Setenv("WATCHDOG_USEC", "2000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	checks := 0
	err := Watchdog(ctx, func(context.Context) error {
		switch checks++; {
		case checks == 1:
			return nil
		case checks < 5:
			return errors.New("ill")
		case checks == 5:
			return nil
		default:
			cancel()
			return errors.New("ill")
		}
	})
	must(t, err)
	for range 2 {
		if got := receive(t, c); !slices.Equal(got, []string{"WATCHDOG=1"}) {
			t.Errorf("said %q", got)
		}
	}
	must(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("a third message of %d bytes, though the daemon was well twice", n)
	}
}

// printPassed prints what Passed returns in a process that has
// descriptors from systemd.
func printPassed() {
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	listeners, files, err := Passed()
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	for _, name := range []string{"agent.sock", "admin.sock"} {
		if l := listeners[name]; l != nil {
			fmt.Println(name, filepath.Base(l.Addr().String()))
		}
	}
	for name, f := range files {
		b, err := io.ReadAll(f)
		fmt.Printf("file %s has %s, %v\n", name, b, err)
	}
	if again, files, err := Passed(); len(again)+len(files) != 0 || err != nil {
		fmt.Println("again:", again, err)
	}
}

func TestSocketsAndFilesThatSystemdPasses(t *testing.T) {
	dir := t.TempDir()
	unix := func(name string) *os.File {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		must(t, err)
		t.Cleanup(func() { l.Close() })
		f, err := l.File()
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	tcp := func() *os.File {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		t.Cleanup(func() { l.Close() })
		f, err := l.(*net.TCPListener).File()
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	must(t, os.WriteFile(filepath.Join(dir, "log"), []byte("records"), 0o600))
	log, err := os.Open(filepath.Join(dir, "log"))
	must(t, err)
	defer log.Close()
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	for _, tt := range []struct {
		name  string
		files []*os.File
		names string
		want  string
	}{
		{"two by name", []*os.File{unix("a"), unix("b")}, "admin.sock:agent.sock", "agent.sock b\nadmin.sock a\n"},
		{"two of one name", []*os.File{unix("c"), unix("d")}, "agent.sock:agent.sock", "error: systemd passes two sockets named agent.sock"},
		{"TCP", []*os.File{tcp()}, "agent.sock", "error: socket agent.sock from systemd is tcp"},
		{"a socket and a file", []*os.File{unix("e"), log}, "agent.sock:measured", "agent.sock e\nfile measured has records, <nil>\n"},
		{"no socket", []*os.File{null}, "agent.sock", "error: socket agent.sock from systemd: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			exe, err := os.Executable()
			must(t, err)
			cmd := exec.Command(exe, "helper:listeners")
			cmd.ExtraFiles = tt.files
			cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(tt.files)), "LISTEN_FDNAMES="+tt.names)
			out, err := cmd.CombinedOutput()
			must(t, err)
			if got := string(out); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
