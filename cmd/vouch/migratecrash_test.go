package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// A killer passes requests to the daemon on, and calls kill once so many are answered,
// before their asker has the last answer.
type killer struct {
	mu       sync.Mutex // guards the fields below
	answered int
	after    int
	kill     func()
}

func (k *killer) serve(t *testing.T, socket, daemon string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go k.pass(from, daemon)
		}
	}()
}

func (k *killer) pass(from net.Conn, daemon string) {
	defer from.Close()
	to, err := net.Dial("unix", daemon)
	if err != nil {
		return
	}
	defer to.Close()
	go io.Copy(to, from)
	first := make([]byte, 1) // of the answer: what was asked for is done
	if _, err := to.Read(first); err != nil {
		return
	}
	k.mu.Lock()
	k.answered++
	if k.answered == k.after {
		k.kill()
	}
	k.mu.Unlock()
	from.Write(first)
	io.Copy(from, to)
}

// Vouch is killed behind each request that it makes of the daemon.
func TestMigrationAndUndoThatAreKilledAnywhereGoOn(t *testing.T) {
	t.Parallel()
	const text = "OPENAI_API_KEY=cnry1fQ2mZx7LpT4vK8w\nGITHUB_TOKEN=cnry2fQ2mZx7LpT4vK8w\nPORT=1\n"
	const want = "OPENAI_API_KEY=vouch:app-openai-api-key\nGITHUB_TOKEN=vouch:app-github-token\nPORT=1\n"
	h, file := newMigratingHost(t, text)
	h.Start()
	var k killer
	k.serve(t, h.Path("killer.sock"), h.Path("admin.sock"))
	h.Write("killed.yaml", strings.ReplaceAll(read(t, h.Path("vouchd.yaml")), h.Path("admin.sock"), h.Path("killer.sock")))
	// killed runs vouch until it is killed, and reports whether it was.
	killed := func(after int, args ...string) bool {
		t.Helper()
		cmd := exec.Command(daemontest.Program(t, "vouch"), append(args, "--config", h.Path("killed.yaml"))...)
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		must(t, cmd.Start())
		k.mu.Lock()
		k.answered, k.after, k.kill = 0, after, func() { cmd.Process.Kill() }
		k.mu.Unlock()
		cmd.Wait()
		return cmd.ProcessState.ExitCode() < 0
	}
	migrate := []string{"migrate", "env", file, "--credential-prefix", "app"}
	points := 0
	for after := 1; killed(after, migrate...); after++ {
		points++
		if got := read(t, file); got != text {
			t.Errorf("killed behind request %d, the file is\n%s", after, got)
		}
		h.OK(migrate...)
		if got := read(t, file); got != want {
			t.Errorf("killed behind request %d, and once more, the file is\n%s", after, got)
		}
		if out := h.OK("migrate", "undo", "--list"); strings.Count(out, "undo-") != 1 {
			t.Errorf("killed behind request %d, what can be undone is\n%s", after, out)
		}
		h.OK("migrate", "undo", file)
		if got := read(t, file); got != text {
			t.Errorf("killed behind request %d, migrated and undone, the file is\n%s", after, got)
		}
	}
	if points < 4 { // two secrets, what is kept already, what undoes it
		t.Errorf("it was killed at %d points", points)
	}
	points = 0
	for after := 1; ; after++ {
		h.OK(migrate...)
		if !killed(after, "migrate", "undo", file) {
			break
		}
		points++
		if got := read(t, file); got != text && got != want {
			t.Errorf("killed behind request %d of undo, the file is\n%s", after, got)
		}
		h.Vouch("migrate", "undo", file) // there may be nothing left to undo
		if got := read(t, file); got != text {
			t.Errorf("killed behind request %d of undo, and once more, the file is\n%s", after, got)
		}
		if out := h.OK("migrate", "undo", "--list"); out != "" {
			t.Errorf("killed behind request %d of undo, and once more, there is left to undo\n%s", after, out)
		}
	}
	if points < 3 {
		t.Errorf("undo was killed at %d points", points)
	}
	if left, err := filepath.Glob(h.Path(".app.env*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

func TestUndoRefusesWhereNobodyKnowsWhereTheValuesBelong(t *testing.T) {
	t.Parallel()
	const text = "OPENAI_API_KEY=cnry1fQ2mZx7LpT4vK8w\nPORT=1\n"
	h, file := newMigratingHost(t, text)
	h.Start()
	if _, stderr, code := h.Vouch("migrate", "undo", file); code != 1 || !strings.Contains(stderr, "nothing is kept that would undo") {
		t.Errorf("of a file that was never migrated: %d, %s", code, stderr)
	}
	h.OK("migrate", "env", file, "--credential-prefix", "app")
	handled := read(t, file)
	refused := func(why, want string) {
		t.Helper()
		before := read(t, file)
		_, stderr, code := h.Vouch("migrate", "undo", file)
		if code != 1 || !strings.Contains(stderr, want) || strings.Contains(stderr, "cnry") || read(t, file) != before {
			t.Errorf("%s: %d, %s", why, code, stderr)
		}
	}
	h.Write("app.env", strings.ReplaceAll(handled, "vouch:", "now:"))
	refused("the handle is gone", "has been changed since")
	h.Write("app.env", handled+handled)
	refused("the handle is there twice", "has been changed since")
	h.Write("app.env", handled)
	must(t, os.Chown(file, 1234, 1234))
	refused("it is another user's", "belongs to user 1234")
	must(t, os.Chown(file, os.Getuid(), os.Getgid()))
	must(t, os.Rename(file, file+".real"))
	must(t, os.Symlink(file+".real", file))
	refused("it is a link", "symbolic link")
	must(t, os.Remove(file))
	must(t, os.Rename(file+".real", file))

	// No other secret is given back, and no credential may use what undoes.
	if _, err := h.Admin().Secrets.Undo(t.Context(), "app-openai-api-key"); err == nil || !strings.Contains(err.Error(), "is not given") {
		t.Errorf("a secret that is none to undo by: %v", err)
	}
	name, _, _ := strings.Cut(h.OK("migrate", "undo", "--list"), "\t")
	h.Write("credentials.d/x.yaml", "credentials:\n  - {name: x, broker: static, static: {secret: "+name+", disclosable: true}}\n")
	if _, stderr, code := h.Vouch("check"); code == 0 || !strings.Contains(stderr, "kept to undo a migration") {
		t.Errorf("a credential that uses what undoes: %d, %s", code, stderr)
	}
	must(t, os.Remove(h.Path("credentials.d/x.yaml")))

	// A second migration is undone before the first. What is beside them stays.
	h.Write("app.env", "# new\n"+handled+"GITHUB_TOKEN=cnry2fQ2mZx7LpT4vK8w\n")
	h.OK("migrate", "env", file, "--credential-prefix", "app")
	h.OK("migrate", "undo", file)
	if got, want := read(t, file), "# new\n"+text+"GITHUB_TOKEN=cnry2fQ2mZx7LpT4vK8w\n"; got != want {
		t.Errorf("undone twice, it is\n%s\nwant\n%s", got, want)
	}
	h.OK("migrate", "env", file, "--credential-prefix", "app")
	h.OK("migrate", "undo", "--forget", file)
	refused("it is forgotten", "nothing is kept that would undo")
}
