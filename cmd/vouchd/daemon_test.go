package main

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

// followSocket makes a process of the test program one that follows its
// identities on that socket.
const followSocket = "TEST_FOLLOW_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(followSocket); socket != "" {
		if err := follow(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if socket := os.Getenv(leasetest.LeaseSocket); socket != "" {
		if err := leasetest.AgentLeases(socket, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if socket := os.Getenv(copierSocket); socket != "" {
		fmt.Fprintln(os.Stderr, serveCopier(socket))
		os.Exit(1)
	}
	if socket := os.Getenv(floorSocket); socket != "" {
		fmt.Fprintln(os.Stderr, serveFloor(socket))
		os.Exit(1)
	}
	code := m.Run()
	leasetest.StopDatabase()
	daemontest.RemovePrograms()
	os.Exit(code)
}

// A host is a [leasetest.Host], with what these tests ask of one.
type host struct{ *leasetest.Host }

func newHost(t testing.TB) *host { return &host{leasetest.New(t)} }

func newLeasingHost(t testing.TB) (*host, *pgtest.Server) {
	h, pg := leasetest.NewLeasing(t)
	return &host{h}, pg
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	daemontest.Eventually(t, what, holds)
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
