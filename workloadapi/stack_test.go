package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"testing"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

func TestMain(m *testing.M) {
	gatetest.Main(m, map[string]func(args []string) error{
		"flood": helperFlood,
		"hold":  helperHold,
		"stay":  helperStay,
		"drain": helperDrain,
	})
}

// A stack serves the API.
type stack struct{ *gatetest.Stack }

// startStack serves the API to whom these entries entitle, and other fronts
// beside it.
func startStack(t testing.TB, entries string, beside ...Front) *stack {
	t.Helper()
	s := &stack{gatetest.Start(t, entries)}
	api := New(Options{Gate: s.Gate, Watcher: s.Watcher, Authority: s.Authority, Logger: s.Logger})
	s.Serve(func(ctx context.Context, l *net.UnixListener) error {
		return Serve(ctx, l, s.Gate, append(beside, api)...)
	})
	return s
}

// client is the stock client, in this process.
func (s *stack) client(ctx context.Context) *workloadapi.Client {
	s.T.Helper()
	c, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+s.Socket))
	if err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { c.Close() })
	return c
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
