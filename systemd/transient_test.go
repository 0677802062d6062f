package systemd

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSystemServiceThatIsAloneHasNothingButLo also has what vouch needs to make a network of it.
func TestSystemServiceThatIsAloneHasNothingButLo(t *testing.T) {
	u := needSystemd(t)
	must(t, os.MkdirAll("/run/vouchd", 0o755))
	must(t, os.WriteFile("/run/vouchd/canary", nil, 0o644))
	t.Cleanup(func() { os.Remove("/run/vouchd/canary") })
	if _, err := os.Stat(SandboxResolver); err != nil {
		must(t, os.MkdirAll(filepath.Dir(SandboxResolver), 0o755))
		must(t, os.WriteFile(SandboxResolver, []byte("nameserver 127.0.0.1\n"), 0o644))
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	out, in, err := os.Pipe()
	must(t, err)
	defer out.Close()
	const name = "vouch-alone-test.service"
	script := `ls /sys/class/net /run /run/vouchd; grep CapAmb /proc/self/status; cat /etc/resolv.conf; echo x >/run/vouch/ca.pem && echo placed; ls /tmp; ls -d /proc/1 || echo none; echo end`
	must(t, u.Start(t.Context(), Transient{
		Name: name, Description: name, Slice: "system.slice", Command: []string{"/bin/sh", "-c", script},
		User: "nobody", Directory: "/", Files: [3]*os.File{null, in, in}, Alone: true,
	}))
	t.Cleanup(func() { u.Remove(context.Background(), name) })
	in.Close()
	out.SetReadDeadline(time.Now().Add(20 * time.Second))
	var b []byte // systemd keeps the other end
	for lines := bufio.NewReader(out); !strings.HasSuffix(string(b), "end\n"); {
		line, err := lines.ReadString('\n')
		if b = append(b, line...); err != nil {
			t.Fatalf("%v after %q", err, b)
		}
	}
	for _, want := range []string{"/sys/class/net:\nlo\n", "/run:\nsystemd\nvouch\nvouchd\n", "/run/vouchd:\n", "canary\n", "CapAmb:\t0000000000003400\n", "nameserver 127.0.0.1\n", "placed\n", "none\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in:\n%s", want, b)
		}
	}
}
