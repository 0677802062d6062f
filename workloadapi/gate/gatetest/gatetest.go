// Package gatetest is a gate on real things, for the tests of fronts: a real TPM
// (swtpm), a real attestation log, a real authority, real sockets and processes.
package gatetest

import (
	"context"
	"crypto/ed25519"
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
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/audit/writer"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// Flood is more requests than the refusals of one user that are recorded at
// once, by enough for a slow machine.
const Flood = 150

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// A Stack is a gate, and what fronts answer with.
type Stack struct {
	T         testing.TB
	Dir       string
	Socket    string // the agent socket's path
	Node      *node.Node
	Log       *writer.Log
	Recorder  *gate.Recorder
	Attester  *process.Attester
	Watcher   *process.Watcher
	Authority *identity.Authority
	Gate      *gate.Gate
	Logger    *slog.Logger
	Clock     Clock  // the authority's
	Stop      func() // ends serving and waits for it

	entries string // directory
}

// A Clock is right until a test moves it.
type Clock struct{ ahead atomic.Int64 }

// Now returns the time.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Move puts the clock forward.
func (c *Clock) Move(d time.Duration) { c.ahead.Add(int64(d)) }

// Start starts a stack with these entries, the entries' part of a file of
// entries.d.
func Start(t testing.TB, entries string) *Stack {
	t.Helper()
	// Short, because a socket's path is.
	dir, err := os.MkdirTemp("", "wl")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	s := &Stack{
		T: t, Dir: dir, Socket: filepath.Join(dir, "agent.sock"), entries: filepath.Join(dir, "entries.d"),
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	states := s.openNode()
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	s.Log, err = writer.Open(filepath.Join(dir, "log"), writer.Options{Origin: "example.org/test", Key: key, TPM: s.Node, Logger: s.Logger})
	must(t, err)
	t.Cleanup(func() { s.Log.Close(context.Background()) })
	s.Authority, err = identity.NewAuthority(t.Context(), identity.Options{
		TrustDomain: domain, NodeKey: s.Node.Signer(), Store: states, Sealer: s.Node,
		IssuingCATTL: 4 * time.Hour, Overlap: 2 * time.Hour, JWTKeyTTL: 24 * time.Hour, JWTIssuer: "https://example.org",
		JWTAlgorithms: []string{identity.ES256, identity.RS256},
		Now:           s.Clock.Now,
		Announce:      func(context.Context, identity.Key) error { return nil },
	})
	must(t, err)
	s.Watcher, err = process.NewWatcher()
	must(t, err)
	t.Cleanup(func() { s.Watcher.Close() })
	s.Recorder = gate.NewRecorder(s.Log, gate.Share{})
	t.Cleanup(s.Recorder.Close)
	s.Attester = process.NewAttester(process.Options{Wants: func(have attest.Selectors, upTo attest.Stage) attest.KindSet { return s.Gate.Wants(have, upTo) }})
	s.Gate = gate.New(gate.Options{Attester: s.Attester, Recorder: s.Recorder, Logger: s.Logger, Contact: "the administrator"})
	s.SetEntries(entries)
	return s
}

func (s *Stack) openNode() *state.Dir {
	s.T.Helper()
	tpm, err := node.Open(s.T.Context(), tpmtest.Start(s.T).Address)
	must(s.T, err)
	s.T.Cleanup(func() { tpm.Close() })
	states, err := state.Open(filepath.Join(s.Dir, "state"))
	must(s.T, err)
	s.T.Cleanup(func() { states.Close() })
	s.Node, err = node.Load(s.T.Context(), tpm, states)
	must(s.T, err)
	return states
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Serve has serve answer on the agent socket until the test or Stop ends it.
func (s *Stack) Serve(serve func(context.Context, *net.UnixListener) error) {
	s.T.Helper()
	l, err := gate.ListenAt(s.Socket, 0o666)
	must(s.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l) }()
	s.Stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.T.Errorf("Serve: %v", err)
		}
		done <- nil // again is no error
	}
	s.T.Cleanup(func() { s.Stop() })
}

// SetEntries puts entries in force, as a reload does.
func (s *Stack) SetEntries(entries string) {
	s.T.Helper()
	must(s.T, os.MkdirAll(s.entries, 0o755))
	must(s.T, os.WriteFile(filepath.Join(s.entries, "test.yaml"), []byte("entries:\n"+entries), 0o644))
	es, err := identity.LoadEntries(s.entries, domain, identity.Limits{MaxX509TTL: 2 * time.Hour})
	must(s.T, err)
	s.Gate.SetEntries(es)
}

// Entry is one that the user's processes match.
func Entry(path string, uid int) string {
	return fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org%s\", selectors: [\"unix:uid:%d\"]}\n", path, uid)
}

// Records returns the log's records of an event so far.
func (s *Stack) Records(event audit.Event) []audit.Leaf {
	s.T.Helper()
	var found []audit.Leaf
	for e, err := range reader.Records(context.Background(), os.DirFS(filepath.Join(s.Dir, "log")), 0) {
		must(s.T, err)
		if e.Leaf.Event == event {
			found = append(found, e.Leaf)
		}
	}
	return found
}

// Dial connects to the agent socket as this process.
func (s *Stack) Dial() *grpc.ClientConn {
	s.T.Helper()
	cc, err := grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(s.T, err)
	s.T.Cleanup(func() { cc.Close() })
	return cc
}

// WithHeader adds the security header to what is called with the context.
func WithHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// Main runs the tests or, where the test binary was called as a helper, the
// helper: a program that a test starts as another process.
func Main(m *testing.M, helpers map[string]func(args []string) error) {
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

// Helper returns the test binary as a helper.
func Helper(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), exe, append([]string{"helper:" + name}, args...)...)
	cmd.Stderr = t.Output()
	return cmd
}
