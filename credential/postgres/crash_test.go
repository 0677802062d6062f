package postgres_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/credential/postgres"
)

// crashChild as the first argument makes the test binary a daemon that dies.
const crashChild = "crash-child"

// points are where it dies on the way of a lease from its plan to its end:
// before (-) and after (+) each call of the broker, and in each of the log,
// beside which the journal is being written.
var points = []string{
	"plan-", "plan+", "intent", "issue-", "issue+", "grant", "granted",
	"renew-", "renew+", "renewed", "revoke-", "revoke+", "revoked", "never",
}

func TestDaemonKilledAtEveryTransitionLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	for i, point := range points {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("crash%d", i)
			dir := crashDir(t, name)
			child := exec.Command(os.Args[0], crashChild, dir, name, point)
			child.Stderr = os.Stderr
			err := child.Run()
			if killed := err != nil && child.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; killed == (point == "never") {
				t.Fatalf("child ended with %v", err)
			}
			if point == "issue+" || point == "granted" {
				if n := roles(t, name); n != 1 {
					t.Fatalf("%d roles before the restart, want the one that was made", n)
				}
			}
			noOrphanAfterRestart(t, dir, name)
		})
	}
}

// Where the transitions do not say, at random times.
func TestDaemonKilledAtAnyTimeLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	const name = "anytime"
	dir := crashDir(t, name)
	for range 6 {
		child := exec.Command(os.Args[0], crashChild, dir, name, "busy")
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Error(err)
		}
		time.Sleep(rand.N(80 * time.Millisecond)) // the moment is what is tried
		child.Process.Kill()
		child.Wait()
	}
	noOrphanAfterRestart(t, dir, name)
}

func crashDir(t *testing.T, name string) string {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "credentials.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("warehouse-readonly", name, "bind: lease", "bind: process").Replace(definition(""))
	if err := os.WriteFile(filepath.Join(dir, "credentials.d", "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func roles(t *testing.T, name string) (n int) {
	t.Helper()
	if err := server.Admin(t, "postgres").QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE $1", `vouch\_`+name+`\_%`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func noOrphanAfterRestart(t *testing.T, dir, name string) {
	t.Helper()
	m, err := openManager(dir, postgres.Open, records{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	waitFor(t, func() bool { return len(m.Leases()) == 0 })
	if n := roles(t, name); n != 0 {
		t.Errorf("%d orphans after the restart", n)
	}
}

func openManager(dir string, open credential.Opener, r lease.Recorder) (*lease.Manager, error) {
	defs, err := credential.LoadDefinitions(filepath.Join(dir, "credentials.d"), credential.Brokers{"postgres": open}, true)
	if err != nil {
		return nil, err
	}
	return lease.Open(context.Background(), lease.Config{
		Journal:     filepath.Join(dir, "leases"),
		Sealer:      credentialtest.Machine(1),
		Recorder:    r,
		Processes:   credentialtest.NoProcess{},
		Definitions: defs,
		Log:         slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

// runCrashChild is the daemon that dies.
func runCrashChild(args []string) {
	dir, name, point := args[0], args[1], args[2]
	m, err := openManager(dir, func(d *credential.Definition, s config.Section) (credential.Broker, error) {
		b, err := postgres.Open(d, s)
		return deadly{b, point}, err
	}, records{point})
	if err != nil {
		panic(err)
	}
	h := credential.Holder{
		ID:      spiffeid.RequireFromString("spiffe://example.org/agent"),
		Process: credential.Process{PID: os.Getpid(), BootID: "boot"},
		Exit:    make(chan struct{}),
	}
	ctx := context.Background()
	life := func() {
		g, err := m.Grant(ctx, h, credential.Ask{Name: name, Granted: []string{name}})
		if err != nil {
			panic(err)
		}
		die(point == "granted")
		if _, err := m.Renew(ctx, h, credential.Renewal{Lease: g.Lease.ID, TTL: 2 * time.Minute}); err != nil {
			panic(err)
		}
		if err := m.Revoke(ctx, h, g.Lease.ID, nil); err != nil {
			panic(err)
		}
	}
	if point != "busy" {
		life()
		m.Close()
		return
	}
	for range 4 {
		go func() {
			for {
				life()
			}
		}()
	}
	fmt.Println("ready")
	select {}
}

func die(now bool) {
	if now {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// deadly is a broker that takes the daemon with it.
type deadly struct {
	credential.Broker
	point string
}

func (b deadly) Plan(ctx context.Context, r credential.Request) (credential.Plan, error) {
	die(b.point == "plan-")
	p, err := b.Broker.Plan(ctx, r)
	die(b.point == "plan+")
	return p, err
}

func (b deadly) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	die(b.point == "issue-")
	i, err := b.Broker.Issue(ctx, r, p)
	die(b.point == "issue+")
	return i, err
}

func (b deadly) Renew(ctx context.Context, h credential.Handle, ttl time.Duration) (time.Time, error) {
	die(b.point == "renew-")
	at, err := b.Broker.Renew(ctx, h, ttl)
	die(b.point == "renew+")
	return at, err
}

func (b deadly) Revoke(ctx context.Context, h credential.Handle) (credential.Use, error) {
	die(b.point == "revoke-")
	u, err := b.Broker.Revoke(ctx, h)
	die(b.point == "revoke+")
	return u, err
}

// records is a log that takes the daemon with it.
type records struct{ point string }

func (r records) Record(_ context.Context, e credential.Event) error {
	at := map[credential.EventKind]string{
		credential.EventIntent: "intent", credential.EventGrant: "grant", credential.EventRenew: "renewed", credential.EventRevoke: "revoked",
	}[e.Kind]
	die(r.point == at)
	return nil
}
