package workloadapi

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/postgres"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// A stack is everything a daemon serves with: a real TPM, a real log, a real
// socket.
type stack struct {
	t       testing.TB
	dir     string
	log     *audit.Log
	server  *Server
	socket  string
	stop    func() // ends serving and waits for it
	entries string // directory
	clock   clock  // the authority's
}

// A clock is right until a test moves it.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) move(d time.Duration) { c.ahead.Add(int64(d)) }

// startStack starts a stack with these entries, the entries' part of a file of
// entries.d.
func startStack(t testing.TB, entries string) *stack {
	t.Helper()
	// Short, because a socket's path is.
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &stack{t: t, dir: dir, socket: filepath.Join(dir, "agent.sock"), entries: filepath.Join(dir, "entries.d")}
	n, states := s.openNode()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.log, err = audit.Open(filepath.Join(dir, "log"), audit.Options{Origin: "example.org/test", Key: key, TPM: n, Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.log.Close(context.Background()) })
	authority, err := identity.NewAuthority(t.Context(), identity.Options{
		TrustDomain: domain, NodeKey: n.Signer(), Store: states, Sealer: n,
		IssuingCATTL: 4 * time.Hour, Overlap: 2 * time.Hour, JWTKeyTTL: 24 * time.Hour, JWTIssuer: "https://example.org",
		Now:      s.clock.Now,
		Announce: func(context.Context, identity.Key) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := process.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Close() })
	holders, manager := s.openCredentials(n, quiet)
	s.server = New(Options{
		Attester: process.NewAttester(process.Options{Wants: func(kind string) bool { return s.server.Wants(kind) }}),
		Watcher:  watcher, Authority: authority, Log: s.log, Logger: quiet, Credentials: manager, Holders: holders,
	})
	s.setEntries(entries)
	l, err := gate.ListenAt(s.socket, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	s.run(l)
	return s
}

// definitions are of credentials whose upstream cannot be reached: what is
// granted in full, cmd/vouchd tests with a real one.
const definitions = `
credentials:
  - name: tides
    broker: postgres
    parameters:
      - {name: table, one_of: [tides, waves], default: tides}
    postgres: {host: %[1]s, database: d, user: u, grants: ["GRANT SELECT ON sea.{{table}} TO {{role}}"]}
  - name: winds
    broker: postgres
    postgres: {host: %[1]s, database: d, user: u, grants: ["GRANT SELECT ON air.winds TO {{role}}"]}
  - name: currents
    broker: postgres
    bind: unit
    postgres: {host: %[1]s, database: d, user: u, grants: ["GRANT SELECT ON sea.currents TO {{role}}"]}
`

func (s *stack) openCredentials(sealer credential.Sealer, logger *slog.Logger) (*Holders, *credential.Manager) {
	s.t.Helper()
	dir := filepath.Join(s.dir, "credentials.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), fmt.Appendf(nil, definitions, filepath.Join(s.dir, "nothing")), 0o644); err != nil {
		s.t.Fatal(err)
	}
	defs, err := credential.LoadDefinitions(dir, credential.Brokers{"postgres": postgres.Open}, false)
	if err != nil {
		s.t.Fatal(err)
	}
	holders, err := NewHolders(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	manager, err := credential.Open(s.t.Context(), credential.Config{
		Journal: filepath.Join(s.dir, "leases"), Sealer: sealer, Recorder: NewLeaseRecorder(s.log),
		Processes: holders, Definitions: defs, Log: logger,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { manager.Close(); holders.Close() })
	return holders, manager
}

func (s *stack) openNode() (*node.Node, *state.Dir) {
	s.t.Helper()
	tpm, err := node.Open(s.t.Context(), tpmtest.Start(s.t).Address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { tpm.Close() })
	states, err := state.Open(filepath.Join(s.dir, "state"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { states.Close() })
	n, err := node.Load(s.t.Context(), tpm, states)
	if err != nil {
		s.t.Fatal(err)
	}
	return n, states
}

func (s *stack) run(l *net.UnixListener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(ctx, l) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Serve: %v", err)
		}
		done <- nil // again is no error
	}
	s.t.Cleanup(func() { s.stop() })
}

// setEntries puts entries in force, as a reload does.
func (s *stack) setEntries(entries string) {
	s.t.Helper()
	if err := os.MkdirAll(s.entries, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.entries, "test.yaml"), []byte("entries:\n"+entries), 0o644); err != nil {
		s.t.Fatal(err)
	}
	es, err := identity.LoadEntries(s.entries, domain, identity.Limits{MaxX509TTL: 2 * time.Hour})
	if err != nil {
		s.t.Fatal(err)
	}
	s.server.SetEntries(es)
}

// entry is one that the user's processes match.
func entry(path string, uid int) string {
	return fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org%s\", selectors: [\"unix:uid:%d\"]}\n", path, uid)
}

// client is the stock client, in this process.
func (s *stack) client(ctx context.Context) *workloadapi.Client {
	s.t.Helper()
	c, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+s.socket))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// records returns the log's records of an event so far.
func (s *stack) records(event audit.Event) []audit.Leaf {
	s.t.Helper()
	var found []audit.Leaf
	for e, err := range audit.Records(context.Background(), os.DirFS(filepath.Join(s.dir, "log")), 0) {
		if err != nil {
			s.t.Fatal(err)
		}
		if e.Leaf.Event == event {
			found = append(found, e.Leaf)
		}
	}
	return found
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// helpers are the programs that tests start as other processes: the test
// binary, called as one of them.
var helpers = map[string]func(args []string) error{
	"hold":  helperHold,
	"stay":  helperStay,
	"drain": helperDrain,
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if name, ok := strings.CutPrefix(os.Args[1], "helper:"); ok {
			if err := helpers[name](os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func helper(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, append([]string{"helper:" + name}, args...)...)
	cmd.Stderr = t.Output()
	return cmd
}

func dial(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}
